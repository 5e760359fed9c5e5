"""An engine of processes on this machine, for searches without a server and for tests."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from app.dispatch.engine import Phase, Report, TaskFunction, nobody_listens
from app.errors import EngineUnavailable

MAX_STILLBORN = 5
"""How many processes may die, one after the other, before they have come up."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


Prepare = Callable[[int], None]
"""Told how many threads a process computes with."""


@dataclass(frozen=True, kw_only=True)
class _Work:
    key: str
    task_id: str
    attempt: int


@dataclass(kw_only=True)
class _Slot:
    process: BaseProcess
    connection: Connection
    work: _Work | None = None
    ready: bool = False


class LocalEngine:
    """Runs tasks in ``processes`` spawned processes, one at a time in each.

    A process that dies takes only its own task with it (`Phase.LOST`), and is replaced.

    Args:
        function: Importable by name.
        settings_values: Handed to the function.
        processes: How many.
        threads: Threads of computation in each process.
        prepare: Importable by name; called in each process before its first task, with the threads: what takes time once
            is then done before anybody waits for it.
    """

    def __init__(
        self,
        function: TaskFunction,
        settings_values: dict[str, Any],
        *,
        processes: int = 1,
        threads: int = 1,
        prepare: Prepare | None = None,
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._arguments = (function, settings_values, threads, prepare)
        self._lock = threading.Lock()
        self._reports: dict[str, Report] = {}
        self._queue: deque[_Work] = deque()
        self._closed = False
        self._stillborn = 0
        self._broken = ""
        self._tell: Callable[[], None] = nobody_listens
        self._waker, self._wake = self._context.Pipe(duplex=False)
        self._slots = [self._spawn() for _ in range(processes)]
        self._thread = threading.Thread(target=self._watch, name="local-engine", daemon=True)
        self._thread.start()

    def submit(self, key: str, *, task_id: str, attempt: int, priority: int) -> None:  # noqa: ARG002
        """Start a task, or queue it behind those that run; the dispatcher orders by priority before it asks."""
        with self._lock:
            if self._closed:
                raise EngineUnavailable("the local engine is closed")
            if key in self._reports:
                return
            if self._broken:
                self._reports[key] = Report(phase=Phase.ERROR, error=self._broken)
                return
            self._reports[key] = Report(phase=Phase.RUNNING)
            self._queue.append(_Work(key=key, task_id=task_id, attempt=attempt))
            self._feed()

    def status(self, key: str) -> Report:
        """Where a key stands."""
        with self._lock:
            return self._reports.get(key, Report(phase=Phase.UNKNOWN))

    def cancel(self, key: str) -> None:
        """Take a task from the queue, or kill the process that runs it."""
        with self._lock:
            for work in [w for w in self._queue if w.key == key]:
                self._queue.remove(work)
                self._reports[key] = Report(phase=Phase.LOST)
            for slot in self._slots:
                if slot.work is not None and slot.work.key == key:
                    slot.process.kill()

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Have a function called whenever a process has ended a task, or has died."""
        self._tell = tell

    def capacity(self) -> int:
        """Number of processes. One that cannot keep any still takes tasks, so that they fail and tell why."""
        with self._lock:
            return 0 if self._closed else max(len(self._slots), 1)

    def close(self) -> None:
        """Kill the processes; finished entries are in the database, and the one in hand is not worth waiting for."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake.send(None)
        self._thread.join()
        for slot in self._slots:
            slot.process.kill()
        for slot in self._slots:
            slot.process.join()
            slot.process.close()
            slot.connection.close()
        self._waker.close()
        self._wake.close()

    @property
    def process_ids(self) -> Sequence[int]:
        """Of the processes that run now."""
        with self._lock:
            return [slot.process.pid for slot in self._slots if slot.process.pid is not None]

    def _spawn(self) -> _Slot:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        process.start()
        theirs.close()
        return _Slot(process=process, connection=ours)

    def _feed(self) -> None:
        """Hand queued work to idle processes. The lock is held."""
        for slot in self._slots:
            if slot.ready and slot.work is None and self._queue:
                work = self._queue.popleft()
                slot.work = work
                try:
                    slot.connection.send((work.task_id, work.attempt))
                except OSError:  # it has just died; its end is seen by the watcher
                    continue

    def _watch(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                slots = {slot.connection: slot for slot in self._slots}
            ready = wait([self._waker, *slots])
            with self._lock:
                for connection in ready:
                    if isinstance(connection, Connection) and connection in slots:
                        self._receive(slots[connection])
                if not self._closed:
                    self._feed()
            self._tell()

    def _receive(self, slot: _Slot) -> None:
        """Take a result, or replace a process that died. The lock is held."""
        try:
            error = slot.connection.recv()
        except (EOFError, OSError):
            if not self._closed:
                self._replace(slot)
            return
        self._stillborn = 0
        if slot.work is None:  # the greeting of a process that has come up
            slot.ready = True
            return
        phase = Phase.FINISHED if error is None else Phase.ERROR
        self._reports[slot.work.key] = Report(phase=phase, error=error or "")
        slot.work = None

    def _replace(self, slot: _Slot) -> None:
        """Start a new process for one that died, unless they die before they come up. The lock is held."""
        slot.connection.close()
        slot.process.join()
        code = slot.process.exitcode
        slot.process.close()
        self._slots.remove(slot)
        if slot.work is not None:
            self._reports[slot.work.key] = Report(phase=Phase.LOST)
        if not slot.ready:
            self._stillborn += 1
        if self._stillborn < MAX_STILLBORN:
            self._slots.append(self._spawn())
            return
        self._broken = f"worker processes end with code {code} before they are up; see their error output"
        for work in self._queue:
            self._reports[work.key] = Report(phase=Phase.ERROR, error=self._broken)
        self._queue.clear()


def _serve(
    connection: Connection,
    function: TaskFunction,
    settings_values: dict[str, Any],
    threads: int,
    prepare: Prepare | None,
) -> None:
    """What a process does: run what it is sent, one after the other, for as long as its parent lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for variable in THREAD_VARIABLES:  # before torch is imported
        os.environ[variable] = str(threads)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    connection.send(None)
    if prepare is not None:
        with suppress(Exception):  # if something is missing, the task that needs it says so
            prepare(threads)
    while True:
        try:
            task_id, attempt = connection.recv()
        except EOFError:
            return
        error = None
        try:
            function(settings_values, task_id, attempt)
        except Exception as problem:  # noqa: BLE001 - told to the dispatcher, which decides
            error = f"{type(problem).__name__}: {problem}"
        connection.send(error)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
