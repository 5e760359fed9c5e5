"""The knapsack's steps on the compiled kernels: the same results as their NumPy twins, sooner."""

# mypy: disable-error-code="no-untyped-call"

import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solver import search as searching
from solver.core import NOTHING, ROUNDOFF, Core, Known, Moves, Scan, search_rounding
from solver.hull import Hull
from solver.kernels import certificate as certificate_kernel
from solver.kernels import core as core_kernel
from solver.kernels import relaxation as relaxation_kernel
from solver.kernels import search as search_kernel
from solver.kernels.types import VERSION
from solver.relaxation import NEAR, Relaxation, Sample, at_budget, fill_ties, sample_of
from solver.search import MAX_NODES, Attempt, SearchResult, give_up

_FEW_OPEN = 2500
_MAX_PASSES = 12
_WORK = 2_000_000
"""States looked at between two looks at the clock: 20 to 50 ms."""

Ints = NDArray[np.int64]
Reals = NDArray[np.float64]


def relax(costs: Reals, sizes: Ints, budget: int, known: Hull | None = None) -> Relaxation:
    """See `solver.relaxation.relax`."""
    if known is not None:
        return at_budget(known, costs, sizes, budget)
    rows, room = np.arange(len(costs)), budget
    if len(rows) <= _FEW_OPEN:
        return _by_edges(costs, sizes, rows, room)
    slots, ends = np.empty(len(costs), np.int64), _first_prices(costs, sizes, budget)
    for _ in range(_MAX_PASSES):
        if len(rows) <= _FEW_OPEN:
            break
        still, light, heavy = (np.empty(len(rows), np.int64) for _ in range(3))
        count, light_total, heavy_total, low, high = relaxation_kernel.narrow(
            costs, sizes, rows, *ends, slots, still, light, heavy
        )
        if heavy_total <= room and ends[1] == 0.0 and len(rows) == len(costs):
            return Relaxation(multiplier=0.0, slots=costs.argmin(axis=1), slack=budget - heavy_total)
        if light_total > room or heavy_total <= room:  # the sample misled: the price lies beyond this end
            ends = (math.inf, ends[0]) if light_total > room else (ends[1], 0.0)
            continue
        rows, room = still[:count], room - (light_total - low)
        if count > _FEW_OPEN:
            at = sample_of(count)
            sample = Sample(rows=rows[at], low=light[at], high=heavy[at], share=(room - low) / (high - low))
            ends = _sampled_prices(costs, sizes, sample)
    inner = _by_edges(costs, sizes, rows, room)
    slots[rows] = inner.slots
    near = None if len(rows) == len(costs) else rows[:NEAR].copy()
    return Relaxation(multiplier=inner.multiplier, slots=slots, slack=inner.slack, near=near)


def build_hull(costs: Reals, sizes: Ints) -> Hull:
    """See `solver.hull.build_hull`."""
    start, slope, step, group, slot, _ = _edges(costs, sizes, np.arange(len(costs)))
    order, slope = relaxation_kernel.by_falling(slope)
    group, slot, sizes_after, costs_after = relaxation_kernel.along_frontier(
        costs, sizes, order, step, group, slot, start
    )
    return Hull(start=start, group=group, slot=slot, slope=slope, sizes=sizes_after, costs=costs_after)


def _by_edges(costs: Reals, sizes: Ints, rows: Ints, room: int) -> Relaxation:
    """The relaxation of some rows from all their hull edges."""
    price, slots, slack, group, slot = relaxation_kernel.relax_rows(costs, sizes, rows, room)
    if len(group) > 1:
        slack = fill_ties(costs[rows], sizes[rows], slots, group, slot, slack)
    return Relaxation(multiplier=price, slots=slots, slack=slack)


def _edges(costs: Reals, sizes: Ints, rows: Ints) -> tuple[Ints, Reals, Ints, Ints, Ints, int]:
    """Smallest slots; slope, size, group and slot of every hull edge; total smallest size."""
    most = len(rows) * (costs.shape[1] - 1)
    start, slope = np.empty(len(rows), np.int64), np.empty(most)
    step, group, slot = (np.empty(most, np.int64) for _ in range(3))
    count, total = relaxation_kernel.hull_edges(costs, sizes, rows, start, slope, step, group, slot)
    return start, slope[:count], step[:count], group[:count], slot[:count], total


def _first_prices(costs: Reals, sizes: Ints, budget: int) -> tuple[float, float]:
    """Prices between which the best one lies, likely, from a sample of the whole table."""
    rows = sample_of(len(costs))
    # Nothing is known of the others yet: every group is taken to have an equal part of the budget.
    part = np.full(len(rows), budget // len(costs))
    return _sampled_prices(
        costs, sizes, Sample(rows=rows, low=np.zeros(len(rows), np.int64), high=part, share=1.0)
    )


def _sampled_prices(costs: Reals, sizes: Ints, sample: Sample) -> tuple[float, float]:
    """See `solver.relaxation`: prices between which the best one lies, very likely."""
    start, slope, step, group, _, total = _edges(costs, sizes, sample.rows)
    room = sample.target - total
    middle = relaxation_kernel.break_slope(slope.copy(), step.copy(), int(max(room, 0.0)))
    added = np.bincount(group, np.where(slope > middle, step, 0), len(start)).astype(np.int64)
    margin = sample.margin(sizes[sample.rows, start] + added)
    low = relaxation_kernel.break_slope(slope.copy(), step.copy(), int(min(room + margin, 2.0**61)))
    high = (
        math.inf
        if room < margin
        else relaxation_kernel.break_slope(slope.copy(), step.copy(), int(room - margin))
    )
    return high, low


def scan(costs: Reals, sizes: Ints, relaxation: Relaxation, target: float, known: Known = NOTHING) -> Scan:
    """See `solver.core.scan`."""
    price = relaxation.multiplier
    best, incumbent = known
    moves, best, found, rounding, sound, slack = core_kernel.scan_and_tighten(
        costs, sizes, relaxation.slots, price, relaxation.slack, best, target, 8.0 * ROUNDOFF
    )
    if len(found):
        at = found.tolist()
        incumbent = tuple(zip(at[::2], at[1::2], strict=True))
    group, slot, size, cost, reduced = moves
    return Scan(
        moves=Moves(group=group, slot=slot, size=size, cost=cost, reduced=reduced),
        price=price,
        slack=slack,
        best=best,
        incumbent=incumbent,
        rounding=rounding,
        sound=sound,
    )


def assemble(costs: Reals, sizes: Ints, found: Scan) -> Core:
    """See `solver.core.assemble`."""
    moves = found.moves
    arrays, pointer, unused, excess, freeable, largest = core_kernel.by_class(
        costs, sizes, moves.group, moves.slot, moves.size, moves.cost, moves.reduced, found.price
    )
    group, slot, size, cost, reduced = arrays
    return Core(
        moves=Moves(group=group, slot=slot, size=size, cost=cost, reduced=reduced),
        pointer=pointer,
        slack=found.slack,
        price=found.price,
        best=found.best,
        incumbent=found.incumbent,
        unused_rate=unused,
        excess_rate=excess,
        freeable=freeable,
        rounding=found.rounding + search_rounding(len(pointer), largest),
    )


def search(
    core: Core, *, target: float, step: float, deadline: float, caps: Sequence[int] = searching.STATE_CAPS
) -> SearchResult:
    """See `solver.search.search`."""
    return searching.search(core, target=target, step=step, deadline=deadline, caps=caps, run=_run_round)


def _run_round(attempt: Attempt) -> None:
    """All stages of a round, with a look at the clock now and then."""
    core, moves = attempt.core, attempt.core.moves
    states = (np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64))
    tree = (np.empty(1024, np.int64), np.empty(1024, np.int64))
    stage, nodes = 0, 1
    while True:
        stage, states, tree, nodes, looked, attempt.best, node, move, dropped = search_kernel.advance(
            stage,
            states,
            tree,
            nodes,
            moves.size,
            moves.cost,
            moves.reduced,
            attempt.by_size,
            core.pointer,
            core.slack,
            core.price,
            core.unused_rate,
            core.excess_rate,
            core.freeable,
            attempt.best,
            attempt.margin,
            attempt.cap,
            _WORK,
        )
        attempt.states += looked
        attempt.open_bound = min(attempt.open_bound, dropped)
        if move >= 0:
            attempt.best_node, attempt.best_move = node, move
        if stage == len(core) or not len(states[0]):
            break
        if time.monotonic() > attempt.deadline or nodes > MAX_NODES:
            give_up(attempt, states[0], states[1], stage)
            break
    attempt.parents, attempt.moves = [tree[0][1:nodes]], [tree[1][1:nodes]]


def add_choices(size: Ints, cost: Reals, steps: Ints, changes: Reals) -> tuple[Ints, Reals, Ints, Ints]:
    """See `solver.pareto.add_choices`."""
    new_size, new_cost, code = search_kernel.add_choices(size, cost, steps, changes)
    return new_size, new_cost, code >> search_kernel.CODE_BITS, code & ((1 << search_kernel.CODE_BITS) - 1)


class _CompiledEngine:
    """See `solver.acceleration.Engine`."""

    name = f"numba {VERSION}"
    relax = staticmethod(relax)
    build_hull = staticmethod(build_hull)
    scan = staticmethod(scan)
    assemble = staticmethod(assemble)
    search = staticmethod(search)
    add_choices = staticmethod(add_choices)
    cost_of = staticmethod(certificate_kernel.cost_of)
    smallest_total = staticmethod(relaxation_kernel.smallest_total)
    sum_of_minima = staticmethod(certificate_kernel.sum_of_minima)


ENGINE = _CompiledEngine()
