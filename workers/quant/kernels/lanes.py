"""Short rows, many at a time: vectors of the processor hold one value of each."""

# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# Types are in the signatures, which numba checks; arrays are passed one by one because structures would be copied.

import numpy as np
from numba import boolean, float32, float64, int64, void

from workers.quant.kernels.types import HALVES, REALS, ROWS, TABLE, TINY, compiled

_LANES = 64
# Rows of a table of numbers for each lane.
_LOW, _HIGH, _LOW_SHARE, _HIGH_SHARE, _LOW_START, _HIGH_START, _BEST = range(7)


@compiled(void(TABLE, TABLE, HALVES, HALVES, float32, float32, boolean, int64, HALVES))
def errors_of(values, weights, low, high, lowest, highest, symmetric, power, errors):
    """The error of one range for each row, ``values`` are ``[values, rows]``; what is rounded is ``r / S + Z``.

    ``power`` is 2 or 3, or 0 for weighted squares.
    """
    lanes = len(errors)
    scale, inverse, zero = np.empty_like(errors), np.empty_like(errors), np.zeros_like(errors)
    for k in range(lanes):
        if symmetric:
            scale[k] = max(low[k] / lowest, high[k] / highest, TINY)
        else:
            scale[k] = max((high[k] - low[k]) / highest, TINY)
            zero[k] = min(max(np.rint(-low[k] / scale[k]), np.float32(0)), highest)
        inverse[k] = np.float32(1) / scale[k]
        errors[k] = np.float32(0)
    for i in range(len(values)):
        for k in range(lanes):
            steps = values[i, k] * inverse[k] + zero[k]
            difference = min(max(np.rint(steps), lowest), highest) - steps
            if power == 2:
                errors[k] += difference * difference
            elif power == 3:
                errors[k] += difference * difference * abs(difference)
            else:
                errors[k] += difference * difference * weights[i, k]
    for k in range(lanes):
        errors[k] *= scale[k] * scale[k] * (scale[k] if power == 3 else np.float32(1))


@compiled(
    boolean(
        TABLE, TABLE, TABLE, HALVES, HALVES, boolean[::1], float64, float32, float32, boolean, int64, HALVES
    )
)
def consider(
    values, weights, table, low_share, high_share, barred, hopeless, lowest, highest, symmetric, power, errors
):
    """Keep shares where their error is less, but for barred rows; bar those it is hopeless for. Whether all are barred."""
    low, high = table[_LOW] * low_share, table[_HIGH] * high_share
    errors_of(values, weights, low, high, lowest, highest, symmetric, power, errors)
    best = table[_BEST]
    all_barred = True
    for k in range(len(errors)):
        if barred[k]:
            continue
        if errors[k] < best[k]:
            best[k] = errors[k]
            table[_LOW_SHARE, k], table[_HIGH_SHARE, k] = low_share[k], high_share[k]
        barred[k] = best[k] == 0 or errors[k] > hopeless * best[k]
        all_barred = all_barred and barred[k]
    return all_barred


@compiled(boolean(TABLE, float64, float64, boolean[::1], HALVES, HALVES))
def propose(table, low_factor, high_factor, barred, low_share, high_share):
    """The shares at the start of a sweep times a factor each; whether any are new to a row that is not barred."""
    news = False
    for k in range(len(barred)):
        low_share[k] = min(table[_LOW_START, k] * low_factor, 1.0)
        high_share[k] = min(table[_HIGH_START, k] * high_factor, 1.0)
        same = low_share[k] == table[_LOW_START, k] and high_share[k] == table[_HIGH_START, k]
        news = news or not (barred[k] or same)
    return news


@compiled(void(TABLE, TABLE, TABLE, int64, int64, boolean, int64, float64, REALS, REALS, REALS))
def find_shares(
    values, weights, table, quant_min, quant_max, symmetric, power, hopeless, coarse, one_end, steps
):
    """The shares of least error of the rows' ends; see `workers.quant.clipping_mse`."""
    lanes = values.shape[1]
    lowest, highest = np.float32(quant_min), np.float32(quant_max)
    errors, low_share, high_share = (
        np.empty(lanes, np.float32),
        np.empty(lanes, np.float32),
        np.empty(lanes, np.float32),
    )
    barred = np.zeros(lanes, np.bool_)
    for share in coarse:
        low_share[:] = share
        high_share[:] = share
        if consider(
            values,
            weights,
            table,
            low_share,
            high_share,
            barred,
            hopeless,
            lowest,
            highest,
            symmetric,
            power,
            errors,
        ):
            break
    for k in range(lanes):
        barred[k] = table[_BEST, k] == 0
    wide = 0 if symmetric else 2
    for sweep in range(wide + len(steps)):
        for side in range(1 if symmetric else 2):
            table[_LOW_START] = table[_LOW_SHARE]
            table[_HIGH_START] = table[_HIGH_SHARE]
            for k in range(len(one_end) if sweep < wide else 2):
                if sweep < wide:
                    factor = one_end[k]
                else:
                    factor = 1 - steps[sweep - wide] if k == 0 else 1 + steps[sweep - wide]
                low_factor = factor if symmetric or side == 1 else 1.0
                high_factor = factor if symmetric or side == 0 else 1.0
                if propose(table, low_factor, high_factor, barred, low_share, high_share):
                    consider(
                        values, weights, table, low_share, high_share, barred, np.inf, lowest, highest, symmetric,
                        power, errors,
                    )  # fmt: skip


@compiled(void(ROWS, ROWS, int64, int64, boolean, int64, float64, REALS, REALS, REALS, TABLE))
def search_lanes(
    rows, weights, quant_min, quant_max, symmetric, power, hopeless, coarse, one_end, steps, ranges
):
    """Ranges ``[2, slices]`` of all rows; ``weights`` is empty where nothing is weighted."""
    values = np.empty((rows.shape[1], _LANES), np.float32)
    counts = np.zeros((rows.shape[1] if power == 0 else 0, _LANES), np.float32)
    table, ends = np.empty((7, _LANES), np.float32), np.zeros((2, _LANES), np.float32)
    for first in range(0, len(rows), _LANES):
        lanes = min(_LANES, len(rows) - first)
        values[:] = 0  # rows of zeros beside the last ones
        for k in range(lanes):
            row = rows[first + k]
            low = high = row[0]
            for value in row:
                low, high = min(low, value), max(high, value)
            unit = max(abs(low), abs(high))
            if unit == 0:
                unit = np.float32(1)
            if not symmetric:
                low, high = min(low, np.float32(0)), max(high, np.float32(0))
            ends[0, k], ends[1, k] = low, high
            table[_LOW, k], table[_HIGH, k] = low / unit, high / unit
            for i in range(len(row)):
                values[i, k] = row[i] / unit
            if power == 0:
                for i in range(len(row)):
                    counts[i, k] = weights[first + k, i]
        table[_LOW, lanes:] = 0
        table[_HIGH, lanes:] = 0
        table[_LOW_SHARE:_BEST] = 1
        table[_BEST] = np.inf
        find_shares(
            values, counts, table, quant_min, quant_max, symmetric, power, hopeless, coarse, one_end, steps
        )
        for k in range(lanes):
            ranges[0, first + k] = ends[0, k] * table[_LOW_SHARE, k]
            ranges[1, first + k] = ends[1, k] * table[_HIGH_SHARE, k]
