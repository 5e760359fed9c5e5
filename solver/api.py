"""`solve`: from a problem to a checked solution."""

import math
import time
from dataclasses import replace

import numpy as np

from solver.certificate import Evaluation, evaluate
from solver.conflict import minimal_conflict
from solver.errors import BackendError, OptionError
from solver.outcome import Outcome
from solver.problem import Problem
from solver.reduction import Reduced, ReducedRow
from solver.solution import Solution, SolveStatus, Stopped
from solver.solution import relative_gap as gap_between
from solver.strategy import Asked, dispatch
from solver.tablewise import smallest_total

_CONFLICT_S = 5.0
"""Most seconds spent on saying why nothing is feasible."""

_NEARLY_OVER = 0.02
"""Share of the time that may be left when it is said to be over."""

BACKENDS = ("auto", "exact", "numpy", "pulp")


def solve(
    problem: Problem,
    *,
    time_limit_s: float = 30.0,
    relative_gap: float = 0.0,
    backend: str = "auto",
    seed: int = 0,
) -> Solution:
    """Find a plan of least cost within all limits, and prove how good it is.

    Args:
        problem: What to solve.
        time_limit_s: Wall-clock seconds, > 0; the best plan and an honest gap are returned when they are over.
        relative_gap: Stop as soon as the proven gap is at most this, in [0, 1).
        backend: ``"auto"``; ``"exact"`` (our own search), ``"numpy"`` (the same without the compiled kernel), or ``"pulp"``
            (integer program).
        seed: For random choices of the search; the objective of an optimal plan does not depend on it.

    Returns:
        The solution. An infeasible problem is a status, with the smallest feasible size.

    Raises:
        OptionError: An argument is out of range.
        BackendError: A foreign solver is needed and not installed, or returned a plan that does not hold.
    """
    check_options(time_limit_s, relative_gap, backend)
    start = time.monotonic()
    asked = Asked(relative_gap=relative_gap, deadline=start + time_limit_s, seed=seed, backend=backend)
    rows = constraints(problem.reduced, problem.budget_bits)
    outcome = dispatch(problem, rows, asked)
    if outcome.infeasible:
        return _infeasible(problem, rows, outcome, start, asked.deadline)
    return _finish(problem, rows, outcome, start, asked)


def constraints(reduced: Reduced, budget_bits: int | None) -> tuple[ReducedRow, ...]:
    """All linear rows over the groups; the size comes first where it is limited."""
    if budget_bits is None:
        return reduced.rows
    return (ReducedRow(name="size", table=reduced.sizes, limit=budget_bits), *reduced.rows)


def check_options(time_limit_s: float, gap: float, backend: str) -> None:
    """Refuse arguments out of range.

    Raises:
        OptionError: A time limit that is not positive and finite, a gap outside [0, 1), an unknown backend.
    """
    if not (isinstance(time_limit_s, int | float) and 0 < time_limit_s < math.inf):
        raise OptionError(f"time limit {time_limit_s!r} s", "time_limit_s", repr(time_limit_s), "seconds > 0")
    if not (isinstance(gap, int | float) and 0 <= gap < 1):
        raise OptionError(f"relative gap {gap!r}", "relative_gap", repr(gap), "0 <= gap < 1")
    if backend not in BACKENDS:
        raise OptionError(f"unknown backend {backend!r}", "backend", backend, list(BACKENDS))


def _infeasible(
    problem: Problem, rows: tuple[ReducedRow, ...], outcome: Outcome, start: float, deadline: float
) -> Solution:
    """There is no plan: say what each row needs at least, and what conflicts."""
    least = {row.name: smallest_total(row.table) / _scale(problem, row.name) for row in rows}
    now = time.monotonic()
    words = minimal_conflict(
        problem, is_feasible, deadline=min(deadline, now + _CONFLICT_S, now + (deadline - start))
    )
    return Solution(
        status=SolveStatus.INFEASIBLE,
        smallest_feasible_bits=problem.reduced.smallest,
        smallest_row_values=least,
        conflict=words,
        backend=outcome.backend,
        backend_version=outcome.backend_version,
        proof=outcome.proof,
        runtime_s=time.monotonic() - start,
        units=problem.units,
        labels=problem.labels,
    )


def is_feasible(problem: Problem, deadline: float) -> bool | None:
    """Whether a problem has any plan; ``None`` when that cannot be told in time."""
    outcome = any_plan(problem, deadline)
    if outcome.infeasible:
        return False
    return None if outcome.slots is None else True


def any_plan(problem: Problem, deadline: float) -> Outcome:
    """Some plan within all limits, whatever it costs, or the proof that there is none.

    Args:
        problem: Its costs are not looked at.
        deadline: Of `time.monotonic`.
    """
    free = replace(problem, costs=np.zeros_like(problem.costs))
    rows = constraints(free.reduced, free.budget_bits)
    return dispatch(free, rows, Asked(relative_gap=0.0, deadline=deadline, seed=0, backend="auto"))


def _finish(
    problem: Problem, rows: tuple[ReducedRow, ...], outcome: Outcome, start: float, asked: Asked
) -> Solution:
    """Check the plan against the problem as the user gave it, and word the status."""
    status, choices, checked = SolveStatus.NO_SOLUTION, None, None
    bound = outcome.lower_bound
    if outcome.slots is not None:
        choices = problem.reduced.expand(outcome.slots)
        checked = evaluate(problem, choices)
        if checked.violations:
            message = f"{outcome.backend} returned a plan that breaks {', '.join(checked.violations)}"
            raise BackendError(message, "backend", outcome.backend)
        bound = min(outcome.lower_bound, checked.objective)
        status = SolveStatus.OPTIMAL if outcome.proven else SolveStatus.FEASIBLE
    multipliers = {
        row.name: price * _scale(problem, row.name) for row, price in zip(rows, outcome.prices, strict=True)
    }
    return Solution(
        status=status,
        choice_indices=choices,
        objective=None if checked is None else checked.objective,
        lower_bound=bound if math.isfinite(bound) else None,
        size_bits=None if checked is None else checked.size_bits,
        smallest_feasible_bits=problem.reduced.smallest,
        row_values=_row_values(problem, checked),
        backend=outcome.backend,
        backend_version=outcome.backend_version,
        proof=outcome.proof,
        multiplier=multipliers.get("size"),
        multipliers=multipliers,
        stopped=_stopped(
            status, None if checked is None else gap_between(checked.objective, bound), asked, start
        ),
        runtime_s=time.monotonic() - start,
        units=problem.units,
        labels=problem.labels,
    )


def _stopped(status: SolveStatus, gap: float | None, asked: Asked, start: float) -> Stopped:
    """Why the search ended; foreign solvers stop a little before their time is over."""
    if status is SolveStatus.OPTIMAL:
        return Stopped.PROVEN
    if gap is not None and gap <= asked.relative_gap:
        return Stopped.GAP
    left = (asked.deadline - time.monotonic()) / (asked.deadline - start)
    return Stopped.TIME_LIMIT if left <= _NEARLY_OVER else Stopped.SEARCH_LIMIT


def _row_values(problem: Problem, checked: Evaluation | None) -> dict[str, float]:
    if checked is None:
        return {}
    return {row.name: checked.row_values[row.name] / row.scale for row in problem.rows}


def _scale(problem: Problem, name: str) -> float:
    """What the user's numbers of a row were multiplied by."""
    return next((given.scale for given in problem.rows if given.name == name), 1.0)
