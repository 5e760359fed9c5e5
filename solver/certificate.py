"""Independent recomputation of what a solution claims: objective, sizes, lower bound.

Nothing here is shared with the searches: a search that errs is found out by these functions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from solver.tablewise import exact_sum

if TYPE_CHECKING:
    from solver.problem import Problem
    from solver.reduction import Reduced

_UNIT_ROUNDOFF = 2.0**-53
_BLOCK = 4096
_EXACT_SUM = 100_000
"""Up to so many groups the minima are summed without any rounding."""

_BLOCK_ROUNDINGS = 64
"""Bound on the roundings per term of NumPy's pairwise sum of one block (128 terms in 8 lanes, then a tree)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a plan costs, recomputed from the problem's own tables.

    Attributes:
        objective: Correctly rounded sum of the chosen costs.
        size_bits: Exact sum of the chosen sizes.
        row_values: Further row -> exact whole-number value.
        violations: Names of rows and rules that the plan breaks; empty for a valid plan.
    """

    objective: float
    size_bits: int
    row_values: Mapping[str, int]
    violations: tuple[str, ...]


def evaluate(problem: "Problem", choices: NDArray[np.int64]) -> Evaluation:
    """Recompute a plan's objective and every limit in exact arithmetic.

    Args:
        problem: The problem as the user gave it (not the reduced one).
        choices: Candidate index of each unit, int64 [L].
    """
    # Read without a sign, a negative choice is larger than all counts.
    if bool((choices.view(np.uint64) >= problem.counts.view(np.uint64)).any()):
        missing = ("a candidate that does not exist",)
        return Evaluation(objective=math.inf, size_bits=0, row_values={}, violations=missing)
    # One flat index for all tables: pairs of indices take NumPy several times as long.
    at = choices + np.arange(0, problem.costs.size, problem.costs.shape[1])
    objective = exact_sum(problem.costs.take(at))
    size = int(problem.sizes.take(at).sum())
    rows = {row.name: int(row.table.take(at).sum()) for row in problem.rows}
    violations = [row.name for row in problem.rows if rows[row.name] > row.limit]
    if problem.budget_bits is not None and size > problem.budget_bits:
        violations.append("size")
    violations += _broken_rules(problem, choices)
    return Evaluation(objective=objective, size_bits=size, row_values=rows, violations=tuple(violations))


def _broken_rules(problem: "Problem", choices: NDArray[np.int64]) -> list[str]:
    """Pins, bounds, ties and width rules that a plan breaks, in words."""
    broken = []
    if problem.allowed is not None and not np.take_along_axis(problem.allowed, choices[:, None], 1).all():
        broken.append("a pin or bound")
    broken += [
        f"the tie of {problem.units[group[0]]!r}"
        for group in problem.ties
        if len({problem.label(i, int(choices[i])) for i in group}) > 1
    ]
    if problem.widths is not None and (problem.width_counts or problem.max_widths is not None):
        widths = np.take_along_axis(problem.widths, choices[:, None], 1)[:, 0]
        for rule in problem.width_counts:
            count = int((widths == rule.width).sum())
            if count < (rule.minimum or 0) or count > (
                len(choices) if rule.maximum is None else rule.maximum
            ):
                broken.append(f"the number of units at {rule.width} bits")
        if problem.max_widths is not None and len(np.unique(widths)) > problem.max_widths:
            broken.append("the number of different widths")
    return broken


MinimaSum = Callable[[NDArray[np.float64], NDArray[np.int64], float], tuple[float, float, float]]
"""Sum of the priced minima as two floats, and magnitude of their terms: `solver.kernels.certificate.sum_of_minima`."""


def lagrangian_bound(
    reduced: "Reduced",
    limits: Sequence[tuple[NDArray[np.int64], int]],
    multipliers: Sequence[float],
    sum_of_minima: MinimaSum | None = None,
) -> float:
    """Lower bound ``sum_i min_k (c_ik + sum_r m_r a_rik) - sum_r m_r b_r``, lessened by its rounding error.

    Holds for any ``m >= 0`` (weak duality), so whatever found the multipliers need not be trusted. Each term carries a
    relative error of a few unit roundoffs; sums are correctly rounded.

    Args:
        reduced: The problem without pins, bounds and ties.
        limits: The rows: whole-number table [G, K] and limit.
        multipliers: One per row, finite, >= 0; negative ones are taken as 0.
        sum_of_minima: What passes over the table of a single row; NumPy if left out.

    Source: Geoffrion 1974, "Lagrangean relaxation for integer programming"; the slack is our own forward error bound.
    """
    prices = [max(0.0, float(m)) for m in multipliers]
    priced = [(table, price) for (table, _), price in zip(limits, prices, strict=True) if price > 0.0]
    if sum_of_minima is not None and len(priced) == 1:
        high, low, magnitude = sum_of_minima(reduced.costs, *priced[0])
        sums, exact = [high, low], True
    else:
        sums, magnitude, exact = _summed_minima(reduced.costs, priced)
    products = [price * float(limit) for (_, limit), price in zip(limits, prices, strict=True)]
    bound = math.fsum(sums + [-product for product in products])
    magnitude += sum(map(abs, products))
    # Costs of tied units were summed, one rounding per member; blocks of large tables are summed pairwise.
    members = 0 if reduced.members is None else int(reduced.members.max())
    roundings = 4 * (len(prices) + 1) + members + (0 if exact else _BLOCK_ROUNDINGS)
    return bound - roundings * _UNIT_ROUNDOFF * magnitude


def _summed_minima(
    costs: NDArray[np.float64], priced: Sequence[tuple[NDArray[np.int64], float]]
) -> tuple[list[float], float, bool]:
    """Terms that sum to the sum of the minima, the magnitude of what they were computed from, and whether they are exact."""
    exact = len(costs) <= _EXACT_SUM
    sums: list[float] = []
    magnitude = 0.0
    for start in range(0, len(costs), _BLOCK):
        block = slice(start, start + _BLOCK)
        least, cancelled = _minima(costs[block], [(table[block], price) for table, price in priced])
        sums += least.tolist() if exact else [float(least.sum())]
        magnitude += float(np.abs(least).sum()) + 2.0 * cancelled
    return sums, magnitude, exact


def _minima(
    costs: NDArray[np.float64], priced: Sequence[tuple[NDArray[np.int64], float]]
) -> tuple[NDArray[np.float64], float]:
    """Least priced cost of each group, and by how much the magnitude of its terms may exceed it.

    ``|c| + sum m |a|`` exceeds ``|c + sum m a|`` only by what cancels: negative costs or negative row values.
    """
    value = costs
    cancelled = 0.0
    for table, price in priced:
        value = value + price * table
        if int(table.min()) < 0:
            cancelled += price * float(np.maximum(-table.min(axis=1), 0).sum())
    if float(costs.min()) < 0.0:
        cancelled += float(np.maximum(-costs.min(axis=1), 0.0).sum())
    # The minimum of columns laid out one after the other is several times faster than that of short rows.
    return np.asarray(np.minimum.reduce(np.ascontiguousarray(value.T), axis=0)), cancelled
