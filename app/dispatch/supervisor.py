"""`bitwright serve`: one scheduler, workers and API on this machine, kept running."""

import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from types import FrameType
from typing import IO

from app import migrate
from app.dispatch import parent, run_files, tls
from app.dispatch.children import Child, Program
from app.dispatch.errors import StartRefused
from app.dispatch.local_engine import THREAD_VARIABLES
from app.dispatch.logs import line
from app.dispatch.processes import GRACEFUL_STOP_S, bind, require_shared_database
from app.settings import Settings

logger = logging.getLogger(__name__)

SCHEDULER = "scheduler"
MAX_DEFAULT_WORKERS = 8
READY_TIMEOUT_S = 60.0
"""After this time without being ready, a message says where to look."""
STOP_S = GRACEFUL_STOP_S + 2.0
"""How long a process may take to end by itself."""
PREDECESSOR_S = 10.0
"""How long to wait for the processes of a supervisor that was killed; they end by themselves at once."""
_POLL_S = 0.05


def serve(
    settings: Settings, *, open_browser: bool = False, on_ready: Callable[[str], None] | None = None
) -> None:
    """Run the whole service in the foreground until SIGINT or SIGTERM.

    Args:
        settings: Everything.
        open_browser: Open the dashboard when it is ready.
        on_ready: Called once, with the URL, when the service answers; by default the URL is printed.

    Raises:
        StartRefused: Another one uses the data directory, the port is taken, or the settings cannot go together.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with lock(settings) as held, stop_on_signals() as stop:
        if settings.scheduler_address is None:
            require_shared_database(settings, "127.0.0.1")
        with bind(settings.host, settings.port) as probe:  # restarts are to find the API where it was
            settings = settings.model_copy(update={"port": probe.getsockname()[1]})
        tls.ensure_tls(settings.resolved_tls_dir)
        for name in (SCHEDULER, "api"):
            run_files.remove(settings, name)
        migrate.upgrade(settings.resolved_database_url)
        ready = _Ready(settings, on_ready or _print_url, open_browser=open_browser)
        Supervisor(settings, held.fileno()).run(stop, ready.look)


class Supervisor:
    """Keeps the service's processes running.

    Args:
        settings: Handed to the processes by their environment.
        lock_fd: Inherited by the processes, so that the data directory stays locked until the last one is gone.
    """

    def __init__(self, settings: Settings, lock_fd: int) -> None:
        self._settings = settings
        self._alive, held = os.pipe()  # children hold the reading end; ours closes when this process ends
        self._held = held
        logs = settings.data_dir / "logs"
        logs.mkdir(exist_ok=True)
        self.children = [Child(p, logs) for p in _programs(settings, (self._alive, lock_fd))]

    def run(self, stop: threading.Event, tick: Callable[[], None]) -> None:
        """Start everything, and start again whatever ends, until ``stop``; then end everything."""
        try:
            for child in self.children:
                child.start()
            while not stop.wait(_POLL_S):
                self._look_after()
                tick()
        finally:
            self._end()

    def _look_after(self) -> None:
        for child in self.children:
            code = child.ended()
            if code is not None:
                name = child.program.name
                if name == SCHEDULER:
                    run_files.remove(self._settings, name)  # workers wait for the new one's address
                delay = max(0.0, child.restart_at - time.monotonic())
                logger.warning(line("process_ended", name=name, code=code, restart_in_s=delay))
            if child.down and time.monotonic() >= child.restart_at:
                child.start()

    def _end(self) -> None:
        """Scheduler last: nobody is to complain that it is gone."""
        engine = [child for child in self.children if child.program.name == SCHEDULER]
        others = [child for child in self.children if child not in engine]
        for group in (others, engine):
            for child in group:
                child.terminate()
            deadline = time.monotonic() + STOP_S
            for child in group:
                child.reap(max(0.0, deadline - time.monotonic()))
        os.close(self._held)
        os.close(self._alive)


def _programs(settings: Settings, inherited: tuple[int, int]) -> Iterator[Program]:
    environment = os.environ | environment_of(settings) | {parent.VARIABLE: str(inherited[0])}
    environment |= dict.fromkeys(THREAD_VARIABLES, str(settings.worker_threads))

    def program(name: str, *arguments: str) -> Program:
        command = [sys.executable, "-m", "app.dispatch.processes", *arguments]
        return Program(name=name, command=command, environment=environment, inherited=inherited)

    if settings.scheduler_address is None:
        yield program(SCHEDULER, "scheduler")
    yield program("api", "api")
    for number in range(settings.workers or min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS)):
        yield program(f"worker-{number}", "worker", "--name", f"worker-{number}")


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment variables from which `Settings` reads the same settings again."""
    values = settings.model_dump(mode="json", exclude_none=True)
    return {
        f"BITWRIGHT_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }


@contextlib.contextmanager
def lock(settings: Settings) -> Iterator[IO[str]]:
    """Hold the data directory for one service.

    Raises:
        StartRefused: Another one holds it.
    """
    path = run_files.run_dir(settings) / "serve.lock"
    with path.open("a+") as stream:
        deadline = time.monotonic() + PREDECESSOR_S
        while not _try_lock(stream):
            holder = _read_pid(stream)
            if (holder is not None and _lives(holder)) or time.monotonic() > deadline:
                raise StartRefused(
                    f"the data directory {settings.data_dir} is in use by another service (process {holder}); stop it, "
                    "or choose another directory with BITWRIGHT_DATA_DIR",
                    "data_dir",
                    str(settings.data_dir),
                    "a directory that no other service uses",
                )
            time.sleep(_POLL_S)
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield stream


def _try_lock(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(stream: IO[str]) -> int | None:
    stream.seek(0)
    text = stream.read().strip()
    return int(text) if text.isdigit() else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; outside the main thread, where none arrive, an event nobody sets."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ready:
    """Looks, once in a while, whether the service answers."""

    def __init__(self, settings: Settings, on_ready: Callable[[str], None], *, open_browser: bool) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._open_browser = open_browser
        self._started_at = time.monotonic()
        self._told = False
        self._ready = False

    def look(self) -> None:
        if self._ready:
            return
        said = run_files.read(self._settings, "api")
        if said is not None and _answers(said["url"] + "/readyz"):
            self._ready = True
            self._on_ready(said["url"])
            if self._open_browser:
                webbrowser.open(said["url"])
        elif not self._told and time.monotonic() - self._started_at > READY_TIMEOUT_S:
            self._told = True
            logger.warning(line("not_ready", seconds=READY_TIMEOUT_S, see=self._settings.data_dir / "logs"))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own http URL
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _print_url(url: str) -> None:
    sys.stdout.write(f"Bitwright is ready at {url}\n")
    sys.stdout.flush()
