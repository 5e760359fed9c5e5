"""Cost and size tables: from rows or arrays to checked dense arrays."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solver.constraints import MAX_TOTAL
from solver.errors import TableError


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Checked tables of one problem; fields as in `solver.problem.Problem`."""

    units: Sequence[str]
    labels: tuple[tuple[str, ...], ...] | None
    costs: NDArray[np.float64]
    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]
    widths: NDArray[np.int64] | None

    def unit_index(self) -> dict[str, int]:
        """Name -> index."""
        return {name: index for index, name in enumerate(self.units)}

    def candidates(self, unit: int) -> tuple[str, ...]:
        """Names of a unit's candidates."""
        if self.labels is not None:
            return self.labels[unit]
        return tuple(str(k) for k in range(int(self.counts[unit])))


class NumberedNames(Sequence[str]):
    """The names "0", "1", ... without storing a million strings."""

    def __init__(self, length: int) -> None:
        self._range = range(length)

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(str(i) for i in self._range[index])
        return str(self._range[index])

    def __iter__(self) -> Iterator[str]:
        return map(str, self._range)


Ragged = tuple[
    tuple[str, ...], tuple[tuple[str, ...], ...], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]
]


def from_rows(rows: Iterable[tuple[str, str | int, float, int]]) -> Ragged:
    """Group rows by unit, check each cell, and fill dense tables (short units repeat their first candidate).

    Raises:
        TableError: A row is malformed, doubled, or holds a value out of range; or there are no rows.
    """
    grouped: dict[str, dict[str, tuple[float, int]]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, tuple | list) or len(row) != 4:
            raise TableError(
                f"row {number} is not (unit, candidate, cost, size_bits)", f"rows.{number}", repr(row)[:200]
            )
        unit, label = _name(row[0], f"rows.{number}.unit"), _name(row[1], f"rows.{number}.candidate")
        cells = grouped.setdefault(unit, {})
        if label in cells:
            raise _refused(
                unit, f"has candidate {label!r} twice", f"rows.{number}", label, "each candidate once"
            )
        cells[label] = (_cost(unit, label, row[2]), _size(unit, label, row[3]))
    if not grouped:
        raise TableError("the problem has no units", "rows", [], "at least one unit with one candidate")
    width = max(map(len, grouped.values()))
    costs = np.empty((len(grouped), width))
    sizes = np.empty((len(grouped), width), np.int64)
    counts = np.array([len(cells) for cells in grouped.values()], np.int64)
    for i, cells in enumerate(grouped.values()):
        values = list(cells.values())
        values += values[:1] * (width - len(values))
        costs[i] = [cost for cost, _ in values]
        sizes[i] = [size for _, size in values]
    _check_total(sizes, int(sizes.max()))
    return tuple(grouped), tuple(tuple(cells) for cells in grouped.values()), costs, sizes, counts


def from_arrays(  # noqa: PLR0913 - the parts of one table
    costs: ArrayLike,
    sizes: ArrayLike,
    *,
    units: Sequence[str] | None,
    labels: Sequence[str | int] | None,
    counts: ArrayLike | None,
    widths: ArrayLike | None,
) -> Table:
    """Check dense tables; see `solver.problem.Problem.from_arrays`.

    Raises:
        TableError: A shape, a name or a cell is out of range.
    """
    cost_table = _float_table(costs)
    size_table = _int_table(sizes, cost_table.shape)
    length, width = cost_table.shape
    names = _unit_names(units, length)
    real = None
    candidate_counts = np.full(length, width, np.int64)
    if counts is not None:
        candidate_counts = _counts(counts, length, width, names)
        real = np.arange(width) < candidate_counts[:, None]
        cost_table = np.where(real, cost_table, cost_table[:, :1])
        size_table = np.where(real, size_table, size_table[:, :1])
    _check_costs(cost_table, names)
    _check_sizes(size_table, names)
    label_names = None if labels is None else _shared_labels(labels, width)
    shared = None if label_names is None else tuple(label_names[: int(n)] for n in candidate_counts)
    width_table = _widths(widths, labels, (length, width))
    return Table(
        units=names,
        labels=shared,
        costs=cost_table,
        sizes=size_table,
        counts=candidate_counts,
        widths=width_table,
    )


def _float_table(costs: ArrayLike) -> NDArray[np.float64]:
    try:
        table = np.ascontiguousarray(costs, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TableError(f"the costs are not a table of numbers: {error}", "costs") from error
    if table.ndim != 2 or 0 in table.shape:
        raise TableError(
            f"the costs have shape {table.shape}",
            "costs",
            list(table.shape),
            "[units, candidates], neither of them 0",
        )
    return table


def _int_table(sizes: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.int64]:
    raw = np.asarray(sizes)
    if raw.shape != shape:
        raise TableError(
            f"the sizes have shape {raw.shape}, the costs {shape}", "sizes", list(raw.shape), list(shape)
        )
    if raw.dtype.kind not in "iu":
        raise TableError(
            f"the sizes are of type {raw.dtype}",
            "sizes",
            str(raw.dtype),
            "whole bits, as a 64-bit integer type",
        )
    if raw.dtype == np.uint64 and bool((raw > np.uint64(MAX_TOTAL)).any()):
        raise TableError(
            "a size is 2^62 bits or more", "sizes", None, "sizes that sum to less than 2^62 bits"
        )
    return np.ascontiguousarray(raw, dtype=np.int64)


def _unit_names(units: Sequence[str] | None, length: int) -> Sequence[str]:
    if units is None:
        return NumberedNames(length)
    names = tuple(_name(unit, f"units.{i}") for i, unit in enumerate(units))
    if len(names) != length:
        raise TableError(f"{len(names)} unit names for {length} units", "units", len(names), length)
    if len(set(names)) != length:
        seen: set[str] = set()
        double = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _refused(double, "is named twice", "units", double, "unique names")
    return names


def _shared_labels(labels: Sequence[str | int], width: int) -> tuple[str, ...]:
    names = tuple(_name(label, f"labels.{k}") for k, label in enumerate(labels))
    if len(names) != width or len(set(names)) != width:
        raise TableError(
            f"{len(names)} candidate names for {width} candidates",
            "labels",
            list(names),
            f"{width} unique names",
        )
    return names


def _counts(counts: ArrayLike, length: int, width: int, names: Sequence[str]) -> NDArray[np.int64]:
    raw = np.asarray(counts)
    if raw.shape != (length,) or raw.dtype.kind not in "iu":
        raise TableError("counts is not one whole number per unit", "counts", list(raw.shape), [length])
    wrong = np.flatnonzero((raw < 1) | (raw > width))
    if wrong.size:
        i = int(wrong[0])
        raise _refused(names[i], f"has {raw[i]} candidates", "counts", int(raw[i]), f"1 to {width}")
    return raw.astype(np.int64)


def _widths(
    widths: ArrayLike | None, labels: Sequence[str | int] | None, shape: tuple[int, int]
) -> NDArray[np.int64] | None:
    if widths is None:
        if labels is None or not all(str(label).isdecimal() for label in labels):
            return None
        widths = [int(label) for label in labels]
    raw = np.asarray(widths)
    if raw.dtype.kind not in "iu" or raw.shape not in {(shape[1],), shape}:
        raise TableError(
            "widths is not a table of whole numbers", "widths", list(raw.shape), [list(shape), [shape[1]]]
        )
    return np.broadcast_to(raw.astype(np.int64), shape)


def _check_costs(costs: NDArray[np.float64], names: Sequence[str]) -> None:
    # One product in place of a boolean table: it is finite only if every term is, and then so is their sum.
    flat = costs.ravel()
    if math.isfinite(np.dot(flat, flat)):
        return
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.add.reduce(costs, axis=None))
    if math.isfinite(total):
        return
    wrong = np.argwhere(~np.isfinite(costs))
    if not wrong.size:
        raise TableError("the costs sum to infinity", "costs", None, "sums below 1.8e308")
    i, k = (int(v) for v in wrong[0])
    raise _refused(
        names[i], f"has cost {costs[i, k]} at candidate {k}", "costs", str(costs[i, k]), "finite numbers"
    )


def _check_sizes(sizes: NDArray[np.int64], names: Sequence[str]) -> None:
    # Read without a sign, a negative size is larger than all others: one pass tells both.
    largest = int(sizes.view(np.uint64).max())
    if largest > MAX_TOTAL and int(sizes.min()) < 0:
        i, k = (int(v) for v in np.argwhere(sizes < 0)[0])
        raise _refused(
            names[i], f"has size {sizes[i, k]} at candidate {k}", "sizes", int(sizes[i, k]), "0 bits or more"
        )
    _check_total(sizes, largest)


def _check_total(sizes: NDArray[np.int64], largest: int) -> None:
    # The coarse test passes nearly always and costs one pass less.
    if largest * sizes.shape[0] < MAX_TOTAL:
        return
    if int(sizes.max(axis=1).astype(object).sum()) >= MAX_TOTAL:
        raise TableError("the largest sizes sum to 2^62 bits or more", "sizes", None, "sums below 2^62 bits")


def _name(value: Any, field: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | np.integer) or value == "":
        raise TableError(
            f"{value!r} is no name", field, repr(value), "a text that is not empty, or a whole number"
        )
    return str(value)


def _cost(unit: str, label: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise _refused(
            unit, f"has cost {value!r} at candidate {label!r}", "costs", repr(value), "a finite number"
        )
    try:
        cost = float(value)
    except OverflowError:
        cost = math.inf
    if not math.isfinite(cost):
        raise _refused(unit, f"has cost {cost} at candidate {label!r}", "costs", str(cost), "a finite number")
    return cost


def _size(unit: str, label: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise _refused(
            unit, f"has size {value!r} at candidate {label!r}", "sizes", repr(value), "a whole number of bits"
        )
    if not 0 <= value < MAX_TOTAL:
        text = value if abs(int(value)) < 2**53 else str(value)
        raise _refused(
            unit,
            f"has size {value} at candidate {label!r}",
            "sizes",
            text,
            "0 bits or more, sums below 2^62 bits",
        )
    return int(value)


def _refused(unit: str, what: str, field: str, value: Any, allowed: Any) -> TableError:
    return TableError(f"unit {unit!r} {what}", field, value, allowed, {"unit": unit})
