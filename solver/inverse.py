"""The question the other way round: the smallest size whose predicted cost does not exceed a limit."""

import math
import time
from dataclasses import dataclass

import numpy as np

from solver.api import check_options, solve
from solver.errors import OptionError
from solver.frontier import require_size_only
from solver.problem import Problem
from solver.solution import Solution, SolveStatus


@dataclass(frozen=True, kw_only=True, eq=False)
class SmallestSize:
    """Answer of `smallest_size`.

    Attributes:
        status: OPTIMAL: no smaller plan keeps the cost limit. FEASIBLE: the plan keeps it, and `size_lower_bound` tells how
            much smaller one could be. INFEASIBLE: no plan keeps it. NO_SOLUTION: undecided in the time.
        solution: The plan, proven cheapest at its own size; ``None`` without one.
        size_bits: Its size.
        size_lower_bound: No plan smaller than this keeps the cost limit.
        least_cost: What the cheapest plan of any size costs: the smallest limit that can be kept.
    """

    status: SolveStatus
    solution: Solution | None
    size_bits: int | None
    size_lower_bound: int
    least_cost: float


def smallest_size(problem: Problem, cost_limit: float, *, time_limit_s: float = 30.0) -> SmallestSize:
    """The smallest plan with cost <= ``cost_limit``, proven; the problem's own budget is ignored.

    The hull of size against cost leaves an interval of one step; bisection with the exact solver does the rest.

    Args:
        problem: Without further rows and width rules.
        cost_limit: Finite.
        time_limit_s: Wall-clock seconds, > 0.

    Raises:
        ProblemError: The problem has further rows or width rules.
        OptionError: The limit is not finite.
    """
    check_options(time_limit_s, 0.0, "auto")
    require_size_only(problem)
    if isinstance(cost_limit, bool) or not math.isfinite(cost_limit):
        raise OptionError(f"cost limit {cost_limit!r}", "cost_limit", repr(cost_limit), "a finite number")
    deadline = time.monotonic() + time_limit_s
    reduced = problem.reduced
    cheapest = solve(problem.with_budget(None))
    assert cheapest.objective is not None
    assert cheapest.size_bits is not None
    if cheapest.objective > cost_limit:
        return SmallestSize(
            status=SolveStatus.INFEASIBLE,
            solution=None,
            size_bits=None,
            size_lower_bound=reduced.smallest,
            least_cost=cheapest.objective,
        )
    best, low = _bisect(problem, cost_limit, cheapest, deadline)
    assert best.size_bits is not None
    return SmallestSize(
        status=SolveStatus.OPTIMAL if low >= best.size_bits else SolveStatus.FEASIBLE,
        solution=best,
        size_bits=best.size_bits,
        size_lower_bound=min(low, best.size_bits),
        least_cost=cheapest.objective,
    )


def _bisect(problem: Problem, cost_limit: float, cheapest: Solution, deadline: float) -> tuple[Solution, int]:
    """The smallest plan found, and the size below which no plan is proven to keep the limit."""
    best, low = cheapest, _relaxed_size(problem, cost_limit)
    proven = low
    # The first question is the hull's own plan: it nearly always settles all but one step of the hull.
    budget = _hull_size(problem, cost_limit)
    while best.size_bits is not None and low < best.size_bits and time.monotonic() < deadline:
        budget = min(budget, best.size_bits - 1)
        found = solve(problem.with_budget(budget), time_limit_s=max(deadline - time.monotonic(), 1e-3))
        if found.objective is not None and found.objective <= cost_limit:
            best = found
        else:
            no = found.status in {SolveStatus.OPTIMAL, SolveStatus.INFEASIBLE}
            no = no or (found.lower_bound is not None and found.lower_bound > cost_limit)
            # One undecided question, and nothing above it is proven any more.
            proven = budget + 1 if no and proven == low else proven
            low = budget + 1
        assert best.size_bits is not None
        budget = (low + best.size_bits) // 2
    return best, proven


def _hull_index(problem: Problem, cost_limit: float) -> int:
    """The first plan on the hull that keeps the limit, up to the rounding of its sums; the last if none does."""
    costs = problem.reduced.hull.costs
    return min(int(np.searchsorted(-costs, -cost_limit)), len(costs) - 1)


def _hull_size(problem: Problem, cost_limit: float) -> int:
    return int(problem.reduced.hull.sizes[_hull_index(problem, cost_limit)])


def _relaxed_size(problem: Problem, cost_limit: float) -> int:
    """A size below which even the linear relaxation costs more than the limit."""
    hull = problem.reduced.hull
    at = _hull_index(problem, cost_limit)
    if at == 0:
        return int(hull.sizes[0])
    step = (float(hull.costs[at - 1]) - cost_limit) / float(hull.slope[at - 1])
    # A thousandth of a step is far more than the rounding of the sums, and costs ten questions at most.
    slack = 1e-3 * float(hull.sizes[at] - hull.sizes[at - 1])
    return int(hull.sizes[at - 1]) + max(0, math.floor(step - slack))
