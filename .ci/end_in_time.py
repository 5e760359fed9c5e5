"""A pytest plugin for continuous integration: a process that does not end once its tests have is ended, with their verdict.

Where each of its threads is, is written first: what keeps it is a defect, though none that a test has found.
"""

import faulthandler
import os
import sys
import threading
import time

import pytest

SECONDS = 120


def pytest_sessionfinish(session: pytest.Session) -> None:
    """All tests have run, and all fixtures have been torn down; reports and the garbage collection of pytest are to come."""
    threading.Thread(target=_end, args=(session,), name="end", daemon=True).start()
    # Where code that never comes back to Python lets no other thread run, the verdict is lost.
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=sys.__stderr__)


def _end(session: pytest.Session) -> None:
    time.sleep(SECONDS)
    print(f"The tests have ended, but not the process, for {SECONDS} s:", file=sys.__stderr__, flush=True)
    faulthandler.dump_traceback(file=sys.__stderr__)
    sys.stdout.flush()  # what was printed of the tests
    os._exit(int(session.exitstatus))
