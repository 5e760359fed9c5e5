"""Whether the time left that a job told was right.

Fed with a job's progress documents as they come; at the end of a stage every time left that was told after the stage's
first tenth is compared with what the stage then took.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

FIRST_TENTH = 0.1


@dataclass(frozen=True, kw_only=True)
class Error:
    """How wrong the foretold length of a stage was: largest and median, as a share of the length it had."""

    stage: str
    seconds: float
    told: int
    largest: float
    median: float


@dataclass(kw_only=True)
class Foretold:
    """Records what a job tells of its time left, by stage.

    Args:
        clock: Seconds, monotonic.
    """

    clock: Callable[[], float] = time.monotonic
    errors: list[Error] = field(default_factory=list)
    _stage: str | None = None
    _started: float = 0.0
    _told: list[tuple[float, float]] = field(default_factory=list)
    """Moment and foretold length of the stage; several times the same document is one."""

    def update(self, progress: Mapping[str, Any] | None) -> None:
        """Take note of a progress document; ``None`` or another stage ends the stage before."""
        now, stage = self.clock(), (progress or {}).get("stage")
        if stage != self._stage:
            self._close(now)
            self._stage, self._started = stage, now
        left = (progress or {}).get("eta_seconds")
        if left is not None and progress is not None and progress["fraction"] < 1.0:
            self._told.append((now, now - self._started + float(left)))

    def close(self) -> list[Error]:
        """End the last stage; all errors, stage by stage."""
        self._close(self.clock())
        self._stage = None
        return self.errors

    def _close(self, now: float) -> None:
        told, self._told = self._told, []
        length = now - self._started
        if self._stage is None or length <= 0.0:
            return
        after = [total for moment, total in told if moment - self._started >= FIRST_TENTH * length]
        if after:
            wrong = sorted(abs(total - length) / length for total in after)
            self.errors.append(
                Error(
                    stage=self._stage,
                    seconds=length,
                    told=len(after),
                    largest=wrong[-1],
                    median=wrong[len(wrong) // 2],
                )
            )
