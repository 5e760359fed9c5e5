"""Dynamic programming over the classes of a core."""

# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# Types are in the signatures, which numba checks; arrays are passed one by one because structures would be copied.

import math

import numpy as np
from numba import float64, int64, types

from solver.kernels.types import INTS, REALS, compiled

LIST = types.Tuple((INTS, REALS, INTS))
TREE = types.Tuple((INTS, INTS))
BOUNDS = types.Tuple((int64, float64, float64, int64))  # slack, unused, excess, freeable


@compiled(float64(int64, float64, int64, float64, float64, int64))
def bound_of(size, cost, slack, unused, excess, freeable):
    """Least cost of any completion of a state; infinite where none fits."""
    left = slack - size
    if left >= 0:
        return cost - unused * left
    if -left > freeable:
        return math.inf
    return cost - excess * left


@compiled(types.Tuple((float64, int64, int64))(LIST, int64, INTS, REALS, INTS, int64, int64, float64))
def complete(states, count, move_size, move_cost, by_size, first, slack, best):
    """The best state together with one move from ``first`` on: cost, state, move; -1 when none beats ``best``."""
    size = np.empty(len(by_size), np.int64)
    cost = np.empty(len(by_size))
    move = np.empty(len(by_size), np.int64)
    n = 0
    for j in range(len(by_size)):
        m = by_size[j]
        if m < first or (n > 0 and move_cost[m] >= cost[n - 1]):
            continue
        size[n], cost[n], move[n] = move_size[m], move_cost[m], m
        n += 1
    at = -1
    with_move = -1
    partner = n - 1
    for s in range(count):
        room = slack - states[0][s]
        while partner >= 0 and size[partner] > room:
            partner -= 1
        if partner < 0:
            break
        if states[1][s] + cost[partner] < best:
            best, at, with_move = states[1][s] + cost[partner], s, move[partner]
    return best, at, with_move


CODE_BITS = 16  # a state before the class, shifted, and the option taken


@compiled(LIST(int64))
def empty_list(capacity):
    """Room for so many states: size, cost, node (or code while a class is added)."""
    return np.empty(capacity, np.int64), np.empty(capacity), np.empty(capacity, np.int64)


@compiled(types.Tuple((int64, float64))(LIST, int64, int64, BOUNDS))
def cut(states, count, cap, sides):
    """Keep the states of least bound, in place; their number, and the least bound of the others."""
    size, cost, code = states
    slack, unused, excess, freeable = sides
    bounds = np.empty(count)
    for s in range(count):
        bounds[s] = bound_of(size[s], cost[s], slack, unused, excess, freeable)
    limit = np.partition(bounds, cap)[cap]
    kept = 0
    dropped = math.inf
    for s in range(count):
        if bounds[s] < limit:
            size[kept], cost[kept], code[kept] = size[s], cost[s], code[s]
            kept += 1
        else:
            dropped = min(dropped, bounds[s])
    return kept, dropped


@compiled(int64(LIST, int64, LIST, int64, float64, int64, BOUNDS, float64))
def with_move(old, count, out, step, change, option, bounds, limit):
    """The states with one move added, those whose bound is below the limit; by rising size as before.

    The bound is linear in size and cost on either side of the slack, so each side is one comparison per state.
    """
    old_size, old_cost, _ = old
    slack, unused, excess, freeable = bounds
    size, cost, code = out
    kept = 0
    fits = np.searchsorted(old_size[:count], slack - step, side="right")
    offset = change - unused * float(slack - step)
    for h in range(fits):
        size[kept] = old_size[h] + step
        cost[kept] = old_cost[h] + change
        code[kept] = (h << CODE_BITS) | option
        kept += old_cost[h] + unused * float(old_size[h]) + offset < limit
    reach = np.searchsorted(old_size[:count], slack + freeable - step, side="right")
    offset = change - excess * float(slack - step)
    for h in range(fits, reach):
        size[kept] = old_size[h] + step
        cost[kept] = old_cost[h] + change
        code[kept] = (h << CODE_BITS) | option
        kept += old_cost[h] + excess * float(old_size[h]) + offset < limit
    return kept


@compiled(int64(LIST, int64, LIST, int64, LIST))
def merge(first, a_count, second, b_count, out):
    """Two lists of states in one, by rising size and falling cost: dominated states fall out."""
    a_size, a_cost, a_code = first
    b_size, b_cost, b_code = second
    size, cost, code = out
    i, j, n = 0, 0, 0
    least = math.inf
    while i < a_count and j < b_count:
        second_is_next = b_size[j] < a_size[i] or (b_size[j] == a_size[i] and b_cost[j] < a_cost[i])
        new_cost = b_cost[j] if second_is_next else a_cost[i]
        size[n] = b_size[j] if second_is_next else a_size[i]
        cost[n] = new_cost
        code[n] = b_code[j] if second_is_next else a_code[i]
        n += new_cost < least
        least = min(least, new_cost)
        i += not second_is_next
        j += second_is_next
    while i < a_count:
        size[n], cost[n], code[n] = a_size[i], a_cost[i], a_code[i]
        n += a_cost[i] < least
        least = min(least, a_cost[i])
        i += 1
    while j < b_count:
        size[n], cost[n], code[n] = b_size[j], b_cost[j], b_code[j]
        n += b_cost[j] < least
        least = min(least, b_cost[j])
        j += 1
    return n


@compiled(types.Tuple((float64, int64, int64))(LIST, int64, INTS, REALS, int64, int64, int64, float64))
def with_one(states, count, move_size, move_cost, first, last, slack, best):
    """The best state together with one move of a class: cost, state, move; -1 when none beats ``best``."""
    at = -1
    move = -1
    for m in range(first, last):
        # States cost less the larger they are: the largest that fits with the move is the cheapest.
        h = np.searchsorted(states[0][:count], slack - move_size[m], side="right") - 1
        if h >= 0 and states[1][h] + move_cost[m] < best:
            best, at, move = states[1][h] + move_cost[m], h, m
    return best, at, move


LISTS = types.Tuple((LIST, LIST, LIST))


@compiled(
    types.Tuple((LISTS, int64, float64))(
        LIST, int64, LISTS, INTS, REALS, int64, int64, BOUNDS, float64, int64
    )
)  # fmt: skip
def with_class(states, count, lists, move_size, move_cost, first, last, bounds, limit, cap):
    """States with no move and with each of a class's, dominated ones left out; how many, and the least bound cut off.

    The first of the lists, which are as long as each other or longer, holds them in the end.
    """
    grown, more, spare = lists
    capacity = len(grown[0])
    dropped = math.inf
    grown_count = with_move(states, count, grown, 0, 0.0, 0, bounds, limit)
    for m in range(first, last):
        more_count = with_move(states, count, more, move_size[m], move_cost[m], m - first + 1, bounds, limit)
        if more_count == 0:
            continue
        if grown_count + more_count + count > capacity:
            capacity = 2 * (grown_count + more_count + count)
            spare = empty_list(capacity)
            larger = empty_list(capacity)
            for s in range(more_count):
                larger[0][s], larger[1][s], larger[2][s] = more[0][s], more[1][s], more[2][s]
            more = larger
        merged = merge(grown, grown_count, more, more_count, spare)
        grown, spare, grown_count = spare, grown, merged
        if len(spare[0]) < capacity:
            spare = empty_list(capacity)
        if grown_count > 2 * cap:
            grown_count, bound = cut(grown, grown_count, cap, bounds)
            dropped = min(dropped, bound)
    if grown_count > cap:
        grown_count, bound = cut(grown, grown_count, cap, bounds)
        dropped = min(dropped, bound)
    return (grown, more, spare), grown_count, dropped


@compiled(types.Tuple((INTS, INTS, int64))(LIST, int64, LIST, TREE, int64, int64))
def plant(grown, count, states, tree, nodes, first):
    """Write the moves that new states took into the tree, and their nodes in the place of their codes."""
    parents, moves = tree
    while nodes + count > len(parents):
        parents = np.concatenate((parents, np.empty(len(parents), np.int64)))
        moves = np.concatenate((moves, np.empty(len(moves), np.int64)))
    for s in range(count):
        option = grown[2][s] & ((1 << CODE_BITS) - 1)
        node = states[2][grown[2][s] >> CODE_BITS]
        parents[nodes], moves[nodes] = node, first + option - 1
        grown[2][s] = nodes if option > 0 else node
        nodes += option > 0
    return parents, moves, nodes


ADVANCED = types.Tuple((int64, LIST, TREE, int64, int64, float64, int64, int64, float64))


@compiled(
    ADVANCED(
        int64, LIST, TREE, int64, INTS, REALS, REALS, INTS, INTS,
        int64, float64, REALS, REALS, INTS, float64, float64, int64, int64,
    )
)  # fmt: skip
def advance(
    stage, given, tree, nodes, move_size, move_cost, move_reduced, by_size, pointer,
    slack, price, unused, excess, freeable, best, margin, cap, work,
):  # fmt: skip
    """Add classes until they are used up, no state is left, or about ``work`` states were looked at.

    Returns the next stage, states, tree of moves (parent and move by node), its size, states looked at, and the incumbent
    (cost, node, move, -1 when it is the old one) with the least bound cut off.
    """
    parents, moves = tree
    best_node = -1
    best_move = -1
    dropped = math.inf
    looked = 0
    completed = 0  # how much had been looked at when states were last completed
    classes = len(pointer) - 1
    count = len(given[0])
    capacity = max(256, 2 * count)
    states, grown = empty_list(capacity), empty_list(capacity)
    more, spare = empty_list(capacity), empty_list(capacity)
    states[0][:count], states[1][:count], states[2][:count] = given[0], given[1], given[2]
    while stage < classes and count > 0 and looked < work:
        first, last = pointer[stage], pointer[stage + 1]
        least = math.inf
        for m in range(first, last):
            least = min(least, move_reduced[m])
        stage += 1
        if least >= best - margin + price * slack:
            continue
        looked += count * (last - first + 1)
        best, at, move = with_one(states, count, move_size, move_cost, first, last, slack, best)
        if at >= 0:
            best_node, best_move = states[2][at], move
        limit = best - margin
        bounds = (slack, unused[stage], excess[stage], freeable[stage])
        lists, grown_count, bound = with_class(
            states, count, (grown, more, spare), move_size, move_cost, first, last, bounds, limit, cap
        )
        grown, more, spare = lists
        dropped = min(dropped, bound)
        capacity = len(grown[0])
        parents, moves, nodes = plant(grown, grown_count, states, (parents, moves), nodes, first)
        states, grown, count = grown, states, grown_count
        if len(grown[0]) < capacity:
            grown = empty_list(capacity)
        # Completing passes over all moves: as often as the stages' own work pays for it.
        due = (stage & (stage - 1)) == 0 or (count >= 512 and looked - completed >= 8 * len(by_size))
        if stage >= 4 and due and stage < classes:
            completed = looked
            best, at, move = complete(
                states, count, move_size, move_cost, by_size, pointer[stage], slack, best
            )
            if at >= 0:
                best_node, best_move = states[2][at], move
    left = (states[0][:count].copy(), states[1][:count].copy(), states[2][:count].copy())
    return stage, left, (parents, moves), nodes, looked, best, best_node, best_move, dropped


@compiled(LIST(INTS, REALS, INTS, REALS))
def add_choices(size, cost, steps, changes):
    """Every state with no move and with each of a group's moves, dominated ones left out: size, cost, code.

    The code is the state's position before, shifted by ``CODE_BITS``, and 0 or 1 + the move's position.
    """
    count = len(size)
    capacity = max(1, count)
    states = (size, cost, np.empty(0, np.int64))
    grown, more = empty_list(capacity), empty_list(capacity)
    endless = (2**62, 0.0, 0.0, 0)
    grown_count = with_move(states, count, grown, 0, 0.0, 0, endless, math.inf)
    for m in range(len(steps)):
        more_count = with_move(states, count, more, steps[m], changes[m], m + 1, endless, math.inf)
        out = empty_list(grown_count + more_count)
        grown_count = merge(grown, grown_count, more, more_count, out)
        grown = out
    return grown[0][:grown_count].copy(), grown[1][:grown_count].copy(), grown[2][:grown_count].copy()
