"""What every way of solving returns, and the form in which rows are handed to a knapsack."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.reduction import ReducedRow
from solver.solution import Proof
from solver.tablewise import row_minima

VERSION = f"numpy {np.__version__}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a strategy found.

    Attributes:
        slots: int64 [G], or ``None`` without a plan.
        lower_bound: No plan costs less; minus infinity when nothing is known.
        infeasible: Proven: there is no plan.
        proven: The plan is optimal.
        proof: What the bound rests on.
        prices: One multiplier per row of the Lagrangian bound, cost per whole-number unit.
        backend: What found the plan.
        backend_version: Its version.
    """

    slots: NDArray[np.int64] | None
    lower_bound: float
    infeasible: bool = False
    proven: bool
    proof: Proof
    prices: tuple[float, ...]
    backend: str
    backend_version: str


def shifted(row: ReducedRow) -> tuple[NDArray[np.int64], int]:
    """The row without negative values: each group's least value taken off where there are any."""
    if int(row.table.min()) >= 0:
        return row.table, row.limit
    least = row_minima(row.table)
    return row.table - least[:, None], row.limit - int(least.sum())
