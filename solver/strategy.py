"""The ways to solve a reduced problem; each returns an `Outcome` that claims no more than it can show."""

import itertools
import math
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solver import acceleration
from solver.certificate import lagrangian_bound
from solver.dual import solve_dual
from solver.knapsack import OPTIMAL_GAP, solve_knapsack
from solver.outcome import VERSION, Outcome, shifted
from solver.problem import Problem
from solver.program import SOLVER_TOLERANCE, ProgramInput, ProgramResult, solve_program
from solver.reduction import Reduced, ReducedRow
from solver.relaxation import SORT_ALL, relax
from solver.several import Closed, close_rows
from solver.solution import Proof
from solver.tablewise import exact_sum, smallest_total
from solver.widths import by_width_sets, width_sets

_CORE_MOVES = 120
_CELL_S = 2e-5
"""Seconds that building an integer program takes for each candidate in it."""

_CORE_SHARE = 0.2
"""Part of the time that the program over the most efficient moves may take."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a problem is to be solved; see `solver.api.solve`. ``deadline`` is of `time.monotonic`."""

    relative_gap: float
    deadline: float
    seed: int
    backend: str

    @property
    def engine(self) -> acceleration.Engine:
        """Implementation of the knapsack's steps."""
        return acceleration.reference_engine() if self.backend == "numpy" else acceleration.engine()


def dispatch(problem: Problem, rows: tuple[ReducedRow, ...], asked: Asked) -> Outcome:
    """Solve in the way that fits the problem."""
    if any(_smallest(problem.reduced, row) > row.limit for row in rows):
        return Outcome(
            slots=None,
            lower_bound=math.inf,
            infeasible=True,
            proven=False,
            proof=Proof.MINIMUM,
            prices=(0.0,) * len(rows),
            backend="exact",
            backend_version=VERSION,
        )
    if asked.backend == "pulp":
        return by_program(problem, rows, asked)
    if problem.max_widths is not None:
        sets = width_sets(problem.reduced, problem.max_widths) if len(rows) <= 1 else None
        if sets is None:
            return by_program(problem, rows, asked)
        return by_width_sets(
            problem.reduced,
            rows[0] if rows else None,
            sets,
            relative_gap=asked.relative_gap,
            deadline=asked.deadline,
            engine=asked.engine,
        )
    return by_search(problem, rows, asked) if len(rows) <= 1 else by_rows(problem, rows, asked)


def _smallest(reduced: Reduced, row: ReducedRow) -> int:
    """Least sum of a row; that of the sizes is worked out once for all budgets."""
    return reduced.smallest if row.table is reduced.sizes else smallest_total(row.table)


def by_search(problem: Problem, rows: tuple[ReducedRow, ...], asked: Asked) -> Outcome:
    """At most one row: the exact knapsack solver."""
    reduced, engine = problem.reduced, asked.engine
    if not rows:
        slots = reduced.costs.argmin(axis=1).astype(np.int64)
        bound = lagrangian_bound(reduced, [], [])
        return Outcome(
            slots=slots,
            lower_bound=bound,
            proven=True,
            proof=Proof.LAGRANGIAN,
            prices=(),
            backend="exact",
            backend_version=VERSION,
        )
    of_size = rows[0].table is reduced.sizes  # never negative, as was checked when the problem was built
    table, limit = (rows[0].table, rows[0].limit) if of_size else shifted(rows[0])
    hull = None
    if of_size:
        # Without the kernel a small problem's hull is built anyway: once, for all budgets to come.
        small = engine is acceleration.reference_engine() and table.size <= SORT_ALL
        hull = reduced.hull if small else reduced.known_hull
    found = solve_knapsack(
        reduced,
        table,
        limit,
        relative_gap=asked.relative_gap,
        deadline=asked.deadline,
        hull=hull,
        engine=engine,
    )
    return Outcome(
        slots=found.slots,
        lower_bound=found.lower_bound,
        proven=found.proven,
        proof=found.proof,
        prices=(found.multiplier,),
        backend="exact",
        backend_version=engine.name,
    )


def by_rows(problem: Problem, rows: tuple[ReducedRow, ...], asked: Asked) -> Outcome:
    """Several rows: relaxations to one row and a good plan first, then the integer program on what they leave open."""
    relative_gap, deadline, seed = asked.relative_gap, asked.deadline, asked.seed
    closed = close_rows(problem, rows, relative_gap=relative_gap, deadline=deadline, engine=asked.engine)
    ours = closed.outcome
    if closed.enough or asked.backend != "auto":
        return ours
    # A few of the most efficient moves decide nearly everything: a good plan from them makes the rest provable.
    core = _program_input(problem, rows, efficient(problem.reduced, rows, closed, _CORE_MOVES), ours.slots)
    first = solve_program(core, deadline=_part(deadline, _CORE_SHARE), seed=seed)
    if _cost(problem.reduced, first.slots) < _cost(problem.reduced, ours.slots):
        ours = replace(ours, slots=first.slots, backend=first.backend, backend_version=first.backend_version)
    keep = closed.dual.reduced <= _cost(problem.reduced, ours.slots) - closed.lagrangian
    given = _program_input(problem, rows, keep, ours.slots)
    if ours.slots is not None and time.monotonic() + _CELL_S * int(given.keep.sum()) > deadline:
        return ours  # building the program alone would outlast the time
    target = relative_gap * abs(_cost(problem.reduced, ours.slots)) if ours.slots is not None else 0.0
    found = solve_program(replace(given, target=target), deadline=deadline, seed=seed)
    if found.infeasible and ours.slots is None:
        return replace(
            ours,
            infeasible=True,
            proof=Proof.SOLVER,
            backend=found.backend,
            backend_version=found.backend_version,
        )
    return _combined(problem.reduced, ours, found, exact=relative_gap <= OPTIMAL_GAP)


def _part(deadline: float, share: float) -> float:
    """A deadline after a share of the time left."""
    now = time.monotonic()
    return now + share * max(0.0, deadline - now)


def efficient(
    reduced: Reduced, rows: tuple[ReducedRow, ...], closed: Closed, count: int
) -> NDArray[np.bool_]:
    """The cheapest candidate of every group at the dual's prices, and the most efficient moves away from it.

    A move is efficient when its reduced cost is small against the priced change in the rows: it then trades one row's
    slack for another's, or for cost, at nearly the going rate.
    """
    at, base = np.arange(len(reduced.costs)), closed.dual.reduced.argmin(axis=1)
    change = np.zeros(reduced.costs.shape)
    for row, price in zip(rows, closed.dual.prices.tolist(), strict=True):
        change += price * np.abs(row.table - row.table[at, base][:, None])
    rate = np.where(closed.keep & (change > 0.0), closed.dual.reduced / np.maximum(change, 1e-300), np.inf)
    rate[at, base] = 0.0
    limit = np.partition(rate, min(len(at) + count, rate.size) - 1, axis=None)[
        min(len(at) + count, rate.size) - 1
    ]
    return np.asarray((rate <= limit) & np.isfinite(rate))


def _combined(reduced: Reduced, ours: Outcome, found: ProgramResult, *, exact: bool) -> Outcome:
    """The better plan and the better bound of two, with who found the plan.

    The program may hold only candidates below our gap: its bound holds for all plans up to our own plan's cost.
    """
    slots, own, foreign = ours.slots, _cost(reduced, ours.slots), _cost(reduced, found.slots)
    by, version = ours.backend, ours.backend_version
    if foreign < own or slots is None:
        slots, by, version = found.slots, found.backend, found.backend_version
    cost = min(own, foreign)
    bound = (
        ours.lower_bound if found.lower_bound is None else max(ours.lower_bound, min(found.lower_bound, cost))
    )
    proven = slots is not None and (
        (exact and found.proven and foreign <= own)
        or cost - bound <= SOLVER_TOLERANCE * max(abs(cost), abs(bound))
    )
    return replace(
        ours,
        slots=slots,
        lower_bound=bound,
        proven=proven,
        proof=Proof.SOLVER if bound > ours.lower_bound or proven else ours.proof,
        backend=by,
        backend_version=version,
    )


def _cost(reduced: Reduced, slots: NDArray[np.int64] | None) -> float:
    return math.inf if slots is None else exact_sum(reduced.costs[np.arange(len(slots)), slots])


def by_program(problem: Problem, rows: tuple[ReducedRow, ...], asked: Asked) -> Outcome:
    """The integer program alone, with our Lagrangian bound beside its own: the cross-check of the other ways."""
    reduced = problem.reduced
    prices = _prices(reduced, rows, deadline=asked.deadline)
    nothing = Outcome(
        slots=None,
        lower_bound=lagrangian_bound(reduced, [(row.table, row.limit) for row in rows], prices),
        proven=False,
        proof=Proof.LAGRANGIAN,
        prices=prices,
        backend="pulp",
        backend_version="",
    )
    everything: NDArray[np.bool_] = np.ones(reduced.costs.shape, np.bool_)
    given = _program_input(problem, rows, everything, None)
    found = solve_program(given, deadline=asked.deadline, seed=asked.seed)
    answer = replace(nothing, backend=found.backend, backend_version=found.backend_version)
    if found.infeasible:
        return replace(answer, infeasible=True, proof=Proof.SOLVER)
    return _combined(reduced, answer, found, exact=True)


def _prices(reduced: Reduced, rows: tuple[ReducedRow, ...], *, deadline: float) -> tuple[float, ...]:
    """Multipliers for the Lagrangian bound."""
    if not rows:
        return ()
    if len(rows) == 1:
        table, limit = shifted(rows[0])
        return (relax(reduced.costs, table, limit).multiplier,)
    return tuple(solve_dual(reduced.costs, rows, deadline=deadline).prices.tolist())


def _program_input(
    problem: Problem,
    rows: tuple[ReducedRow, ...],
    keep: NDArray[np.bool_],
    start: NDArray[np.int64] | None,
) -> ProgramInput:
    reduced = problem.reduced
    keep = keep & undominated(reduced, rows, by_width=problem.max_widths is not None)
    # What is not kept counts as free: it must not set the scale.
    least = np.where(keep, reduced.costs, np.inf).min(axis=1, keepdims=True)
    above: NDArray[np.float64] = np.where(keep, reduced.costs - least, 0.0)
    ranges = above.max(axis=1)
    expected = float(np.median(ranges)) * len(least)
    if start is not None:
        expected = _cost(reduced, start) - float(least.sum())
    return ProgramInput(
        costs=reduced.costs,
        rows=rows,
        keep=keep,
        widths=reduced.widths,
        max_widths=problem.max_widths,
        expected=expected if expected > 0.0 else float(ranges.sum()) or 1.0,
        start=start,
    )


def undominated(reduced: Reduced, rows: tuple[ReducedRow, ...], *, by_width: bool) -> NDArray[np.bool_]:
    """Candidates that no other of their group equals or beats in cost and every row; bool [G, K].

    Of equal candidates the first is kept. With a rule about widths only candidates of the same width compete.
    """
    keep: NDArray[np.bool_] = np.ones(reduced.costs.shape, np.bool_)
    tables = [reduced.costs, *(row.table for row in rows)]
    for k, j in itertools.permutations(range(reduced.costs.shape[1]), 2):
        better = np.all([table[:, j] <= table[:, k] for table in tables], axis=0)
        if j > k:
            better &= np.any([table[:, j] < table[:, k] for table in tables], axis=0)
        if by_width and reduced.widths is not None:
            better &= reduced.widths[:, j] == reduced.widths[:, k]
        keep[:, k] &= ~better
    return keep
