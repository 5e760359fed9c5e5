"""Hull edges, the price at which they fill the budget, and the cheapest slots at a price."""

# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# Types are in the signatures, which numba checks; arrays are passed one by one because structures would be copied.

import math

import numpy as np
from numba import float64, int64, types

from solver.kernels.types import COSTS, HALF_INTS, INTS, REALS, SIZES, compiled


@compiled(int64(SIZES))
def smallest_total(table):
    """Sum of each row's least value."""
    total = 0
    for i in range(table.shape[0]):
        least = table[i, 0]
        for k in range(1, table.shape[1]):
            least = min(least, table[i, k])
        total += least
    return total


@compiled(types.UniTuple(int64, 2)(COSTS, SIZES, INTS, INTS, REALS, INTS, INTS, INTS))
def hull_edges(costs, sizes, rows, start, slope, step, group, slot):
    """Hull edges of some groups: slope, change of size, group (as position in ``rows``), slot; count and total size.

    ``start`` receives the slot of least size, then least cost, of each row. The buffers hold a row's K - 1 edges each.
    """
    width = costs.shape[1]
    order = np.empty(width, np.int64)
    stack = np.empty(width, np.int64)
    into = np.empty(width)
    count = 0
    total = 0
    for position in range(len(rows)):
        i = rows[position]
        for k in range(width):
            j = k
            while j > 0:
                o = order[j - 1]
                if sizes[i, o] < sizes[i, k] or (sizes[i, o] == sizes[i, k] and costs[i, o] <= costs[i, k]):
                    break
                order[j] = o
                j -= 1
            order[j] = k
        stack[0] = order[0]
        into[0] = math.inf
        height = 1
        for j in range(1, width):
            k = order[j]
            if costs[i, k] >= costs[i, stack[height - 1]]:
                continue
            while True:
                top = stack[height - 1]
                s = (costs[i, top] - costs[i, k]) / (sizes[i, k] - sizes[i, top])
                if s < into[height - 1]:
                    break
                height -= 1
            stack[height] = k
            into[height] = s
            height += 1
        start[position] = stack[0]
        total += sizes[i, stack[0]]
        for h in range(1, height):
            slope[count] = into[h]
            step[count] = sizes[i, stack[h]] - sizes[i, stack[h - 1]]
            group[count] = position
            slot[count] = stack[h]
            count += 1
    return count, total


@compiled(float64(REALS, INTS, int64))
def break_slope(slope, step, room):
    """Slope of the edge at which the steepest edges no longer fit the room; 0 when all fit. Reorders its arguments."""
    low, high = 0, len(slope)
    while low < high:
        a, b, c = slope[low], slope[(low + high) // 2], slope[high - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        # steeper | equal | unseen | flatter
        i, j, k = low, low, high
        steeper = 0
        equal = 0
        while j < k:
            if slope[j] > pivot:
                steeper += step[j]
                slope[i], slope[j] = slope[j], slope[i]
                step[i], step[j] = step[j], step[i]
                i += 1
                j += 1
            elif slope[j] < pivot:
                k -= 1
                slope[k], slope[j] = slope[j], slope[k]
                step[k], step[j] = step[j], step[k]
            else:
                equal += step[j]
                j += 1
        if steeper > room:
            high = i
        elif steeper + equal > room:
            return pivot
        else:
            room -= steeper + equal
            low = k
    return 0.0


@compiled(types.Tuple((float64, INTS, int64, INTS, INTS))(COSTS, SIZES, INTS, int64))
def relax_rows(costs, sizes, rows, room):
    """The relaxation of some groups: price, slots, slack, and the edges (position, slot) of the price itself."""
    most = len(rows) * (costs.shape[1] - 1)
    slots, slope = np.empty(len(rows), np.int64), np.empty(most)
    step, group, slot = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    count, total = hull_edges(costs, sizes, rows, slots, slope, step, group, slot)
    price = break_slope(slope[:count].copy(), step[:count].copy(), room - total)
    slack = room - total
    ties = 0
    for e in range(count):
        # Edges of one group come in rising order: of several assignments the last one holds.
        if slope[e] > price:
            slots[group[e]] = slot[e]
            slack -= step[e]
        elif slope[e] == price and price > 0.0:
            group[ties], slot[ties] = group[e], slot[e]
            ties += 1
    return price, slots, slack, group[:ties], slot[:ties]


@compiled(types.UniTuple(int64, 5)(COSTS, SIZES, INTS, float64, float64, INTS, INTS, INTS, INTS))
def narrow(costs, sizes, rows, high, low, slots, still, light, heavy):
    """Choose at a high and at a low price; the choice at the high one goes to ``slots``.

    At an infinite price the smallest slot is taken, then the cheaper. Rows that choose differently are listed in ``still``
    with both sizes in ``light`` and ``heavy``. Returns their number; the total sizes of all rows at both prices, and of
    the listed ones.
    """
    width = costs.shape[1]
    count = 0
    light_total = 0
    heavy_total = 0
    light_open = 0
    heavy_open = 0
    infinite = math.isinf(high)
    for position in range(len(rows)):
        i = rows[position]
        a = 0
        b = 0
        least_low = costs[i, 0] + low * sizes[i, 0]
        if infinite:
            for k in range(1, width):
                if sizes[i, k] < sizes[i, a] or (sizes[i, k] == sizes[i, a] and costs[i, k] < costs[i, a]):
                    a = k
                value = costs[i, k] + low * sizes[i, k]
                if value < least_low:
                    least_low = value
                    b = k
        else:
            least_high = costs[i, 0] + high * sizes[i, 0]
            for k in range(1, width):
                size = float(sizes[i, k])
                value = costs[i, k] + high * size
                if value < least_high:
                    least_high = value
                    a = k
                value = costs[i, k] + low * size
                if value < least_low:
                    least_low = value
                    b = k
        slots[i] = a
        light_total += sizes[i, a]
        heavy_total += sizes[i, b]
        if a != b:
            still[count], light[count], heavy[count] = i, sizes[i, a], sizes[i, b]
            light_open += sizes[i, a]
            heavy_open += sizes[i, b]
            count += 1
    return count, light_total, heavy_total, light_open, heavy_open


@compiled(types.Tuple((HALF_INTS, REALS))(REALS))
def by_falling(values):
    """Order of non-negative values, largest first, and the values in that order; equal values keep their order.

    A radix sort on the bits, which for non-negative floats are ordered as the values are. Places are half as wide as keys:
    what limits it is memory. Less than 2^31 values.
    """
    count = len(values)
    keys = values.copy().view(np.int64)
    order = np.arange(count).astype(np.int32)
    other_keys = np.empty(count, np.int64)
    other = np.empty(count, np.int32)
    bits = 11
    places = np.empty((1 << bits) + 1, np.int64)
    mask = (1 << bits) - 1
    for digit in range(6):
        shift = bits * digit
        places[:] = 0
        for j in range(count):
            places[mask - ((keys[j] >> shift) & mask) + 1] += 1
        if places.max() == count:
            continue
        for b in range(mask + 1):
            places[b + 1] += places[b]
        for j in range(count):
            b = mask - ((keys[j] >> shift) & mask)
            at = places[b]
            places[b] = at + 1
            other_keys[at] = keys[j]
            other[at] = order[j]
        keys, other_keys = other_keys, keys
        order, other = other, order
    return order, keys.view(np.float64)


@compiled(types.Tuple((INTS, INTS, INTS, REALS))(COSTS, SIZES, HALF_INTS, INTS, INTS, INTS, INTS))
def along_frontier(costs, sizes, order, step, group, slot, start):
    """Hull edges in the given order: group, slot, total size and cost after each; the first totals are the start's.

    ``step``, ``group`` and ``slot`` come group by group, in rising order within each. What the order then jumps to lies
    together, one line of the cache for each edge.
    """
    count = len(order)
    edges = np.empty((count, 4), np.int64)
    changes = edges.view(np.float64)
    before, last = -1, 0
    for e in range(count):
        i, k = group[e], slot[e]
        if i != before:
            before, last = i, start[i]
        edges[e, 0], edges[e, 1], edges[e, 2] = step[e], i, k
        changes[e, 3] = costs[i, k] - costs[i, last]
        last = k
    groups = np.empty(count, np.int64)
    slots = np.empty(count, np.int64)
    total = np.empty(count + 1, np.int64)
    cost = np.empty(count + 1)
    size_sum = 0
    cost_sum = 0.0
    for i in range(len(start)):
        size_sum += sizes[i, start[i]]
        cost_sum += costs[i, start[i]]
    total[0], cost[0] = size_sum, cost_sum
    lost = 0.0  # Kahan's compensation: a million steps would lose digits
    for e in range(count):
        edge = order[e]
        change = changes[edge, 3] - lost
        new = cost_sum + change
        lost = (new - cost_sum) - change
        cost_sum = new
        size_sum += edges[edge, 0]
        groups[e], slots[e] = edges[edge, 1], edges[edge, 2]
        total[e + 1], cost[e + 1] = size_sum, cost_sum
    return groups, slots, total, cost
