"""Scales of ranges, and values to the nearest level and back, slice by slice; `workers.quant.affine` is the reference."""

# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# Types are in the signatures, which numba checks; arrays are passed one by one because structures would be copied.

import numpy as np
from numba import boolean, float32, float64, int32, int64, void

from workers.quant.kernels.types import HALVES, ROW, ROWS, TABLE, TINY, compiled


@compiled(
    void(ROW, ROW, int64, int64, boolean, float32, HALVES, int32[::1], HALVES, HALVES), error_model="numpy"
)
def represent(lows, highs, quant_min, quant_max, symmetric, largest, scale, zero_point, range_min, range_max):
    """`workers.quant.affine.scale_and_zero_point`, and the ranges as represented.

    ``largest`` is the largest distance of a level from 0.
    """
    lowest, highest, zero = np.float32(quant_min), np.float32(quant_max), np.float32(0)
    for k in range(len(lows)):
        low, high = lows[k], highs[k]
        if symmetric:
            if quant_min == -quant_max:
                step = max(abs(low), abs(high)) / highest
            else:
                step = max(low / lowest, high / highest)
        else:
            low, high = min(low, zero), max(high, zero)
            width = high - low
            step = width / highest if np.isfinite(width) else high / highest - low / highest
        step = max(step, TINY) if step > 0 else np.float32(1)
        origin = zero if symmetric else min(max(np.rint(-low / step), zero), highest)
        farthest = max(abs(lowest - origin), abs(highest - origin))
        step = min(step, np.float32(1) / farthest * largest)
        scale[k], zero_point[k] = step, np.int32(origin)
        range_min[k] = min(low, step * lowest) if symmetric else low
        range_max[k] = max(high, step * highest) if symmetric else high


@compiled(void(ROW, float32, float32, float32, float32, float32, HALVES))
def slice_to_nearest(values, step, zero, offset, lowest, highest, result):
    """One operation after the other as by tensors, none joined: the same bits."""
    for i in range(len(values)):
        code = min(max(np.rint(values[i] / step) + zero, lowest), highest)
        result[i] = (code - zero) * step + offset


@compiled(void(ROWS, ROWS, ROWS, ROW, int64, float32, float32, TABLE))
def to_nearest(rows, scale, zero_point, offset, slice_size, lowest, highest, result):
    """What each value becomes; ``scale`` and ``zero_point`` are ``[rows, slices]``, ``offset`` is added to a row."""
    for row in range(len(rows)):
        for part in range(scale.shape[1]):
            start = part * slice_size
            stop = min(start + slice_size, rows.shape[1])
            slice_to_nearest(
                rows[row, start:stop],
                scale[row, part],
                zero_point[row, part],
                offset[row],
                lowest,
                highest,
                result[row, start:stop],
            )


@compiled(float64(ROW, float32, float32, float32, float32), fastmath={"reassoc", "nsz"})
def lost(values, step, zero, lowest, highest):
    """Sum of values minus what they become. Sums may be reordered, for the processor to add up many at a time."""
    total = 0.0
    for i in range(len(values)):
        code = min(max(np.rint(values[i] / step) + zero, lowest), highest)
        total += np.float64(values[i]) - np.float64((code - zero) * step)
    return total


@compiled(void(ROWS, ROWS, ROWS, int64, float32, float32, float64[::1]))
def lost_by_rows(rows, scale, zero_point, slice_size, lowest, highest, sums):
    """`lost` of each row, whose slices have scales and zero points of their own."""
    for row in range(len(rows)):
        sums[row] = 0.0
        for part in range(scale.shape[1]):
            start = part * slice_size
            stop = min(start + slice_size, rows.shape[1])
            sums[row] += lost(rows[row, start:stop], scale[row, part], zero_point[row, part], lowest, highest)
