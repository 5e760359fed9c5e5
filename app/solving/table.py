"""A table of candidates, from CSV or from records: ``unit, candidate, cost, size_bits`` and further numeric columns."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.errors import InvalidRequest
from solver import TableError

REQUIRED = ("unit", "candidate", "cost", "size_bits")
MAX_FIELD_CHARACTERS = 4096


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """What there is to choose from.

    Args:
        rows: ``(unit, candidate, cost, size_bits)``, in the order given.
        columns: Further column -> its value for each row, in the same order; ``None`` where the cell is no number.
    """

    rows: tuple[tuple[str, str, float, int], ...]
    columns: dict[str, tuple[float | None, ...]] = field(default_factory=dict)

    def column(self, name: str, asked_by: str | None = None) -> dict[tuple[str, str | int], float]:
        """A further column as the solver takes it.

        Args:
            name: Of the column.
            asked_by: The input that named it, for errors; ``limits.NAME`` if left out.

        Raises:
            InvalidRequest: There is no such column.
            TableError: A cell of it is no finite number; names the unit.
        """
        if name not in self.columns:
            allowed = sorted(self.columns) or "nothing: the table has no further columns"
            raise InvalidRequest(
                f"the table has no column {name!r} beside the required ones",
                asked_by or f"limits.{name}",
                name,
                allowed,
            )
        values: dict[tuple[str, str | int], float] = {}
        for (unit, candidate, _, _), value in zip(self.rows, self.columns[name], strict=True):
            if value is None:
                message = f"unit {unit!r}, candidate {candidate!r}: column {name!r} holds no finite number"
                raise TableError(message, f"rows.{name}", None, "a finite number in every row")
            values[unit, candidate] = value
        return values

    def weights(self) -> int | None:
        """Number of weights, where the sizes tell it: every candidate is a bit-width and every size a multiple of it."""
        counts: dict[str, int] = {}
        for unit, candidate, _, size in self.rows:
            if not candidate.isdecimal() or int(candidate) < 1 or size % int(candidate):
                return None
            if counts.setdefault(unit, size // int(candidate)) != size // int(candidate):
                return None
        return sum(counts.values())


def from_csv(lines: Iterable[str]) -> CostTable:
    """Read RFC 4180 text with one header row.

    Raises:
        TableError: A required column is missing, or a cell is not what its column holds; names the line.
    """
    try:
        return _read_csv(lines)
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"the table is not CSV: {error}", "table", None, "UTF-8 text, RFC 4180") from None


def _read_csv(lines: Iterable[str]) -> CostTable:
    reader = csv.reader(lines, strict=True)
    header = [name.strip() for name in next(reader, [])]
    if header:
        header[0] = header[0].removeprefix("\ufeff")
    _check_header(header)

    def records() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for cells in reader:
            if not cells:
                continue
            where = f"line {reader.line_num}"
            if len(cells) != len(header):
                message = f"{where} has {len(cells)} cells, the header has {len(header)}"
                raise TableError(message, where, len(cells), f"{len(header)} cells")
            yield where, dict(zip(header, cells, strict=True))

    return _table(records(), [name for name in header if name not in REQUIRED])


def from_records(records: Iterable[Mapping[str, Any]]) -> CostTable:
    """Read records (JSON objects).

    Raises:
        TableError: A required member is missing, or a value is not what its member holds; names the row.
    """
    listed = list(records)
    extra = sorted({name for record in listed for name in record if name not in REQUIRED})
    return _table(((f"rows.{i}", record) for i, record in enumerate(listed)), extra)


def _check_header(header: list[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        message = f"the table lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        raise TableError(message, "header", header, ",".join(REQUIRED) + " and further numeric columns")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise TableError(f"column {twice[0]!r} stands twice", "header", header, "each column once")


def _table(records: Iterable[tuple[str, Mapping[str, Any]]], extra: list[str]) -> CostTable:
    rows = []
    columns: dict[str, list[float | None]] = {name: [] for name in extra}
    for where, record in records:
        rows.append(_row(where, record))
        for name in extra:
            columns[name].append(_number_or_none(record.get(name)))
    if not rows:
        raise TableError("the table has no rows", "rows", 0, "at least one row")
    return CostTable(rows=tuple(rows), columns={name: tuple(values) for name, values in columns.items()})


def _row(where: str, record: Mapping[str, Any]) -> tuple[str, str, float, int]:
    unit = _text(where, record, "unit")
    candidate = _text(where, record, "candidate")
    cost = _number_or_none(record.get("cost"))
    if cost is None:
        message = f"{where}, unit {unit!r}, candidate {candidate!r}: the cost is no finite number"
        raise TableError(message, "cost", str(record.get("cost")), "a finite number")
    size = _whole_or_none(record.get("size_bits"))
    if size is None:
        message = f"{where}, unit {unit!r}, candidate {candidate!r}: the size is no whole number of bits"
        raise TableError(message, "size_bits", str(record.get("size_bits")), "whole bits, 0 or more")
    return unit, candidate, cost, size


def _text(where: str, record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text or len(text) > MAX_FIELD_CHARACTERS:
        allowed = f"a name of 1 to {MAX_FIELD_CHARACTERS} characters"
        raise TableError(f"{where}: {name} is missing or too long", name, str(value)[:100], allowed)
    return text


def _number_or_none(value: Any) -> float | None:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole_or_none(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    text = str(value).strip()
    if text.isascii() and text.isdecimal() and len(text) <= 40:
        return int(text)
    number = _number_or_none(value)  # "4e3" and 4000.0 are whole numbers too, as far as floats are exact
    return int(number) if number is not None and number.is_integer() and 0 <= number <= 2**53 else None
