import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.dispatch import run_files
from app.settings import Settings
from workers.contracts import Entry

from .bench import Bench
from .theatre import Theatre

PROGRAMS = Path(__file__).parent / "programs"
sys.path.insert(0, str(PROGRAMS))  # spawned processes get this path too


def wait_until(condition, seconds=20.0):
    """Poll a condition; a bound for what hangs, not a sleep for luck."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.01)
    return value


@pytest.fixture
def make_settings(tmp_path):
    def make(**values):
        return Settings(**{"data_dir": tmp_path / "data", "tick_s": 0.02, "lease_ttl_s": 1.0} | values)

    return make


@pytest.fixture
def settings(make_settings):
    return make_settings()


@pytest.fixture
def served(make_settings, database_url):
    """Settings on a migrated, empty database: SQLite, then PostgreSQL."""
    return make_settings(database_url=database_url)


@pytest.fixture
def theatre(served):
    return Theatre(served)


@pytest.fixture
def bench(served):
    return Bench(served)


@pytest.fixture
def measuring(monkeypatch):
    """Plays `measure`: remembers the requests, and calls ``between`` before each entry."""

    class Played:
        def __init__(self):
            self.requests = []
            self.between = lambda _number: None
            self.finished = 0

        def measure(self, request) -> Iterator[Entry]:
            self.requests.append(request)
            for number, (unit, candidate) in enumerate(request.wanted):
                self.between(number)
                self.finished += 1
                yield Entry(
                    unit=unit, bits=candidate.bits, scheme=str(candidate.scheme), metric=request.metric,
                    size_bits=8, storage_bits=9, mean=0.5, standard_error=0.1, samples=8, seconds=0.01,
                )  # fmt: skip

    played = Played()
    monkeypatch.setattr("workers.sensitivity.engine.measure", played.measure)
    return played


class Programs:
    """Starts the production programs as processes of their own, and kills them in the end."""

    def __init__(self, settings):
        self.settings = settings
        self.processes = []

    def start(self, *arguments):
        environment = os.environ | {
            "BITWRIGHT_DATA_DIR": str(self.settings.data_dir),
            "PYTHONPATH": str(PROGRAMS),
        }
        command = [sys.executable, str(PROGRAMS / "engine_program.py"), *arguments]
        process = subprocess.Popen(command, env=environment)
        self.processes.append(process)
        return process

    def scheduler(self):
        run_files.remove(self.settings, "scheduler")
        process = self.start("scheduler")
        wait_until(lambda: run_files.read(self.settings, "scheduler"))
        return process

    def worker(self, name="worker"):
        return self.start("worker", "--name", name)

    def stop(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def heal(self, workers):
        """A scheduler and so many workers, alive."""
        alive = [p for p in self.processes if p.poll() is None]
        if not alive:
            self.scheduler()
        for number in range(workers - max(0, len(alive) - 1)):
            self.worker(f"w{number}")


@pytest.fixture
def programs(settings):
    programs = Programs(settings)
    yield programs
    programs.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and workers that a module's tests share."""
    programs = Programs(Settings(data_dir=tmp_path_factory.mktemp("cluster")))
    yield programs
    programs.stop()


def dask_engine(settings, function, values):
    from app.dispatch import tls
    from app.dispatch.dask_engine import DaskEngine

    return DaskEngine(
        function,
        values,
        address=lambda: run_files.scheduler_address(settings),
        security=tls.security(tls.ensure_tls(settings.resolved_tls_dir)),
    )
