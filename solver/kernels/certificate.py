"""The priced minima of every group, and their sum. Shares nothing with the searches, as the bound is to find them out."""

# ruff: noqa: ANN001, ANN201
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# Types are in the signatures, which numba checks; arrays are passed one by one because structures would be copied.

from numba import float64, types

from solver.kernels.types import COSTS, INTS, SIZES, compiled


@compiled(types.UniTuple(float64, 2)(float64, float64, float64))
def added(high, low, value):
    """A sum kept as two floats, with one more term: TwoSum (Knuth, The Art of Computer Programming, volume 2, 4.2.2)."""
    total = high + value
    part = total - high
    return total, low + ((high - (total - part)) + (value - part))


@compiled(types.UniTuple(float64, 3)(COSTS, SIZES, float64))
def sum_of_minima(costs, table, price):
    """``sum_i min_k (c_ik + m a_ik)`` in two floats, and the sum of magnitudes of the minima's terms.

    What the low part loses is below ``n^2 2^-106`` of the magnitude: nothing beside the roundings of the terms.
    """
    high = 0.0
    low = 0.0
    magnitude = 0.0
    for i in range(costs.shape[0]):
        least = costs[i, 0] + price * table[i, 0]
        cheapest = costs[i, 0]
        smallest = table[i, 0]
        for k in range(1, costs.shape[1]):
            least = min(least, costs[i, k] + price * table[i, k])
            cheapest = min(cheapest, costs[i, k])
            smallest = min(smallest, table[i, k])
        high, low = added(high, low, least)
        magnitude += abs(least)
        # The terms exceed their sum only by what cancels: negative costs and negative row values.
        if cheapest < 0.0:
            magnitude -= 2.0 * cheapest
        if smallest < 0:
            magnitude -= 2.0 * price * smallest
    return high, low, magnitude


@compiled(float64(COSTS, INTS))
def cost_of(costs, slots):
    """Sum of the chosen costs, to the last place."""
    high = 0.0
    low = 0.0
    for i in range(len(slots)):
        high, low = added(high, low, costs[i, slots[i]])
    return high + low
