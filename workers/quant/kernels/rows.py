"""Long rows, one at a time: their values are side by side in vectors of the processor."""

# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# Types are in the signatures, which numba checks; arrays are passed one by one because structures would be copied.

import numpy as np
from numba import boolean, float32, float64, int64, types, void

from workers.quant.kernels.types import REALS, ROW, ROWS, TABLE, TINY, compiled

# Sums may be reordered, for the processor to add up many at a time; within blocks, whose sums are added in float64.
_REORDERED = {"reassoc", "contract", "nsz"}
_BLOCK = 2048
_WIDE = 32


@compiled(float32(ROW, ROW, float32, float32, float32, float32, int64), fastmath=_REORDERED)
def block_error(values, weights, inverse, zero_point, lowest, highest, power):
    """Sum of the errors' powers of a block, in steps; ``power`` 2 or 3, or 0 for weighted squares."""
    total = np.float32(0)
    if power == 2:
        for i in range(len(values)):
            steps = values[i] * inverse + zero_point
            difference = min(max(np.rint(steps), lowest), highest) - steps
            total += difference * difference
    elif power == 3:
        for i in range(len(values)):
            steps = values[i] * inverse + zero_point
            difference = min(max(np.rint(steps), lowest), highest) - steps
            total += difference * difference * abs(difference)
    else:
        for i in range(len(values)):
            steps = values[i] * inverse + zero_point
            difference = min(max(np.rint(steps), lowest), highest) - steps
            total += difference * difference * weights[i]
    return total


@compiled(float64(ROW, ROW, float64, float64, int64, int64, boolean, int64))
def row_error(values, weights, low, high, quant_min, quant_max, symmetric, power):
    """The error of a range: what is rounded is ``r / S + Z``."""
    zero_point = 0.0
    if symmetric:
        scale = max(low / quant_min, high / quant_max, TINY)
    else:
        scale = max((high - low) / quant_max, TINY)
        zero_point = min(max(np.rint(-low / scale), 0.0), float(quant_max))
    inverse, zero = np.float32(1.0 / scale), np.float32(zero_point)
    lowest, highest = np.float32(quant_min), np.float32(quant_max)
    total = 0.0
    if len(values) <= _BLOCK:
        total += block_error(values, weights, inverse, zero, lowest, highest, power)
    else:
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK]
            counts = weights[start : start + _BLOCK] if power == 0 else weights
            total += block_error(block, counts, inverse, zero, lowest, highest, power)
    return total * (scale * scale if power != 3 else scale * scale * scale)


@compiled(
    types.UniTuple(float64, 2)(
        ROW, ROW, float64, float64, int64, int64, boolean, int64, float64, REALS, REALS, REALS
    )
)
def row_shares(
    values, weights, low, high, quant_min, quant_max, symmetric, power, hopeless, coarse, one_end, steps
):
    """The shares of least error of one row's ends; see `workers.quant.clipping_mse`."""
    best, low_share, high_share = np.inf, 1.0, 1.0
    for share in coarse:
        error = row_error(values, weights, low * share, high * share, quant_min, quant_max, symmetric, power)
        if error < best:
            best, low_share, high_share = error, share, share
        if error > hopeless * best or best == 0:
            break
    sides = 1 if symmetric else 2
    for sweep in range((0 if symmetric else 2) + len(steps)):
        wide = not symmetric and sweep < 2
        for side in range(sides):
            low_start, high_start = low_share, high_share
            for k in range(len(one_end) if wide else 2):
                if best == 0:
                    return low_share, high_share
                step = steps[sweep - (0 if symmetric else 2)] if not wide else 0.0
                factor = one_end[k] if wide else (1 - step if k == 0 else 1 + step)
                a = min(low_start * factor, 1.0) if symmetric or side == 1 else low_start
                b = min(high_start * factor, 1.0) if symmetric or side == 0 else high_start
                if a == low_share and b == high_share:
                    continue
                error = row_error(values, weights, low * a, high * b, quant_min, quant_max, symmetric, power)
                if error < best:
                    best, low_share, high_share = error, a, b
    return low_share, high_share


@compiled(void(ROWS, ROWS, int64, int64, boolean, int64, float64, REALS, REALS, REALS, TABLE))
def search_rows(
    rows, weights, quant_min, quant_max, symmetric, power, hopeless, coarse, one_end, steps, ranges
):
    """Ranges ``[2, slices]`` of all rows; ``weights`` is empty where nothing is weighted."""
    # Zeros behind a row have no error, and spare the loops their remainders.
    scaled = np.zeros(-(-rows.shape[1] // _WIDE) * _WIDE, np.float32)
    counts = np.zeros(len(scaled) if power == 0 else 0, np.float32)
    for row in range(len(rows)):
        low = high = rows[row, 0]
        for value in rows[row]:
            low, high = min(low, value), max(high, value)
        unit = max(abs(low), abs(high))
        if unit == 0:
            unit = np.float32(1)
        for i in range(rows.shape[1]):
            scaled[i] = rows[row, i] / unit
        if power == 0:
            counts[: rows.shape[1]] = weights[row]
        if not symmetric:
            low, high = min(low, np.float32(0)), max(high, np.float32(0))
        low_share, high_share = row_shares(
            scaled,
            counts,
            low / unit,
            high / unit,
            quant_min,
            quant_max,
            symmetric,
            power,
            hopeless,
            coarse,
            one_end,
            steps,
        )
        ranges[0, row] = np.float32(low) * np.float32(low_share)
        ranges[1, row] = np.float32(high) * np.float32(high_share)
