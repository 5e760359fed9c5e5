"""From a table and budgets to plans and certificates: the one way in for HTTP and the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import InvalidRequest
from app.solving.questions import frontier_of, prices_of, probabilities_of, smallest_of
from app.solving.table import CostTable
from solver import (
    Budget,
    Problem,
    Row,
    WidthCount,
    choice_probabilities,
    parse_budget,
    risk_averse,
    solve,
)

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
        bounds: Unit -> (least, largest) bit-width, either may be ``None``; candidates must be bit-widths.
        width_counts: Least and largest number of units at a width.
        max_widths: At most so many different widths in a plan.
        weights: Number of weights, for "4 bits"; worked out from the table where that is possible.
        float_bits: Size in float, in bits, for "3.5x" and "0.4 of float"; 32 bits a weight when not given.
        with_frontier: Also give the plans of every size.
        with_prices: Also tell for each budget what more bits would buy, and where each unit changes.
        target_cost: Also give the smallest plan that costs no more than this.
        errors: Column of the costs' standard errors: also tell how sure each choice is.
        risk: So many standard errors are added to the costs; needs ``errors``.
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
    bounds: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    width_counts: Sequence[WidthCount] = ()
    max_widths: int | None = None
    weights: int | None = None
    float_bits: int | None = None
    with_frontier: bool = False
    with_prices: bool = False
    target_cost: float | None = None
    errors: str | None = None
    risk: float = 0.0
    time_limit_s: float = 30.0
    relative_gap: float = 0.0
    backend: str = "auto"
    seed: int = 0


def solve_table(request: SolveRequest) -> dict[str, Any]:
    """Solve for each budget.

    Returns:
        The first budget's answer, with all of them under ``plans``, and ``frontier`` and ``smallest`` where asked for.

    Raises:
        InvalidRequest: A budget needs to know more than the table tells, or an option needs another one.
        SolverError: The table, the rules or the options are not acceptable; names the unit.
    """
    _check_options(request)
    budgets: list[Budget | None] = [_budget(request, text) for text in request.budgets]
    plans = [_answer(request, budget) for budget in budgets or [None]]
    document = {**plans[0], "plans": plans}
    if request.with_frontier:
        document["frontier"] = frontier_of(_problem(request, None))
    if request.target_cost is not None:
        document["smallest"] = smallest_of(
            _problem(request, None), request.target_cost, time_limit_s=request.time_limit_s
        )
    return document


def _check_options(request: SolveRequest) -> None:
    if request.risk and request.errors is None:
        allowed = "the column that holds the standard errors"
        raise InvalidRequest("a risk needs standard errors", "standard_errors", None, allowed)
    if request.with_prices and not request.budgets:
        raise InvalidRequest("prices need a budget", "budgets", [], "at least one budget")


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
    problem = Problem.from_rows(
        request.table.rows,
        budget=budget,
        pins=request.pins,
        ties=request.ties,
        bounds=request.bounds,
        limits=limits,
        width_counts=request.width_counts,
        max_widths=request.max_widths,
    )
    if request.errors is None:
        return problem
    return risk_averse(problem, request.table.column(request.errors, "standard_errors"), factor=request.risk)


def _answer(request: SolveRequest, budget: Budget | None) -> dict[str, Any]:
    problem = _problem(request, budget)
    solution = solve(
        problem,
        time_limit_s=request.time_limit_s,
        relative_gap=request.relative_gap,
        backend=request.backend,
        seed=request.seed,
    )
    answer = {
        "budget": None if budget is None else budget.text,
        "budget_bits": None if budget is None else budget.bits,
        **solution.to_json(),
    }
    if request.with_prices:
        answer["prices"] = prices_of(problem, solution)
    if request.errors is not None:
        found = choice_probabilities(
            problem,
            request.table.column(request.errors, "standard_errors"),
            seed=request.seed,
            time_limit_s=request.time_limit_s,
        )
        answer["probabilities"] = probabilities_of(problem, solution, found)
    return answer
