"""The scan for moves below the gap, the best pair of them, and their order by classes."""

# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# Types are in the signatures, which numba checks; arrays are passed one by one because structures would be copied.

import math

import numpy as np
from numba import boolean, float64, int64, types, void

from solver.kernels.types import COSTS, INTS, REALS, SIZES, compiled

MOVES = types.Tuple((INTS, INTS, INTS, REALS, REALS))


@compiled(types.Tuple((MOVES, int64))(INTS, INTS, INTS, REALS, REALS, float64))
def room(group, slot, size, cost, reduced, gap):
    """Full tables of moves without those that are no longer below the gap, twice as long if that leaves little; how many stay."""
    capacity = len(group)
    kept = 0
    for m in range(capacity):
        if reduced[m] < gap:
            group[kept], slot[kept], size[kept] = group[m], slot[m], size[m]
            cost[kept], reduced[kept] = cost[m], reduced[m]
            kept += 1
    if 2 * kept > capacity:
        group = np.concatenate((group, np.empty(capacity, np.int64)))
        slot = np.concatenate((slot, np.empty(capacity, np.int64)))
        size = np.concatenate((size, np.empty(capacity, np.int64)))
        cost = np.concatenate((cost, np.empty(capacity)))
        reduced = np.concatenate((reduced, np.empty(capacity)))
    return (group, slot, size, cost, reduced), kept


@compiled(
    types.Tuple((MOVES, float64, int64, int64, float64, boolean))(COSTS, SIZES, INTS, float64, int64, float64)
)
def scan(costs, sizes, slots, price, slack, best):
    """Moves below the gap; the best single move (cost, group, slot; group -1 if none); largest magnitude; soundness."""
    groups, width = costs.shape
    group = np.empty(1024, np.int64)
    slot = np.empty(1024, np.int64)
    size = np.empty(1024, np.int64)
    cost = np.empty(1024)
    reduced = np.empty(1024)
    count = 0
    best_group = -1
    best_slot = -1
    magnitude = 0.0
    sound = True
    gap = best + price * slack
    for i in range(groups):
        base = slots[i]
        base_cost = costs[i, base]
        base_size = sizes[i, base]
        scale = abs(base_cost) + price * base_size
        magnitude = max(magnitude, scale)
        hits = 0
        for k in range(width):
            r = (costs[i, k] - base_cost) + price * float(sizes[i, k] - base_size)
            hits += r < gap
        if hits < 2:  # the base itself, at 0
            continue
        for k in range(width):
            step = sizes[i, k] - base_size
            change = costs[i, k] - base_cost
            r = change + price * float(step)
            if r >= gap or step == 0:
                continue
            if r < -8.0 * 2.0**-53 * (scale + abs(change) + price * abs(step)):
                sound = False
            if step > 0 and change >= 0.0:
                continue
            if step <= slack and change < best:
                best, best_group, best_slot = change, i, k
                gap = best + price * slack
            if count == len(group):
                (group, slot, size, cost, reduced), count = room(group, slot, size, cost, reduced, gap)
            group[count], slot[count], size[count] = i, k, step
            cost[count], reduced[count] = change, max(r, 0.0)
            count += 1
    moves = (
        group[:count].copy(),
        slot[:count].copy(),
        size[:count].copy(),
        cost[:count].copy(),
        reduced[:count].copy(),
    )
    return moves, best, best_group, best_slot, magnitude, sound


@compiled(types.Tuple((float64, int64, int64))(INTS, INTS, REALS, int64, float64))
def best_pair(group, size, cost, slack, best):
    """The best two moves of different groups that fit: cost and positions, -1 when none beats ``best``."""
    count = len(size)
    order = np.argsort(size, kind="mergesort")
    where = np.empty(count, np.int64)  # position of the cheapest among the smaller ones
    for j in range(count):
        at = order[j]
        where[j] = at if j == 0 or cost[at] < cost[where[j - 1]] else where[j - 1]
    first = -1
    second = -1
    partner = count - 1
    for j in range(count):
        at = order[j]
        while partner >= 0 and size[order[partner]] > slack - size[at]:
            partner -= 1
        if partner < 0:
            break
        other = where[partner]
        if group[other] != group[at] and cost[at] + cost[other] < best:
            best, first, second = cost[at] + cost[other], at, other
    return best, first, second


@compiled(int64(int64, int64))
def gcd(a, b):
    """Greatest common divisor of magnitudes."""
    a, b = abs(a), abs(b)
    while b:
        a, b = b, a % b
    return a


@compiled(types.UniTuple(int64, 2)(INTS, INTS, INTS, REALS, REALS, int64, float64, float64))
def tighten(group, slot, size, cost, reduced, slack, price, best):
    """Drop moves at or above the gap and round the slack down to the common divisor, in turns; count and slack left."""
    count = len(group)
    while True:
        kept = 0
        divisor = 0
        gap = best + price * slack
        for m in range(count):
            if reduced[m] < gap:
                group[kept], slot[kept], size[kept] = group[m], slot[m], size[m]
                cost[kept], reduced[kept] = cost[m], reduced[m]
                kept += 1
                if divisor != 1:
                    divisor = gcd(divisor, size[m])
        count = kept
        if count == 0 or slack % divisor == 0:
            return count, slack
        slack -= slack % divisor


@compiled(
    types.Tuple((MOVES, float64, INTS, float64, boolean, int64))(
        COSTS, SIZES, INTS, float64, int64, float64, float64, float64
    )
)
def scan_and_tighten(costs, sizes, slots, price, slack, best, target, roundoff):
    """Scan, try pairs if the gap is above target and rounding, tighten.

    Returns the moves, cost and moves (group, slot, ...) of the incumbent, empty when it is the old one; rounding,
    soundness, slack.
    """
    moves, best, best_group, best_slot, magnitude, sound = scan(costs, sizes, slots, price, slack, best)
    group, slot, size, cost, reduced = moves
    incumbent = np.empty(0, np.int64)
    if best_group >= 0:
        incumbent = np.array([best_group, best_slot])
    rounding = roundoff * magnitude
    if len(group) > 0 and best + price * slack > max(target, rounding):
        best, first, second = best_pair(group, size, cost, slack, best)
        if first >= 0:
            incumbent = np.array([group[first], slot[first], group[second], slot[second]])
    count, slack = tighten(group, slot, size, cost, reduced, slack, price, best)
    moves = (group[:count], slot[:count], size[:count], cost[:count], reduced[:count])
    return moves, best, incumbent, rounding, sound, slack


@compiled(void(COSTS, SIZES, INTS, INTS, INTS, int64, int64))
def by_content(costs, sizes, group, first, order, a, b):
    """Sort ``order[a:b]``, classes of equal efficiency, by the sums of their groups' rows."""
    cost_sum = np.empty(b - a)
    size_sum = np.empty(b - a, np.int64)
    for c in range(a, b):
        i = group[first[order[c]]]
        cost_sum[c - a] = costs[i].sum()
        size_sum[c - a] = sizes[i].sum()
    part = order[a:b].copy()
    inner = np.argsort(size_sum, kind="mergesort")
    inner = inner[np.argsort(cost_sum[inner], kind="mergesort")]
    order[a:b] = part[inner]


@compiled(types.Tuple((REALS, REALS, INTS))(INTS, INTS, REALS, float64))
def bounds_from(pointer, size, reduced, price):
    """The three bounds of `Core` from each class on: on unused size, on excess size, and how much can be freed."""
    classes = len(pointer) - 1
    unused = np.empty(classes + 1)
    excess = np.empty(classes + 1)
    freeable = np.empty(classes + 1, np.int64)
    fill, free, bits = price, math.inf, 0
    for c in range(classes, -1, -1):
        if c < classes:
            most = 0
            for m in range(pointer[c], pointer[c + 1]):
                rate = reduced[m] / abs(size[m])
                if size[m] > 0:
                    fill = min(fill, rate)
                else:
                    free = min(free, rate)
                    most = max(most, -size[m])
            bits += most
        unused[c] = price - fill
        excess[c] = price + (free if free < math.inf else 0.0)
        freeable[c] = bits
    return unused, excess, freeable


CORE = types.Tuple((MOVES, INTS, REALS, REALS, INTS, float64))


@compiled(CORE(COSTS, SIZES, INTS, INTS, INTS, REALS, REALS, float64))
def by_class(costs, sizes, group, slot, size, cost, reduced, price):
    """Moves by classes in order of efficiency, class borders, the three bounds of `Core`, and the largest magnitude."""
    count = len(group)
    classes = 0
    first = np.empty(count + 1, np.int64)
    for m in range(count):
        if m == 0 or group[m] != group[m - 1]:
            first[classes] = m
            classes += 1
    first[classes] = count
    least = np.empty(classes)
    largest = 0.0
    for c in range(classes):
        value = math.inf
        for m in range(first[c], first[c + 1]):
            value = min(value, reduced[m] / abs(size[m]))
            largest = max(largest, abs(cost[m]) + price * abs(size[m]))
        least[c] = value
    order = np.argsort(least, kind="mergesort")
    a = 0
    while a < classes:  # equals by content, never by index
        b = a + 1
        while b < classes and least[order[b]] == least[order[a]]:
            b += 1
        if b > a + 1:
            by_content(costs, sizes, group, first, order, a, b)
        a = b
    new = (
        np.empty(count, np.int64),
        np.empty(count, np.int64),
        np.empty(count, np.int64),
        np.empty(count),
        np.empty(count),
    )
    pointer = np.empty(classes + 1, np.int64)
    n = 0
    for c in range(classes):
        pointer[c] = n
        for m in range(first[order[c]], first[order[c] + 1]):
            new[0][n], new[1][n], new[2][n] = group[m], slot[m], size[m]
            new[3][n], new[4][n] = cost[m], reduced[m]
            n += 1
    pointer[classes] = n
    unused, excess, freeable = bounds_from(pointer, new[2], new[4], price)
    return new, pointer, unused, excess, freeable, largest
