"""The problem: for each unit a table of candidates with cost and size, a budget, and further rules."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solver import rules, tables
from solver.budget import Budget
from solver.constraints import MAX_TOTAL, MAX_WIDTHS, IntegerRow, Row, WidthCount
from solver.errors import BudgetError
from solver.reduction import Reduced, reduce_problem

Label = str | int


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Choose one candidate per unit: ``min sum costs[i, x_i]`` subject to ``sum sizes[i, x_i] <= budget_bits`` and rules.

    Build one with `from_rows` (names, ragged) or `from_arrays` (dense, any size); the arrays must not be changed after.

    Attributes:
        units: Names, unique; shape [L].
        labels: Per unit the candidates' names; ``None`` when candidates are called "0", "1", ...
        costs: float64 [L, K], any finite numbers, in the measure's own unit. Cells beyond ``counts`` repeat column 0.
        sizes: int64 [L, K], bits, >= 0.
        counts: int64 [L], number of candidates of each unit, >= 1.
        widths: int64 [L, K], bit-width of each candidate where known, else ``None``.
        budget_bits: Largest total size; ``None`` when only other rows bind.
        allowed: bool [L, K], what pins and bounds leave; ``None`` when that is everything.
        ties: Groups of unit indices that share one choice.
        rows: Further linear rows, in whole numbers.
        width_counts: Least and largest number of units at a width.
        max_widths: At most so many different widths in a plan.
        pins: Unit index -> candidate index, as asked for.
        bounds: Unit -> (least, largest) bit-width, as asked for.
    """

    units: Sequence[str]
    labels: tuple[tuple[str, ...], ...] | None
    costs: NDArray[np.float64]
    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]
    widths: NDArray[np.int64] | None
    budget_bits: int | None
    allowed: NDArray[np.bool_] | None
    ties: tuple[tuple[int, ...], ...]
    rows: tuple[IntegerRow, ...]
    width_counts: tuple[WidthCount, ...]
    max_widths: int | None
    pins: Mapping[int, int]
    bounds: Mapping[str, tuple[int | None, int | None]]

    @classmethod
    def from_rows(  # noqa: PLR0913 - one keyword per kind of rule
        cls,
        rows: Iterable[tuple[str, Label, float, int]],
        *,
        budget: int | Budget | None,
        pins: Mapping[str, Label] | None = None,
        ties: Iterable[Iterable[str]] = (),
        bounds: Mapping[str, tuple[int | None, int | None]] | None = None,
        widths: Mapping[Label, int] | None = None,
        limits: Iterable[Row] = (),
        width_counts: Iterable[WidthCount] = (),
        max_widths: int | None = None,
    ) -> Self:
        """Build a problem from ``(unit, candidate, cost, size_bits)`` rows.

        Units and candidates keep the order of their first appearance; units may have different candidates.

        Args:
            rows: Any order. Candidates are texts, or whole numbers (then also their own bit-width).
            budget: Whole bits, a parsed `Budget`, or ``None`` for no size limit.
            pins: Unit -> the candidate it must take.
            ties: Groups of units that share one choice; overlapping groups are joined. Members need candidates of
                the same name; candidates that some member lacks drop out.
            bounds: Unit -> (least, largest) bit-width, either may be ``None``.
            widths: Candidate -> bit-width. Without it candidates that are whole numbers are their own width.
            limits: Further linear rows.
            width_counts: Least and largest number of units at a width.
            max_widths: At most so many different widths in a plan, >= 1.

        Raises:
            ProblemError: One of its subclasses, naming the unit, the value, and what is allowed.
        """
        units, labels, costs, sizes, counts = tables.from_rows(rows)
        if widths is None and rules.labels_are_widths(labels):
            widths = {label: int(label) for unit_labels in labels for label in unit_labels}
        width_table = None if widths is None else rules.width_table(units, labels, widths, costs.shape[1])
        return cls._build(
            tables.Table(
                units=units, labels=labels, costs=costs, sizes=sizes, counts=counts, widths=width_table
            ),
            rules.Rules(
                budget=budget,
                pins=pins or {},
                ties=ties,
                bounds=bounds or {},
                limits=limits,
                width_counts=width_counts,
                max_widths=max_widths,
            ),
        )

    @classmethod
    def from_arrays(  # noqa: PLR0913 - one keyword per kind of rule
        cls,
        costs: ArrayLike,
        sizes: ArrayLike,
        *,
        budget: int | Budget | None,
        units: Sequence[str] | None = None,
        labels: Sequence[Label] | None = None,
        counts: ArrayLike | None = None,
        widths: ArrayLike | None = None,
        pins: Mapping[str, Label] | None = None,
        ties: Iterable[Iterable[str]] = (),
        bounds: Mapping[str, tuple[int | None, int | None]] | None = None,
        limits: Iterable[Row] = (),
        width_counts: Iterable[WidthCount] = (),
        max_widths: int | None = None,
    ) -> Self:
        """Build a problem from dense tables; no Python loop over the cells, nothing copied that need not be.

        Args:
            costs: Shape [L, K], finite.
            sizes: Shape [L, K], whole bits, >= 0; each unit's largest sizes must sum to less than 2^62.
            budget: Whole bits, a parsed `Budget`, or ``None`` for no size limit.
            units: L unique names; ``"0"``, ``"1"``, ... if left out.
            labels: K names shared by all units; ``"0"``, ``"1"``, ... if left out.
            counts: Shape [L]: unit i has only its first ``counts[i]`` columns; what the others hold is ignored.
            widths: Bit-widths, shape [K] or [L, K]; whole-number labels are their own width.
            pins: As in `from_rows`.
            ties: As in `from_rows`.
            bounds: As in `from_rows`.
            limits: As in `from_rows`.
            width_counts: As in `from_rows`.
            max_widths: As in `from_rows`.

        Raises:
            ProblemError: One of its subclasses, naming the unit, the value, and what is allowed.
        """
        table = tables.from_arrays(costs, sizes, units=units, labels=labels, counts=counts, widths=widths)
        return cls._build(
            table,
            rules.Rules(
                budget=budget,
                pins=pins or {},
                ties=ties,
                bounds=bounds or {},
                limits=limits,
                width_counts=width_counts,
                max_widths=max_widths,
            ),
        )

    @classmethod
    def _build(cls, table: tables.Table, given: rules.Rules) -> Self:
        pins = rules.resolve_pins(table, given.pins)
        allowed = rules.allowed_cells(table, pins, given.bounds)
        ties = rules.resolve_ties(table, given.ties)
        rules.check_ties(table, ties, pins, allowed)
        return cls(
            units=table.units,
            labels=table.labels,
            costs=table.costs,
            sizes=table.sizes,
            counts=table.counts,
            widths=table.widths,
            budget_bits=_budget_bits(given.budget),
            allowed=allowed,
            ties=ties,
            rows=rules.resolve_rows(table, given.limits),
            width_counts=rules.check_width_counts(table, given.width_counts),
            max_widths=rules.check_max_widths(table, given.max_widths),
            pins=pins,
            bounds=dict(given.bounds),
        )

    def with_budget(self, budget: int | Budget | None) -> Self:
        """The same problem with another budget; what was derived from the tables is shared, nothing is copied."""
        other = copy.copy(self)
        # Frozen for users; the copy is not yet anyone's.
        object.__setattr__(other, "budget_bits", _budget_bits(budget))
        return other

    def only(self, *, rows: Iterable[str], pins: Iterable[int], bounds: Iterable[str]) -> Self:
        """The same problem with some of its rows (``"size"`` is the budget), pins (unit indices) and bounds (units) only."""
        names, bounded = set(rows), set(bounds)
        kept_pins = {unit: self.pins[unit] for unit in pins}
        kept_bounds = {unit: limits for unit, limits in self.bounds.items() if unit in bounded}
        table = tables.Table(
            units=self.units,
            labels=self.labels,
            costs=self.costs,
            sizes=self.sizes,
            counts=self.counts,
            widths=self.widths,
        )
        return replace(
            self,
            budget_bits=self.budget_bits if "size" in names else None,
            rows=tuple(row for row in self.rows if row.name in names),
            width_counts=tuple(rule for rule in self.width_counts if str(rule) in names),
            max_widths=self.max_widths if MAX_WIDTHS in names else None,
            pins=kept_pins,
            bounds=kept_bounds,
            allowed=rules.allowed_cells(table, kept_pins, kept_bounds),
        )

    def label(self, unit: int, candidate: int) -> str:
        """Name of a unit's candidate."""
        return str(candidate) if self.labels is None else self.labels[unit][candidate]

    @cached_property
    def reduced(self) -> Reduced:
        """The problem with pins, bounds and ties worked in (independent of the budget)."""
        return reduce_problem(self)

    def __getstate__(self) -> dict[str, Any]:
        # What is derived is cheaper to compute again than to send.
        return {name: value for name, value in self.__dict__.items() if name in self.__dataclass_fields__}


def _budget_bits(budget: int | Budget | None) -> int | None:
    if budget is None:
        return None
    bits = budget.bits if isinstance(budget, Budget) else budget
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer):
        raise BudgetError(
            f"the budget is {bits!r}", "budget", repr(bits), "a whole number of bits, or a parsed budget"
        )
    if bits < 0:
        raise BudgetError(f"the budget is negative: {bits}", "budget", int(bits), "0 bits or more")
    # Beyond every possible sum a budget says nothing more, and 64 bits hold no more.
    return min(int(bits), MAX_TOTAL)
