"""Errors of the solver.

SolverError
├── ProblemError           the problem as given is not acceptable
│   ├── TableError         a cost or a size: NaN, infinite, negative, too large, duplicate, missing
│   ├── BudgetError        a budget that is malformed, ambiguous, zero or negative
│   ├── PinError           a pin for an unknown unit or candidate, or one that contradicts another rule
│   ├── TieError           a tie with unknown members, or whose members share no candidate
│   ├── BoundError         a bound that leaves a unit without candidates, or that needs widths
│   └── RowError           a further linear row or a width rule that does not fit the problem
├── OptionError            an argument of the call (time limit, gap, backend) is out of range
└── BackendError            a solver outside this package is missing, or gave no usable answer

An infeasible problem is no error: it is a status of the solution.
"""

from typing import Any


class SolverError(Exception):
    """Root of the solver's errors.

    Args:
        message: What failed, for which unit, in one or two sentences.
        field: The input at fault, e.g. ``"costs"`` or ``"pins"``.
        value: The value received; JSON-serialisable.
        allowed: What would be accepted, in words or as a JSON-serialisable value.
        extra: Further machine-readable members of the problem document, e.g. ``{"unit": "layer.0"}``.
    """

    kind = "solver-error"

    def __init__(
        self,
        message: str,
        field: str | None = None,
        value: Any = None,
        allowed: Any = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        # Every argument goes to Exception: exceptions cross process borders by pickle.
        super().__init__(message, field, value, allowed, extra)
        self.message = message
        self.field = field
        self.value = value
        self.allowed = allowed
        self.extra = extra or {}

    def __str__(self) -> str:
        return self.message


class ProblemError(SolverError):
    """The problem as given is not acceptable."""

    kind = "problem-error"


class TableError(ProblemError):
    """A cost or a size is not acceptable; ``extra["unit"]`` names the unit where there is one."""

    kind = "table-error"


class BudgetError(ProblemError):
    """A budget is malformed, ambiguous, zero, negative or too large."""

    kind = "budget-error"


class PinError(ProblemError):
    """A pin names an unknown unit or candidate, or contradicts another rule."""

    kind = "pin-error"


class TieError(ProblemError):
    """A tie names an unknown unit, or its members have no candidate in common."""

    kind = "tie-error"


class BoundError(ProblemError):
    """A bound leaves a unit without candidates, or asks for widths that are not known."""

    kind = "bound-error"


class RowError(ProblemError):
    """A further linear row or a width rule does not fit the problem."""

    kind = "row-error"


class OptionError(SolverError):
    """An argument of the call is out of range."""

    kind = "option-error"


class BackendError(SolverError):
    """A solver outside this package is missing, or gave no usable answer."""

    kind = "backend-error"
