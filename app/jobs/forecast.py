"""How long the tasks of a stage still take, from what is done of them. Pure: no rows, no clock."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

_OWN_SHARE = 0.5
"""A part's own speed is believed as much as that of all parts once so much of the part is done."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A task of a stage, as far as time goes.

    Args:
        work: All of it, in a unit that is the same for all parts of the stage.
        left: What of the work is not done.
        running: Whether a worker has it; one with work left that does not run waits.
        timed_work: Work done between the first thing told of it and the last one.
        timed_seconds: What that took.
        ago_seconds: How long ago something was last told of it.
        pieces_left: How many pieces the work left is told in.
        begun: Whether something was told of it by the worker that has it.
        age_seconds: How long it has been running.
        expected_seconds: What is left of it in its worker's own words; ``None`` where it says nothing.
        lead_seconds: What came before the timed work, where that is what other parts have to expect, too.
    """

    work: float = 1.0
    left: float = 0.0
    running: bool = False
    timed_work: float = 0.0
    timed_seconds: float = 0.0
    ago_seconds: float = 0.0
    pieces_left: int = 1
    begun: bool = False
    age_seconds: float = 0.0
    expected_seconds: float | None = None
    lead_seconds: float | None = None


def seconds_left(parts: Sequence[Part], workers: int) -> float | None:
    """Seconds until all parts are done.

    Those that wait begin in their order, each on the first worker that is free: at the end some workers have nothing to do.

    Args:
        parts: All parts of the stage; further ones may be added as evidence of speed.
        workers: How many share what is left, 1 or more.

    Returns:
        ``None`` as long as there is no evidence of speed, unless nothing is left.
    """
    if not any(part.left > 0.0 for part in parts):
        return 0.0
    pace = _pace(parts)
    if pace is None:
        return None
    leads = [part.lead_seconds for part in parts if part.lead_seconds is not None]
    lead = median(leads) if leads else 0.0
    busy = [_running(part, pace, lead) for part in parts if part.running]
    waiting = [lead + pace * part.left for part in parts if part.left > 0.0 and not part.running]
    free = busy + [0.0] * max(workers - len(busy), 0)
    heapq.heapify(free)
    for seconds in waiting:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def typical_pace(timed: Sequence[tuple[float, float]]) -> float | None:
    """Seconds for a unit of work: the median, by work.

    What happens once (memory that is touched for the first time, another program's burst) makes a mean too long for all that
    is left. The median leaves it out, and follows once most of the work is slow. It is for pieces that are alike; of those
    that are not, as entries of early and of late layers, it leaves out what is due again.

    Args:
        timed: Work and the seconds that it took, piece by piece.

    Returns:
        The pace below and above which half of all work lies, each piece's own being half below and half above; between two
        pieces it is on the line between theirs. ``None`` if nothing was timed.
    """
    pieces = sorted((seconds / work, work) for work, seconds in timed if work > 0.0)
    if not pieces:
        return None
    paces, works = np.array(pieces).T
    return float(np.interp(works.sum() / 2, np.cumsum(works) - works / 2, paces))


def _pace(parts: Sequence[Part]) -> float | None:
    """Seconds for a unit of work; what was told of last counts four times as much as what was told of first."""
    timed = [part for part in parts if part.timed_work > 0.0]
    if not timed:
        return None
    longest = max(part.ago_seconds for part in timed)
    weights = [0.25 ** (part.ago_seconds / longest) if longest > 0.0 else 1.0 for part in timed]
    seconds = math.fsum(w * part.timed_seconds for w, part in zip(weights, timed, strict=True))
    return seconds / math.fsum(w * part.timed_work for w, part in zip(weights, timed, strict=True))


def _running(part: Part, pace: float, lead: float) -> float:
    """Seconds that a running part still takes."""
    if part.expected_seconds is not None:
        return max(part.expected_seconds, 0.0)
    if not part.begun:
        return max(lead - part.age_seconds, 0.0) + pace * part.left
    believed = _OWN_SHARE * part.work
    own = (part.timed_seconds + pace * believed) / (part.timed_work + believed)
    # Being late with the piece in hand makes the others no shorter.
    return own * part.left - min(part.ago_seconds, own * part.left / max(part.pieces_left, 1))
