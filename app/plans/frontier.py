"""The best predicted cost at each size: exact, in few points, and quickly. Pure."""

from collections.abc import Iterable, Sequence

import numpy as np

from app.plans.planner import FrontierPoint, Search
from app.plans.spec import BudgetCounts
from solver import Frontier, frontier

MOST_POINTS = 1900
"""Points at most, with room for those of later plans; more are not seen and only make documents heavy."""
COMPLETE_POINTS = 50_000
"""Up to so many points the whole frontier is worked out, to choose from."""
TIME_LIMIT_S = 0.7
SLIDER_STEPS = 20
"""Steps of the page's slider in one bit of average width."""


def best_costs(
    search: Search, budgets: Iterable[int], *, time_limit_s: float = TIME_LIMIT_S
) -> tuple[FrontierPoint, ...]:
    """The least predicted cost at sizes from the smallest plan's to that of the least cost.

    Each point is the best plan of its size under pins, ties and bounds; further limits do not count. Where there are few
    enough, all of them are here, so that nothing lies between two; else those on the convex hull, or a selection of evenly
    spaced ones, and always what the given budgets and the page's slider buy, as far as the time suffices.

    Args:
        search: What plans are made from.
        budgets: Whole bits, as budgets count them.
        time_limit_s: Wall-clock seconds, > 0.
    """
    problem = search.problem.only(rows=["size"], pins=(), bounds=search.problem.bounds)
    marks = sorted({b - search.fixed_bits for b in (*budgets, *_slider(search)) if b > search.fixed_bits})
    line = frontier(problem, complete=True, max_points=COMPLETE_POINTS, time_limit_s=time_limit_s / 2)
    if not line.complete:
        line = frontier(problem, budgets=marks, time_limit_s=time_limit_s / 2)
    return tuple(
        FrontierPoint(
            size_bits=int(line.size_bits[i]) + search.fixed_bits, objective=float(line.objective[i])
        )
        for i in _kept(line, marks)
    )


def together(points: Iterable[FrontierPoint], plans: Iterable[FrontierPoint]) -> list[FrontierPoint]:
    """Points and what plans cost, as one line: by size, each cheaper than all that are smaller."""
    found: list[FrontierPoint] = []
    for point in sorted((*points, *plans), key=lambda p: (p.size_bits, p.objective)):
        if not found or point.objective < found[-1].objective:
            found.append(point)
    return found


def _slider(search: Search) -> Sequence[int]:
    """What the positions of the page's slider come to, in bits."""
    if search.counts is not BudgetCounts.WEIGHTS:
        return ()
    widths = [cell.bits for cell in search.table.values()]
    steps = range(min(widths) * SLIDER_STEPS, max(widths) * SLIDER_STEPS + 1)
    return [search.sizes.weights * step // SLIDER_STEPS for step in steps]


def _kept(line: Frontier, marks: Sequence[int]) -> Sequence[int]:
    """Which points are handed out: those within the marks, both ends, and evenly spaced ones as far as there is room."""
    if len(line) <= MOST_POINTS:
        return range(len(line))
    wanted = {0, len(line) - 1, *(at for b in marks if (at := line.at(b)) is not None)}
    room = max(MOST_POINTS - len(wanted), 2)
    sizes = line.size_bits.astype(np.float64)
    spaced = np.searchsorted(sizes, np.linspace(sizes[0], sizes[-1], room), side="right") - 1
    return sorted(wanted | set(spaced.tolist()))
