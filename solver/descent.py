"""Better plans under interactions: exchange one unit's candidate, else two units', while that lowers the cost."""

import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solver.interactions import Interactions
from solver.reduction import ReducedRow

_PAIRED = 240
"""Moves that are tried in pairs: those that cost least one by one."""


class Descent:
    """Exchange under interactions and any number of rows.

    Args:
        additive: float64 [G, K]: costs with each candidate's interaction with itself.
        matrix: Over the same groups and slots.
        rows: One or more, ``<=``.
    """

    def __init__(
        self, additive: NDArray[np.float64], matrix: Interactions, rows: Sequence[ReducedRow]
    ) -> None:
        self.additive, self.matrix = additive, matrix
        self.tables = np.stack([row.table for row in rows])
        self.limits = np.array([row.limit for row in rows])
        self.groups, self.width = additive.shape
        self.at = np.arange(self.groups)

    def down(self, slots: NDArray[np.int64], *, known: float, deadline: float) -> NDArray[np.int64]:
        """A plan that no exchange of one group or two makes cheaper; it keeps every row.

        Args:
            slots: int64 [G], a plan that keeps every row.
            known: Cost of the best plan so far: sets what counts as cheaper; infinite if there is none.
            deadline: Of `time.monotonic`.
        """
        slots = slots.copy()
        enough = -1e-12 * max(abs(known), 1e-300) if math.isfinite(known) else 0.0
        indicator = np.zeros(self.groups * self.width)
        indicator[self.at * self.width + slots] = 1.0
        pull = self.matrix.times(indicator)
        free = self.limits - self.tables[:, self.at, slots].sum(axis=1)
        while time.monotonic() < deadline:
            change, steps = self._changes(slots, pull)
            moves = self._best_moves(slots, change, steps, free, enough)
            if not moves:
                break
            for group, slot in moves:
                old, new = group * self.width + int(slots[group]), group * self.width + slot
                both = self.matrix.between(np.arange(len(pull)), np.array([new, old]))
                pull += both[:, 0] - both[:, 1]
                free -= steps[:, group, slot]
                slots[group] = slot
        return slots

    def _changes(
        self, slots: NDArray[np.int64], pull: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Change of cost, [G, K], and of what each row's sum is, [R, G, K], by moving one group to each slot."""
        # What the others' choices do to each candidate: the group's own present choice is taken out.
        own = self.matrix.within[self.at, :, slots]
        score = self.additive + 2.0 * (pull.reshape(self.groups, self.width) - own)
        change = score - score[self.at, slots][:, None]
        steps = self.tables - self.tables[:, self.at, slots][:, :, None]
        change[self.at, slots] = math.inf
        return change, steps

    def _best_moves(
        self,
        slots: NDArray[np.int64],
        change: NDArray[np.float64],
        steps: NDArray[np.int64],
        free: NDArray[np.int64],
        enough: float,
    ) -> list[tuple[int, int]]:
        """The best move that fits, or the best two; empty when neither lowers the cost."""
        single = change.copy()
        for step, room in zip(steps, free, strict=True):
            single[step > room] = math.inf
        at = int(single.argmin())
        if single.flat[at] < enough:
            return [divmod(at, self.width)]
        order = np.argsort(change, axis=None, kind="stable")[: min(_PAIRED, change.size - self.groups)]
        group, slot = order // self.width, order % self.width
        old = group * self.width + slots[group]
        gains = change[group, slot]
        crossing = (
            self.matrix.between(order, order)
            - self.matrix.between(order, old)
            - self.matrix.between(old, order)
            + self.matrix.between(old, old)
        )
        total = gains[:, None] + gains + 2.0 * crossing
        total[group[:, None] == group] = math.inf
        for step, room in zip(steps[:, group, slot], free, strict=True):
            total[step[:, None] + step > room] = math.inf
        if not total.size:
            return []
        at = int(total.argmin())
        if not total.flat[at] < enough:
            return []
        a, b = divmod(at, len(order))
        return [(int(group[a]), int(slot[a])), (int(group[b]), int(slot[b]))]
