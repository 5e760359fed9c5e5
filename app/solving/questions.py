"""What may be asked beside the plan itself: every size, the smallest size for a cost, prices, how sure the choices are."""

from typing import Any

from solver import (
    ChoiceProbabilities,
    Problem,
    Solution,
    SolveStatus,
    frontier,
    shadow_prices,
    smallest_size,
)

BITS_PER_KILOBYTE = 8000


def frontier_of(problem: Problem) -> list[dict[str, Any]]:
    """Points by rising size; each tells what changes against the point before (the first: everything)."""
    points = frontier(problem)
    listed = []
    before: dict[str, str] = {}
    for i, point in enumerate(points):
        choices = points.named_choices(i)
        changes = {unit: candidate for unit, candidate in choices.items() if before.get(unit) != candidate}
        listed.append(
            {
                "size_bits": point.size_bits,
                "objective": point.objective,
                "exact": point.exact,
                "changes": changes,
            }
        )
        before = choices
    return listed


def smallest_of(problem: Problem, target_cost: float, *, time_limit_s: float) -> dict[str, Any]:
    """The smallest plan whose cost does not exceed a target."""
    answer = smallest_size(problem, target_cost, time_limit_s=time_limit_s)
    plan = answer.solution
    return {
        "target_cost": target_cost,
        "status": answer.status.value,
        "size_bits": answer.size_bits,
        "size_lower_bound": answer.size_lower_bound,
        "objective": None if plan is None else plan.objective,
        "least_cost": answer.least_cost,
        "choices": {} if plan is None else plan.named_choices,
    }


def prices_of(problem: Problem, solution: Solution) -> dict[str, Any] | None:
    """What more bits would buy, and at which budgets each unit changes; ``None`` without a plan."""
    if solution.status is SolveStatus.INFEASIBLE:
        return None
    prices = shadow_prices(problem)
    return {
        "per_bit": prices.per_bit,
        "per_kilobyte": prices.buys(BITS_PER_KILOBYTE),
        "next_budget_bits": prices.next_budget_bits,
        "next_saving": prices.next_saving,
        "switches": {
            unit: [
                {"budget_bits": switch.budget_bits, "candidate": switch.label}
                for switch in prices.switches(i)
            ]
            for i, unit in enumerate(problem.units)
        },
    }


def probabilities_of(
    problem: Problem, solution: Solution, found: ChoiceProbabilities
) -> dict[str, float] | None:
    """How likely each unit's choice is the right one; ``None`` without a plan."""
    if solution.choice_indices is None:
        return None
    return dict(zip(problem.units, found.of(solution.choice_indices).tolist(), strict=True))
