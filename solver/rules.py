"""Pins, bounds, ties and width rules: from names as users write them to checked indices."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.budget import Budget
from solver.constraints import IntegerRow, Row, WidthCount, integer_row
from solver.errors import BoundError, PinError, RowError, TieError
from solver.tables import Table


@dataclass(frozen=True, kw_only=True, eq=False)
class Rules:
    """What users ask for beside the tables; see `solver.problem.Problem.from_rows`."""

    budget: int | Budget | None
    pins: Mapping[str, str | int]
    ties: Iterable[Iterable[str]]
    bounds: Mapping[str, tuple[int | None, int | None]]
    limits: Iterable[Row]
    width_counts: Iterable[WidthCount]
    max_widths: int | None


def labels_are_widths(labels: Iterable[tuple[str, ...]]) -> bool:
    """Whether every candidate's name is a whole number (ASCII digits), and so its own bit-width."""
    return all(label.isascii() and label.isdecimal() and len(label) < 10 for unit in labels for label in unit)


def width_table(
    units: Sequence[str], labels: Sequence[tuple[str, ...]], widths: Mapping[str | int, int], columns: int
) -> NDArray[np.int64]:
    """Bit-width of each cell, shape [L, columns]; cells beyond a unit's candidates repeat its first.

    Raises:
        BoundError: A candidate's width is missing.
    """
    by_name = {str(label): width for label, width in widths.items()}
    table = np.empty((len(units), columns), np.int64)
    for i, unit_labels in enumerate(labels):
        for k, label in enumerate(unit_labels):
            if label not in by_name:
                message = f"the width of candidate {label!r} (unit {units[i]!r}) is not given"
                raise BoundError(message, "widths", label, "a width for every candidate", {"unit": units[i]})
            table[i, k] = by_name[label]
        table[i, len(unit_labels) :] = table[i, 0]
    return table


def resolve_pins(table: Table, pins: Mapping[str, str | int]) -> dict[int, int]:
    """Unit index -> candidate index.

    Raises:
        PinError: The unit or the candidate is unknown.
    """
    if not pins:
        return {}
    index = table.unit_index()
    resolved = {}
    for unit, label in pins.items():
        if unit not in index:
            raise PinError(
                f"pin for unknown unit {unit!r}", f"pins.{unit}", label, _some(table.units), {"unit": unit}
            )
        names = table.candidates(index[unit])
        if str(label) not in names:
            message = f"unit {unit!r} has no candidate {str(label)!r} to be pinned to"
            raise PinError(message, f"pins.{unit}", label, list(names), {"unit": unit})
        resolved[index[unit]] = names.index(str(label))
    return resolved


def allowed_cells(
    table: Table, pins: Mapping[int, int], bounds: Mapping[str, tuple[int | None, int | None]]
) -> NDArray[np.bool_] | None:
    """What pins and bounds leave of each unit, bool [L, K]; ``None`` when nothing is taken away.

    Raises:
        BoundError: An unknown unit, widths that are not known, or nothing left of a unit.
        PinError: A pin outside its unit's bound.
    """
    width = table.costs.shape[1]
    ragged = bool((table.counts < width).any())
    if not pins and not bounds and not ragged:
        return None
    allowed = np.arange(width) < table.counts[:, None]
    index = table.unit_index() if bounds else {}
    for unit, (least, largest) in bounds.items():
        i = _bounded_unit(table, index, unit)
        widths = _widths(table)[i]
        low, high = (-1 if least is None else least), (np.iinfo(np.int64).max if largest is None else largest)
        allowed[i] &= (widths >= low) & (widths <= high)
        if not allowed[i].any():
            offered = sorted({int(w) for w in widths})
            message = f"no candidate of unit {unit!r} has a width from {least} to {largest}"
            raise BoundError(message, f"bounds.{unit}", [least, largest], offered, {"unit": unit})
    for i, k in pins.items():
        unit = table.units[i]
        if not allowed[i, k]:
            message = f"unit {unit!r} is pinned to {table.candidates(i)[k]!r}, outside its bound"
            raise PinError(
                message, f"pins.{unit}", table.candidates(i)[k], list(bounds[unit]), {"unit": unit}
            )
        allowed[i] = False
        allowed[i, k] = True
    return allowed


def _bounded_unit(table: Table, index: Mapping[str, int], unit: str) -> int:
    if unit not in index:
        raise BoundError(
            f"bound for unknown unit {unit!r}", f"bounds.{unit}", unit, _some(table.units), {"unit": unit}
        )
    if table.widths is None:
        message = f"unit {unit!r} is bounded, but the candidates' widths are not known"
        raise BoundError(message, "widths", None, "a width for every candidate", {"unit": unit})
    return index[unit]


def _widths(table: Table) -> NDArray[np.int64]:
    assert table.widths is not None
    return table.widths


def resolve_ties(table: Table, ties: Iterable[Iterable[str]]) -> tuple[tuple[int, ...], ...]:
    """Disjoint groups of unit indices, in order of their first member; overlapping groups are joined.

    Raises:
        TieError: A member is unknown, or a group is a single text instead of a group of names.
    """
    groups = [(group if isinstance(group, str) else tuple(group)) for group in ties]
    if not groups:
        return ()
    index = table.unit_index()
    root: dict[int, int] = {}

    def find(i: int) -> int:
        while root.setdefault(i, i) != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for number, group in enumerate(groups):
        if isinstance(group, str):
            raise TieError(
                f"tie {number} is the text {group!r}", f"ties.{number}", group, "a list of unit names"
            )
        for name in group:
            if name not in index:
                message = f"tie {number} names the unknown unit {name!r}"
                raise TieError(message, f"ties.{number}", name, _some(table.units), {"unit": str(name)})
            first, second = sorted((find(index[group[0]]), find(index[name])))
            root[second] = first
    joined: dict[int, list[int]] = {}
    for i in sorted(root):
        joined.setdefault(find(i), []).append(i)
    return tuple(tuple(members) for members in joined.values() if len(members) > 1)


def check_ties(
    table: Table,
    ties: tuple[tuple[int, ...], ...],
    pins: Mapping[int, int],
    allowed: NDArray[np.bool_] | None,
) -> None:
    """Tied units must have a candidate in common that pins and bounds leave to each.

    Raises:
        TieError: No common candidate.
        PinError: Two members are pinned to different candidates.
    """
    for group in ties:
        names = [table.units[i] for i in group]
        pinned = {table.candidates(i)[pins[i]] for i in group if i in pins}
        if len(pinned) > 1:
            unit = next(table.units[i] for i in group if i in pins)
            message = f"tied units {', '.join(names)} are pinned to different candidates {sorted(pinned)}"
            raise PinError(
                message, f"pins.{unit}", sorted(pinned), "one candidate for all of a tie", {"unit": unit}
            )
        common = set(table.candidates(group[0]))
        for i in group:
            common &= {
                label for k, label in enumerate(table.candidates(i)) if allowed is None or allowed[i, k]
            }
        if not common:
            message = f"tied units {', '.join(names)} have no allowed candidate in common"
            raise TieError(message, "ties", names, "members that share a candidate", {"unit": names[0]})


def resolve_rows(table: Table, limits: Iterable[Row]) -> tuple[IntegerRow, ...]:
    """Further rows in whole numbers.

    Raises:
        RowError: A doubled or reserved name, a wrong shape, a missing cell, or a value that is not finite.
    """
    resolved: list[IntegerRow] = []
    for row in limits:
        if not row.name or row.name == "size" or row.name in {other.name for other in resolved}:
            message = f"row name {row.name!r} is empty, reserved or doubled"
            raise RowError(message, "limits", row.name, 'unique names other than "size"')
        values = (
            _cells(table, row.name, row.values) if isinstance(row.values, Mapping) else np.asarray(row.values)
        )
        if values.shape != table.costs.shape or values.dtype.kind not in "iuf":
            message = f"row {row.name!r} is not a table of numbers shaped like the costs"
            raise RowError(message, f"rows.{row.name}", list(values.shape), list(table.costs.shape))
        real = np.arange(table.costs.shape[1]) < table.counts[:, None]
        values = np.where(real, values, values[:, :1])
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            i, k = (int(v) for v in np.argwhere(~np.isfinite(values))[0])
            unit = table.units[i]
            message = (
                f"row {row.name!r} is {values[i, k]} for unit {unit!r}, candidate {table.candidates(i)[k]!r}"
            )
            raise RowError(message, f"rows.{row.name}", str(values[i, k]), "finite numbers", {"unit": unit})
        resolved.append(integer_row(row.name, values, row.limit))
    return tuple(resolved)


def _cells(table: Table, name: str, values: Mapping[tuple[str, str | int], float]) -> NDArray[np.generic]:
    """A row given by names, as a table."""
    given = {(unit, str(label)): value for (unit, label), value in values.items()}
    cells: list[list[Any]] = []
    for i, unit in enumerate(table.units):
        labels = table.candidates(i)
        for label in labels:
            if (unit, label) not in given:
                message = f"row {name!r} has no value for unit {unit!r}, candidate {label!r}"
                raise RowError(message, f"rows.{name}", label, "a value for every candidate", {"unit": unit})
        first = given[unit, labels[0]]
        cells.append(
            [given[unit, label] for label in labels] + [first] * (table.costs.shape[1] - len(labels))
        )
    return np.array(cells)


def check_width_counts(table: Table, width_counts: Iterable[WidthCount]) -> tuple[WidthCount, ...]:
    """Width counts need known widths and a sensible range.

    Raises:
        RowError: Widths are not known, or the range is empty or negative.
    """
    checked = tuple(width_counts)
    for rule in checked:
        if table.widths is None:
            raise RowError(
                "a width is counted, but the candidates' widths are not known", "widths", None, "widths"
            )
        low, high = rule.minimum or 0, len(table.units) if rule.maximum is None else rule.maximum
        if low < 0 or high < low:
            message = (
                f"the number of units at {rule.width} bits must be from {rule.minimum} to {rule.maximum}"
            )
            raise RowError(message, "width_counts", [rule.minimum, rule.maximum], "0 <= minimum <= maximum")
    return checked


def check_max_widths(table: Table, max_widths: int | None) -> int | None:
    """At most n different widths: n >= 1, and widths must be known.

    Raises:
        RowError: Otherwise.
    """
    if max_widths is None:
        return None
    if isinstance(max_widths, bool) or not isinstance(max_widths, int) or max_widths < 1:
        raise RowError(
            f"at most {max_widths!r} widths", "max_widths", repr(max_widths), "a whole number >= 1"
        )
    if table.widths is None:
        raise RowError(
            "widths are limited, but the candidates' widths are not known", "widths", None, "widths"
        )
    return max_widths


def _some(names: Sequence[str]) -> list[str]:
    """Enough names to recognise a slip of the pen."""
    return list(names[:20])
