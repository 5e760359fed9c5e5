"""Exhaustive search over a knapsack's core, by dynamic programming with bounds. NumPy only: the reference.

Classes are added one by one in order of efficiency (an expanding core). A *state* is a set of moves in the classes seen so
far: their total size and cost. A state is dropped when another one is neither larger nor dearer, or when even the best
that the remaining classes can do with its unused (or excess) bits does not beat the incumbent. Now and then every state
is completed with the single best remaining move, which finds good incumbents early.

When few states are left and many classes, stages stop paying: the remaining moves are then tried on all states at once,
move by move instead of class by class.

Source: Pisinger 1995, "A minimal algorithm for the multiple-choice knapsack problem", EJOR 83 (dynamic programming over an
expanding core, with upper bound tests). Costs are real here; completion, the tail, and the honest bound are ours.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from solver.core import Core, running_minimum

STATE_CAPS = (4096, 1_000_000)
"""Most states kept in a stage, in successive rounds; what is cut off keeps its bound."""

MAX_NODES = 20_000_000
"""Most states remembered in a round (about 0.3 GB); the round ends there with an honest bound."""

_STATES_A_SECOND = 5_000_000
"""A stage looks at no more than so many states for each second left, as the clock is looked at between stages only."""

_LEAST_CAP = 256

_FOUR_MOVES = 1200
_FOUR_OF = 3000
"""In a core of more moves than this the few that are tried in fours are not likely to be the right ones."""

_FOUR_MOVES_S = 0.5
"""Seconds that must be left before moves are tried in fours (which takes a quarter of that)."""

_TAIL_STATES = 64
_TAIL_LIMIT = 512
_COMPLETE_ALWAYS = 512
_TAIL_CELLS = 2_000_000


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What the search found.

    Attributes:
        best: Cost of the best plan relative to the relaxation's plan, <= 0.
        moves: Its moves as (group, slot).
        open_bound: Least cost, relative to the relaxation's plan, of any plan the search did not rule out;
            infinite when it ruled out every plan cheaper than ``best`` less the target and the rounding.
        states: States looked at, for the record.
    """

    best: float
    moves: tuple[tuple[int, int], ...]
    open_bound: float
    states: int


@dataclass(kw_only=True)
class Attempt:
    """One pass over the classes under one cap."""

    core: Core
    margin: float
    deadline: float
    cap: int
    best: float
    best_node: int = -1
    best_move: int = -1
    open_bound: float = math.inf
    states: int = 0
    parents: list[NDArray[np.int64]] = field(default_factory=list)
    moves: list[NDArray[np.int64]] = field(default_factory=list)
    nodes: int = 1
    by_size: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.by_size = np.argsort(self.core.moves.size, kind="stable")

    @property
    def threshold(self) -> float:
        """States whose bound reaches this cannot contain a better plan (by more than the margin)."""
        return self.best - self.margin

    def bound(
        self, size: NDArray[np.int64], cost: NDArray[np.float64], stage: int | NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Least cost of any completion of states with classes from ``stage`` on; infinite where none fits."""
        left = self.core.slack - size
        rate = np.where(left >= 0, self.core.unused_rate[stage], self.core.excess_rate[stage])
        bounds = cost - rate * left
        bounds[-left > self.core.freeable[stage]] = math.inf
        return bounds

    def remember(self, parents: NDArray[np.int64], moves: NDArray[np.int64]) -> NDArray[np.int64]:
        """New nodes of the tree of moves; returns their numbers."""
        self.parents.append(parents)
        self.moves.append(moves)
        numbers = np.arange(self.nodes, self.nodes + len(parents))
        self.nodes += len(parents)
        return numbers

    def plan(self) -> tuple[tuple[int, int], ...]:
        """Moves of the incumbent found in this round."""
        at, node = [self.best_move], self.best_node
        parents, moves = (
            np.concatenate([np.zeros(0, np.int64), *part]) for part in (self.parents, self.moves)
        )
        while node > 0:
            at.append(int(moves[node - 1]))
            node = int(parents[node - 1])
        chosen = self.core.moves.take(np.array(at, np.int64))
        return tuple(zip(chosen.group.tolist(), chosen.slot.tolist(), strict=True))


def search(  # noqa: PLR0913 - one core and how long to look
    core: Core,
    *,
    target: float,
    step: float,
    deadline: float,
    caps: Sequence[int] = STATE_CAPS,
    run: Callable[[Attempt], None] | None = None,
) -> SearchResult:
    """Search the core until it is exhausted or the time is over.

    Args:
        core: From `solver.core.assemble`.
        target: Absolute gap (cost) at which to stop; 0 to prove the optimum.
        step: A better plan is better by at least this much (costs are multiples of it); 0 when nothing is known.
        deadline: Of `time.monotonic`; looked at in every stage.
        caps: Most states kept in a stage, in successive rounds; fewer when little time is left.
        run: What carries out a round; `run_round` if left out.
    """
    best, moves, states = core.best, core.incumbent, 0
    margin = max(target, step * (1.0 - 1e-6))
    if not len(core):
        return SearchResult(best=best, moves=moves, open_bound=math.inf, states=0)
    open_bound = math.inf
    for cap in caps:
        kept = _affordable(core, cap, deadline - time.monotonic())
        attempt = Attempt(core=core, margin=margin, deadline=deadline, cap=kept, best=best)
        (run or run_round)(attempt)
        states += attempt.states
        if attempt.best < best:
            best, moves = attempt.best, attempt.plan()
        open_bound = attempt.open_bound
        if open_bound >= best - margin:
            open_bound = math.inf
        if math.isinf(open_bound) or time.monotonic() > deadline:
            break
        if cap != caps[-1] and len(core.moves) <= _FOUR_OF and deadline - time.monotonic() > _FOUR_MOVES_S:
            best, moves = _four_moves(core, best, moves)
    return SearchResult(best=best, moves=moves, open_bound=open_bound, states=states)


def _affordable(core: Core, cap: int, seconds: float) -> int:
    """Most states to keep in a stage, such that none takes more than a part of the time left."""
    looked = _STATES_A_SECOND * seconds
    if looked >= cap * len(core.moves):
        return cap
    options = int(np.diff(core.pointer).max()) + 1
    return int(min(cap, max(_LEAST_CAP, looked / options)))


def _four_moves(
    core: Core, best: float, incumbent: tuple[tuple[int, int], ...]
) -> tuple[float, tuple[tuple[int, int], ...]]:
    """The best four moves of different groups, nearly: every pair of moves with the cheapest pair that still fits.

    For the hard cases where bounds say little and a good plan is a matter of hitting the budget to the bit.
    """
    moves = core.moves.take(np.sort(np.argsort(core.moves.reduced, kind="stable")[:_FOUR_MOVES]))
    first, second = np.triu_indices(len(moves), 1)
    keep = moves.group[first] != moves.group[second]
    keep &= moves.reduced[first] + moves.reduced[second] < best + core.price * core.slack
    first, second = first[keep], second[keep]
    if not len(first):
        return best, incumbent
    size = moves.size[first] + moves.size[second]
    order = np.argsort(size, kind="stable")
    first, second, size = first[order], second[order], size[order]
    cost = moves.cost[first] + moves.cost[second]
    cheapest, where = running_minimum(cost)
    partner = np.searchsorted(size, core.slack - size, side="right") - 1
    total = np.where(partner >= 0, cost + cheapest[np.maximum(partner, 0)], math.inf)
    for at in np.argsort(total, kind="stable")[:_FOUR_MOVES].tolist():
        if total[at] >= best:
            break
        other = int(where[partner[at]])
        chosen = moves.take(np.array([first[at], second[at], first[other], second[other]]))
        if len(set(chosen.group.tolist())) == len(chosen):
            return float(total[at]), tuple(zip(chosen.group.tolist(), chosen.slot.tolist(), strict=True))
    return best, incumbent


def run_round(attempt: Attempt) -> None:
    """All stages of a round."""
    core = attempt.core
    size, cost, node = np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64)
    try_tail = _TAIL_STATES
    for stage in range(len(core)):
        if len(size) <= _TAIL_STATES and stage >= try_tail:
            if _tail(attempt, stage, size, cost, node):
                return
            try_tail = 2 * stage
        size, cost, node = _add_class(attempt, stage, size, cost, node)
        if not len(size):
            return
        if time.monotonic() > attempt.deadline or attempt.nodes > MAX_NODES:
            give_up(attempt, size, cost, stage + 1)
            return
        due = (len(size) >= _COMPLETE_ALWAYS and stage % 8 == 7) or (stage & (stage + 1)) == 0
        if stage >= 3 and due and stage + 1 < len(core):
            _complete(attempt, stage + 1, size, cost, node)


def give_up(
    attempt: Attempt, size: NDArray[np.int64], cost: NDArray[np.float64], stage: int | NDArray[np.int64]
) -> None:
    """Leave states open: only their bounds hold."""
    if len(size):
        attempt.open_bound = min(attempt.open_bound, float(attempt.bound(size, cost, stage).min()))


States = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]


def _add_class(
    attempt: Attempt, stage: int, size: NDArray[np.int64], cost: NDArray[np.float64], node: NDArray[np.int64]
) -> States:
    """Each state with no move and with each move of the class; then bounds, dominance, the cap."""
    core = attempt.core
    first, last = int(core.pointer[stage]), int(core.pointer[stage + 1])
    if float(core.moves.reduced[first:last].min()) >= attempt.threshold + core.price * core.slack:
        return size, cost, node
    sizes = np.concatenate((size, (core.moves.size[first:last, None] + size).ravel()))
    costs = np.concatenate((cost, (core.moves.cost[first:last, None] + cost).ravel()))
    bounds = attempt.bound(sizes, costs, stage + 1)
    _offer_new(attempt, first, len(size), sizes, costs, node)
    at = np.flatnonzero(bounds < attempt.threshold)
    at = at[np.argsort(sizes[at], kind="stable")]
    at = at[_undominated(costs[at])]
    if len(at) > attempt.cap:
        at = _cut(attempt, at, bounds)
    parent, move = at % len(size), first + at // len(size) - 1
    nodes = node[parent]
    moved = move >= first
    nodes[moved] = attempt.remember(nodes[moved], move[moved])
    attempt.states += len(at)
    return sizes[at], costs[at], nodes


def _offer_new(  # noqa: PLR0913, PLR0917 - the arrays of one stage
    attempt: Attempt,
    first: int,
    before: int,
    sizes: NDArray[np.int64],
    costs: NDArray[np.float64],
    node: NDArray[np.int64],
) -> None:
    """Take the cheapest new state that fits as the incumbent if it is one."""
    fits = np.where(sizes <= attempt.core.slack, costs, math.inf)
    at = int(fits.argmin())
    if fits[at] < attempt.best and at >= before:
        attempt.best, attempt.best_node = float(fits[at]), int(node[at % before])
        attempt.best_move = first + at // before - 1


def _undominated(costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Of states by rising size: those cheaper than all smaller ones."""
    keep = np.ones(len(costs), bool)
    keep[1:] = costs[1:] < np.minimum.accumulate(costs)[:-1]
    return keep


def _cut(attempt: Attempt, at: NDArray[np.int64], bounds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Keep the states of least bound; the bound of the others stays open."""
    order = np.argpartition(bounds[at], attempt.cap)
    attempt.open_bound = min(attempt.open_bound, float(bounds[at[order[attempt.cap :]]].min()))
    return at[np.sort(order[: attempt.cap])]


def _complete(
    attempt: Attempt, stage: int, size: NDArray[np.int64], cost: NDArray[np.float64], node: NDArray[np.int64]
) -> None:
    """The best state together with one move of a later class."""
    moves = attempt.core.moves
    order = attempt.by_size[attempt.by_size >= attempt.core.pointer[stage]]
    cheapest, where = running_minimum(moves.cost[order])
    partner = np.searchsorted(moves.size[order], attempt.core.slack - size, side="right") - 1
    total = np.where(partner >= 0, cost + cheapest[np.maximum(partner, 0)], math.inf)
    at = int(total.argmin())
    if total[at] < attempt.best:
        attempt.best, attempt.best_node = float(total[at]), int(node[at])
        attempt.best_move = int(order[where[partner[at]]])


def _tail(
    attempt: Attempt, stage: int, size: NDArray[np.int64], cost: NDArray[np.float64], node: NDArray[np.int64]
) -> bool:
    """Few states, many classes: add any one later move to each state, again and again, until nothing survives.

    Without dominance the states may multiply: then ``False``, and the stages have to go on.
    """
    core = attempt.core
    class_of = np.repeat(np.arange(len(core)), np.diff(core.pointer))
    level = np.full(len(size), stage)
    while len(size):
        if time.monotonic() > attempt.deadline:
            give_up(attempt, size, cost, level)
            return True
        start = int(core.pointer[level.min()])
        if start == len(core.moves):
            return True
        if len(size) > _TAIL_LIMIT:
            return False
        chunk = max(1, _TAIL_CELLS // (len(core.moves) - start))
        parts = [slice(begin, begin + chunk) for begin in range(0, len(size), chunk)]
        grown = [_grow(attempt, class_of, start, size[p], cost[p], node[p], level[p]) for p in parts]
        size, cost, node, level = (np.concatenate(arrays) for arrays in zip(*grown, strict=True))
        attempt.states += len(size)
    return True


def _grow(  # noqa: PLR0913, PLR0917 - the arrays of one set of states
    attempt: Attempt,
    class_of: NDArray[np.int64],
    start: int,
    size: NDArray[np.int64],
    cost: NDArray[np.float64],
    node: NDArray[np.int64],
    level: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Every state with every one later move that can still lead to a better plan."""
    moves = attempt.core.moves
    sizes = size[:, None] + moves.size[start:]
    costs = cost[:, None] + moves.cost[start:]
    next_level = class_of[start:] + 1
    bounds = attempt.bound(sizes, costs, np.broadcast_to(next_level, sizes.shape))
    later = class_of[start:] >= level[:, None]
    fits = np.where(later & (sizes <= attempt.core.slack), costs, math.inf)
    at = int(fits.argmin())
    if fits.flat[at] < attempt.best:
        row, column = divmod(at, sizes.shape[1])
        attempt.best, attempt.best_node = float(fits.flat[at]), int(node[row])
        attempt.best_move = start + column
    row, column = np.nonzero(later & (bounds < attempt.threshold))
    nodes = attempt.remember(node[row], start + column)
    return sizes[row, column], costs[row, column], nodes, next_level[column]
