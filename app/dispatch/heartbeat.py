"""How far a task is, told while it runs: cheap, under the claim, and without any effect on what comes of it."""

import math
import time
from collections.abc import Callable

from sqlalchemy.exc import InterfaceError, OperationalError

from app.db import Database
from app.dispatch import work
from app.dispatch.work import Claim
from app.jobs.forecast import typical_pace

EVERY_S = 1.0
"""A report is written this often at most. Begins and ends of parts always are."""
_LEAST_TIMED = 0.05
"""The speed of less of a task is not told: it may be that of anything."""
_SLICE = 0.02
"""Speeds are told apart for shares of a task of this size, or as large as what is told."""

Progress = Callable[[float, float], None]
"""Told how much is done, and of how much."""


class NotWanted(Exception):
    """A worker was told, as it reported, that it need not go on."""


class Heartbeat:
    """Writes how far a task is and when it will be done.

    The speed is that between reports of the same part: what comes before a part's first one (reading the model,
    compiling, running the float model) is done once, and says nothing about what is left. Nor does a slice of the task that is
    slow by itself: SmolLM2-135M's second feed touches 1.4 GB for the first time, and a tenth of all time went there.

    Args:
        database: Where the task is a row.
        claim: Under which it is worked on.
        clock: Seconds, monotonic.
    """

    def __init__(self, database: Database, claim: Claim, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._claim = claim
        self._clock = clock
        self._written: float | None = None
        self._last: tuple[float, float] | None = None
        self._slices: list[tuple[float, float]] = []

    def part(self, begin: float = 0.0, share: float = 1.0) -> Progress:
        """Begin a part of the task.

        Args:
            begin: Share of the task that comes before this part.
            share: Share of the task that it is.

        Returns:
            To be told how far the part is.

        Raises:
            NotWanted: By what is returned: the claim is lost, or the job has ended.
        """
        self._last = None

        def tell(done: float, total: float) -> None:
            self._tell(begin + share * done / total, edge=self._last is None or done >= total)

        return tell

    def _tell(self, fraction: float, *, edge: bool) -> None:
        now = self._clock()
        if self._last is not None:
            self._time(fraction - self._last[1], now - self._last[0])
        self._last = now, fraction
        if not edge and self._written is not None and now - self._written < EVERY_S:
            return
        self._written = now
        if not self._write(fraction):
            raise NotWanted

    def _time(self, share: float, seconds: float) -> None:
        """Add to the last slice until it is full."""
        if self._slices and self._slices[-1][0] < _SLICE:
            before = self._slices.pop()
            share, seconds = before[0] + share, before[1] + seconds
        self._slices.append((share, seconds))

    def _write(self, fraction: float) -> bool:
        timed = math.fsum(share for share, _ in self._slices)
        pace = typical_pace(self._slices) if timed >= _LEAST_TIMED else None
        try:
            with self._database.write() as session:
                return work.report(session, self._claim, fraction, pace)
        except (OperationalError, InterfaceError):
            return True  # the database is away: what comes of the task waits for it, a report need not
