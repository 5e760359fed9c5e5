"""The core of a knapsack: the moves away from the relaxation's plan that a better plan could contain.

A *move* takes one group from its slot in the relaxation's plan to another one. With the price ``m`` of the relaxation a
move's reduced cost ``r = change of cost + m * change of size`` is never negative, and any plan costs the relaxation's bound
plus the reduced costs of its moves plus ``m`` times the bits it leaves unused. So a move with ``r`` at or above the gap
cannot be part of a better plan, and is dropped. What remains is small, and smaller the better the incumbent is.

Sources: Dembo and Hammer 1980 (reduction by reduced costs), Pisinger 1995, "A minimal algorithm for the multiple-choice
knapsack problem" (the core, and classes in order of efficiency). Matching moves in pairs for the first incumbent, and
rounding the slack down to the common divisor of the core's sizes, are ours.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solver.relaxation import Relaxation

_BLOCK = 16_384
ROUNDOFF = 2.0**-53


@dataclass(frozen=True, kw_only=True, eq=False)
class Moves:
    """Moves away from the relaxation's plan, in any order; one entry per move.

    Attributes:
        group: int64.
        slot: int64, the slot the group would take.
        size: int64, change of size in bits.
        cost: float64, change of cost.
        reduced: float64, reduced cost, >= 0.
    """

    group: NDArray[np.int64]
    slot: NDArray[np.int64]
    size: NDArray[np.int64]
    cost: NDArray[np.float64]
    reduced: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.group)

    def take(self, at: NDArray[np.bool_] | NDArray[np.int64]) -> "Moves":
        """Some of the moves."""
        return Moves(
            group=self.group[at],
            slot=self.slot[at],
            size=self.size[at],
            cost=self.cost[at],
            reduced=self.reduced[at],
        )


Incumbent = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What one pass over the table leaves.

    Attributes:
        moves: Those below the gap, by rising group.
        price: The relaxation's multiplier.
        slack: Bits a plan may add to the relaxation's size, rounded down to the common divisor of the moves' sizes.
        best: Cost of the incumbent, relative to the relaxation's plan, <= 0.
        incumbent: Its moves, as (group, slot).
        rounding: Bound on the error of a cost at the relaxation's plan.
        sound: Whether no reduced cost was negative beyond rounding; without it nothing may be claimed.
    """

    moves: Moves
    price: float
    slack: int
    best: float
    incumbent: Incumbent
    rounding: float
    sound: bool

    @property
    def gap(self) -> float:
        """How far the incumbent is from the relaxation's bound, as far as the core can close it."""
        return self.best + self.price * self.slack

    def most_efficient(self, count: int) -> "Scan":
        """Only the moves of least reduced cost per bit: enough for a good incumbent, not for a proof."""
        efficiency = self.moves.reduced / np.abs(self.moves.size)
        return replace(self, moves=self.moves.take(np.sort(np.argpartition(efficiency, count)[:count])))

    def improved(self, best: float, incumbent: Incumbent) -> "Scan":
        """With a better incumbent, and so fewer moves."""
        moves, slack = _tighten(self.moves, self.slack, self.price, best)
        return replace(self, moves=moves, slack=slack, best=best, incumbent=incumbent)


@dataclass(frozen=True, kw_only=True, eq=False)
class Core:
    """The moves worth considering, by classes (all moves of one group) in order of efficiency.

    Attributes:
        moves: Grouped by class.
        pointer: int64 [C + 1], where each class's moves begin.
        slack: Bits a plan may add to the relaxation's size, already rounded down to the common divisor of move sizes.
        price: The relaxation's multiplier.
        best: Cost of the incumbent, relative to the relaxation's plan, <= 0.
        incumbent: Its moves, as (group, slot).
        unused_rate: float64 [C + 1]: what classes from this one on save at most per unused bit.
        excess_rate: float64 [C + 1]: what they cost at least per bit to be freed.
        freeable: int64 [C + 1]: how many bits they can free at most.
        rounding: Bound on the error of a sum of costs in the search.
    """

    moves: Moves
    pointer: NDArray[np.int64]
    slack: int
    price: float
    best: float
    incumbent: Incumbent
    unused_rate: NDArray[np.float64]
    excess_rate: NDArray[np.float64]
    freeable: NDArray[np.int64]
    rounding: float

    def __len__(self) -> int:
        return len(self.pointer) - 1


Known = tuple[float, Incumbent]
"""Cost of a plan relative to the relaxation's plan, <= 0, and its moves."""

NOTHING: Known = (0.0, ())
"""The relaxation's plan itself."""


def scan(
    costs: NDArray[np.float64],
    sizes: NDArray[np.int64],
    relaxation: Relaxation,
    target: float,
    known: Known = NOTHING,
) -> Scan:
    """Find the moves below the gap, and the best single move or pair of moves.

    Args:
        costs: float64 [G, K].
        sizes: int64 [G, K].
        relaxation: Its plan must minimise ``cost + multiplier * size`` in every group (checked here, cell by cell).
        target: A gap (cost) small enough to stop at; 0 for none.
        known: The best plan so far.
    """
    price, slack = relaxation.multiplier, relaxation.slack
    best, incumbent = known
    moves, best, incumbent, magnitude, sound = _pass(costs, sizes, relaxation, best, incumbent)
    rounding = 8.0 * ROUNDOFF * magnitude
    if len(moves) and best + price * slack > max(target, rounding):
        best, incumbent = _best_pair(moves, slack, best, incumbent)
    moves, slack = _tighten(moves, slack, price, best)
    return Scan(
        moves=moves,
        price=price,
        slack=slack,
        best=best,
        incumbent=incumbent,
        rounding=rounding,
        sound=sound,
    )


def _pass(
    costs: NDArray[np.float64],
    sizes: NDArray[np.int64],
    relaxation: Relaxation,
    best: float,
    incumbent: Incumbent,
) -> tuple[Moves, float, Incumbent, float, bool]:
    """One pass over the table: moves below the gap, the best single move, the cost magnitude, soundness."""
    price, slack = relaxation.multiplier, relaxation.slack
    magnitude, sound = 0.0, True
    parts: list[Moves] = []
    for start in range(0, len(costs), _BLOCK):
        block = slice(start, start + _BLOCK)
        at = relaxation.slots[block, None]
        base_cost, base_size = (
            np.take_along_axis(costs[block], at, 1),
            np.take_along_axis(sizes[block], at, 1),
        )
        change, step = costs[block] - base_cost, sizes[block] - base_size
        reduced = change + price * step
        scale = float((np.abs(base_cost) + price * base_size).max())
        magnitude = max(magnitude, scale)
        if float(reduced.min()) < 0.0:
            terms = np.abs(base_cost) + price * base_size + np.abs(change) + price * np.abs(step)
            sound = sound and bool((reduced >= -8.0 * ROUNDOFF * terms).all())
        fits = np.where(step <= slack, change, np.inf)
        single = int(fits.argmin())
        if fits.flat[single] < best:
            best = float(fits.flat[single])
            incumbent = ((start + single // costs.shape[1], single % costs.shape[1]),)
        useful = (reduced < best + price * slack) & (step != 0) & ((change < 0.0) | (step < 0))
        group, slot = np.nonzero(useful)
        parts.append(
            Moves(
                group=group + start,
                slot=slot.astype(np.int64),
                size=step[group, slot],
                cost=change[group, slot],
                reduced=np.maximum(reduced[group, slot], 0.0),
            )
        )
    names = ("group", "slot", "size", "cost", "reduced")
    moves = Moves(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    return moves.take(moves.reduced < best + price * slack), best, incumbent, magnitude, sound


def _best_pair(moves: Moves, slack: int, best: float, incumbent: Incumbent) -> tuple[float, Incumbent]:
    """The best two moves of different groups that fit, by matching each with the cheapest one that is small enough."""
    order = np.argsort(moves.size, kind="stable")
    size, cost, group = moves.size[order], moves.cost[order], moves.group[order]
    cheapest, where = running_minimum(cost)
    partner = np.searchsorted(size, slack - size, side="right") - 1
    other = where[np.maximum(partner, 0)]
    valid = (partner >= 0) & (group != group[other])
    total = np.where(valid, cost + cheapest[np.maximum(partner, 0)], np.inf)
    at = int(total.argmin())
    if total[at] >= best:
        return best, incumbent
    pair = order[[at, int(other[at])]]
    return float(total[at]), tuple(zip(moves.group[pair].tolist(), moves.slot[pair].tolist(), strict=True))


def running_minimum(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Least value so far, and where it first stood."""
    least = np.minimum.accumulate(values)
    fresh = np.ones(len(values), bool)
    fresh[1:] = values[1:] < least[:-1]
    return least, np.maximum.accumulate(np.where(fresh, np.arange(len(values)), 0))


def _tighten(moves: Moves, slack: int, price: float, best: float) -> tuple[Moves, int]:
    """Drop moves at or above the gap and round the slack down to the common divisor, in turns, until nothing changes.

    A better plan consists of core moves only, so its change of size is a multiple of their divisor; the bits it can
    never use are paid for at the price, which lowers the gap, which shrinks the core.
    """
    while len(moves):
        below = moves.reduced < best + price * slack
        if not below.all():
            moves = moves.take(below)
            continue
        divisor = int(np.gcd.reduce(moves.size))
        if slack % divisor == 0:
            break
        slack -= slack % divisor
    return moves, slack


def assemble(costs: NDArray[np.float64], sizes: NDArray[np.int64], found: Scan) -> Core:
    """Order the moves by classes and bound what the classes from each one on can do.

    Args:
        costs: float64 [G, K].
        sizes: int64 [G, K].
        found: Result of `scan`.
    """
    moves, pointer = _by_class(found.moves, costs, sizes)
    unused, excess, freeable = _rates(moves, pointer, found.price)
    return Core(
        moves=moves,
        pointer=pointer,
        slack=found.slack,
        price=found.price,
        best=found.best,
        incumbent=found.incumbent,
        unused_rate=unused,
        excess_rate=excess,
        freeable=freeable,
        rounding=found.rounding + search_rounding(len(pointer), _largest(moves, found.price)),
    )


def search_rounding(classes: int, largest: float) -> float:
    """Bound on the error of a sum of one move per class, the largest term being given."""
    return 4.0 * (classes + 4) * ROUNDOFF * largest


def _by_class(
    moves: Moves, costs: NDArray[np.float64], sizes: NDArray[np.int64]
) -> tuple[Moves, NDArray[np.int64]]:
    """Moves grouped by group, groups by their least reduced cost per bit, equals by content, never by index."""
    if not len(moves):
        return moves, np.zeros(1, np.int64)
    efficiency = moves.reduced / np.abs(moves.size)
    groups, first, member = np.unique(moves.group, return_index=True, return_inverse=True)
    least = np.minimum.reduceat(efficiency, first)  # a scan leaves the moves ordered by group
    rank = np.empty(len(groups), np.int64)
    rank[np.lexsort((costs[groups].sum(axis=1), sizes[groups].sum(axis=1), least))] = np.arange(len(groups))
    order = np.argsort(rank[member], kind="stable")
    pointer = np.searchsorted(rank[member][order], np.arange(len(groups) + 1))
    return moves.take(order), pointer.astype(np.int64)


def _largest(moves: Moves, price: float) -> float:
    return float((np.abs(moves.cost) + price * np.abs(moves.size)).max()) if len(moves) else 0.0


def _rates(
    moves: Moves, pointer: NDArray[np.int64], price: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """``unused_rate``, ``excess_rate`` and ``freeable`` of `Core`."""
    count = len(pointer) - 1
    unused, excess = np.full(count + 1, price), np.full(count + 1, math.inf)
    freeable = np.zeros(count + 1, np.int64)
    if count:
        starts = pointer[:-1]
        efficiency = moves.reduced / np.abs(moves.size)
        adds = np.minimum.reduceat(np.where(moves.size > 0, efficiency, math.inf), starts)
        frees = np.minimum.reduceat(np.where(moves.size < 0, efficiency, math.inf), starts)
        freed = np.maximum.reduceat(np.maximum(-moves.size, 0), starts)
        unused[:-1] = np.minimum(np.minimum.accumulate(adds[::-1])[::-1], price)
        excess[:-1] = np.minimum.accumulate(frees[::-1])[::-1]
        freeable[:-1] = np.cumsum(freed[::-1])[::-1]
    # Unused bits earn nothing: what the price charges for them, less the least that filling them would cost.
    return price - unused, price + np.where(np.isfinite(excess), excess, 0.0), freeable
