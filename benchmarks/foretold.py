"""Whether the time left that a job told was right.

Fed with a job's progress documents as they come; at the end of a stage every time left that was told after the stage's
first tenth is compared with what the stage then took. A stage that is entered again is another one, and so is another round
of measuring: it asks for further entries, and that plans were made in between may have been too short to be seen. One that is
over in a few seconds is not judged: nobody waits for it, and how often one looks decides what is seen of it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

FIRST_TENTH = 0.1
SHORTEST_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Error:
    """How wrong the foretold length of a stage was: largest and median over time, as a share of the length it had.

    ``silent``: for which share of the time after the first tenth nothing was told.
    """

    stage: str
    seconds: float
    told: int
    largest: float
    median: float
    silent: float = 0.0


@dataclass(kw_only=True)
class Foretold:
    """Records what a job tells of its time left, by stage.

    Args:
        clock: Seconds, monotonic.
    """

    clock: Callable[[], float] = time.monotonic
    errors: list[Error] = field(default_factory=list)
    _stage: str | None = None
    _total: int | None = None
    """Of a round's entries; of other stages ``None``."""
    _started: float = 0.0
    _told: list[tuple[float, float | None]] = field(default_factory=list)
    """Moment and foretold length of the stage; several times the same document is one."""

    def update(self, progress: Mapping[str, Any] | None) -> None:
        """Take note of a progress document; ``None`` or another stage ends the stage before."""
        now, stage = self.clock(), (progress or {}).get("stage")
        total = (progress or {}).get("total") if stage == "measure" else None
        if (stage, total) != (self._stage, self._total):
            self._close(now)
            self._stage, self._total, self._started = stage, total, now
        if progress is not None and progress["fraction"] < 1.0:
            left = progress.get("eta_seconds")
            self._told.append((now, None if left is None else now - self._started + float(left)))

    def close(self) -> list[Error]:
        """End the last stage; all errors, stage by stage."""
        self._close(self.clock())
        self._stage = None
        return self.errors

    def _close(self, now: float) -> None:
        told, self._told = self._told, []
        length = now - self._started
        if self._stage is None or length < SHORTEST_S:
            return
        begin = self._started + FIRST_TENTH * length
        # What is told stays until something else is.
        moments = [*(max(moment, begin) for moment, _ in told), now]
        lasting = [
            (stop - start, total) for (start, stop), (_, total) in zip(pairwise(moments), told, strict=True)
        ]
        known = sorted(
            (abs(total - length) / length, lasts)
            for lasts, total in lasting
            if total is not None and lasts > 0
        )
        if known:
            silent = sum(lasts for lasts, total in lasting if total is None)
            self.errors.append(
                Error(
                    stage=self._stage,
                    seconds=length,
                    told=len(known),
                    largest=known[-1][0],
                    median=_weighted_median(known),
                    silent=silent / (length - (begin - self._started)),
                )
            )


def _weighted_median(values: list[tuple[float, float]]) -> float:
    """Of ascending values with weights."""
    half = sum(weight for _, weight in values) / 2
    for value, weight in values:
        half -= weight
        if half <= 0:
            return value
    return values[-1][0]
