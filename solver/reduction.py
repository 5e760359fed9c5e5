"""Pins, bounds and ties worked into the tables: what is left is one free choice per group."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from solver import acceleration
from solver.constraints import WidthCount
from solver.hull import Hull

if TYPE_CHECKING:
    from solver.problem import Problem

Number = TypeVar("Number", np.float64, np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReducedRow:
    """One row over the groups: ``sum(table) <= limit`` in whole numbers."""

    name: str
    table: NDArray[np.int64]
    limit: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Reduced:
    """A multiple-choice problem without pins, bounds or ties.

    A slot that is not allowed holds a copy of an allowed one of the same group, so that no special value is needed.

    Attributes:
        costs: float64 [G, K].
        sizes: int64 [G, K], bits.
        rows: Further rows; those of width counts come last.
        widths: int64 [G, K], or ``None``.
        members: Number of units in each group, int64 [G]; ``None`` when every unit is its own group.
        group_of: Group of each unit, int64 [L]; ``None`` when every unit is its own group.
        local: Candidate index of each unit for each slot of its group, int64 [L, K]; ``None`` when slots are candidates.
    """

    costs: NDArray[np.float64]
    sizes: NDArray[np.int64]
    rows: tuple[ReducedRow, ...]
    widths: NDArray[np.int64] | None
    members: NDArray[np.int64] | None
    group_of: NDArray[np.int64] | None
    local: NDArray[np.int64] | None

    @cached_property
    def smallest(self) -> int:
        """Sum of each group's smallest size."""
        return acceleration.engine().smallest_total(self.sizes)

    @cached_property
    def hull(self) -> Hull:
        """Hull of cost against size, computed once."""
        return acceleration.engine().build_hull(self.costs, self.sizes)

    @property
    def known_hull(self) -> Hull | None:
        """The hull if it was computed before."""
        known: Hull | None = self.__dict__.get("hull")
        return known

    def expand(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Candidate index of each unit, int64 [L], from the slot of each group, int64 [G]."""
        per_unit = slots if self.group_of is None else slots[self.group_of]
        if self.local is None:
            return per_unit
        return np.take_along_axis(self.local, per_unit[:, None], axis=1)[:, 0]

    def contract(self, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        """A slot of each group, int64 [G], that means these candidates of the units, int64 [L]; inverse of `expand`."""
        if self.local is None:
            return choices
        slots: NDArray[np.int64] = (self.local == choices[:, None]).argmax(axis=1)
        if self.group_of is None:
            return slots.astype(np.int64)
        per_group = np.zeros(len(self.costs), np.int64)
        per_group[self.group_of] = slots
        return per_group


def reduce_problem(problem: "Problem") -> Reduced:
    """Work pins, bounds and ties into the tables."""
    if problem.allowed is None and not problem.ties:
        tables = [row.table for row in problem.rows]
        return _assemble(problem, problem.costs, problem.sizes, tables, problem.widths, None, None)
    local, group_of = _slots(problem)
    pick = np.take_along_axis
    costs = pick(problem.costs, local, 1)
    sizes = pick(problem.sizes, local, 1)
    widths = None if problem.widths is None else pick(problem.widths, local, 1)
    tables = [pick(row.table, local, 1) for row in problem.rows]
    if group_of is None:
        return _assemble(problem, costs, sizes, tables, widths, local, None)
    groups = int(group_of.max()) + 1
    if widths is not None:
        first = np.full(groups, -1, np.int64)
        first[group_of[::-1]] = np.arange(len(group_of))[::-1]
        widths = widths[first]
    return _assemble(
        problem,
        _summed(costs, group_of, groups),
        _summed(sizes, group_of, groups),
        [_summed(table, group_of, groups) for table in tables],
        widths,
        local,
        group_of,
    )


def _summed(table: NDArray[Number], group_of: NDArray[np.int64], groups: int) -> NDArray[Number]:
    total = np.zeros((groups, table.shape[1]), table.dtype)
    np.add.at(total, group_of, table)
    return total


def _slots(problem: "Problem") -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """``local`` and ``group_of`` of `Reduced`."""
    length, width = problem.costs.shape
    allowed = np.ones((length, width), bool) if problem.allowed is None else problem.allowed
    columns = np.arange(width)
    local = np.where(allowed, columns, allowed.argmax(axis=1)[:, None])
    if not problem.ties:
        return local, None
    leader = np.arange(length)
    for group in problem.ties:
        leader[list(group)] = group[0]
        _align(problem, group, allowed, local)
    return local, np.unique(leader, return_inverse=True)[1].astype(np.int64)


def _align(
    problem: "Problem", group: tuple[int, ...], allowed: NDArray[np.bool_], local: NDArray[np.int64]
) -> None:
    """Slot k of a tied group is the k-th candidate of its first member, where every member may take it."""
    places = [{problem.label(i, k): k for k in range(int(problem.counts[i])) if allowed[i, k]} for i in group]
    labels = [problem.label(group[0], k) for k in range(int(problem.counts[group[0]]))]
    common = [label for label in labels if all(label in place for place in places)]
    order = [label if label in common else common[0] for label in labels]
    order += [common[0]] * (local.shape[1] - len(order))
    for i, place in zip(group, places, strict=True):
        local[i] = [place[label] for label in order]


def _assemble(  # noqa: PLR0913, PLR0917 - the parts of one value
    problem: "Problem",
    costs: NDArray[np.float64],
    sizes: NDArray[np.int64],
    tables: list[NDArray[np.int64]],
    widths: NDArray[np.int64] | None,
    local: NDArray[np.int64] | None,
    group_of: NDArray[np.int64] | None,
) -> Reduced:
    members = None if group_of is None else np.bincount(group_of).astype(np.int64)
    rows = [
        ReducedRow(name=row.name, table=table, limit=row.limit)
        for row, table in zip(problem.rows, tables, strict=True)
    ]
    for rule in problem.width_counts:
        assert widths is not None
        counted = (widths == rule.width) * (np.int64(1) if members is None else members[:, None])
        # Widths may be laid out in any order, e.g. one row for all units; the kernels want rows one after the other.
        count = np.ascontiguousarray(counted)
        if rule.maximum is not None:
            most = WidthCount(width=rule.width, maximum=rule.maximum)
            rows.append(ReducedRow(name=str(most), table=count, limit=rule.maximum))
        if rule.minimum is not None:
            least = WidthCount(width=rule.width, minimum=rule.minimum)
            rows.append(ReducedRow(name=str(least), table=-count, limit=-rule.minimum))
    return Reduced(
        costs=costs,
        sizes=sizes,
        rows=tuple(rows),
        widths=widths,
        members=members,
        group_of=group_of,
        local=local,
    )
