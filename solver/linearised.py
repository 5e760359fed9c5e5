"""Proof for small problems with interactions: the products of choices as variables of a linear integer program.

Source: Adams and Sherali 1986 (products of a group's rows with every candidate of another group: the first level of the
reformulation-linearisation technique).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pulp
from numpy.typing import NDArray

from solver.interactions import Interactions
from solver.program import OBJECTIVE_SCALE, SOLVER_TOLERANCE, run_model, scaled_row
from solver.reduction import ReducedRow


@dataclass(frozen=True, kw_only=True, eq=False)
class Proven:
    """What the program found: slots that keep every row or ``None``; a bound or ``None``; whether it is proven."""

    slots: NDArray[np.int64] | None
    lower_bound: float | None
    proven: bool


def prove(
    costs: NDArray[np.float64],
    matrix: Interactions,
    rows: Sequence[ReducedRow],
    *,
    start: NDArray[np.int64],
    deadline: float,
) -> Proven:
    """Minimise ``c'x + x'Qx`` within all rows by branch and bound over the linearised program.

    Args:
        costs: float64 [G, K].
        matrix: Q over the same groups and slots.
        rows: ``<=``, over the same groups and slots.
        start: A known plan, slots [G], which keeps every row: sets the scale, and is improved on or proven.
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
    for choices in x:
        model.addConstraint(pulp.lpSum(choices) == 1)
    everything: NDArray[np.bool_] = np.ones(costs.shape, np.bool_)
    group, slot = (part.tolist() for part in np.nonzero(everything))
    variables = [variable for choices in x for variable in choices]
    for row in rows:
        model.addConstraint(scaled_row(row, row.limit, everything, (group, slot), variables))
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
    slots = np.array([int(np.argmax([variable.varValue or 0.0 for variable in choices])) for choices in x])
    fits = all(int(row.table[np.arange(groups), slots].sum()) <= row.limit for row in rows)
    return Proven(slots=slots if fits else None, lower_bound=bound, proven=answer.proven and fits)
