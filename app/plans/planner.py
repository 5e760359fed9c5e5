"""From measurements and a specification to a plan: pure, in whole numbers where sizes are concerned.

Words: the *searched* units are those a plan chooses for; all others, and whatever belongs to no unit, stay in float.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.plans.spec import BudgetCounts, PlanSpec, Sizes, limit_of, sizes_of
from solver import (
    Interactions,
    Problem,
    Row,
    SolveStatus,
    frontier,
    solve,
    solve_quadratic,
)
from solver.solution import relative_gap
from workers.contracts import Candidate, ModelDescription
from workers.sensitivity.operations import bit_operation_values


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One candidate of one unit and what is known of it. ``cost`` is the mean in the metric's unit, sizes are in bits."""

    unit: str
    bits: int
    scheme: str
    cost: float
    size_bits: int
    storage_bits: int
    activation_bits: int | None = None

    @property
    def candidate(self) -> str:
        """The candidate's name for the solver."""
        return candidate_name(self.bits, self.scheme, self.activation_bits)

    @property
    def choice(self) -> dict[str, Any]:
        """As a plan's choices show it."""
        return choice_json(self.bits, self.scheme, self.activation_bits)


def candidate_name(bits: int, scheme: str, activation_bits: int | None = None) -> str:
    """A candidate in one word, e.g. ``4:channel-asymmetric`` or ``4a8:channel-asymmetric``."""
    return f"{bits}{'' if activation_bits is None else f'a{activation_bits}'}:{scheme}"


def choice_json(bits: int, scheme: str, activation_bits: int | None = None) -> dict[str, Any]:
    """A candidate as JSON; float activations are not mentioned."""
    given = {} if activation_bits is None else {"activation_bits": activation_bits}
    return {"bits": bits, "scheme": scheme, **given}


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
        table: (unit, candidate) -> what is known of it, searched units only, units in execution order.
        rows: Name of a further limit -> (unit, candidate) -> how much of it that takes.
        interactions: How errors of different units add up or cancel; ``None`` where that is not known.
    """

    sizes: Sizes
    counts: BudgetCounts
    metric: str
    problem: Problem
    table: Mapping[tuple[str, str], Cell]
    rows: Mapping[str, Mapping[tuple[str, str], int]]
    interactions: Interactions | None = None

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
        draft = self.chosen(solution.named_choices)
        return replace(
            draft,
            status=solution.status.value,
            budget_bits=budget_bits,
            objective=solution.objective,
            lower_bound=_finite(solution.lower_bound),
            relative_gap=_finite(solution.relative_gap),
            predicted={} if solution.objective is None else {self.metric: solution.objective},
            solver=draft.solver | details,
        )

    def alternative(self, budget: str, *, time_limit_s: float) -> Draft | None:
        """The best plan found for a budget and the limits when interactions count; ``None`` without any, or when none is found.

        Its objective is what its choices cost one by one, as of every plan; the cost predicted with interactions, and the
        bound on that, come beside it.

        Args:
            budget: As written.
            time_limit_s: Longest time for the search, in seconds.
        """
        if self.interactions is None:
            return None
        # What a candidate costs alone is known; the quadratic model adds what pairs of them do to each other.
        linear = self.problem.costs - self.interactions.diagonal
        budget_bits, problem = self._within(budget, linear)
        found = solve_quadratic(problem, self.interactions, time_limit_s=time_limit_s)
        if found.choice_indices is None:
            return None
        word = {"objective": found.objective, "lower_bound": _finite(found.lower_bound), "word": found.word}
        draft = self.chosen(found.named_choices)
        return replace(
            draft,
            status=found.status.value,
            budget_bits=budget_bits,
            predicted={} if found.objective is None else {self.metric: found.objective},
            solver=draft.solver
            | {
                "backend": "interactions",
                "proof": found.proof.value,
                "seconds": found.runtime_s,
                "interactions": word | {"relative_gap": _finite(found.relative_gap)},
            },
        )

    def joint(
        self,
        budget: str,
        linear: NDArray[np.float64],
        interactions: Interactions,
        *,
        start: NDArray[np.int64],
        time_limit_s: float,
    ) -> dict[str, dict[str, Any]]:
        """Choices of least ``linear' x + x' interactions x`` within a budget and the limits, unproven.

        Args:
            budget: As written.
            linear: Of the problem's units and candidates.
            interactions: Likewise.
            start: A plan of the problem that keeps all of it, int64 [units]: what is found costs no more.
            time_limit_s: Longest time for the search, in seconds.
        """
        _, problem = self._within(budget, linear)
        found = solve_quadratic(problem, interactions, start=start, time_limit_s=time_limit_s, certify=False)
        return self.chosen(found.named_choices).choices

    def _within(self, budget: str, linear: NDArray[np.float64]) -> tuple[int, Problem]:
        """A budget in bits, and the problem of keeping it with other costs."""
        budget_bits = self.sizes.budget_bits(budget, self.counts)
        within = self.problem.with_budget(max(budget_bits - self.fixed_bits, 0))
        return budget_bits, replace(within, costs=linear)

    def uniform(self, bits: int) -> Draft:
        """The baseline with the same bit-width everywhere it searches, whatever pins say.

        Each unit takes the cheapest of its candidates of that width; units that are tied the one cheapest for them together.
        """
        names = self.problem.units
        leader = {names[i]: names[group[0]] for group in self.problem.ties for i in group}
        options: dict[str, dict[str, list[Cell]]] = {}
        for (unit, candidate), cell in self.table.items():
            if cell.bits == bits:
                options.setdefault(leader.get(unit, unit), {}).setdefault(candidate, []).append(cell)
        taken = [min(by_candidate.values(), key=_rank) for by_candidate in options.values()]
        chosen = {cell.unit: cell.candidate for together in taken for cell in together}
        return self.chosen({unit: chosen[unit] for unit in names if unit in chosen})

    @cached_property
    def frontier(self) -> tuple[FrontierPoint, ...]:
        """The best cost at each size on the convex hull, under pins and ties; sizes as budgets count them."""
        return tuple(
            FrontierPoint(size_bits=p.size_bits + self.fixed_bits, objective=p.objective)
            for p in frontier(self.problem.only(rows=["size"], pins=(), bounds=self.problem.bounds))
        )

    def chosen(self, chosen: Mapping[str, str]) -> Draft:
        """A plan from its choices, unit -> candidate; without any, no plan."""
        taken = [self.table[item] for item in chosen.items()]
        limited = {name: sum(values[item] for item in chosen.items()) for name, values in self.rows.items()}
        objective = math.fsum(c.cost for c in taken) if taken else None
        return Draft(
            status=SolveStatus.FEASIBLE.value,
            budget_bits=None,
            objective=objective,
            lower_bound=None,
            relative_gap=None,
            size_bits=sum(c.size_bits for c in taken) if taken else None,
            file_size_bits=sum(c.storage_bits for c in taken) + self.sizes.fixed_bits if taken else None,
            choices={c.unit: c.choice for c in taken},
            predicted={} if objective is None else {self.metric: objective},
            solver={"backend": "none", **({"limited": limited} if limited and taken else {})},
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
    table = {(c.unit, c.candidate): c for c in cells if c.unit in sizes.searched}
    whole_file = spec.budget_counts is BudgetCounts.FILE
    wanted = [(unit, Candidate.parse(candidate)) for unit, candidate in table] if spec.limits else []
    rows = {name: bit_operation_values(description, wanted) for name in sorted(spec.limits)}
    problem = Problem.from_rows(
        (
            (c.unit, c.candidate, c.cost, c.storage_bits if whole_file else c.size_bits)
            for c in table.values()
        ),
        budget=None,
        bounds={unit: (bits, bits) for unit, bits in spec.pins.items()},
        widths={c.candidate: c.bits for c in table.values()},
        ties=spec.ties,
        limits=[
            Row(
                name=name,
                values={cell: float(v) for cell, v in values.items()},
                limit=limit_of(name, spec.limits[name]),
            )
            for name, values in rows.items()
        ],
    )
    _ = problem.reduced  # worked out once, here: problems for each budget share it
    return Search(
        sizes=sizes, counts=spec.budget_counts, metric=metric, problem=problem, table=table, rows=rows
    )


def _rank(together: Sequence[Cell]) -> tuple[float, int, str]:
    """Cheapest first; then smallest; then by name."""
    size = sum(cell.storage_bits for cell in together)
    return math.fsum(cell.cost for cell in together), size, together[0].candidate


def gap(objective: float | None, lower_bound: float | None) -> float | None:
    """Relative gap of an objective to a bound, ``None`` without either."""
    if objective is None or lower_bound is None:
        return None
    return _finite(relative_gap(objective, lower_bound))


def _finite(value: float | None) -> float | None:
    """JSON has no infinities: an unbounded value is one that is not known."""
    return value if value is not None and math.isfinite(value) else None
