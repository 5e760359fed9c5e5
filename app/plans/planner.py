"""From measurements and a specification to a plan: pure, in whole numbers where sizes are concerned.

Words: the *searched* units are those a plan chooses for; all others, and whatever belongs to no unit, stay in float.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from app.kit.ids import content_sha256
from solver import Problem, SolveStatus, frontier, parse_budget, solve
from solver.solution import relative_gap
from workers.contracts import ModelDescription


class BudgetCounts(StrEnum):
    """Which size a budget binds."""

    WEIGHTS = "weights"
    """Weights times bit-width, summed over the searched units."""
    FILE = "file"
    """The whole file: scales and zero points, and everything that stays in float."""


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """What a plan has to satisfy.

    Args:
        budget: As written, e.g. ``"4 bits"``.
        budget_counts: Which size the budget binds.
        pins: Unit -> bit-width it must take.
        ties: Groups of units that share one choice.
        exclude: Units that stay in float.
    """

    budget: str
    budget_counts: BudgetCounts = BudgetCounts.WEIGHTS
    pins: Mapping[str, int] = field(default_factory=dict)
    ties: Sequence[Sequence[str]] = ()
    exclude: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; equal specifications give equal texts."""
        return {
            "budget": self.budget,
            "budget_counts": self.budget_counts.value,
            "pins": dict(sorted(self.pins.items())),
            "ties": sorted(sorted(group) for group in self.ties),
            "exclude": sorted(self.exclude),
        }

    @property
    def sha256(self) -> str:
        """Hash of the canonical form."""
        return content_sha256(self.to_json())

    @property
    def rules_sha256(self) -> str:
        """Hash of everything but the budget."""
        return replace(self, budget="").sha256


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measured candidate of one unit. ``cost`` is the mean in the metric's unit, sizes are in bits."""

    unit: str
    bits: int
    scheme: str
    cost: float
    size_bits: int
    storage_bits: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What of a model is searched and what is not, in weights and bits."""

    description: ModelDescription
    searched: frozenset[str]

    @cached_property
    def weights(self) -> int:
        """Weights of the searched units."""
        return sum(u.weights for u in self.description.units if u.name in self.searched)

    @cached_property
    def float_bits(self) -> int:
        """Bits of the searched units as stored in float."""
        return self.description.unit_float_bits - self._excluded_float_bits

    @property
    def fixed_bits(self) -> int:
        """Bits of everything that stays in float."""
        return self.description.float_bits - self.float_bits

    @cached_property
    def _excluded_float_bits(self) -> int:
        # Units do not tell their own width; it is the same for all in every model but mixed-precision ones.
        weights = sum(u.weights for u in self.description.units)
        excluded = weights - self.weights
        return -(-self.description.unit_float_bits * excluded // weights) if weights else 0

    def budget_bits(self, text: str, counts: BudgetCounts) -> int:
        """A budget in whole bits of the size that it binds.

        Raises:
            BudgetError: The text is no budget.
        """
        whole = self.description.float_bits if counts is BudgetCounts.FILE else self.float_bits
        return parse_budget(text, weights=self.weights, float_bits=whole).bits


def sizes_of(description: ModelDescription, exclude: Iterable[str]) -> Sizes:
    """The sizes of a model when some of its units stay in float."""
    names = {u.name for u in description.units}
    return Sizes(description=description, searched=frozenset(names - set(exclude)))


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A plan that is not yet stored. The optional values are ``None`` when there is no plan within the budget."""

    status: str
    budget_bits: int | None
    objective: float | None
    lower_bound: float | None
    relative_gap: float | None
    size_bits: int | None
    file_size_bits: int | None
    choices: dict[str, dict[str, Any]]
    predicted: dict[str, float]
    solver: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """The least predicted cost at a size."""

    size_bits: int
    objective: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """Everything about a search but its budget; made once, asked often. Build it with `prepare`.

    Attributes:
        sizes: Of the model, and what is searched.
        counts: Which size budgets bind.
        metric: What the costs measure.
        problem: For the solver, without a budget.
        table: (unit, bit-width) -> measured candidate, searched units only, units in execution order.
    """

    sizes: Sizes
    counts: BudgetCounts
    metric: str
    problem: Problem
    table: Mapping[tuple[str, int], Cell]

    @property
    def fixed_bits(self) -> int:
        """Bits that are not the solver's to choose but count in the budget."""
        return self.sizes.fixed_bits if self.counts is BudgetCounts.FILE else 0

    def plan(self, budget: str, *, time_limit_s: float) -> Draft:
        """The best plan for a budget.

        Args:
            budget: As written.
            time_limit_s: Longest time for the search, in seconds.

        Returns:
            The plan with its certificate; status ``infeasible`` and the smallest possible size when no plan fits.

        Raises:
            BudgetError: The text is no budget.
        """
        budget_bits = self.sizes.budget_bits(budget, self.counts)
        # A budget that what is fixed already exceeds leaves nothing: infeasible, not an error.
        problem = self.problem.with_budget(max(budget_bits - self.fixed_bits, 0))
        solution = solve(problem, time_limit_s=time_limit_s)
        details: dict[str, Any] = {
            "backend": solution.backend,
            "version": solution.backend_version,
            "proof": solution.proof.value,
            "stopped": solution.stopped.value,
            "multiplier": solution.multiplier,
            "seconds": solution.runtime_s,
        }
        if solution.smallest_feasible_bits is not None:
            details["minimum_bits"] = solution.smallest_feasible_bits + self.fixed_bits
        if solution.conflict:
            details["conflict"] = list(solution.conflict)
        draft = self._draft({unit: int(bits) for unit, bits in solution.named_choices.items()})
        return replace(
            draft,
            status=solution.status.value,
            budget_bits=budget_bits,
            objective=solution.objective,
            lower_bound=_finite(solution.lower_bound),
            relative_gap=_finite(solution.relative_gap),
            predicted={} if solution.objective is None else {self.metric: solution.objective},
            solver=details,
        )

    def uniform(self, bits: int) -> Draft:
        """The baseline that takes the same bit-width everywhere it searches, whatever pins say."""
        return self._draft({unit: bits for unit, width in self.table if width == bits})

    @cached_property
    def frontier(self) -> tuple[FrontierPoint, ...]:
        """The best cost at each size on the convex hull, under pins and ties; sizes as budgets count them."""
        return tuple(
            FrontierPoint(size_bits=p.size_bits + self.fixed_bits, objective=p.objective)
            for p in frontier(self.problem)
        )

    def _draft(self, chosen: Mapping[str, int]) -> Draft:
        """A plan from its choices; without any, no plan."""
        taken = [self.table[item] for item in chosen.items()]
        objective = math.fsum(c.cost for c in taken) if taken else None
        return Draft(
            status=SolveStatus.FEASIBLE.value,
            budget_bits=None,
            objective=objective,
            lower_bound=None,
            relative_gap=None,
            size_bits=sum(c.size_bits for c in taken) if taken else None,
            file_size_bits=sum(c.storage_bits for c in taken) + self.sizes.fixed_bits if taken else None,
            choices={c.unit: {"bits": c.bits, "scheme": c.scheme} for c in taken},
            predicted={} if objective is None else {self.metric: objective},
            solver={"backend": "none"},
        )


def prepare(description: ModelDescription, cells: Iterable[Cell], spec: PlanSpec, *, metric: str) -> Search:
    """Make ready for plans under a specification's rules; its budget is passed over.

    Args:
        description: Of the model.
        cells: Every measured candidate of every unit of the job.
        spec: What plans have to satisfy.
        metric: What the costs measure.

    Raises:
        SolverError: The rules contradict each other or the measurements.
    """
    sizes = sizes_of(description, spec.exclude)
    table = {(c.unit, c.bits): c for c in cells if c.unit in sizes.searched}
    whole_file = spec.budget_counts is BudgetCounts.FILE
    rows = ((c.unit, c.bits, c.cost, c.storage_bits if whole_file else c.size_bits) for c in table.values())
    problem = Problem.from_rows(rows, budget=None, pins=spec.pins, ties=spec.ties)
    _ = problem.reduced  # worked out once, here: problems for each budget share it
    return Search(sizes=sizes, counts=spec.budget_counts, metric=metric, problem=problem, table=table)


def gap(objective: float | None, lower_bound: float | None) -> float | None:
    """Relative gap of an objective to a bound, ``None`` without either."""
    if objective is None or lower_bound is None:
        return None
    return _finite(relative_gap(objective, lower_bound))


def minimum_bits(
    sizes: Sizes, candidates: Sequence[int], pins: Mapping[str, int], ties: Sequence[Sequence[str]]
) -> int:
    """Smallest sum of weights times bit-width that pins and ties allow."""
    forced = dict(pins)
    for group in joined(ties):
        width = next((pins[unit] for unit in group if unit in pins), None)
        if width is not None:
            forced |= dict.fromkeys(group, width)
    smallest = min(candidates)
    return sum(
        u.weights * forced.get(u.name, smallest) for u in sizes.description.units if u.name in sizes.searched
    )


def joined(ties: Iterable[Iterable[str]]) -> list[set[str]]:
    """Ties whose groups overlap, as one group each."""
    groups: list[set[str]] = []
    for tie in ties:
        merged = set(tie)
        apart = []
        for group in groups:
            if group & merged:
                merged |= group
            else:
                apart.append(group)
        groups = [*apart, merged]
    return groups


def _finite(value: float | None) -> float | None:
    """JSON has no infinities: an unbounded value is one that is not known."""
    return value if value is not None and math.isfinite(value) else None
