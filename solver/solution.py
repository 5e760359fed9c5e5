"""What the solver answers: a plan, its bound, and what the bound rests on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SolveStatus(StrEnum):
    """How far the answer is proven."""

    OPTIMAL = "optimal"
    """No plan is better (up to float rounding, or up to the requested gap where that is 1e-9 or less)."""
    FEASIBLE = "feasible"
    """A plan within all limits, and an honest gap."""
    INFEASIBLE = "infeasible"
    """Proven: no plan is within all limits."""
    NO_SOLUTION = "no_solution"
    """Neither a plan nor a proof that there is none was found in the time."""
    ERROR = "error"
    """A solver outside this package failed; nothing is claimed."""


class Proof(StrEnum):
    """What the lower bound (or the word infeasible) rests on."""

    LAGRANGIAN = "lagrangian"
    """``sum_i min_k (cost + multipliers . rows) - multipliers . limits``: one pass anyone can repeat."""
    SEARCH = "search"
    """Our own exhaustive search over what the Lagrangian bound leaves open, up to float rounding."""
    SOLVER = "solver"
    """The branch and bound of the named backend, within its tolerances."""
    MINIMUM = "minimum"
    """Even the smallest candidate of every unit exceeds a limit."""
    NONE = "none"
    """There is no bound."""


class Stopped(StrEnum):
    """Why the search ended."""

    PROVEN = "proven"
    """Nothing was left to search: the plan, or that there is none, is proven."""
    GAP = "gap"
    """The requested gap was reached."""
    TIME_LIMIT = "time_limit"
    """The time was over."""
    SEARCH_LIMIT = "search_limit"
    """The search's own limit on states, or a foreign solver's, was reached before."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """Answer to a `solver.problem.Problem`.

    Attributes:
        status: See `SolveStatus`.
        choice_indices: Candidate index of each unit, int64 [L]; ``None`` without a plan.
        objective: Sum of the chosen costs, correctly rounded; ``None`` without a plan.
        lower_bound: No plan within the limits costs less; ``None`` when nothing is known.
        size_bits: Exact sum of the chosen sizes; ``None`` without a plan.
        smallest_feasible_bits: Smallest total size that pins, bounds and ties allow (whatever further rows say).
        row_values: Further row -> its value in the plan, in the user's unit.
        smallest_row_values: When infeasible: each row's smallest value by itself, in the user's unit.
        conflict: When infeasible: a minimal set of rows and pins that cannot hold together, in words.
        backend: What found the plan, e.g. ``"exact"`` or ``"pulp-highs"``.
        backend_version: Of that program.
        proof: What ``lower_bound`` (or infeasibility) rests on.
        multiplier: Shadow price of the size in the Lagrangian bound, cost per bit, >= 0; ``None`` without one.
        multipliers: Shadow prices of all rows in the Lagrangian bound, ``"size"`` included, cost per unit of the row.
        stopped: Why the search ended.
        runtime_s: Wall-clock seconds spent.
        units: Names.
        labels: Names of the candidates, per unit.
    """

    status: SolveStatus
    choice_indices: NDArray[np.int64] | None = None
    objective: float | None = None
    lower_bound: float | None = None
    size_bits: int | None = None
    smallest_feasible_bits: int | None = None
    row_values: Mapping[str, float] = field(default_factory=dict)
    smallest_row_values: Mapping[str, float] = field(default_factory=dict)
    conflict: tuple[str, ...] = ()
    backend: str
    backend_version: str
    proof: Proof = Proof.NONE
    multiplier: float | None = None
    multipliers: Mapping[str, float] = field(default_factory=dict)
    stopped: Stopped = Stopped.PROVEN
    runtime_s: float
    units: Sequence[str] = ()
    labels: tuple[tuple[str, ...], ...] | None = None

    @property
    def relative_gap(self) -> float | None:
        """``(objective - lower_bound) / max(|objective|, |lower_bound|)``, 0 when both are 0; ``None`` without either."""
        if self.objective is None or self.lower_bound is None:
            return None
        return relative_gap(self.objective, self.lower_bound)

    @cached_property
    def choices(self) -> tuple[int, ...] | None:
        """Candidate index of each unit as plain integers; ``None`` without a plan."""
        return None if self.choice_indices is None else tuple(self.choice_indices.tolist())

    @cached_property
    def named_choices(self) -> dict[str, str]:
        """Unit -> candidate by name; empty without a plan."""
        if self.choices is None:
            return {}
        if self.labels is None:
            return {unit: str(k) for unit, k in zip(self.units, self.choices, strict=True)}
        return {unit: names[k] for unit, names, k in zip(self.units, self.labels, self.choices, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, the plan by names."""
        return {
            "status": self.status.value,
            "objective": self.objective,
            "lower_bound": self.lower_bound,
            "relative_gap": self.relative_gap,
            "size_bits": self.size_bits,
            "smallest_feasible_bits": self.smallest_feasible_bits,
            "choices": self.named_choices,
            "rows": dict(self.row_values),
            "smallest_rows": dict(self.smallest_row_values),
            "conflict": list(self.conflict),
            "backend": self.backend,
            "backend_version": self.backend_version,
            "proof": self.proof.value,
            "stopped": self.stopped.value,
            "multipliers": dict(self.multipliers),
            "seconds": self.runtime_s,
        }


def relative_gap(objective: float, lower_bound: float) -> float:
    """Gap relative to the larger magnitude of the two: in [0, 2], and 0 for 0 against 0."""
    scale = max(abs(objective), abs(lower_bound))
    return max(0.0, objective - lower_bound) / scale if scale > 0 else 0.0
