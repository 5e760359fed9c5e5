"""Linear costs under all rows: the best plan of a relaxation to one row, and a bound on what every plan costs.

One row is a knapsack, solved exactly. Several are added up at prices of the Lagrangian dual (a *surrogate*): that is a
knapsack again, whose plan may break a row, and whose bound is never below the Lagrangian one at the same prices.

Source: Glover 1975, "Surrogate constraint duality in mathematical programming".
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from solver import acceleration
from solver.dual import Dual, solve_dual
from solver.knapsack import solve_knapsack
from solver.outcome import shifted
from solver.reduction import Reduced, ReducedRow
from solver.several import surrogate

_GAP = 1e-10


class LinearOracle:
    """Least linear costs over the plans of a problem, asked again and again.

    Args:
        reduced: The problem; its own costs do not matter.
        rows: One or more, ``<=``, each of which some plan keeps.
        deadline: Of `time.monotonic`.
    """

    def __init__(self, reduced: Reduced, rows: tuple[ReducedRow, ...], deadline: float) -> None:
        self.reduced, self.rows, self.deadline = reduced, rows, deadline
        self._relax_to(rows[0])

    def reprice(self, costs: NDArray[np.float64]) -> Dual:
        """Relax several rows to their sum at the best prices for these costs, float64 [G, K]; the dual tells more of them."""
        dual = solve_dual(costs, self.rows, deadline=self.deadline)
        added = surrogate(self.rows, tuple(dual.prices.tolist()))
        self._relax_to(self.rows[int(dual.prices.argmax())] if added is None else added)
        return dual

    def _relax_to(self, row: ReducedRow) -> None:
        self._table, self._limit = shifted(row)

    def least(self, costs: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
        """The best plan of the relaxation, slots int64 [G], and a bound that holds for every plan.

        Args:
            costs: float64 [G, K].
        """
        found = solve_knapsack(
            replace(self.reduced, costs=np.ascontiguousarray(costs)),
            self._table,
            self._limit,
            relative_gap=_GAP,
            deadline=self.deadline,
            engine=acceleration.engine(),
        )
        return found.slots, found.lower_bound
