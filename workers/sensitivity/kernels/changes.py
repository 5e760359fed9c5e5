"""Divergences and changes of rows of outputs, and their sums under signs.

What is computed is told in `workers.sensitivity.divergence` and `workers.sensitivity.sketches`, whose tensors are the reference.
Sums are taken in float32 over short stretches, and over those in float64.
"""

# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# Types are in the signatures, which numba checks; arrays are passed one by one because structures would be copied.

import numpy as np
from numba import boolean, float32, float64, int64, types, void

from workers.quant.kernels.types import HALVES, ROW, ROWS, TABLE, compiled

PLACES = types.Array(int64, 2, "C", readonly=True)

STRETCH = 512
"""Elements that are summed in float32: the processor adds up many side by side, and nothing is lost."""

# ln 2 in two parts, so that multiples of it are subtracted without rounding (Cody and Waite 1980).
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
PER_LN2 = np.float32(1.4426950408889634)
LEAST_EXPONENT = np.float32(-87)
ONE, HALF, TWO = np.float32(1), np.float32(0.5), np.float32(2)
# Sums may be reordered, for the processor to add up many at a time; differences of close numbers may not.
SUMMED, CLOSE = {"reassoc", "nsz", "contract"}, {"contract"}


@compiled(types.UniTuple(float32, 3)(float32), error_model="numpy", fastmath=CLOSE)
def exponential(y):
    """``e^y = power (1 + r + above)``: the power of 2, ``r + above``, and ``above = e^r - 1 - r`` alone; y within +-87."""
    times = np.rint(y * PER_LN2)
    r = y - times * LN2_HIGH
    r -= times * LN2_LOW
    above = np.float32(1 / 5040) + r * np.float32(1 / 40320)
    above = np.float32(1 / 720) + r * above
    above = np.float32(1 / 120) + r * above
    above = np.float32(1 / 24) + r * above
    above = np.float32(1 / 6) + r * above
    above = (HALF + r * above) * r * r
    power = np.int32((np.int32(times) + np.int32(127)) * np.int32(1 << 23)).view(np.float32)
    return power, r + above, above


@compiled(types.UniTuple(float32, 2)(ROW, ROW, float32, HALVES), error_model="numpy", fastmath=SUMMED)
def begin(before, after, top, weight):
    """Writes ``e^(before - top)``; gives its sum, and that of its products with ``after - before``."""
    total, moment = np.float32(0), np.float32(0)
    for i in range(len(before)):
        y = before[i] - top
        power, grown, _ = exponential(max(y, LEAST_EXPONENT))
        chance = power + power * grown if y > LEAST_EXPONENT else np.float32(0)
        weight[i] = chance
        total += chance
        moment += chance * (after[i] - before[i])
    return total, moment


@compiled(types.UniTuple(float32, 3)(float32, float32, float32), error_model="numpy", fastmath=CLOSE)
def grow(before, after, centre):
    """``x = after - before - centre``, ``h = e^(x/2) - 1``, and ``e^x - 1 - x = h^2 + 2 (h - x/2)``, all of it positive."""
    x = after - before - centre
    y = HALF * x
    power, grown, above = exponential(min(max(y, LEAST_EXPONENT), -LEAST_EXPONENT))
    h = power * grown + (power - ONE)
    return x, h, h * h + TWO * (above if power == ONE else h - y)


@compiled(types.UniTuple(float32, 2)(ROW, ROW, float32, ROW, HALVES), error_model="numpy", fastmath=SUMMED)
def exceed(before, after, centre, weight, root):
    """Sums of ``weight (e^x - 1 - x)`` and ``weight x``; writes ``h``."""
    total, moment = np.float32(0), np.float32(0)
    for i in range(len(before)):
        x, root[i], excess = grow(before[i], after[i], centre)
        total += weight[i] * excess
        moment += weight[i] * x
    return total, moment


@compiled(types.UniTuple(float64, 2)(ROW, ROW, float32, HALVES))
def begin_row(before, after, top, weight):
    """`begin` stretch by stretch."""
    total, moment = 0.0, 0.0
    for first in range(0, len(before), STRETCH):
        part = slice(first, first + STRETCH)
        found = begin(before[part], after[part], top, weight[part])
        total += found[0]
        moment += found[1]
    return total, moment


@compiled(types.UniTuple(float64, 2)(ROW, ROW, float32, ROW, HALVES))
def exceed_row(before, after, centre, weight, root):
    """`exceed` stretch by stretch."""
    total, moment = 0.0, 0.0
    for first in range(0, len(before), STRETCH):
        part = slice(first, first + STRETCH)
        found = exceed(before[part], after[part], centre, weight[part], root[part])
        total += found[0]
        moment += found[1]
    return total, moment


@compiled(void(ROW, float32, float32, float32, HALVES), error_model="numpy", fastmath=CLOSE)
def as_roots(weight, scale, shrunk, less, root):
    """The change of square roots, from ``h`` in place."""
    for i in range(len(root)):
        root[i] = np.sqrt(weight[i] * scale) * (shrunk * root[i] + less)


@compiled(void(ROW, ROW, ROW, float32, float32, float32, HALVES), error_model="numpy", fastmath=CLOSE)
def as_outputs(before, after, weight, scale, centre, mean, change):
    """The change of outputs in the Fisher metric; ``mean`` is what it still has, centred."""
    for i in range(len(change)):
        change[i] = np.sqrt(weight[i] * scale) * (after[i] - before[i] - centre - mean)


@compiled(void(ROWS, ROWS, ROW, boolean, boolean, float64[::1], boolean[::1], TABLE), error_model="numpy")
def compare(before, after, tops, hellinger, fisher, rows, unusual, changes):
    """Divergence of each row, and its change in a form if one is asked for; ``tops`` are the largest of ``before``.

    ``unusual`` are rows of which some sum is not finite: what is written for those is no result.
    """
    weight = np.empty(before.shape[1], np.float32)
    spare = np.empty(before.shape[1], np.float32)
    for row in range(len(before)):
        root = changes[row] if hellinger or fisher else spare
        total, moment = begin_row(before[row], after[row], tops[row], weight)
        centre = np.float32(moment / total)
        above, rest = exceed_row(before[row], after[row], centre, weight, root)
        mean = rest / total
        norm = np.log1p(above / total + mean)
        rows[row] = norm - mean
        unusual[row] = not np.isfinite(norm)
        if hellinger:
            shrunk, less = np.float32(np.exp(-0.5 * norm)), np.float32(np.expm1(-0.5 * norm))
            as_roots(weight, np.float32(2.0 / total), shrunk, less, root)
        elif fisher:
            scale = np.float32(0.5 / total)
            as_outputs(before[row], after[row], weight, scale, centre, np.float32(mean), root)


@compiled(float32(ROW, ROW), fastmath=SUMMED)
def product(left, right):
    """Inner product."""
    total = np.float32(0)
    for i in range(len(left)):
        total += left[i] * right[i]
    return total


@compiled(void(ROWS, ROW, PLACES, float64[:, ::1]))
def project(changes, signs, places, sums):
    """``[rows, width]``: each row's sums under the windows of signs that begin at its places."""
    for row in range(len(changes)):
        sums[row] = 0.0
        for first in range(0, changes.shape[1], STRETCH):
            last = min(first + STRETCH, changes.shape[1])
            for k in range(places.shape[1]):
                window = places[row, k]
                sums[row, k] += product(changes[row, first:last], signs[window + first : window + last])
