"""Which plan is handed over for each of a job's budgets: decided by what was measured."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.models import Job, Plan, PlanRole
from app.plans import planner, repository
from app.plans.spec import BudgetCounts, limit_of
from solver import SolveStatus


def conclude_job(session: Session, job_id: str) -> None:
    """Decide by measured cost which plan is handed over for each of the job's budgets.

    First between the plans that the search made. The one made with interactions takes the place of the other when it costs
    less on the calibration data, which it was made from, and no more on the evaluation data, which it was not: these can only
    speak against it, and without any nothing speaks for it. The same holds for the one found by measuring again around the
    better of both, but its steps were crossed: that speaks for it where there are no evaluation data. Then "never worse than
    uniform, as measured": a uniform plan that keeps to the budget and the pins and costs less, measured jointly (on the
    evaluation data when there is any), takes the place of what the search found. The bound stays, and the gap is told anew.
    """
    job = session.get_one(Job, job_id)
    metric = job.request["compare"]
    uniform = repository.of_job(session, job_id, PlanRole.UNIFORM)
    alternatives = repository.of_job(session, job_id, PlanRole.ALTERNATIVE)
    for plan in repository.of_job(session, job_id, PlanRole.REQUESTED):
        if not plan.choices or "origin" in plan.solver:  # nothing to hand over, or decided already
            continue
        tried = [trial.outcome for trial in repository.trials(session, job_id, plan.ordinal)]
        plan.solver = plan.solver | {"origin": "search"} | ({"trials": tried} if tried else {})
        for other in sorted(alternatives, key=is_remeasured):
            if other.ordinal == plan.ordinal and is_better(other, plan, metric):
                _take_over(plan, other, "remeasured" if is_remeasured(other) else "interactions")
        better = _best_baseline(plan, uniform, metric)
        if better is not None:
            _take_over(plan, better, "uniform")


def is_remeasured(plan: Plan) -> bool:
    """Whether an alternative was found by measuring again around a plan."""
    return bool(plan.spec.get("remeasured"))


def is_better(other: Plan, plan: Plan, metric: str) -> bool:
    """Whether another plan costs less on the calibration data, and no more on data that it was not made from.

    These are the evaluation data, else what steps around a plan were crossed with. A plan made with interactions has neither
    where there are no evaluation data: made from the calibration data, it costs little on them in any case.
    """
    theirs, own = (_values(p, metric) for p in (other, plan))
    if theirs.get("calibration") is None or own.get("calibration") is None:
        return False
    if theirs.get("evaluation") is None or own.get("evaluation") is None:
        holds = is_remeasured(other)
    else:
        holds = bool(theirs["evaluation"] <= own["evaluation"])
    return holds and bool(theirs["calibration"] < own["calibration"])


def _best_baseline(plan: Plan, uniform: Sequence[Plan], metric: str) -> Plan | None:
    """The uniform plan of least measured cost that keeps to the plan's rules, if it beats the plan."""
    own = measured_cost(plan, metric)
    if own is None:
        return None
    best, least = None, own
    for candidate in uniform:
        cost = measured_cost(candidate, metric)
        if cost is not None and cost < least and _fits(candidate, plan):
            best, least = candidate, cost
    return best


def _fits(uniform: Plan, plan: Plan) -> bool:
    """Whether a uniform plan keeps to another plan's budget, limits, pins and ties."""
    whole_file = plan.spec.get("budget_counts") == BudgetCounts.FILE
    size = uniform.file_size_bits if whole_file else uniform.size_bits
    if size is None or plan.budget_bits is None or size > plan.budget_bits:
        return False
    takes = uniform.solver.get("limited", {})
    if any(takes.get(name, 0) > limit_of(name, text) for name, text in plan.spec.get("limits", {}).items()):
        return False
    ties = plan.spec.get("ties", [])
    if any(uniform.choices[unit] != uniform.choices[group[0]] for group in ties for unit in group):
        return False
    return all(uniform.choices[unit]["bits"] == bits for unit, bits in plan.spec["pins"].items())


def _take_over(plan: Plan, better: Plan, origin: str) -> None:
    """Hand another plan over under this one's name; what the search by added costs found stays on record."""
    found = {
        "objective": plan.objective,
        "size_bits": plan.size_bits,
        "measured": plan.measured,
        "choices": plan.choices,
    }
    plan.solver = plan.solver | {"origin": origin, "search": plan.solver.get("search", found)}
    plan.choices = better.choices
    plan.objective = better.objective
    plan.predicted = better.predicted
    about = ("limited", "interactions", "remeasured")  # of the choices, not of how they were found
    kept = {name: value for name, value in plan.solver.items() if name not in about}
    plan.solver = kept | {name: better.solver[name] for name in about if name in better.solver}
    plan.measured = better.measured
    plan.size_bits = better.size_bits
    plan.file_size_bits = better.file_size_bits
    plan.status = SolveStatus.FEASIBLE.value
    plan.relative_gap = planner.gap(plan.objective, plan.lower_bound)


def measured_cost(plan: Plan, metric: str) -> float | None:
    """Measured cost of the jointly quantized model: on the evaluation data when there is any."""
    values = _values(plan, metric)
    evaluation, calibration = values.get("evaluation"), values.get("calibration")
    cost: float | None = calibration if evaluation is None else evaluation
    return cost


def _values(plan: Plan, metric: str) -> dict[str, Any]:
    values: dict[str, Any] = (plan.measured or {}).get("values", {}).get(metric, {})
    return values
