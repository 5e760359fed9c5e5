"""Constraints beside the size: further linear rows and rules about widths."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.errors import RowError

MAX_TOTAL = 2**62
"""Bound on the sum of any integer table, so that 64-bit sums cannot overflow."""

MAX_WIDTHS = "number of different widths"
"""Name of the rule that limits it, in conflicts."""

_MAX_DECIMALS = 15


@dataclass(frozen=True, kw_only=True)
class Row:
    """A further budget: the sum of ``values`` over the chosen candidates must not exceed ``limit``.

    Args:
        name: E.g. ``"latency_ms"``; unique within a problem.
        values: Array of shape [units, candidates], or ``{(unit, candidate): value}`` naming every candidate.
            Any finite numbers. Whole numbers and decimals of up to 15 digits are treated exactly (0.1 means one tenth);
            anything finer is rounded up, by less than 2^-60 of the row's total, so that a plan never overspends.
        limit: Any finite number.
    """

    name: str
    values: NDArray[np.generic] | Mapping[tuple[str, str | int], float]
    limit: float


@dataclass(frozen=True, kw_only=True)
class WidthCount:
    """At least ``minimum`` and at most ``maximum`` units take the bit-width ``width``; ``None`` for no bound.

    Tied units count each.
    """

    width: int
    minimum: int | None = None
    maximum: int | None = None

    def __str__(self) -> str:
        least = "" if self.minimum is None else f"at least {self.minimum} "
        most = "" if self.maximum is None else f"at most {self.maximum} "
        return f"{least}{'and ' if least and most else ''}{most}units at {self.width} bits"


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerRow:
    """A row in whole numbers: ``sum(table) <= limit`` means the same as the user's row.

    Args:
        name: The user's.
        table: int64, shape [units, candidates].
        limit: The user's limit times ``scale``, rounded down.
        scale: What the user's numbers were multiplied by.
    """

    name: str
    table: NDArray[np.int64]
    limit: int
    scale: float


def integer_row(name: str, values: NDArray[np.generic], limit: float) -> IntegerRow:
    """Turn a row of real numbers into one of whole numbers.

    Raises:
        RowError: The limit or a value is not finite, or the row's sum would overflow 64 bits.
    """
    if isinstance(limit, bool) or not math.isfinite(limit):
        raise RowError(f"the limit of row {name!r} is {limit}", f"rows.{name}", str(limit), "a finite number")
    if values.dtype.kind in "iu":
        if float(np.abs(values.astype(np.float64)).max(axis=1).sum()) >= MAX_TOTAL:
            raise RowError(f"row {name!r} sums to 2^62 or more", f"rows.{name}", None, "sums below 2^62")
        table = np.ascontiguousarray(values, dtype=np.int64)
        return IntegerRow(name=name, table=table, limit=_clamped(math.floor(limit)), scale=1.0)
    real = np.asarray(values, dtype=np.float64)
    for decimals in range(_MAX_DECIMALS + 1):
        factor = 10.0**decimals
        scaled = np.rint(real * factor)
        if max(float(np.abs(scaled).max()), abs(limit) * factor) >= 2**53:
            break
        # Correctly rounded division: equality says that the value is this decimal's nearest float.
        if bool(np.all(scaled / factor == real)):
            whole_limit = round(limit * factor)
            if whole_limit / factor != limit:
                whole_limit = math.floor(limit * factor)
            return IntegerRow(name=name, table=scaled.astype(np.int64), limit=whole_limit, scale=factor)
    return _rounded_row(name, real, limit)


def _rounded_row(name: str, real: NDArray[np.float64], limit: float) -> IntegerRow:
    """Scale by a power of two such that the total just fits, and round against the user's favour."""
    total = max(float(np.abs(real).max(axis=1).sum()), abs(limit), 5e-324)
    if not math.isfinite(total):
        raise RowError(f"row {name!r} sums to infinity", f"rows.{name}", str(total), "sums below 1.8e308")
    exponent = min(60 - math.frexp(total)[1], 1000)
    factor = math.ldexp(1.0, exponent)
    table = np.ceil(real * factor).astype(np.int64)
    return IntegerRow(name=name, table=table, limit=math.floor(limit * factor), scale=factor)


def _clamped(limit: int) -> int:
    """Limits beyond every possible sum say nothing more than the largest one."""
    return max(-MAX_TOTAL, min(MAX_TOTAL, limit))
