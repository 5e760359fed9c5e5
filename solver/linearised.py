"""Proof for small problems with interactions: the products of choices as variables of a linear integer program.

Source: Adams and Sherali 1986 (products of a group's rows with every candidate of another group: the first level of the
reformulation-linearisation technique).
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pulp
from numpy.typing import NDArray

from solver.interactions import Interactions
from solver.program import OBJECTIVE_SCALE, ROW_SCALE, SOLVER_TOLERANCE, run_model


@dataclass(frozen=True, kw_only=True, eq=False)
class Proven:
    """What the program found: slots within the budget or ``None``; a bound or ``None``; whether it is proven."""

    slots: NDArray[np.int64] | None
    lower_bound: float | None
    proven: bool


def prove(  # noqa: PLR0913 - one problem and how long to look
    costs: NDArray[np.float64],
    matrix: Interactions,
    sizes: NDArray[np.int64],
    budget: int,
    *,
    start: NDArray[np.int64],
    deadline: float,
) -> Proven:
    """Minimise ``c'x + x'Qx`` within the budget by branch and bound over the linearised program.

    Args:
        costs: float64 [G, K].
        matrix: Q over the same groups and slots.
        sizes: int64 [G, K].
        budget: Bits.
        start: A known plan, slots [G]: sets the scale, and is improved on or proven.
        deadline: Of `time.monotonic`.
    """
    groups, width = costs.shape
    linear = costs + matrix.diagonal
    least = linear.min(axis=1)
    known = float(linear[np.arange(groups), start].sum() - least.sum())
    reach = max(known, float(np.abs(2.0 * matrix.times(np.ones(groups * width))).max()), 1e-300)
    scale = OBJECTIVE_SCALE / reach
    model = pulp.LpProblem("interactions", pulp.LpMinimize)
    x = [[model.add_variable(f"x{i}_{k}", 0, 1, pulp.LpInteger) for k in range(width)] for i in range(groups)]
    terms = [(x[i][k], float(linear[i, k] - least[i]) * scale) for i in range(groups) for k in range(width)]
    for row in x:
        model.addConstraint(pulp.lpSum(row) == 1)
    _limit(model, x, sizes, budget)
    every = np.arange(groups * width)
    whole = matrix.between(every, every) * (2.0 * scale)
    for i, j in itertools.combinations(range(groups), 2):
        y = [[model.add_variable(f"y{i}_{k}_{j}_{m}", 0, 1) for m in range(width)] for k in range(width)]
        block = whole[i * width : (i + 1) * width, j * width : (j + 1) * width]
        terms += [(y[k][m], float(block[k, m])) for k in range(width) for m in range(width)]
        for k in range(width):
            model.addConstraint(pulp.lpSum(y[k]) - x[i][k] == 0)
            model.addConstraint(pulp.lpSum(line[k] for line in y) - x[j][k] == 0)
    model.setObjective(pulp.LpAffineExpression(terms))
    answer = run_model(model, deadline=deadline)
    offset = math.fsum(least.tolist())
    bound = None
    if answer.bound is not None:
        bound = offset + answer.bound / scale - SOLVER_TOLERANCE * (abs(answer.bound / scale) + reach)
    if not answer.found:
        return Proven(slots=None, lower_bound=bound, proven=False)
    slots = np.array([int(np.argmax([variable.varValue or 0.0 for variable in row])) for row in x])
    fits = int(sizes[np.arange(groups), slots].sum()) <= budget
    return Proven(slots=slots if fits else None, lower_bound=bound, proven=answer.proven and fits)


def _limit(model: object, x: list[list[object]], sizes: NDArray[np.int64], budget: int) -> None:
    """The budget, scaled as in `solver.program`."""
    extra = sizes - sizes.min(axis=1, keepdims=True)
    room = budget - int(sizes.min(axis=1).sum())
    divisor = max(1, int(np.gcd.reduce(extra, axis=None)))
    right = room // divisor
    scale = ROW_SCALE / right if right > 0 else 1.0
    terms = [
        (variable, float(int(extra[i, k]) // divisor) * scale)
        for i, row in enumerate(x)
        for k, variable in enumerate(row)
    ]
    model.addConstraint(pulp.LpAffineExpression(terms) <= right * scale)  # type: ignore[attr-defined]
