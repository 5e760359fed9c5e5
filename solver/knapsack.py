"""Size-only problems: the exact multiple-choice knapsack solver.

Relaxation, core, search; then a bound that owes nothing to them. All three steps exist twice: in NumPy, always there, and
compiled (`solver.kernel`), when numba is installed and has finished compiling.
"""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solver import acceleration
from solver.certificate import lagrangian_bound
from solver.core import NOTHING, Core, Known, Scan
from solver.hull import Hull
from solver.reduction import Reduced
from solver.relaxation import Relaxation
from solver.search import STATE_CAPS, SearchResult
from solver.solution import Proof

OPTIMAL_GAP = 1e-9
"""Largest requested gap (relative) at which a plan within it is called optimal."""

_MANY_MOVES = 8192
"""A larger core is first searched among its most efficient moves only, for a better incumbent."""

_FEW_MOVES = 2048
_FIRST_MOVES = 1024
_FIRST_STATES = 1024
"""Moves and states of the quick search for a first incumbent of a large table."""

_PLAIN_CLASSES = 32
"""A core of fewer classes is searched sooner than its costs are looked at for a common step."""

_DECIMALS = 6
_COARSE = 1e9
_WHOLE = 1e-7
"""How near to a whole number a scaled cost has to be."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KnapsackResult:
    """A plan and how good it is proven to be.

    Attributes:
        slots: int64 [G].
        lower_bound: No plan costs less.
        proven: The plan is optimal up to rounding, or up to the gap asked for.
        proof: What the bound rests on.
        multiplier: Price of the relaxation, cost per unit of the row.
        states: States looked at by the search.
    """

    slots: NDArray[np.int64]
    lower_bound: float
    proven: bool
    proof: Proof
    multiplier: float
    states: int


def solve_knapsack(  # noqa: PLR0913 - one problem and how long to look
    reduced: Reduced,
    sizes: NDArray[np.int64],
    budget: int,
    *,
    relative_gap: float,
    deadline: float,
    hull: Hull | None = None,
    engine: acceleration.Engine | None = None,
) -> KnapsackResult:
    """Minimise the cost subject to one row; the row's smallest values must fit the budget.

    Args:
        reduced: The problem; its own sizes and rows are not looked at.
        sizes: int64 [G, K], >= 0: the row.
        budget: Its limit.
        relative_gap: Gap at which to stop, relative to the objective; 0 to prove the optimum.
        deadline: Of `time.monotonic`.
        hull: Hull of costs and this row if it is known already.
        engine: Implementation of the steps; the fastest that is ready if left out.
    """
    costs, engine = reduced.costs, engine or acceleration.engine()
    started = time.monotonic()
    relaxation = engine.relax(costs, sizes, budget, hull)
    price, slots = relaxation.multiplier, relaxation.slots
    bound = lagrangian_bound(reduced, [(sizes, budget)], [price], engine.sum_of_minima)
    base = engine.cost_of(costs, slots)
    if price == 0.0 or relaxation.slack == 0:
        return _result(slots, base, bound, Proof.LAGRANGIAN, price, proven=True)
    target = relative_gap * abs(base)
    known = _near_price(engine, costs, sizes, relaxation, target, deadline)
    scan = engine.scan(costs, sizes, relaxation, target, known)
    found, rounding = _close(engine, costs, sizes, scan, target, deadline)
    acceleration.spent(time.monotonic() - started)
    slots = slots.copy()
    for group, slot in found.moves:
        slots[group] = slot
    best, searched = base + found.best, -math.inf
    if scan.sound:
        searched = base + min(found.best - target, found.open_bound) - rounding
    # Within a gap of 1e-9 the word optimal is common usage; beyond, the plan is feasible with a gap.
    claimed = rounding + (target if relative_gap <= OPTIMAL_GAP else 0.0)
    closed = scan.sound and math.isinf(found.open_bound) and relative_gap <= OPTIMAL_GAP
    lagrangian = best - bound <= max(claimed, target) or bound >= searched
    return _result(
        slots,
        best,
        bound if lagrangian else searched,
        Proof.LAGRANGIAN if lagrangian else Proof.SEARCH,
        price,
        proven=closed or best - bound <= claimed,
        states=found.states,
    )


def _close(  # noqa: PLR0913, PLR0917 - one problem and how long to look
    engine: acceleration.Engine,
    costs: NDArray[np.float64],
    sizes: NDArray[np.int64],
    scan: Scan,
    target: float,
    deadline: float,
) -> tuple[SearchResult, float]:
    """Search the core, if the incumbent leaves any; the result and its rounding."""
    if len(scan.moves) > _MANY_MOVES and scan.gap > max(target, scan.rounding):
        core = engine.assemble(costs, sizes, scan.most_efficient(_FEW_MOVES))
        found = engine.search(core, target=target, step=0.0, deadline=deadline, caps=STATE_CAPS[:1])
        if found.best < scan.best:
            scan = scan.improved(found.best, found.moves)
    if scan.gap <= max(target, scan.rounding):
        return SearchResult(
            best=scan.best, moves=scan.incumbent, open_bound=math.inf, states=0
        ), scan.rounding
    core = engine.assemble(costs, sizes, scan)
    step = cost_step(core) if len(core) >= _PLAIN_CLASSES else 0.0
    return engine.search(core, target=target, step=step, deadline=deadline), core.rounding


def _near_price(  # noqa: PLR0913, PLR0917 - one problem and how long to look
    engine: acceleration.Engine,
    costs: NDArray[np.float64],
    sizes: NDArray[np.int64],
    relaxation: Relaxation,
    target: float,
    deadline: float,
) -> Known:
    """A good plan from the groups near the price: the pass over a large table then collects only what can beat it."""
    near = relaxation.near
    if near is None or not len(near):
        return NOTHING
    part = replace(relaxation, slots=relaxation.slots[near], near=None)
    part_costs, part_sizes = costs[near], sizes[near]
    found = engine.scan(part_costs, part_sizes, part, target)
    best, moves = found.best, found.incumbent
    if len(found.moves) > _FIRST_MOVES:
        core = engine.assemble(part_costs, part_sizes, found.most_efficient(_FIRST_MOVES))
        result = engine.search(core, target=target, step=0.0, deadline=deadline, caps=(_FIRST_STATES,))
        best, moves = result.best, result.moves
    return best, tuple((int(near[group]), slot) for group, slot in moves)


def _result(  # noqa: PLR0913 - the parts of one result
    slots: NDArray[np.int64],
    best: float,
    bound: float,
    proof: Proof,
    price: float,
    *,
    proven: bool,
    states: int = 0,
) -> KnapsackResult:
    return KnapsackResult(
        slots=slots,
        lower_bound=min(bound, best),
        proven=proven,
        proof=proof,
        multiplier=price,
        states=states,
    )


def cost_step(core: Core) -> float:
    """Least difference between two unequal plans of the core when all its costs are decimals of one step; else 0.

    Whole-number costs (and costs given to a few digits) then need no proof finer than one step.
    """
    changes = core.moves.cost
    largest = float(np.abs(changes).max()) if len(changes) else 0.0
    first = float(changes[0]) if len(changes) else 0.0
    for decimals in range(_DECIMALS + 1):
        if abs(first * 10.0**decimals - round(first * 10.0**decimals)) > _WHOLE:
            continue  # one number tells of most tables that they are no decimals
        scaled = changes * 10.0**decimals
        if largest * 10.0**decimals > _COARSE:
            return 0.0
        whole = np.rint(scaled)
        if bool((np.abs(scaled - whole) <= _WHOLE).all()):
            step = int(np.gcd.reduce(whole.astype(np.int64))) if len(whole) else 0
            return step / 10.0**decimals
    return 0.0
