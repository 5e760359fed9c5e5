"""The search for the ranges of least error, by arithmetic that `workers.quant.clipping_mse` repeats to the last bit.

Rows lie side by side in the processor's vectors: short ones one value of each, long ones many values of one.
"""

# ruff: noqa: ANN001, ANN201, PLR0913, PLR0917
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# Types are in the signatures, which numba checks; arrays are passed one by one because structures would be copied.

import numpy as np
from numba import boolean, float32, float64, int64, types, void

from workers.quant.kernels.types import HALVES, REALS, compiled

LANES = 64
SCALE, BOTH = -1.0, 1.0
_PARTS = 8
_VALUES = types.Array(float32, 3, "C", readonly=True)
_PACKED = types.Array(float32, 4, "C", readonly=True)
_ENDS = types.Array(float64, 2, "C", readonly=True)
_TABLE = float64[:, ::1]
_NUMBERS = float64[::1]
# Places of the numbers of each row in one array, at fixed distances, for loops over them to become vectors: the scale of
# the whole range, the best scale and zero point found with their error, its slope and how the slope bends; those under
# trial; and those before. See `workers.quant.least_error`.
_BELOW, _SCALE, _ZERO, _BEST, _SLOPE, _BEND = 0, 64, 128, 192, 256, 320
_NEXT_SCALE, _NEXT_ZERO, _NEXT_ERROR, _NEXT_SLOPE = 384, 448, 512, 576
_LAST_SCALE, _LAST_SLOPE, _WAS_BETTER, _BARRED = 640, 704, 768, 832
_START_SCALE, _START_ZERO, _ABOVE, _LENGTH = 896, 960, 1024, 1088


@compiled(void(_VALUES, _VALUES, HALVES, HALVES, HALVES, int64, _NUMBERS, _NUMBERS))
def sums_of(values, weights, inverse, lowest, highest, power, errors, slopes):
    """Errors and their slopes, in steps, of the values ``[parts, places, lanes]`` of each lane.

    What lies at the same place of each part is added in float32, these sums in float64. ``power`` is 2 or 3, or 0 for
    weighted squares.
    """
    errors[:] = 0
    slopes[:] = 0
    for i in range(values.shape[1]):
        for k in range(LANES):
            error, slope = np.float32(0), np.float32(0)
            for j in range(_PARTS):
                steps = values[j, i, k] * inverse[k]
                level = min(max(np.rint(steps), lowest[k]), highest[k])
                difference = level - steps
                if power == 2:
                    term = difference
                elif power == 3:
                    term = difference * abs(difference)
                else:
                    term = difference * weights[j, i, k]
                error += term * difference
                slope += term * level
            errors[k] += error
            slopes[k] += slope


@compiled(void(_NUMBERS, int64, int64, _VALUES, _VALUES, int64, HALVES, _NUMBERS), error_model="numpy")
def evaluate(state, rows, steps, values, weights, power, lanes, sums):
    """Error and slope of each row under its next scale and zero point. ``lanes`` and ``sums`` are scratch."""
    inverse, lowest, highest = lanes[:LANES], lanes[LANES : 2 * LANES], lanes[2 * LANES :]
    errors, slopes = sums[:LANES], sums[LANES:]
    if rows == LANES:
        for k in range(LANES):
            inverse[k] = np.float32(1 / state[_NEXT_SCALE + k])
        for k in range(LANES):
            lowest[k] = np.float32(-state[_NEXT_ZERO + k])
        for k in range(LANES):
            highest[k] = np.float32(steps - state[_NEXT_ZERO + k])
        sums_of(values, weights, inverse, lowest, highest, power, errors, slopes)
    else:
        width = LANES // rows
        for row in range(rows):
            start, stop = row * width, (row + 1) * width
            inverse[start:stop] = np.float32(1 / state[_NEXT_SCALE + row])
            lowest[start:stop] = np.float32(-state[_NEXT_ZERO + row])
            highest[start:stop] = np.float32(steps - state[_NEXT_ZERO + row])
        sums_of(values, weights, inverse, lowest, highest, power, errors, slopes)
        for row in range(rows):
            error, slope = 0.0, 0.0
            for k in range(row * width, (row + 1) * width):
                error += errors[k]
                slope += slopes[k]
            errors[row], slopes[row] = error, slope
    for k in range(LANES):
        scale = state[_NEXT_SCALE + k]
        more = scale if power == 3 else 1.0
        state[_NEXT_ERROR + k] = errors[k] * (scale * scale * more)
        state[_NEXT_SLOPE + k] = slopes[k] * (scale * more)


@compiled(void(_NUMBERS, int64, boolean, float64), error_model="numpy")
def propose_clipped(state, steps, symmetric, share):
    """The range within a share of its larger end."""
    for k in range(LANES):
        below, above = state[_BELOW + k], state[_ABOVE + k]
        bound = share * max(below, above)
        scale = (min(below, bound) + min(above, bound)) / steps
        state[_NEXT_SCALE + k] = scale
        zero = min(max(np.rint(min(below, bound) / scale), 0.0), float(steps))
        state[_NEXT_ZERO + k] = state[_ZERO + k] if symmetric else zero


@compiled(boolean(_NUMBERS, float64), error_model="numpy")
def judge_shrunk(state, hopeless):
    """Keep scales where their error is less, but for barred rows; bar those it is hopeless for. Whether all are barred."""
    barred = 0.0
    for k in range(LANES):
        scale, error, slope = state[_NEXT_SCALE + k], state[_NEXT_ERROR + k], state[_NEXT_SLOPE + k]
        free = state[_BARRED + k] == 0
        better = free and error < state[_BEST + k]
        bend = (slope - state[_LAST_SLOPE + k]) / (scale - state[_LAST_SCALE + k])
        beside = free and (better or state[_WAS_BETTER + k] != 0)
        state[_BEND + k] = bend if beside else state[_BEND + k]
        state[_WAS_BETTER + k] = 1.0 if better else 0.0
        state[_SCALE + k] = scale if better else state[_SCALE + k]
        state[_ZERO + k] = state[_NEXT_ZERO + k] if better else state[_ZERO + k]
        state[_SLOPE + k] = slope if better else state[_SLOPE + k]
        best = error if better else state[_BEST + k]
        state[_BEST + k] = best
        state[_BARRED + k] = 0.0 if free and error <= hopeless * best and best > 0 else 1.0
        barred += state[_BARRED + k]
        state[_LAST_SCALE + k], state[_LAST_SLOPE + k] = scale, slope
    return barred == LANES


@compiled(void(_NUMBERS, float64, float64), error_model="numpy")
def propose_scales(state, farthest, nearest):
    """Where the slope would be 0, within bounds."""
    for k in range(LANES):
        scale, slope, bend = state[_SCALE + k], state[_SLOPE + k], state[_BEND + k]
        down = slope > 0
        blind = 0.1 * scale if down else -0.1 * scale
        move = slope / bend if bend > 0 else blind
        following = min(max(scale - move, scale / farthest), scale * farthest)
        least = scale * (1 - nearest) if down else scale * (1 + nearest)
        state[_NEXT_SCALE + k] = least if abs(following - scale) < nearest * scale else following
        state[_NEXT_ZERO + k] = state[_ZERO + k]


@compiled(void(_NUMBERS), error_model="numpy")
def judge_scales(state):
    """Keep scales where their error is less; learn how the slope bends."""
    for k in range(LANES):
        scale, slope, bend = state[_SCALE + k], state[_SLOPE + k], state[_BEND + k]
        following, error = state[_NEXT_SCALE + k], state[_NEXT_ERROR + k]
        distance = abs(following - scale)
        secant = (state[_NEXT_SLOPE + k] - slope) / (following - scale)
        bend = secant if secant > 0 else 2 * bend
        better = error < state[_BEST + k]
        # Half of the way at most from the better point, where the next step would go as far again.
        far = not better and abs(slope) > 0.7 * bend * distance
        state[_BEND + k] = abs(slope) / (0.5 * distance) if far else bend
        state[_BEST + k] = error if better else state[_BEST + k]
        state[_SCALE + k] = following if better else scale
        state[_SLOPE + k] = state[_NEXT_SLOPE + k] if better else slope


@compiled(void(_NUMBERS, int64, float64, float64))
def propose_aside(state, steps, factor, shift):
    """So far away from the scales and zero points at the beginning of a move."""
    for k in range(LANES):
        state[_NEXT_SCALE + k] = state[_START_SCALE + k] * factor
        state[_NEXT_ZERO + k] = min(max(state[_START_ZERO + k] + shift, 0.0), float(steps))


@compiled(void(_NUMBERS))
def judge_aside(state):
    """Keep what is tried where its error is less."""
    for k in range(LANES):
        better = state[_NEXT_ERROR + k] < state[_BEST + k]
        state[_BEST + k] = state[_NEXT_ERROR + k] if better else state[_BEST + k]
        state[_SCALE + k] = state[_NEXT_SCALE + k] if better else state[_SCALE + k]
        state[_ZERO + k] = state[_NEXT_ZERO + k] if better else state[_ZERO + k]
        state[_SLOPE + k] = state[_NEXT_SLOPE + k] if better else state[_SLOPE + k]


@compiled(
    void(
        _NUMBERS, int64, int64, _VALUES, _VALUES, boolean, int64, float64, REALS, REALS, float64, float64, float64,
        HALVES, _NUMBERS,
    )
)  # fmt: skip
def find(
    state,
    rows,
    steps,
    values,
    weights,
    symmetric,
    power,
    hopeless,
    shares,
    moves,
    farthest,
    nearest,
    narrower,
    lanes,
    sums,
):
    """Best scales and zero points, from the scales of the whole ranges and their zero points."""
    for share in shares:
        propose_clipped(state, steps, symmetric, share)
        evaluate(state, rows, steps, values, weights, power, lanes, sums)
        if judge_shrunk(state, hopeless):
            break
    for move in moves:
        if move == SCALE:
            propose_scales(state, farthest, nearest)
            evaluate(state, rows, steps, values, weights, power, lanes, sums)
            judge_scales(state)
        elif move < 0 or not symmetric:
            for k in range(LANES):
                state[_START_SCALE + k], state[_START_ZERO + k] = state[_SCALE + k], state[_ZERO + k]
            shift = max(np.rint(steps * move), 1.0) if move >= 0 else 0.0
            kept = 1.0
            if move == BOTH:
                shift, kept = 1.0, narrower
            for side in range(2):
                factor = kept if move >= 0 else (1 - move if side == 0 else 1 + move)
                propose_aside(state, steps, factor, shift if side == 0 else -shift)
                evaluate(state, rows, steps, values, weights, power, lanes, sums)
                judge_aside(state)


@compiled(
    void(
        _PACKED, _PACKED, _ENDS, _ENDS, int64, float64, boolean, int64, float64, REALS, REALS, float64, float64, float64,
        _TABLE, _TABLE,
    )
)  # fmt: skip
def search(
    values,
    weights,
    below,
    above,
    steps,
    zero_point,
    symmetric,
    power,
    hopeless,
    shares,
    moves,
    farthest,
    nearest,
    narrower,
    scale,
    zero,
):
    """Best ``scale`` and ``zero`` point ``[chunks, rows]`` of all rows; ``weights`` is used where ``power`` is 0."""
    rows = below.shape[1]
    state, lanes, sums = np.empty(_LENGTH), np.zeros(3 * LANES, np.float32), np.zeros(2 * LANES)
    for chunk in range(len(values)):
        state[:] = 0
        state[_BEST : _BEST + LANES] = np.inf
        # Where there are fewer rows than lanes, what is left over is done at once.
        state[_BARRED + rows : _BARRED + LANES] = 1
        state[_BELOW : _BELOW + LANES] = 1
        state[_BELOW : _BELOW + rows] = below[chunk]
        state[_ABOVE : _ABOVE + rows] = above[chunk]
        state[_SCALE : _SCALE + LANES] = 1
        state[_ZERO : _ZERO + LANES] = zero_point
        counted = weights[chunk] if power == 0 else values[chunk]
        find(
            state, rows, steps, values[chunk], counted, symmetric, power, hopeless, shares, moves, farthest, nearest,
            narrower, lanes, sums,
        )  # fmt: skip
        scale[chunk], zero[chunk] = state[_SCALE : _SCALE + rows], state[_ZERO : _ZERO + rows]
