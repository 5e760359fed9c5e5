import os
import resource
import subprocess
import sys

import pytest

from workers.graph.allocator import ENVIRONMENT

CODE = """
import resource, threading, torch
torch.set_num_threads(1)
{prepare}
def compute():
    x = torch.ones(16 << 20)
    for _ in range(20):  # small blocks cut into freed ones until they have found their places
        x + 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        x + 1
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
{run}
"""
KEEP = "from workers.graph.allocator import keep_freed_memory; assert keep_freed_memory()"
IN_THREAD = "t = threading.Thread(target=compute); t.start(); t.join()"
ALL_PAGES = 10 * (64 << 20) // resource.getpagesize()


def page_faults(prepare, run, environment=None):
    """Pages mapped while ten tensors of 64 MiB are computed, one after the other."""
    if environment is None:  # without what a command run earlier in this process may have left
        environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    code = CODE.format(prepare=prepare, run=run)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    return int(done.stdout)


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of the GNU C library")


def test_freed_memory_is_used_again():
    assert page_faults("", "compute()") > 0.9 * ALL_PAGES
    assert page_faults(KEEP, "compute()") < 0.3 * ALL_PAGES


def test_the_environment_serves_other_threads():
    assert page_faults("", IN_THREAD, os.environ | ENVIRONMENT) < 0.3 * ALL_PAGES


def test_torch_is_not_needed():
    code = "import sys, workers.graph.allocator as a; a.keep_freed_memory(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
