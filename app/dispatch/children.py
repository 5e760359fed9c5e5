"""A supervised process: started in a group of its own, its output kept, its restarts paced."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path

LOG_BYTES, LOG_FILES = 10_000_000, 3
STABLE_S = 10.0
"""A process that lived this long is started again without delay."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 5.0

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a child runs. ``inherited``: descriptors it gets."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    inherited: tuple[int, ...] = ()


class Backoff:
    """How long to wait before a process is started again."""

    def __init__(self) -> None:
        self._quick_deaths = 0

    def after(self, lifetime_s: float) -> float:
        """Seconds to wait after a life of ``lifetime_s``: longer and longer while lives are short."""
        self._quick_deaths = 0 if lifetime_s >= STABLE_S else self._quick_deaths + 1
        if self._quick_deaths == 0:
            return 0.0
        return min(FIRST_DELAY_S * 2.0 ** (self._quick_deaths - 1), LONGEST_DELAY_S)


class Child:
    """One supervised process over its lives.

    Args:
        program: What to run.
        log_directory: Gets ``<name>.log``.
        shown: Lines of this level and above also go to standard error.
    """

    def __init__(self, program: Program, log_directory: Path, *, shown: int = logging.WARNING) -> None:
        self.program = program
        self.restarts = -1
        self.restart_at = 0.0
        self._backoff = Backoff()
        self._started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._output = _Output(program.name, log_directory, shown)

    @property
    def pid(self) -> int | None:
        """Of the current life."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begin a new life."""
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            self.program.command,
            env=dict(self.program.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=self.program.inherited,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, and a group can be killed whole
        )
        self.restarts += 1
        self._started_at = time.monotonic()
        self._output.follow(self._process)

    def ended(self) -> int | None:
        """The exit code, once, when the current life has ended; the next one may begin at ``restart_at``."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        self._kill_group()  # what it may have left behind
        self._process = None
        now = time.monotonic()
        self.restart_at = now + self._backoff.after(now - self._started_at)
        return code

    @property
    def down(self) -> bool:
        """Whether there is no current life."""
        return self._process is None

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def reap(self, timeout_s: float) -> None:
        """Wait for its end, and enforce it after ``timeout_s``."""
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._kill_group()
                self._process.wait()
            self._kill_group()
            self._process = None
        self._output.close()

    def _kill_group(self) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


class _Output:
    """Copies a child's lines to its log file, and those that matter to standard error."""

    def __init__(self, name: str, directory: Path, shown: int) -> None:
        self._name = name
        self._shown = shown
        self._file = RotatingFileHandler(
            directory / f"{name}.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8"
        )
        self._threads: list[threading.Thread] = []

    def follow(self, process: subprocess.Popen[bytes]) -> None:
        self._threads = [t for t in self._threads if t.is_alive()]
        thread = threading.Thread(target=self._copy, args=(process,), name=f"log-{self._name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        for thread in self._threads:
            thread.join(timeout=2)
        self._file.close()

    def _copy(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        level = logging.INFO
        with process.stdout as stream:
            for raw in stream:
                text = raw.decode("utf-8", "replace").rstrip()
                level = level_of(text, level)
                self._file.handle(logging.LogRecord(self._name, level, "", 0, text, None, None))
                if level >= self._shown:
                    sys.stderr.write(f"{self._name} | {text}\n")
                    sys.stderr.flush()


def level_of(text: str, before: int) -> int:
    """The level of a log line.

    Lines without one belong to the line ``before`` them (tracebacks), or are errors if they begin one.
    """
    words = text.split(maxsplit=3)
    if len(words) > 2 and words[2] in _LEVELS:
        return _LEVELS[words[2]]
    if text.startswith(("Traceback ", "Fatal ")):
        return logging.ERROR
    return before
