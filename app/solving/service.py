"""From a table and budgets to plans and certificates: the one way in for HTTP and the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import InvalidRequest
from app.solving.table import CostTable
from solver import Budget, Problem, Row, frontier, parse_budget, solve

FLOAT_BITS_PER_WEIGHT = 32
"""What ratios refer to unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class SolveRequest:
    """What to solve.

    Args:
        table: The candidates.
        budgets: Texts with a unit; one plan for each. Empty: the size is not limited.
        limits: Further column -> the largest sum allowed over the chosen candidates.
        pins: Unit -> candidate it must take.
        ties: Groups of units that share one choice.
        weights: Number of weights, for "4 bits"; worked out from the table where that is possible.
        float_bits: Size in float, in bits, for "3.5x" and "0.4 of float"; 32 bits a weight when not given.
        with_frontier: Also give the plans of every size.
        time_limit_s: For each budget.
        relative_gap: Stop as soon as the proven gap is at most this.
        backend: ``auto``, ``exact`` or ``pulp``.
        seed: For random choices of the search.
    """

    table: CostTable
    budgets: Sequence[str] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    ties: Sequence[Sequence[str]] = ()
    weights: int | None = None
    float_bits: int | None = None
    with_frontier: bool = False
    time_limit_s: float = 30.0
    relative_gap: float = 0.0
    backend: str = "auto"
    seed: int = 0


def solve_table(request: SolveRequest) -> dict[str, Any]:
    """Solve for each budget.

    Returns:
        The first budget's answer, with all of them under ``plans``, and ``frontier`` where asked for.

    Raises:
        InvalidRequest: A budget needs to know more than the table tells.
        SolverError: The table, the rules or the options are not acceptable; names the unit.
    """
    budgets: list[Budget | None] = [_budget(request, text) for text in request.budgets]
    plans = [_answer(request, budget) for budget in budgets or [None]]
    document = {**plans[0], "plans": plans}
    if request.with_frontier:
        document["frontier"] = _frontier(_problem(request, None))
    return document


def _budget(request: SolveRequest, text: str) -> Budget:
    weights = request.weights or request.table.weights()
    float_bits = request.float_bits or (FLOAT_BITS_PER_WEIGHT * weights if weights else None)
    # Any number will do to find out what the text means: sizes that stay the same do not refer to the model.
    parsed = parse_budget(text, weights=weights or 2**20, float_bits=float_bits or 2**25)
    if weights and float_bits:
        return parsed
    if weights is None and parse_budget(text, weights=2**21, float_bits=2**25) != parsed:
        message = f"budget {text!r} is an average, and the table does not tell the number of weights"
        raise InvalidRequest(message, "weights", None, "the number of weights, or a size such as '12 MB'")
    if float_bits is None and parse_budget(text, weights=2**20, float_bits=2**26) != parsed:
        message = f"budget {text!r} is a ratio, and the table does not tell the size in float"
        raise InvalidRequest(
            message, "float_bits", None, "the size in float, in bits, or a size such as '12 MB'"
        )
    return parsed


def _problem(request: SolveRequest, budget: Budget | None) -> Problem:
    limits = [
        Row(name=name, values=request.table.column(name), limit=limit)
        for name, limit in request.limits.items()
    ]
    return Problem.from_rows(
        request.table.rows, budget=budget, pins=request.pins, ties=request.ties, limits=limits
    )


def _answer(request: SolveRequest, budget: Budget | None) -> dict[str, Any]:
    solution = solve(
        _problem(request, budget),
        time_limit_s=request.time_limit_s,
        relative_gap=request.relative_gap,
        backend=request.backend,
        seed=request.seed,
    )
    return {
        "budget": None if budget is None else budget.text,
        "budget_bits": None if budget is None else budget.bits,
        **solution.to_json(),
    }


def _frontier(problem: Problem) -> list[dict[str, Any]]:
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
