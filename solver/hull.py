"""The linear relaxation of a size-only problem: lower convex hull of each group, all edges sorted by slope.

Sources: Sinha and Zoltners 1979, "The multiple-choice knapsack problem" (only hull points matter, at most one group is
fractional). The hull is Andrew's monotone chain, run on all groups at once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Hull:
    """Every plan that is optimal for some price per bit, as a start and a sequence of single-group steps.

    Attributes:
        start: Slot of each group in the smallest plan, int64 [G]: least size, then least cost.
        group: Group that each step changes, int64 [E]; steps come in order of falling slope.
        slot: Slot the group takes by the step, int64 [E].
        slope: Cost saved per bit added, float64 [E], positive and non-increasing.
        sizes: Exact size after 0, 1, ..., E steps, int64 [E + 1], increasing.
        costs: Cost after 0, 1, ..., E steps, float64 [E + 1], decreasing; rounded sums.
    """

    start: NDArray[np.int64]
    group: NDArray[np.int64]
    slot: NDArray[np.int64]
    slope: NDArray[np.float64]
    sizes: NDArray[np.int64]
    costs: NDArray[np.float64]

    def steps_within(self, budget: int) -> int:
        """How many steps fit the budget; -1 when not even the smallest plan does."""
        return int(np.searchsorted(self.sizes, budget, side="right")) - 1

    def multiplier(self, budget: int) -> float:
        """Shadow price at the budget (cost per bit): the slope of the first step that no longer fits."""
        steps = self.steps_within(budget)
        return float(self.slope[steps]) if 0 <= steps < len(self.slope) else 0.0

    def plan(self, steps: int) -> NDArray[np.int64]:
        """Slot of each group after so many steps, int64 [G]."""
        slots = self.start.copy()
        # Steps of one group come in rising order: of several assignments the last one holds.
        slots[self.group[:steps]] = self.slot[:steps]
        return slots


def build_hull(costs: NDArray[np.float64], sizes: NDArray[np.int64]) -> Hull:
    """Hull of every group and all its edges by falling slope.

    Args:
        costs: float64 [G, K], finite.
        sizes: int64 [G, K], >= 0.
    """
    order = _by_size_then_cost(costs, sizes)
    size = np.take_along_axis(sizes, order, 1)
    cost = np.take_along_axis(costs, order, 1)
    groups, width = costs.shape
    stack = np.zeros((groups, width), np.int64)  # positions in `order` that lie on the hull so far
    height = np.ones(groups, np.int64)
    slopes = np.full((groups, width), np.inf)  # slope of the edge that leads to each stacked point
    for k in range(1, width):
        _push(k, size, cost, stack, slopes, height)
    on_hull = (np.arange(width) < height[:, None])[:, 1:]
    group, depth = np.nonzero(on_hull)
    to, back = stack[group, depth + 1], stack[group, depth]
    slope = slopes[group, depth + 1]
    by_slope = np.argsort(-slope, kind="stable")
    size_steps = (size[group, to] - size[group, back])[by_slope]
    cost_steps = (cost[group, to] - cost[group, back])[by_slope]
    group, to = group[by_slope], to[by_slope]
    return Hull(
        start=order[:, 0],
        group=group,
        slot=order[group, to],
        slope=slope[by_slope],
        sizes=np.concatenate(([0], np.cumsum(size_steps))) + int(size[:, 0].sum()),
        costs=np.concatenate(([0.0], np.cumsum(cost_steps))) + float(cost[:, 0].sum()),
    )


def _by_size_then_cost(costs: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Slots of each group by size, then cost, then index."""
    by_cost = np.argsort(costs, axis=1, kind="stable")
    by_size = np.argsort(np.take_along_axis(sizes, by_cost, 1), axis=1, kind="stable")
    return np.take_along_axis(by_cost, by_size, 1).astype(np.int64)


def _push(  # noqa: PLR0913, PLR0917 - the arrays of one algorithm
    k: int,
    size: NDArray[np.int64],
    cost: NDArray[np.float64],
    stack: NDArray[np.int64],
    slopes: NDArray[np.float64],
    height: NDArray[np.int64],
) -> None:
    """Put point k of every group on its hull where it belongs, taking off what it makes superfluous."""
    row = np.arange(len(height))
    active = row[cost[:, k] < cost[row, stack[row, height - 1]]]
    while active.size:
        top = stack[active, height[active] - 1]
        rise = cost[active, top] - cost[active, k]
        slope = rise / (size[active, k] - size[active, top])
        # Strict comparison of the stored slopes themselves: edges of one group fall strictly, rounding or not.
        pops = slope >= slopes[active, height[active] - 1]
        done = active[~pops]
        stack[done, height[done]] = k
        slopes[done, height[done]] = slope[~pops]
        height[done] += 1
        active = active[pops]
        height[active] -= 1
