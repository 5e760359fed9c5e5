"""Whether a step from a plan to another one helps, on samples that the step was not made from. Pure.

A plan that was made from samples costs too little on them. So each step is made again from a part of the samples, and what it
then gains on the others is its *crossed* gain: every sample is judged by a step that has not seen it. Samples that resemble
each other often lie next to each other, or come in turn, and both would let a step see what it is judged by. So the samples
are cut both ways, into neighbours and into turns, and a step has to hold in both.

Source: Stone (1974), Cross-validatory choice and assessment of statistical predictions.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.sensitivity.local_model import Trust

FOLDS = 4
"""Each step is made again without one quarter of the samples, in turn."""
MIN_SAMPLES = 8
"""With fewer, no step could be told from noise."""
STANDARD_ERRORS = 2.0
"""By so many of its standard errors a crossed gain has to be one."""
TRUSTS = (Trust(share=0.5, caution=1.0), Trust(share=0.25, caution=1.0))
"""What is tried around a plan, one after the other, until a step helps."""

CROSSED = tuple((way, folds) for way in range(2) for folds in ((0, 1), (2, 3)))
"""What is left out together in one part of the work: a way of cutting, and which of its folds."""

Positions = NDArray[np.int64]


class End(StrEnum):
    """Why no further step is tried."""

    ROUNDS = "rounds"
    """As many were taken as were asked for."""
    NO_GAIN = "no-gain"
    """None of those tried around the last plan held on samples that it was not made from."""
    SMALL_GAIN = "small-gain"
    """The last one gained a smaller share of the cost than is tolerated as a regret."""
    PASSES = "passes"
    """One more would take more passes than refining may."""
    MAX_PASSES = "max-passes"
    """One more would take more passes than the job may measure."""
    FEW_SAMPLES = "few-samples"
    """There are fewer samples than could tell a step from noise."""
    MANY_CANDIDATES = "many-candidates"
    """There are more candidates than can be searched with interactions."""
    FAILED = "failed"
    """The model cannot be looked around: it has no derivative there, or a search failed."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a step. Costs are means over all calibration samples.

    Args:
        share: Of the local model that was believed.
        changed: How many units the step changes.
        before: Measured cost of the plan.
        after: Measured cost of the step's plan, on the samples that it was made from.
        crossed: Mean change on samples that steps were not made from, for either way of cutting; below 0 is a gain.
        standard_errors: Of these.
        accepted: Whether the step is taken.
    """

    share: float
    changed: int
    before: float
    after: float
    crossed: tuple[float, ...]
    standard_errors: tuple[float, ...]
    accepted: bool

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"crossed": list(self.crossed), "standard_errors": list(self.standard_errors)}


def partitions(samples: int) -> tuple[tuple[Positions, ...], ...]:
    """The samples cut into folds: neighbours together, and in turn."""
    positions = np.arange(samples)
    ends = [samples * i // FOLDS for i in range(FOLDS + 1)]
    neighbours = tuple(positions[a:b] for a, b in pairwise(ends))
    turns = tuple(positions[i::FOLDS] for i in range(FOLDS))
    return neighbours, turns


def rest(fold: Positions, samples: int) -> Positions:
    """The samples that are not in a fold."""
    return np.setdiff1d(np.arange(samples), fold)


def crossed_changes(
    before: NDArray[np.float64],
    folds: Sequence[Positions],
    costs: Callable[[int], NDArray[np.float64] | None],
) -> NDArray[np.float64]:
    """Per sample the change by the step that has not seen it.

    Args:
        before: ``[samples]``, costs of the plan.
        folds: Of the samples.
        costs: Number of a fold -> costs of its samples under the step made from the others; ``None`` if that step
            changes nothing.
    """
    changes = np.zeros(len(before))
    for number, fold in enumerate(folds):
        found = costs(number)
        if found is not None:
            changes[fold] = found - before[fold]
    return changes


def judge(
    trust: Trust,
    changed: int,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    crossed: Sequence[NDArray[np.float64]],
) -> Outcome:
    """Whether to take a step: it costs less as measured, and gains beyond noise on samples that it was not made from.

    Args:
        trust: With which it was made.
        changed: How many units it changes.
        before: ``[samples]``, costs of the plan.
        after: ``[samples]``, costs of the step's plan.
        crossed: Per way of cutting ``[samples]``, from `crossed_changes`.
    """
    means = tuple(float(each.mean()) for each in crossed)
    errors = tuple(float(each.std(ddof=1) / np.sqrt(len(each))) for each in crossed)
    beyond = all(bool(mean + STANDARD_ERRORS * error < 0) for mean, error in zip(means, errors, strict=True))
    lower = bool(after.mean() < before.mean())
    return Outcome(
        share=trust.share,
        changed=changed,
        before=float(before.mean()),
        after=float(after.mean()),
        crossed=means,
        standard_errors=errors,
        accepted=changed > 0 and lower and beyond,
    )


def unchanged(trust: Trust, before: NDArray[np.float64]) -> Outcome:
    """A step that leads nowhere."""
    nothing = np.zeros(len(before))
    return judge(trust, 0, before, before, (nothing, nothing))


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What is tried next.

    Args:
        number: Of the trial.
        rounds: Steps taken so far.
        trust: How far to believe what was found; ``None`` when there is nothing more to try.
        end: Why there is not.
    """

    number: int
    rounds: int
    trust: Trust | None
    end: End | None = None


def next_turn(outcomes: Sequence[dict[str, Any]], *, rounds: int, regret: float) -> Turn:
    """What to try after what was tried.

    Args:
        outcomes: Of the trials so far, as JSON, in order.
        rounds: How many steps may be taken.
        regret: A step that gains a smaller share of the cost is the last one.
    """
    taken = sum(o["accepted"] for o in outcomes)
    since = 0
    for outcome in reversed(outcomes):
        if outcome["accepted"]:
            break
        since += 1
    last = outcomes[-1] if outcomes else None
    small = (
        last is not None
        and last["accepted"]
        and last["before"] - last["after"] < regret * abs(last["before"])
    )
    end = None
    if taken >= rounds:
        end = End.ROUNDS
    elif small:
        end = End.SMALL_GAIN
    elif since >= len(TRUSTS):
        end = End.NO_GAIN
    trust = TRUSTS[since] if end is None else None
    return Turn(number=len(outcomes), rounds=taken, trust=trust, end=end)
