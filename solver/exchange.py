"""Good plans under several rows: repair what breaks a row, then improve by moving one or two groups at a time.

Heuristic throughout: it finds incumbents, claims nothing, and every plan it returns keeps all rows in whole numbers.
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solver.reduction import ReducedRow

_PAIRED = 500
"""Moves that are tried in pairs: those of least reduced cost."""


class Exchange:
    """Plans of one problem, to be repaired and improved.

    Args:
        costs: float64 [G, K].
        rows: The rows, ``<=``.
        reduced: float64 [G, K], reduced costs at good prices: where to look first.
    """

    def __init__(
        self, costs: NDArray[np.float64], rows: Sequence[ReducedRow], reduced: NDArray[np.float64]
    ) -> None:
        self.costs = costs
        self.reduced = reduced
        self.tables = np.stack([row.table for row in rows])
        self.limits = np.array([row.limit for row in rows])
        self._at = np.arange(len(costs))

    def use(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """What a plan uses of each row."""
        return np.asarray(self.tables[:, self._at, slots].sum(axis=1))

    def cost(self, slots: NDArray[np.int64]) -> float:
        """A plan's cost, as rounded."""
        return float(self.costs[self._at, slots].sum())

    def keeps(self, slots: NDArray[np.int64]) -> bool:
        """Whether a plan keeps every row."""
        return bool((self.use(slots) <= self.limits).all())

    def repair(self, slots: NDArray[np.int64], *, deadline: float) -> NDArray[np.int64] | None:
        """Move groups, cheapest per repaired excess first, until every row is kept; ``None`` when stuck."""
        slots = slots.copy()
        scale = np.maximum(np.abs(self.limits).astype(np.float64), 1.0)[:, None, None]
        for _ in range(4 * len(slots)):
            over = self.use(slots) - self.limits
            if bool((over <= 0).all()):
                return slots
            if time.monotonic() > deadline:
                return None
            steps = self.tables - self.tables[:, self._at, slots][:, :, None]
            excess = np.maximum(over[:, None, None] + steps, 0) / scale
            gain = float((np.maximum(over, 0) / scale[:, 0, 0]).sum()) - excess.sum(axis=0)
            worse = self.reduced - self.reduced[self._at, slots][:, None]
            score = np.where(
                gain > 1e-15, (worse + 1e-12 * np.abs(worse).max()) / np.maximum(gain, 1e-15), np.inf
            )
            group, slot = divmod(int(score.argmin()), slots.size and self.costs.shape[1])
            if not np.isfinite(score[group, slot]):
                return None
            slots[group] = slot
        return None

    def improve(self, slots: NDArray[np.int64], *, bound: float, deadline: float) -> NDArray[np.int64]:
        """Take the best move of one group, or of two, while that lowers the cost.

        Args:
            slots: A plan that keeps every row.
            bound: A lower bound: only moves of reduced cost below the gap can be part of a better plan.
            deadline: Of `time.monotonic`.
        """
        slots = slots.copy()
        while time.monotonic() < deadline:
            gap = self.cost(slots) - bound
            group, slot = np.nonzero(
                (self.reduced < gap) & (np.arange(self.costs.shape[1]) != slots[:, None])
            )
            if len(group) == 0:
                break
            order = np.argsort(self.reduced[group, slot], kind="stable")[: 4 * _PAIRED]
            group, slot = group[order], slot[order]
            change = self.costs[group, slot] - self.costs[group, slots[group]]
            steps = self.tables[:, group, slot] - self.tables[:, group, slots[group]]
            free = self.limits - self.use(slots)
            chosen = _best_single(change, steps, free)
            if chosen is None:
                n = _PAIRED
                chosen = _best_pair(group[:n], change[:n], steps[:, :n], free)
            if chosen is None:
                break
            slots[group[chosen]] = slot[chosen]
        return slots


def _best_single(
    change: NDArray[np.float64], steps: NDArray[np.int64], free: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    fits = np.where((steps <= free[:, None]).all(axis=0), change, np.inf)
    at = int(fits.argmin())
    return np.array([at]) if fits[at] < -1e-13 * float(np.abs(change).max()) else None


def _best_pair(
    group: NDArray[np.int64], change: NDArray[np.float64], steps: NDArray[np.int64], free: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    total = change[:, None] + change
    fits = group[:, None] != group
    for row, room in zip(steps, free, strict=True):
        fits &= row[:, None] + row <= room
    total[~fits] = np.inf
    at = int(total.argmin())
    if total.flat[at] < -1e-13 * float(np.abs(change).max()):
        return np.array(divmod(at, len(group)))
    return None
