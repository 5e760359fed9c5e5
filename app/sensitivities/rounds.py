"""Which entries to measure next: those whose error could still change a plan. Pure: arrays in, entries out.

Every candidate has a cost and an error, from an estimate or from some of the samples. At a budget's plan and its price of a
bit each candidate has a reduced cost: how much worse a plan would be that took it instead. What is expected to be lost by
not taking it, because the error hides that it is better after all, is the expected improvement of Bayesian optimisation
(Mockus 1975; Jones, Schonlau and Welch 1998). The entries with the largest are measured, on one more block of samples.

Whether that is needed at all is asked of the solver: costs are drawn from their errors, and the plan is compared with the
best one for each draw. Measuring ends when nine draws of ten lose no more than is tolerated. The expected improvements would
tell as well, but too much: a unit with half of the weights is better or worse at a price, and yet has nothing to trade with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solver import Problem, solve

_SHARE = 0.3
"""A round leaves about this part of what is tolerated open."""
_PART = 0.1
"""A round is about such a part of the units at least, if so many are in doubt: each begins with passes over all prefixes."""
_NEAR = 0.3
"""Entries of a unit that are doubted this much, as a share of its most doubted one, are measured with it."""
_SURE = 0.9
"""Such a part of all draws must lose no more than is tolerated."""
_DRAWS = 64
_DRAW_TIME_LIMIT_S = 0.5
_GAP = 1e-4
"""Relative gap to which plans are searched for here; for draws a tenth of what is tolerated, if that is more."""
_RACING = 0.4
"""Without estimates such a part of what is tolerated is: few samples do not show how heavy the tails of costs are."""
_LEAST = 1e-12
"""A plan counts as costing at least this share of the dearest entry: one that costs nothing has no share to tell."""
_ERFC = np.frompyfunc(math.erfc, 1, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """What is known, over units and candidates; both as the problem has them.

    Attributes:
        problem: With the costs known so far, without a budget.
        errors: float64 [L, K], one standard deviation of each cost.
        open: bool [L, K], entries that can still be measured (further).
        covariances: float64 [L, K, K], of the errors within each unit; ``None``: they are independent.
        missed: float64 [L, K], how much of a cost the samples seen may have missed, as a share of it; ``None``: there are
            estimates for all.
    """

    problem: Problem
    errors: NDArray[np.float64]
    open: NDArray[np.bool_]
    covariances: NDArray[np.float64] | None = None
    missed: NDArray[np.float64] | None = None

    def against(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Variance of the difference between each cost and that of the unit's choice, float64 [L, K]."""
        at = np.arange(len(chosen))
        variances = np.square(self.errors)
        both = variances + variances[at, chosen][:, None]
        if self.covariances is None:
            return both
        return np.asarray(np.maximum(both - 2.0 * self.covariances[at, chosen], 0.0))

    def draws(self) -> NDArray[np.float64]:
        """Costs as they may be, float64 [draws, L, K]: always the same ones for the same table."""
        length, width = self.errors.shape
        normal = np.random.default_rng(0).standard_normal((_DRAWS, length, width))
        if self.covariances is None:
            return np.asarray(self.problem.costs + normal * self.errors)
        values, vectors = np.linalg.eigh(self.covariances)
        roots = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
        return np.asarray(self.problem.costs + np.einsum("lkj,dlj->dlk", roots, normal))


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """What to measure next.

    Attributes:
        cells: Pairs of unit and candidate index, the most useful first; empty when nothing more is needed.
        likely_regret: What nine draws of ten lose at most, or all on average if that is more, as a share of the plan's
            predicted cost; of all budgets the most.
    """

    cells: tuple[tuple[int, int], ...]
    likely_regret: float


def next_round(table: Table, budgets: Sequence[int], *, regret: float, time_limit_s: float = 5.0) -> Round:
    """Choose the entries whose error matters most to the plans of these budgets.

    A plan takes what seems cheap, and so what only seems so. Where no estimates speak against it, its choices of which as much
    as is tolerated may have been missed are looked at on more samples, whatever their error seems to be.

    Args:
        table: What is known.
        budgets: Whole bits, those that some plan keeps.
        regret: Tolerated loss, as a share of a plan's predicted cost.
        time_limit_s: For each plan.
    """
    worst, doubts = 0.0, np.zeros(table.errors.shape)
    unconfirmed = np.zeros(table.errors.shape, np.bool_)
    if table.missed is not None:
        regret *= _RACING
    drawn = [replace(table.problem, costs=costs) for costs in table.draws()]
    for budget in budgets:
        solution = solve(table.problem.with_budget(budget), time_limit_s=time_limit_s, relative_gap=_GAP)
        if solution.choice_indices is None or solution.objective is None:
            continue
        chosen = solution.choice_indices
        scale = max(abs(solution.objective), _LEAST * float(np.abs(table.problem.costs).max()), 1e-300)
        at = np.arange(len(chosen))
        if table.missed is not None:
            missed = table.missed[at, chosen] * table.problem.costs[at, chosen]
            unconfirmed[at, chosen] |= missed >= regret * scale
        losses = expected_losses(table, chosen, solution.multipliers) / scale
        expected = float(losses.max(axis=1).sum())
        likely = 0.0
        if expected > 0.0:
            likely = likely_loss(drawn, budget, chosen, relative_gap=max(0.1 * regret, _GAP)) / scale
        worst = max(worst, likely)
        if likely > regret:
            # Which entries are to blame is told by the losses, how much is to be settled by the draws.
            doubts = np.maximum(doubts, likely / expected * _shared(losses, table.errors, chosen))
    cells = _worth_most(doubts, table.open, _SHARE * regret) if worst > regret else []
    others = zip(*np.nonzero(unconfirmed & table.open), strict=True)
    cells += [cell for cell in ((int(i), int(k)) for i, k in others) if cell not in set(cells)]
    return Round(cells=tuple(cells), likely_regret=worst)


def likely_loss(
    drawn: Sequence[Problem], budget: int, chosen: NDArray[np.int64], *, relative_gap: float = _GAP
) -> float:
    """What a plan loses at most in nine draws of ten against the best plan of the draw, or on average if that is more.

    Args:
        drawn: The problem with costs as they may be, without a budget.
        budget: Whole bits.
        chosen: int64 [L], the plan.
        relative_gap: To which the best plan is searched for.
    """
    at, losses = np.arange(len(chosen)), []
    for problem in drawn:
        best = solve(problem.with_budget(budget), time_limit_s=_DRAW_TIME_LIMIT_S, relative_gap=relative_gap)
        if best.objective is not None:
            losses.append(max(float(problem.costs[at, chosen].sum()) - best.objective, 0.0))
    return max(float(np.quantile(losses, _SURE)), float(np.mean(losses))) if losses else math.inf


def expected_losses(
    table: Table, chosen: NDArray[np.int64], prices: Mapping[str, float]
) -> NDArray[np.float64]:
    """What is expected to be lost by keeping a unit's choice rather than each other candidate, float64 [L, K].

    ``E[max(0, -(r + e))]`` with the reduced cost ``r`` and the normal error ``e`` of both candidates; 0 for the choice itself
    and for what pins and bounds forbid. Units that are tied move together: their reduced costs add up, and each has the
    part of the loss that its errors have of the variance.

    Args:
        table: What is known.
        chosen: int64 [L], the plan.
        prices: Cost of one bit (``size``), and of one unit of every other row, at the plan's limits.
    """
    problem = table.problem
    at = np.arange(len(chosen))
    priced = problem.costs + prices.get("size", 0.0) * problem.sizes
    for row in problem.rows:
        priced = priced + prices.get(row.name, 0.0) / row.scale * row.table
    reduced = priced - priced[at, chosen][:, None]
    variance = table.against(chosen)
    slots, group_of = _moves(problem)
    reduced, own = (np.take_along_axis(of, slots, axis=1) for of in (reduced, variance))
    joint = _grouped(own, group_of)
    losses = np.zeros_like(problem.costs)
    moved = _improvement(np.maximum(_grouped(reduced, group_of), 0.0), np.sqrt(joint))
    np.put_along_axis(losses, slots, moved * own / np.maximum(joint, 1e-300), axis=1)
    losses[at, chosen] = 0.0
    losses[np.arange(losses.shape[1]) >= problem.counts[:, None]] = 0.0
    return losses


def _moves(problem: Problem) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Candidate of each unit in each slot of its group, int64 [L, K]; the group of each unit, int64 [L]."""
    length, width = problem.costs.shape
    known = problem.reduced
    slots = np.broadcast_to(np.arange(width), (length, width)) if known.local is None else known.local
    return slots, np.arange(length) if known.group_of is None else known.group_of


def _grouped(values: NDArray[np.float64], group_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sum over each unit's group, float64 [L, K]."""
    total = np.zeros((int(group_of.max()) + 1, values.shape[1]))
    np.add.at(total, group_of, values)
    return np.asarray(total[group_of])


def _shared(
    losses: NDArray[np.float64], errors: NDArray[np.float64], chosen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Losses laid at the door of both candidates, by the variance that each brings."""
    at = np.arange(len(chosen))
    own = np.square(errors[at, chosen])[:, None]
    theirs = np.square(errors)
    part = theirs / np.maximum(theirs + own, 1e-300)
    doubts = losses * part
    doubts[at, chosen] = (losses * (1.0 - part)).max(axis=1)
    return np.asarray(doubts)


def _improvement(reduced: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """``s phi(r/s) - r Phi(-r/s)``; 0 where nothing is uncertain."""
    ratio = np.minimum(reduced / np.maximum(spread, 1e-300), 38.0)
    density = np.exp(-0.5 * ratio**2) / np.sqrt(2 * np.pi)
    tail = 0.5 * np.asarray(_ERFC(ratio / math.sqrt(2)), np.float64)
    return np.asarray(np.maximum(spread * density - reduced * tail, 0.0))


def _worth_most(
    doubts: NDArray[np.float64], can_be_measured: NDArray[np.bool_], rest: float
) -> list[tuple[int, int]]:
    """Units by falling doubt until what is left adds up to ``rest``; of each the entries that the doubt is about."""
    doubts = np.where(can_be_measured, doubts, 0.0)
    per_unit = doubts.max(axis=1)
    order = np.argsort(-per_unit, kind="stable")
    left = per_unit.sum() - np.cumsum(per_unit[order])
    units = order[: max(int((left > rest).sum()) + 1, math.ceil(_PART * len(order)))]
    return [
        (unit, int(k))
        for unit in units.tolist()
        if per_unit[unit] > 0
        for k in np.flatnonzero(doubts[unit] >= _NEAR * per_unit[unit])
    ]
