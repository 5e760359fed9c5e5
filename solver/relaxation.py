"""The linear relaxation of a size-only problem at one budget: best price per bit, and the plan just below the budget.

Small problems sort all hull edges. Large ones need no sort: a sample brackets the price, one pass over the table at both
ends of the bracket leaves the few groups whose choice differs, and only their hulls are built.

Sources: Dyer 1984, "An O(n) algorithm for the multiple-choice knapsack linear program", and Zemel 1984 (the price is found
by pruning, without sorting all edges); the sampled bracket in place of their medians is ours.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.hull import Hull, build_hull

SORT_ALL = 100_000
"""Tables with fewer cells are sorted outright."""

_BLOCK = 16_384
_SPREAD = 3.0
"""Standard errors of the sampled size that the bracket spans on each side; a miss costs one more pass."""

_SAMPLE = 4096
_FEW_OPEN = 4096
_MAX_PASSES = 8
NEAR = 8192
"""Groups near the price that are looked at first for an incumbent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Relaxation:
    """A plan that is cheapest at the price ``multiplier`` and fits the budget.

    Attributes:
        multiplier: Cost per bit, >= 0.
        slots: int64 [G], a minimiser of ``cost + multiplier * size`` in every group.
        slack: Bits left over, >= 0. Without slack, or at price 0, the plan is optimal.
        near: Groups whose choice is undecided close to the price, int64; ``None`` when that was not looked at.
    """

    multiplier: float
    slots: NDArray[np.int64]
    slack: int
    near: NDArray[np.int64] | None = None


def relax(
    costs: NDArray[np.float64], sizes: NDArray[np.int64], budget: int, known: Hull | None = None
) -> Relaxation:
    """Solve the relaxation; the smallest plan must fit the budget.

    Args:
        costs: float64 [G, K].
        sizes: int64 [G, K], bits.
        budget: Bits, at least the sum of each group's smallest size.
        known: The table's hull if it is known already.
    """
    if known is None and costs.size > SORT_ALL:
        return _relax_by_bracket(costs, sizes, budget)
    return at_budget(known or build_hull(costs, sizes), costs, sizes, budget)


def at_budget(hull: Hull, costs: NDArray[np.float64], sizes: NDArray[np.int64], budget: int) -> Relaxation:
    """The relaxation from a known hull."""
    steps = hull.steps_within(budget)
    slots = hull.plan(steps)
    price = hull.multiplier(budget)
    slack = budget - int(hull.sizes[steps])
    if price > 0.0:
        end = steps + int(np.searchsorted(-hull.slope[steps:], -price, side="right"))
        if end > steps + 1:
            slack = fill_ties(costs, sizes, slots, hull.group[steps:end], hull.slot[steps:end], slack)
    return Relaxation(multiplier=price, slots=slots, slack=slack)


def fill_ties(  # noqa: PLR0913, PLR0917 - the parts of one relaxation
    costs: NDArray[np.float64],
    sizes: NDArray[np.int64],
    slots: NDArray[np.int64],
    group: NDArray[np.int64],
    slot: NDArray[np.int64],
    slack: int,
) -> int:
    """Take steps of the very slope at which the budget breaks, while they fit; change ``slots``, return the slack left.

    Larger steps first, then by the group's content: never by the order in which groups were given.
    """
    step = sizes[group, slot] - sizes[group, slots[group]]
    for at in np.lexsort((costs[group].sum(axis=1), sizes[group].sum(axis=1), -step)).tolist():
        if step[at] <= slack:
            slots[group[at]] = slot[at]
            slack -= int(step[at])
        if slack == 0:
            break
    return slack


@dataclass(kw_only=True)
class _Bracket:
    """Groups whose choice is still open between two prices; in a settled group it is the same at both.

    Attributes:
        rows: The open groups.
        light: Their slots at the higher price; with the settled groups they fit the budget.
        heavy: Their slots at the lower price; these do not fit.
        room: What the settled groups leave of the budget.
    """

    rows: NDArray[np.int64]
    light: NDArray[np.int64]
    heavy: NDArray[np.int64]
    room: int

    def settle(self, sizes: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Write the light choice to ``slots`` and drop the groups that choose the same at both ends."""
        slots[self.rows] = self.light
        still = self.light != self.heavy
        self.room -= int(sizes[self.rows[~still], self.light[~still]].sum())
        self.rows, self.light, self.heavy = self.rows[still], self.light[still], self.heavy[still]

    def sample(self, sizes: NDArray[np.int64]) -> "Sample":
        """Some open groups and how much of their range the best plan uses, were they like the others."""
        low, high = sizes[self.rows, self.light], sizes[self.rows, self.heavy]
        share = (self.room - int(low.sum())) / (int(high.sum()) - int(low.sum()))
        at = sample_of(len(self.rows))
        return Sample(rows=self.rows[at], low=low[at], high=high[at], share=share)


def sample_of(count: int) -> NDArray[np.int64]:
    """Positions of a sample: random, the rows of a model being periodic, and always the same."""
    return np.random.default_rng(0).integers(0, count, min(_SAMPLE, 256 + count // 8))


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Sampled groups; sizes at both ends of the bracket, and the share of the way that the best plan goes."""

    rows: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    share: float

    @property
    def target(self) -> float:
        """Total size of the sampled groups at the best price, as far as the sample can tell."""
        return float(self.low.sum()) + self.share * float((self.high - self.low).sum())

    def margin(self, chosen: NDArray[np.int64]) -> float:
        """Error of the target: what chosen sizes stray from an equal share of every group's range, and one step."""
        stray = (chosen - self.low) - self.share * (self.high - self.low)
        return _SPREAD * float(stray.std()) * math.sqrt(len(stray)) + float((self.high - self.low).max())


def _relax_by_bracket(costs: NDArray[np.float64], sizes: NDArray[np.int64], budget: int) -> Relaxation:
    """Bracket the price, narrow the bracket on the groups it leaves open, and sort the edges of the last few."""
    light, _ = _cheapest_at(costs, sizes, math.inf)
    heavy, heavy_size = _cheapest_at(costs, sizes, 0.0)
    if heavy_size <= budget:
        return Relaxation(multiplier=0.0, slots=heavy, slack=budget - heavy_size)
    slots = np.empty(len(costs), np.int64)
    bracket = _Bracket(rows=np.arange(len(costs)), light=light, heavy=heavy, room=budget)
    bracket.settle(sizes, slots)
    for _ in range(_MAX_PASSES):
        if len(bracket.rows) <= _FEW_OPEN:
            break
        open_costs, open_sizes = costs[bracket.rows], sizes[bracket.rows]
        for price in _sampled_prices(costs, sizes, bracket):
            chosen, size = _cheapest_at(open_costs, open_sizes, price)
            if size <= bracket.room:
                bracket.light = chosen
            else:
                bracket.heavy = chosen
        bracket.settle(sizes, slots)
    inner_costs, inner_sizes = costs[bracket.rows], sizes[bracket.rows]
    inner = at_budget(build_hull(inner_costs, inner_sizes), inner_costs, inner_sizes, bracket.room)
    slots[bracket.rows] = inner.slots
    return Relaxation(multiplier=inner.multiplier, slots=slots, slack=inner.slack, near=bracket.rows[:NEAR])


def _sampled_prices(
    costs: NDArray[np.float64], sizes: NDArray[np.int64], bracket: _Bracket
) -> tuple[float, float]:
    """Prices between which the best one lies, very likely: the higher one first."""
    sample = bracket.sample(sizes)
    hull = build_hull(costs[sample.rows], sizes[sample.rows])
    steps = min(max(hull.steps_within(int(sample.target)), 0), len(hull.slope))
    margin = sample.margin(np.take_along_axis(sizes[sample.rows], hull.plan(steps)[:, None], 1)[:, 0])
    low = hull.multiplier(int(min(sample.target + margin, 2.0**62)))
    lighter = hull.steps_within(int(max(sample.target - margin, -1.0)))
    return (float(hull.slope[lighter]) if 0 <= lighter < len(hull.slope) else math.inf), low


def _cheapest_at(
    costs: NDArray[np.float64], sizes: NDArray[np.int64], price: float
) -> tuple[NDArray[np.int64], int]:
    """A minimiser of ``cost + price * size`` in every group and their exact total size; the smallest at price infinity."""
    slots = np.empty(costs.shape[0], np.int64)
    total = 0
    for start in range(0, len(slots), _BLOCK):
        block = slice(start, start + _BLOCK)
        if math.isinf(price):
            smallest = sizes[block] == sizes[block].min(axis=1, keepdims=True)
            value = np.where(smallest, costs[block], np.inf)
        else:
            value = sizes[block] * price
            value += costs[block]
        slots[block] = value.argmin(axis=1)
        total += int(np.take_along_axis(sizes[block], slots[block][:, None], 1).sum())
    return slots, total
