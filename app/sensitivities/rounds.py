"""Which entries to measure next: those whose error could still change a plan. Pure: arrays in, entries out.

Every candidate has a cost and an error, from an estimate or from some of the samples. At a budget's plan and its price of a
bit each candidate has a reduced cost: how much worse a plan would be that took it instead. What is expected to be lost by
not taking it, because the error hides that it is better after all, is the expected improvement of Bayesian optimisation
(Mockus 1975; Jones, Schonlau and Welch 1998). While these add up to more than the tolerated share of the plan's cost, the
entries with the largest are measured, on one more block of samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver import Problem, solve

_SHARE = 0.5
"""A round leaves about this part of what is tolerated open."""
_NEAR = 0.3
"""Entries of a unit that are doubted this much, as a share of its most doubted one, are measured with it."""
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
    """

    problem: Problem
    errors: NDArray[np.float64]
    open: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """What to measure next.

    Attributes:
        cells: Pairs of unit and candidate index, the most useful first; empty when nothing more is needed.
        expected_regret: Largest expected loss over the budgets, as a share of the plan's predicted cost.
    """

    cells: tuple[tuple[int, int], ...]
    expected_regret: float


def next_round(table: Table, budgets: Sequence[int], *, regret: float, time_limit_s: float = 5.0) -> Round:
    """Choose the entries whose error matters most to the plans of these budgets.

    Args:
        table: What is known.
        budgets: Whole bits, those that some plan keeps.
        regret: Tolerated expected loss, as a share of a plan's predicted cost.
        time_limit_s: For each plan.
    """
    worst, doubts = 0.0, np.zeros(table.errors.shape)
    for budget in budgets:
        solution = solve(table.problem.with_budget(budget), time_limit_s=time_limit_s, relative_gap=1e-4)
        if solution.choice_indices is None or solution.objective is None:
            continue
        chosen = solution.choice_indices
        losses = expected_losses(table, chosen, solution.multipliers)
        scale = max(abs(solution.objective), _LEAST * float(np.abs(table.problem.costs).max()), 1e-300)
        worst = max(worst, float(losses.max(axis=1).sum()) / scale)
        doubts = np.maximum(doubts, _shared(losses, table.errors, chosen) / scale)
    if worst <= regret:
        return Round(cells=(), expected_regret=worst)
    return Round(cells=tuple(_worth_most(doubts, table.open, _SHARE * regret)), expected_regret=worst)


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
    variance = np.square(table.errors) + np.square(table.errors[at, chosen])[:, None]
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
    units = order[: int((left > rest).sum()) + 1]
    return [
        (unit, int(k))
        for unit in units.tolist()
        if per_unit[unit] > 0
        for k in np.flatnonzero(doubts[unit] >= _NEAR * per_unit[unit])
    ]
