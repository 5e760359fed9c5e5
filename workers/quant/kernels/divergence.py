"""The thresholds of least KL divergence, one row at a time; `workers.quant.clipping_kl` is the reference."""

# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# Types are in the signatures, which numba checks; arrays are passed one by one because structures would be copied.

import math

import numpy as np
from numba import float64, int64, types, void

from workers.quant.kernels.types import compiled

_COUNTS = types.Array(int64, 2, "C", readonly=True)
_NUMBERS = types.Array(int64, 1, "C", readonly=True)


@compiled(float64(float64))
def entropy_of(count):
    """``h log h``, 0 for an empty bin."""
    return count * math.log(count) if count > 0 else 0.0


@compiled(float64(int64[::1], float64[::1], float64[::1], float64[::1], int64, int64, int64, float64))
def window_divergence(counts, mass, occupied, entropy, start, stop, levels, smoothing):
    """``D_KL(P || Q)`` of the window ``[start, stop)`` of bins; infinite where it is empty."""
    inside = mass[stop] - mass[start]
    if inside <= 0:
        return math.inf
    width = stop - start
    floor = smoothing / width
    total = mass[len(mass) - 1]
    cross, first_log, last_log = 0.0, 0.0, 0.0
    left = start
    for level in range(levels):
        right = start + ((level + 1) * width + levels - 1) // levels
        share = mass[right] - mass[left]
        if share > 0:  # so is that of the first and the last level, where their bins count
            spread = share / (max(occupied[right] - occupied[left], 1.0) * max(inside, 1.0))
            log_share = math.log(spread * (1 - smoothing) + floor)
            cross += share * log_share
            if level == 0:
                first_log = log_share
            if level == levels - 1:
                last_log = log_share
        left = right
    below, above = mass[start], total - mass[stop]
    first, final = float(counts[start]), float(counts[stop - 1])
    cross += (first_log if first > 0 else math.log(floor)) * below
    cross += (last_log if final > 0 else math.log(floor)) * above
    own = entropy[stop] - entropy[start]
    own += entropy_of(first + below) - entropy_of(first)
    own += entropy_of(final + above) - entropy_of(final)
    return (own - cross) / max(total, 1.0) - math.log(max(total, 1.0))


@compiled(void(_COUNTS, _NUMBERS, _NUMBERS, _NUMBERS, int64, int64, int64, float64, int64[::1]))
def find_thresholds(counts, first, last, thresholds, bins, origin, levels, smoothing, kept):
    """The best threshold of each row, into ``kept``.

    Windows are ``[max(first, origin - T), min(last, origin + T))``; the largest threshold comes first, and wins ties.
    """
    length = counts.shape[1]
    row_counts = np.empty(length, np.int64)
    mass, occupied, entropy = np.zeros(length + 1), np.zeros(length + 1), np.zeros(length + 1)
    for row in range(len(counts)):
        for i in range(length):
            count = counts[row, i]
            row_counts[i] = count
            mass[i + 1] = mass[i] + count
            occupied[i + 1] = occupied[i] + (count > 0)
            entropy[i + 1] = entropy[i] + entropy_of(float(count))
        best = math.inf
        kept[row] = bins
        for threshold in thresholds:
            start, stop = max(first[row], origin - threshold), min(last[row], origin + threshold)
            if threshold < bins and stop - start < levels:
                continue
            found = window_divergence(row_counts, mass, occupied, entropy, start, stop, levels, smoothing)
            if found < best:
                best, kept[row] = found, threshold
