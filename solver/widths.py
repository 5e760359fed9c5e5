"""At most n different widths in a plan: every set of n widths is a problem of its own, most of them ruled out by a bound."""

import itertools
import math
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from solver.acceleration import Engine
from solver.certificate import lagrangian_bound
from solver.knapsack import solve_knapsack
from solver.outcome import Outcome, shifted
from solver.reduction import Reduced, ReducedRow
from solver.solution import Proof
from solver.tablewise import exact_sum, smallest_total

MANY_SETS = 400
"""Beyond so many sets of widths the integer program is asked instead."""


def width_sets(reduced: Reduced, count: int) -> list[tuple[int, ...]] | None:
    """All sets of so many of the widths there are; ``None`` when there are too many sets."""
    assert reduced.widths is not None
    widths = np.unique(reduced.widths).tolist()
    if math.comb(len(widths), min(count, len(widths))) > MANY_SETS:
        return None
    return list(itertools.combinations(widths, min(count, len(widths))))


def by_width_sets(  # noqa: PLR0913 - one problem and how long to look
    reduced: Reduced,
    row: ReducedRow | None,
    sets: list[tuple[int, ...]],
    *,
    relative_gap: float,
    deadline: float,
    engine: Engine,
) -> Outcome:
    """Solve the problem of every set of widths, the most promising first, until the bounds of the others say stop.

    Args:
        reduced: The problem.
        row: Its only row, if any.
        sets: The sets of widths.
        relative_gap: Gap at which each problem may stop.
        deadline: Of `time.monotonic`.
        engine: Implementation of the knapsack's steps.
    """
    parts, left_out = _bounded(reduced, row, sets, engine, deadline)
    waiting = sorted(parts, key=lambda part: part[0])
    answer = Outcome(
        slots=None,
        lower_bound=min(waiting[0][0] if waiting else math.inf, left_out),
        infeasible=not waiting and math.isinf(left_out),
        proven=False,
        proof=Proof.SEARCH if waiting else Proof.MINIMUM,
        prices=() if row is None else (0.0,),
        backend="exact",
        backend_version=engine.name,
    )
    best, bound, proven = math.inf, left_out, math.isinf(left_out)
    for lowest, local, part, part_row in waiting:
        if lowest >= best:
            break
        if time.monotonic() > deadline:
            bound, proven = min(bound, lowest), False
            break
        table, limit = shifted(part_row) if part_row is not None else (np.zeros_like(part.sizes), 0)
        found = solve_knapsack(
            part, table, limit, relative_gap=relative_gap, deadline=deadline, engine=engine
        )
        proven = proven and found.proven
        bound = min(bound, found.lower_bound)
        cost = exact_sum(part.costs[np.arange(len(found.slots)), found.slots])
        if cost < best:
            best = cost
            slots = np.take_along_axis(local, found.slots[:, None], 1)[:, 0]
            answer = replace(answer, slots=slots, prices=() if row is None else (found.multiplier,))
    return (
        replace(answer, lower_bound=min(bound, best), proven=proven and answer.slots is not None)
        if waiting
        else answer
    )


def _any_widths(reduced: Reduced, row: ReducedRow | None, engine: Engine) -> float:
    """A bound on the plans of every set of widths."""
    if row is None:
        return lagrangian_bound(reduced, [], [])
    table, limit = shifted(row)
    price = engine.relax(reduced.costs, table, limit).multiplier
    return lagrangian_bound(reduced, [(table, limit)], [price])


Part = tuple[float, NDArray[np.int64], Reduced, ReducedRow | None]


def _bounded(
    reduced: Reduced,
    row: ReducedRow | None,
    sets: list[tuple[int, ...]],
    engine: Engine,
    deadline: float,
) -> tuple[list[Part], float]:
    """For each set that some plan keeps: its Lagrangian bound, slots of its table, and its problem.

    When the time is over, also a bound on the sets left out; infinite when none is.
    """
    assert reduced.widths is not None
    parts: list[Part] = []
    for widths in sets:
        if time.monotonic() > deadline:
            return parts, _any_widths(reduced, row, engine)
        allowed = np.isin(reduced.widths, widths)
        if not allowed.any(axis=1).all():
            continue
        # As everywhere: what is not allowed becomes a copy of something that is.
        local = np.where(allowed, np.arange(allowed.shape[1]), allowed.argmax(axis=1)[:, None])
        part = replace(
            reduced,
            costs=np.take_along_axis(reduced.costs, local, 1),
            sizes=np.take_along_axis(reduced.sizes, local, 1),
        )
        if row is None:
            parts.append((lagrangian_bound(part, [], []), local, part, None))
            continue
        part_row = ReducedRow(name=row.name, table=np.take_along_axis(row.table, local, 1), limit=row.limit)
        if smallest_total(part_row.table) > part_row.limit:
            continue
        table, limit = shifted(part_row)
        price = engine.relax(part.costs, table, limit).multiplier
        parts.append((lagrangian_bound(part, [(table, limit)], [price]), local, part, part_row))
    return parts, math.inf
