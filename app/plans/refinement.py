"""Whether a step from a plan to another one helps, on samples that the step was not made from. Pure.

A plan that was made from samples costs too little on them. So each step is made again from a part of the samples, and what it
then gains on the others is its *crossed* gain: every sample is judged by a step that has not seen it. Samples that resemble
each other often lie next to each other, or come in turn, and both would let a step see what it is judged by. So the samples
are cut both ways, into neighbours and into turns, and a step has to hold in both.

Source: Stone (1974), Cross-validatory choice and assessment of statistical predictions.
"""

from collections.abc import Callable, Mapping, Sequence
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
TRUSTS = (
    Trust(share=0.5, caution=1.0),
    Trust(share=1.0, caution=1.0),
    Trust(share=0.5, caution=0.0),
    Trust(share=1.0, caution=0.5),
    Trust(share=0.25, caution=1.0),
    Trust(share=0.5, caution=1.0, curvature=0.5),
    Trust(share=0.25, caution=1.0, curvature=0.25),
)
"""What is tried around each plan, as far as there are passes for it; of the steps that hold the best one is taken. How far the
local model may be believed differs from plan to plan, and a step costs a quarter of the probes that all of them share. Less of
its second order leads further: the best steps of transformers up to 3 bits, of a CNN at 2.25 (decision 7)."""

_TAKEN = 0.5
"""How often a step is taken around a plan, to tell how long it will go on: about every second time on the models of
`benchmarks/plan_quality.py`."""

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
class Turn:
    """What is next.

    Args:
        number: Of the next trial.
        rounds: Steps taken so far.
        tried: Numbers of the trials around the last plan.
        best: The one of them to be taken, were it the last; ``None`` if none of them holds.
        trust: How far to believe what was found; ``None`` when there is nothing more to try around this plan.
        end: Why there is nothing more to do; ``None`` if there is, or the best one is to be taken.
    """

    number: int
    rounds: int
    tried: tuple[int, ...]
    best: int | None
    trust: Trust | None
    end: End | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a step. Costs are means over all calibration samples.

    Args:
        round: How many steps had been taken before.
        share: Of the local model that was believed.
        caution: Standard errors that changes were charged.
        curvature: How much of the local model's second order was believed.
        changed: How many units the step changes.
        before: Measured cost of the plan.
        after: Measured cost of the step's plan, on the samples that it was made from.
        crossed: Mean change on samples that steps were not made from, for either way of cutting; below 0 is a gain.
        standard_errors: Of these.
        holds: Whether the step gains beyond noise on samples that it was not made from.
        accepted: Whether it was taken: the best of those that held around the same plan.
    """

    round: int
    share: float
    caution: float
    curvature: float
    changed: int
    before: float
    after: float
    crossed: tuple[float, ...]
    standard_errors: tuple[float, ...]
    holds: bool
    accepted: bool = False

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
    turn: Turn,
    changed: int,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    crossed: Sequence[NDArray[np.float64]],
) -> Outcome:
    """Whether a step holds: it costs less as measured, and gains beyond noise on samples that it was not made from.

    Args:
        turn: What was tried.
        changed: How many units it changes.
        before: ``[samples]``, costs of the plan.
        after: ``[samples]``, costs of the step's plan.
        crossed: Per way of cutting ``[samples]``, from `crossed_changes`.
    """
    assert turn.trust is not None
    means = tuple(float(each.mean()) for each in crossed)
    errors = tuple(float(each.std(ddof=1) / np.sqrt(len(each))) for each in crossed)
    beyond = all(bool(mean + STANDARD_ERRORS * error < 0) for mean, error in zip(means, errors, strict=True))
    lower = bool(after.mean() < before.mean())
    return Outcome(
        round=turn.rounds,
        share=turn.trust.share,
        caution=turn.trust.caution,
        curvature=turn.trust.curvature,
        changed=changed,
        before=float(before.mean()),
        after=float(after.mean()),
        crossed=means,
        standard_errors=errors,
        holds=changed > 0 and lower and beyond,
    )


def unchanged(turn: Turn, before: NDArray[np.float64]) -> Outcome:
    """A step that leads nowhere, or where another one around the same plan has led."""
    nothing = np.zeros(len(before))
    return judge(turn, 0, before, before, (nothing, nothing))


def next_turn(outcomes: Sequence[Mapping[str, Any]], *, rounds: int, regret: float) -> Turn:
    """What to do after what was tried.

    Args:
        outcomes: Of the trials so far, as JSON, in order.
        rounds: How many steps may be taken.
        regret: A step that gains a smaller share of the cost is the last one.
    """
    steps = [o for o in outcomes if o["accepted"]]
    taken = len(steps)
    # What earlier versions tried says neither: each step that held was taken, so that those left did not.
    tried = tuple(i for i, o in enumerate(outcomes) if o.get("round", 0) == taken)
    holding = [i for i in tried if outcomes[i].get("holds")]
    best = min(holding, key=lambda i: _sure_gain(outcomes[i]), default=None)  # of equal ones the earliest
    end = None
    if taken >= rounds:
        end = End.ROUNDS
    elif steps and steps[-1]["before"] - steps[-1]["after"] < regret * abs(steps[-1]["before"]):
        end = End.SMALL_GAIN
    elif len(tried) >= len(TRUSTS) and best is None:
        end = End.NO_GAIN
    more = end is None and len(tried) < len(TRUSTS)
    return Turn(
        number=len(outcomes),
        rounds=taken,
        tried=tried,
        best=best,
        trust=TRUSTS[len(tried)] if more else None,
        end=end,
    )


def _sure_gain(outcome: Mapping[str, Any]) -> float:
    """The worse of both ways of cutting, a standard error taken off: of several a noisy one is likely to seem the best."""
    return float(np.max(np.add(outcome["crossed"], outcome["standard_errors"])))


def passes_ahead(turn: Turn, *, rounds: int, queued: int, probing: float, measuring: float) -> float:
    """Passes that are likely to follow what is queued.

    Args:
        turn: What is next.
        rounds: How many steps may be taken.
        queued: Steps around the last plan that are queued to be measured: 0 or 1.
        probing: Passes that the probes around a plan take.
        measuring: Passes that a step takes.
    """
    here = measuring * (len(TRUSTS) - len(turn.tried) - queued)
    further, likely = 0.0, 1.0 if turn.best is not None else _TAKEN
    for _ in range(rounds - turn.rounds - 1):
        further += likely
        likely *= _TAKEN
    return here + further * (probing + measuring * len(TRUSTS))
