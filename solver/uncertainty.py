"""Costs that were measured with an error: how sure a choice is, and plans that avoid what is not."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solver.api import check_options, constraints
from solver.errors import OptionError, TableError
from solver.problem import Label, Problem
from solver.strategy import Asked, dispatch

StandardErrors = ArrayLike | Mapping[tuple[str, Label], float]

_GAP = 1e-6
"""Re-solved plans are this close to their optimum: far closer than resampled costs are to the true ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChoiceProbabilities:
    """How often each candidate was part of the best plan.

    Attributes:
        probabilities: float64 [L, K]; each unit's sum to 1.
        resamples: How many times the problem was solved (fewer than asked for when the time was over).
        infeasible: How many of those had no plan found in their time; they are not counted.
    """

    probabilities: NDArray[np.float64]
    resamples: int
    infeasible: int

    def of(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probability that each unit's choice is the right one, float64 [L].

        Args:
            choices: Candidate index of each unit, int64 [L].
        """
        return self.probabilities[np.arange(len(choices)), choices]


def choice_probabilities(
    problem: Problem,
    standard_errors: StandardErrors,
    *,
    resamples: int = 200,
    seed: int = 0,
    time_limit_s: float = 30.0,
) -> ChoiceProbabilities:
    """Solve again and again with costs drawn from their errors (normal, independent), and count the choices.

    Args:
        problem: With the measured means as costs.
        standard_errors: Of the costs: array [L, K], or ``{(unit, candidate): error}`` for every candidate; finite, >= 0.
        resamples: How often, >= 1.
        seed: For the draws: the same seed gives the same answer.
        time_limit_s: Wall-clock seconds, > 0, for all of it.

    Raises:
        TableError: The errors do not fit the problem.
        OptionError: An argument is out of range.

    Source: the parametric bootstrap (Efron and Tibshirani 1993, chapter 6).
    """
    check_options(time_limit_s, 0.0, "auto")
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise OptionError(f"{resamples!r} resamples", "resamples", repr(resamples), "a whole number >= 1")
    errors = error_table(problem, standard_errors)
    deadline = time.monotonic() + time_limit_s
    random = np.random.default_rng(seed)
    counts = np.zeros(problem.costs.shape)
    at = np.arange(len(counts))
    solved, failed = 0, 0
    while solved + failed < resamples and time.monotonic() < deadline:
        drawn = replace(problem, costs=problem.costs + errors * random.standard_normal(errors.shape))
        rows = constraints(drawn.reduced, drawn.budget_bits)
        share = (deadline - time.monotonic()) / (resamples - solved - failed)
        asked = Asked(relative_gap=_GAP, deadline=time.monotonic() + 4 * share, seed=seed, backend="auto")
        outcome = dispatch(drawn, rows, asked)
        if outcome.slots is None:
            failed += 1
            continue
        counts[at, drawn.reduced.expand(outcome.slots)] += 1.0
        solved += 1
    return ChoiceProbabilities(
        probabilities=counts / max(solved, 1), resamples=solved + failed, infeasible=failed
    )


def risk_averse(problem: Problem, standard_errors: StandardErrors, *, factor: float) -> Problem:
    """The problem with ``mean + factor * standard error`` as costs: well-known candidates are preferred.

    The sum over units is an upper confidence bound of the plan's cost whatever the correlation of the errors.

    Args:
        problem: With the measured means as costs.
        standard_errors: As in `choice_probabilities`.
        factor: Standard errors to add, finite, >= 0.

    Raises:
        TableError: The errors do not fit the problem.
        OptionError: The factor is out of range.
    """
    if isinstance(factor, bool) or not np.isfinite(factor) or factor < 0:
        raise OptionError(f"factor {factor!r}", "factor", repr(factor), "a finite number >= 0")
    return replace(problem, costs=problem.costs + factor * error_table(problem, standard_errors))


def error_table(problem: Problem, standard_errors: StandardErrors) -> NDArray[np.float64]:
    """Standard errors as a checked table [L, K]; cells beyond a unit's candidates hold its first one's.

    Raises:
        TableError: A missing candidate, a wrong shape, or a value that is negative or not finite.
    """
    if isinstance(standard_errors, Mapping):
        table = _named(problem, standard_errors)
    else:
        table = np.asarray(standard_errors, np.float64)
        if table.shape != problem.costs.shape:
            raise TableError(
                "the standard errors are not shaped like the costs",
                "standard_errors",
                list(table.shape),
                list(problem.costs.shape),
            )
        real = np.arange(table.shape[1]) < problem.counts[:, None]
        table = np.where(real, table, table[:, :1])
    wrong = np.argwhere(~(np.isfinite(table) & (table >= 0)))
    if wrong.size:
        i, k = (int(v) for v in wrong[0])
        unit = problem.units[i]
        message = f"unit {unit!r} has standard error {table[i, k]} at candidate {problem.label(i, k)!r}"
        raise TableError(message, "standard_errors", str(table[i, k]), "finite numbers >= 0", {"unit": unit})
    return table


def _named(problem: Problem, standard_errors: Mapping[tuple[str, Label], float]) -> NDArray[np.float64]:
    given = {(unit, str(label)): error for (unit, label), error in standard_errors.items()}
    table = np.zeros(problem.costs.shape)
    for i, unit in enumerate(problem.units):
        for k in range(int(problem.counts[i])):
            label = problem.label(i, k)
            if (unit, label) not in given:
                message = f"unit {unit!r} has no standard error for candidate {label!r}"
                raise TableError(message, "standard_errors", label, "one for every candidate", {"unit": unit})
            table[i, k] = given[unit, label]
        table[i, int(problem.counts[i]) :] = table[i, 0]
    return table
