"""What the dispatcher asks of an engine. Values only: no engine's own objects cross this border."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

TaskFunction = Callable[[dict[str, Any], str, int], str]
"""``run(settings_values, task_id, attempt)``; importable by name, since engines send it to other processes."""


class Phase(StrEnum):
    """Where a key stands with the engine."""

    RUNNING = "running"
    """Running or queued, or there is no news because the engine cannot be asked just now."""
    FINISHED = "finished"
    """The function returned. Whether the work is done is known to the database alone."""
    ERROR = "error"
    """The function raised, or the engine gave it up."""
    LOST = "lost"
    """The process that ran it died."""
    UNKNOWN = "unknown"
    """The engine answers, and knows nothing of this key."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an engine tells of a key; ``error`` is the text of phase ERROR."""

    phase: Phase
    error: str = ""


class Engine(Protocol):
    """Runs tasks somewhere. Each call returns soon, whatever state the engine is in.

    A key is ``task/attempt`` and is never submitted twice: running work under a key that was released leads to
    deadlocks and stale answers in engines.
    """

    def submit(self, key: str, *, task_id: str, attempt: int, priority: int) -> None:
        """Start a task under a key that was never used.

        Raises:
            EngineUnavailable: The engine cannot be reached.
        """

    def status(self, key: str) -> Report:
        """Where a key stands, also when another process submitted it."""

    def cancel(self, key: str) -> None:
        """Kill the process that runs a task; nothing happens if none does.

        The last resort: a task whose row says that it is not wanted stops by itself after the entry in hand, and
        does not even begin when it is still queued.
        """

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Have a function called, from any thread, whenever a task has ended in whatever way.

        Not for every one: what other processes submitted, or what ends while the engine is away, may go by unheard.
        """

    def capacity(self) -> int:
        """How many tasks can run at the same time; 0 while the engine cannot be reached."""

    def close(self) -> None:
        """Let go of the engine."""


def nobody_listens() -> None:
    """What an engine tells that a task has ended, before anybody asked to be told."""


def engine_key(task_id: str, attempt: int) -> str:
    """The key of one attempt at a task."""
    return f"{task_id}/{attempt}"
