"""What more bits would buy, and when each unit would change its choice."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.errors import BudgetError
from solver.frontier import require_size_only
from solver.hull import Hull
from solver.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Switch:
    """From the budget ``budget_bits`` on a unit takes ``candidate``."""

    budget_bits: int
    candidate: int
    label: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ShadowPrices:
    """Marginal prices at the problem's budget, on the convex hull of size against cost.

    Attributes:
        per_bit: Cost saved per further bit; 0 when the cheapest plan fits already.
        next_budget_bits: Budget of the next plan on the hull; ``None`` when there is none.
        next_saving: What that plan costs less than the hull's plan within the budget.
        problem: What was asked about.
    """

    per_bit: float
    next_budget_bits: int | None
    next_saving: float
    problem: Problem
    _hull: Hull
    _order: NDArray[np.int64]
    _first: NDArray[np.int64]

    def buys(self, extra_bits: int) -> float:
        """What so many further bits would save at the marginal price, e.g. 8000 for one KB."""
        return self.per_bit * extra_bits

    def switches(self, unit: int) -> tuple[Switch, ...]:
        """All budgets at which a unit's choice changes along the hull, rising; the first is the smallest plan's.

        Args:
            unit: Index of the unit.
        """
        reduced = self.problem.reduced
        group = unit if reduced.group_of is None else int(reduced.group_of[unit])
        steps = self._order[self._first[group] : self._first[group + 1]]
        slots = [int(self._hull.start[group]), *self._hull.slot[steps].tolist()]
        budgets = [int(self._hull.sizes[0]), *self._hull.sizes[steps + 1].tolist()]
        candidates = slots if reduced.local is None else reduced.local[unit, slots].tolist()
        return tuple(
            Switch(budget_bits=budget, candidate=k, label=self.problem.label(unit, k))
            for budget, k in zip(budgets, candidates, strict=True)
        )

    def next_switch(self, unit: int) -> Switch | None:
        """The first change of a unit's choice above the problem's budget; ``None`` when it has its last one."""
        budget = self.problem.budget_bits
        assert budget is not None
        return next((switch for switch in self.switches(unit) if switch.budget_bits > budget), None)


def shadow_prices(problem: Problem) -> ShadowPrices:
    """Marginal prices at the problem's budget, and each unit's switching budgets.

    Raises:
        ProblemError: The problem has further rows or width rules.
        BudgetError: The problem has no budget, or one below the smallest plan.
    """
    require_size_only(problem)
    budget, smallest = problem.budget_bits, problem.reduced.smallest
    if budget is None or budget < smallest:
        raise BudgetError(
            f"prices need a budget of at least the smallest plan's size, not {budget}",
            "budget",
            budget,
            f"{smallest} bits or more",
            {"minimum_bits": smallest},
        )
    hull = problem.reduced.hull
    steps = hull.steps_within(budget)
    more = steps < len(hull.slope)
    order = np.argsort(hull.group, kind="stable")
    counts = np.bincount(hull.group, minlength=len(hull.start))
    return ShadowPrices(
        per_bit=hull.multiplier(budget),
        next_budget_bits=int(hull.sizes[steps + 1]) if more else None,
        next_saving=float(hull.costs[steps] - hull.costs[steps + 1]) if more else 0.0,
        problem=problem,
        _hull=hull,
        _order=order,
        _first=np.concatenate(([0], np.cumsum(counts))),
    )
