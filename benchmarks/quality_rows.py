"""From results to rows: plans of metrics, uniform plans and random plans at each budget, and the table they make."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quality_tasks import Task

from app.report import quantities

UNIFORM, RANDOM_MEDIAN, RANDOM_BEST = "uniform", "random, median", "random, best"
_BESIDE = (UNIFORM, RANDOM_MEDIAN, RANDOM_BEST)
SERVICE = "auto"
"""The metric that the service takes unless told otherwise."""
_EPSILON = 1e-9


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan for one budget.

    Args:
        scheme: What is on offer.
        plan: The metric that made the plan, or `UNIFORM`, `RANDOM_MEDIAN`, `RANDOM_BEST`.
        budget: Average bits allowed.
        average_bits: Average bits taken.
        size_bits: Weights times bits.
        cost: Measured on the evaluation samples, all units quantized together.
        standard_error: Of that, over samples.
        calibration_cost: The same on the calibration samples.
        predicted: Sum of what the metric says of the choices, on its own scale; none of random plans.
        task: What people use the model for, see `quality_tasks`.
        uniform_cost: Of the largest uniform plan within the budget.
        handed_over: Cost of what the service hands over, where that is another plan.
        origin: Why it is.
        plans: Of how many plans this is the median or the best.
    """

    scheme: str
    plan: str
    budget: float
    average_bits: float
    size_bits: int
    cost: float
    standard_error: float | None
    calibration_cost: float
    predicted: float | None
    task: float
    uniform_cost: float
    handed_over: float | None = None
    origin: str = "search"
    plans: int = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A plan that was measured: what of a result document counts here."""

    document: Mapping[str, Any]
    compare: str

    @property
    def average_bits(self) -> float:
        """Per searched weight."""
        return float(self.document["average_bits"])

    @property
    def cost(self) -> float:
        """On the evaluation samples."""
        return float(self.document["measured"][self.compare]["evaluation"])

    @property
    def standard_error(self) -> float | None:
        """Of the cost, over samples."""
        error = self.document["measured_standard_error"][self.compare]["evaluation"]
        return None if error is None else float(error)

    @property
    def calibration_cost(self) -> float:
        """On the calibration samples."""
        return float(self.document["measured"][self.compare]["calibration"])


def found_by_search(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan that the search by added costs found, whatever was handed over in its place."""
    search = plan["solver"].get("search")
    if search is None:
        return dict(plan)
    return {
        **plan,
        "choices": search["choices"],
        "size_bits": search["size_bits"],
        "average_bits": plan["average_bits"] * search["size_bits"] / plan["size_bits"],
        "objective": search["objective"],
        "measured": search["measured"]["values"],
        "measured_standard_error": search["measured"]["standard_error"],
    }


def uniform_within(document: Mapping[str, Any], budget: float) -> dict[str, Any]:
    """The largest uniform plan of a result within a budget of average bits."""
    fitting = [plan for plan in document["baselines"] if plan["average_bits"] <= budget + _EPSILON]
    return dict(max(fitting, key=lambda plan: plan["average_bits"]))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Makes rows of one model and one scheme.

    Args:
        scheme: What is on offer.
        compare: What plans are judged by.
        task: What the model is for.
        document: Any result of the scheme: its uniform plans are the same for all metrics.
    """

    scheme: str
    compare: str
    task: Task
    document: Mapping[str, Any]

    def searched(self, metric: str, document: Mapping[str, Any]) -> list[Row]:
        """What a metric's plans cost, one row a budget."""
        return [self._searched(metric, plan) for plan in document["plans"]]

    def _searched(self, metric: str, plan: Mapping[str, Any]) -> Row:
        found = found_by_search(plan)
        budget = float(plan["budget"].split()[0])
        other = plan["origin"] != "search"
        return self._row(
            metric,
            budget,
            found,
            predicted=found["objective"],
            handed_over=Measured(document=plan, compare=self.compare).cost if other else None,
            origin=plan["origin"],
        )

    def uniform(self, budget: float) -> Row:
        """The largest uniform plan within a budget."""
        return self._row(UNIFORM, budget, uniform_within(self.document, budget))

    def random(self, budget: float, plans: Sequence[Mapping[str, Any]]) -> list[Row]:
        """The median and the best of random plans; of an even number the better of the two in the middle."""
        costs = {Measured(document=p, compare=self.compare).cost: p for p in reversed(plans)}
        picked = {RANDOM_MEDIAN: costs[statistics.median_low(costs)], RANDOM_BEST: costs[min(costs)]}
        return [self._row(name, budget, plan, plans=len(plans)) for name, plan in picked.items()]

    def _row(self, name: str, budget: float, plan: Mapping[str, Any], **members: Any) -> Row:
        measured = Measured(document=plan, compare=self.compare)
        uniform = Measured(document=uniform_within(self.document, budget), compare=self.compare)
        return Row(
            scheme=self.scheme,
            plan=name,
            budget=budget,
            average_bits=measured.average_bits,
            size_bits=plan["size_bits"],
            cost=measured.cost,
            standard_error=measured.standard_error,
            calibration_cost=measured.calibration_cost,
            task=self.task.of(plan),
            uniform_cost=uniform.cost,
            **{"predicted": None, **members},
        )


def markdown(rows: Sequence[Row], compare: str, task: Task) -> str:
    """A table: budget by budget, uniform and random plans first, then the metrics' in the order of the rows."""
    cost = quantities.measure(compare)
    lines = [
        f"| budget | plan by | bits | {cost.short}, {cost.unit} | better than uniform | {task.title} | handed over |",
        "|---|---|---|---|---|---|---|",
    ]
    order = {plan: place for place, plan in enumerate(_BESIDE)}
    for row in sorted(rows, key=lambda r: (r.budget, order.get(r.plan, len(order)))):
        handed = quantities.number(row.handed_over)
        cells = (
            f"{row.budget:g}",
            name(row),
            f"{row.average_bits:.2f}",
            quantities.metric_with_error(row.cost, row.standard_error, compare),
            "" if row.plan == UNIFORM else quantities.ratio(row.uniform_cost, row.cost),
            task.text(row.task),
            "" if row.handed_over is None else f"{handed} ({row.origin})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def overview(rows: Sequence[Row]) -> str:
    """Costs alone: a line for each way to a plan, a column for each budget."""
    budgets = sorted({row.budget for row in rows})
    costs: dict[str, dict[float, float]] = {}
    for row in rows:
        costs.setdefault(f"`{row.plan}`" if row.plan not in _BESIDE else row.plan, {})[row.budget] = row.cost
        if row.plan == SERVICE:
            handed = row.cost if row.handed_over is None else row.handed_over
            costs.setdefault(f"`{row.plan}`, handed over", {})[row.budget] = handed
    lines = [
        f"| plan by | {' | '.join(f'{budget:g} bits' for budget in budgets)} |",
        f"|---{'|---' * len(budgets)}|",
    ]
    for plan in sorted(costs, key=lambda plan: plan not in _BESIDE):
        cells = (quantities.number(costs[plan].get(budget)) for budget in budgets)
        lines.append(f"| {plan} | {' | '.join(cells)} |")
    return "\n".join(lines)


def name(row: Row) -> str:
    """A row's plan in words."""
    if row.plan == UNIFORM:
        return f"uniform {round(row.average_bits)} bits"
    if row.plan in _BESIDE:
        return f"{row.plan} of {row.plans}"
    return f"`{row.plan}`"
