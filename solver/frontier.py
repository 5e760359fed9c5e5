"""Every budget at once: the best cost at each size, and the smallest size for a cost."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from solver import acceleration
from solver.api import check_options, solve
from solver.errors import OptionError, ProblemError
from solver.hull import Hull
from solver.pareto import ParetoList, complete_frontier
from solver.problem import Problem
from solver.solution import SolveStatus


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One plan of the frontier.

    Args:
        size_bits: Exact size.
        objective: Sum of costs.
        exact: Proven: no plan of at most this size costs less.
    """

    size_bits: int
    objective: float
    exact: bool


class _Plans(Protocol):
    """The plans of a frontier, kept compactly: each as a difference to others."""

    def slots(self, index: int) -> NDArray[np.int64]:
        """Slot of each group at a point."""


@dataclass(frozen=True, eq=False)
class _HullPlans:
    """Plans on the hull are so many of its steps; the few others are listed whole."""

    hull: Hull
    steps: NDArray[np.int64]
    listed: tuple[NDArray[np.int64], ...]

    def slots(self, index: int) -> NDArray[np.int64]:
        steps = int(self.steps[index])
        return self.hull.plan(steps) if steps >= 0 else self.listed[-steps - 1]


@dataclass(frozen=True, eq=False)
class _TreePlans:
    """Plans of the complete frontier, in the tree of their moves."""

    found: ParetoList
    at: NDArray[np.int64]

    def slots(self, index: int) -> NDArray[np.int64]:
        return self.found.plan(int(self.at[index]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Frontier(Sequence[FrontierPoint]):
    """Plans by rising size and falling cost.

    Attributes:
        size_bits: int64 [P], increasing.
        objective: float64 [P], decreasing; rounded sums.
        exact: bool [P]: proven best at their own size. Points on the hull always are.
        complete: Every plan that no other equals or beats in both is here; else there may be better plans *between*
            points (the hull's are often a few per cent above the best at such a budget: ask for that budget).
    """

    size_bits: NDArray[np.int64]
    objective: NDArray[np.float64]
    exact: NDArray[np.bool_]
    complete: bool
    problem: Problem
    _plans: _Plans

    def __len__(self) -> int:
        return len(self.size_bits)

    @overload
    def __getitem__(self, index: int) -> FrontierPoint: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[FrontierPoint, ...]: ...
    def __getitem__(self, index: int | slice) -> FrontierPoint | tuple[FrontierPoint, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        return FrontierPoint(
            size_bits=int(self.size_bits[index]),
            objective=float(self.objective[index]),
            exact=bool(self.exact[index]),
        )

    def __iter__(self) -> Iterator[FrontierPoint]:
        return (self[i] for i in range(len(self)))

    @property
    def points(self) -> tuple[FrontierPoint, ...]:
        """All points as values."""
        return tuple(self)

    def at(self, budget_bits: int) -> int | None:
        """Index of the last point within a budget; ``None`` when even the smallest plan exceeds it."""
        index = int(np.searchsorted(self.size_bits, budget_bits, side="right")) - 1
        return None if index < 0 else index

    def choice_indices(self, index: int) -> NDArray[np.int64]:
        """Candidate index of each unit at a point, int64 [L]."""
        return self.problem.reduced.expand(self._plans.slots(range(len(self))[index]))

    def named_choices(self, index: int) -> dict[str, str]:
        """Unit -> candidate at a point."""
        choices = self.choice_indices(index).tolist()
        named = enumerate(zip(self.problem.units, choices, strict=True))
        return {unit: self.problem.label(i, k) for i, (unit, k) in named}

    def thinned(self, count: int) -> "Frontier":
        """At most so many of the points, evenly spread over the sizes, both ends kept; for pictures.

        Raises:
            OptionError: ``count`` is below 2.
        """
        if count < 2:
            raise OptionError(f"a frontier of {count} points", "count", count, "2 points or more")
        if len(self) <= count:
            return self
        marks = np.linspace(float(self.size_bits[0]), float(self.size_bits[-1]), count)
        keep = np.unique(
            np.append(np.searchsorted(self.size_bits.astype(np.float64), marks[:-1]), len(self) - 1)
        )
        return replace(
            self,
            size_bits=self.size_bits[keep],
            objective=self.objective[keep],
            exact=self.exact[keep],
            complete=False,
            _plans=_Selected(self._plans, keep),
        )


@dataclass(frozen=True, eq=False)
class _Selected:
    """Some of another frontier's plans."""

    plans: _Plans
    at: NDArray[np.int64]

    def slots(self, index: int) -> NDArray[np.int64]:
        return self.plans.slots(int(self.at[index]))


def frontier(
    problem: Problem,
    *,
    budgets: Iterable[int] = (),
    complete: bool = False,
    max_points: int = 100_000,
    time_limit_s: float = 30.0,
) -> Frontier:
    """The best cost at every size; the problem's own budget is ignored, its pins, bounds and ties hold.

    Always there: all plans on the lower convex hull of size against cost, each proven optimal at its own size.

    Args:
        problem: Without further rows and width rules.
        budgets: Bits: the proven best plan within each of these is added.
        complete: Give every plan that no other plan equals or beats in both size and cost, if there are few enough.
        max_points: How many are few enough, >= 2; beyond (or when the time is over) the hull is returned,
            with ``complete=False``.
        time_limit_s: Wall-clock seconds, > 0, for all of it.

    Raises:
        ProblemError: The problem has further rows or width rules.
        OptionError: An argument is out of range.
    """
    check_options(time_limit_s, 0.0, "auto")
    if max_points < 2:
        raise OptionError(f"at most {max_points} points", "max_points", max_points, "2 points or more")
    require_size_only(problem)
    deadline = time.monotonic() + time_limit_s
    reduced = problem.reduced
    if complete:
        found = complete_frontier(
            reduced.costs,
            reduced.sizes,
            max_points=max_points,
            deadline=deadline,
            engine=acceleration.engine(),
        )
        if found is not None:
            return Frontier(
                size_bits=found.sizes,
                objective=found.costs,
                exact=np.ones(len(found.sizes), bool),
                complete=True,
                problem=problem,
                _plans=_TreePlans(found, np.arange(len(found.sizes))),
            )
    line = _hull_frontier(problem)
    wanted = sorted(set(budgets))
    return _with_budgets(line, wanted, deadline) if wanted else line


def require_size_only(problem: Problem) -> None:
    """Refuse problems that have more than a size.

    Raises:
        ProblemError: The problem has further rows or width rules.
    """
    if problem.rows or problem.width_counts or problem.max_widths is not None:
        raise ProblemError(
            "this question is about sizes only, but the problem has further rows or width rules",
            "limits",
            [row.name for row in problem.rows],
            "a problem without them",
        )


def _hull_frontier(problem: Problem) -> Frontier:
    hull = problem.reduced.hull
    return Frontier(
        size_bits=hull.sizes,
        objective=hull.costs,
        exact=np.ones(len(hull.sizes), bool),
        complete=False,
        problem=problem,
        _plans=_HullPlans(hull, np.arange(len(hull.sizes)), ()),
    )


def _with_budgets(line: Frontier, budgets: list[int], deadline: float) -> Frontier:
    """The hull's plans together with the best within each budget."""
    hull = line.problem.reduced.hull
    sizes, costs, exact, steps = [line.size_bits], [line.objective], [line.exact], [np.arange(len(line))]
    listed: list[NDArray[np.int64]] = []
    for budget in budgets:
        left = max(deadline - time.monotonic(), 1e-3)
        found = solve(line.problem.with_budget(budget), time_limit_s=left)
        if found.choice_indices is None:
            continue
        assert found.size_bits is not None
        assert found.objective is not None
        sizes.append(np.array([found.size_bits]))
        costs.append(np.array([found.objective]))
        exact.append(np.array([found.status is SolveStatus.OPTIMAL]))
        listed.append(line.problem.reduced.contract(found.choice_indices))
        steps.append(np.array([-len(listed)]))
    size, cost = np.concatenate(sizes), np.concatenate(costs)
    proven, step = np.concatenate(exact), np.concatenate(steps)
    # By size, hull points first among equals (they are optimal); then only what costs less than everything smaller.
    order = np.lexsort((step < 0, cost, size))
    order = order[_falling(cost[order])]
    return replace(
        line,
        size_bits=size[order],
        objective=cost[order],
        exact=proven[order],
        _plans=_HullPlans(hull, step[order], tuple(listed)),
    )


def _falling(costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    keep = np.ones(len(costs), bool)
    keep[1:] = costs[1:] < np.minimum.accumulate(costs)[:-1]
    return keep
