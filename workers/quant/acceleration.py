"""Whether searches for ranges, and quantizing, run compiled, and the calls of them.

Compiled code is used for float32 weights on the CPU where numba is installed: however many rows there are, one gets
the same range whenever it is searched by the same installation. Compiling takes some seconds once; the result is kept
on disk where that can be written.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.quant.affine import CodeRange

# From this length on, a row is worked on by itself. The lanes of shorter ones fit into the cache side by side.
_LONG_ROW = 1 << 13


def suits(rows: Tensor, weights: Tensor | None, exponent: int) -> bool:
    """Whether the search of some rows runs compiled.

    Args:
        rows: ``[slices, values]``.
        weights: How much each value counts, or ``None``.
        exponent: 2 or 3.
    """
    return suits_values(rows) and not (weights is not None and exponent != 2)


def suits_values(values: Tensor) -> bool:
    """Whether some values are quantized by compiled code."""
    return values.dtype == torch.float32 and values.device.type == "cpu" and _installed()


@cache
def _installed() -> bool:
    return find_spec("numba") is not None


def represent(
    range_min: Tensor, range_max: Tensor, codes: CodeRange, largest: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`workers.quant.affine.scale_and_zero_point`, and the range that is represented, bit for bit.

    Args:
        range_min: Lower ends, ``[slices]``, float32, on the CPU.
        range_max: Upper ends.
        codes: The integer codes.
        largest: Largest distance of a level from 0.

    Returns:
        Scale, zero point (int32), and both ends, each ``[slices]``.
    """
    scale, low, high = (torch.empty(len(range_min)) for _ in range(3))
    zero_point = torch.empty(len(range_min), dtype=torch.int32)
    _values().represent(
        range_min.contiguous().numpy(),
        range_max.contiguous().numpy(),
        codes.quant_min,
        codes.quant_max,
        codes.symmetric,
        largest,
        scale.numpy(),
        zero_point.numpy(),
        low.numpy(),
        high.numpy(),
    )
    return scale, zero_point, low, high


def quantize_dequantize_rows(  # noqa: PLR0913 - one keyword for each thing it depends on
    rows: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    offset: Tensor | None,
    slice_size: int,
    codes: CodeRange,
) -> Tensor:
    """`workers.quant.affine.quantize_dequantize` of the slices of rows, bit for bit.

    Args:
        rows: ``[rows, values]``, float32, on the CPU.
        scale: ``[rows, slices]``, float32.
        zero_point: ``[rows, slices]``.
        offset: ``[rows]``: what is added to the values of each row.
        slice_size: Values per slice; the last of each row may be shorter.
        codes: The integer codes.

    Returns:
        New storage, ``[rows, values]``.
    """
    result = torch.empty_like(rows, memory_format=torch.contiguous_format)
    _values().to_nearest(
        rows.contiguous().numpy(),
        scale.contiguous().numpy(),
        zero_point.to(torch.float32).contiguous().numpy(),
        np.zeros(len(rows), np.float32) if offset is None else offset.contiguous().numpy(),
        slice_size,
        codes.quant_min,
        codes.quant_max,
        result.numpy(),
    )
    return result


def lost_by_rows(
    rows: Tensor, scale: Tensor, zero_point: Tensor, *, slice_size: int, codes: CodeRange
) -> Tensor:
    """The sum of each row's values minus what they become; arguments as of `quantize_dequantize_rows`.

    Returns:
        ``[rows]``, float64.
    """
    sums = np.empty(len(rows))
    _values().lost_by_rows(
        rows.contiguous().numpy(),
        scale.contiguous().numpy(),
        zero_point.to(torch.float32).contiguous().numpy(),
        slice_size,
        codes.quant_min,
        codes.quant_max,
        sums,
    )
    return torch.from_numpy(sums)


def search(  # noqa: PLR0913 - what the search depends on
    rows: Tensor,
    codes: CodeRange,
    weights: Tensor | None,
    exponent: int,
    *,
    hopeless: float,
    coarse: Sequence[float],
    one_end: Sequence[float],
    steps: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """The range of least error of each row; see `workers.quant.clipping_mse.mse_range`.

    Args:
        rows: ``[slices, values]``, float32, on the CPU.
        codes: The integer codes.
        weights: How much each value counts, same shape, at most 1; ``None``: once each.
        exponent: 2 or 3; 2 with weights.
        hopeless: A row shrinks no further once its error is so many times its best.
        coarse: Shares of the min-max range.
        one_end: Factors for each end by itself.
        steps: Of the refinement, falling.
    """
    ranges = np.empty((2, len(rows)), np.float32)
    _kernel(long=rows.shape[1] >= _LONG_ROW)(
        rows.contiguous().numpy(),
        np.empty((0, 0), np.float32) if weights is None else weights.contiguous().numpy(),
        codes.quant_min,
        codes.quant_max,
        codes.symmetric,
        exponent if weights is None else 0,
        hopeless,
        np.array(coarse),
        np.array(one_end),
        np.array(steps),
        ranges,
    )
    low, high = torch.from_numpy(ranges)
    return low, high


def suits_counts(counts: Tensor) -> bool:
    """Whether thresholds are found from some histograms by compiled code."""
    return counts.device.type == "cpu" and _installed()


def find_thresholds(  # noqa: PLR0913 - what the thresholds depend on
    counts: Tensor,
    *,
    first: Tensor,
    last: Tensor,
    thresholds: Sequence[int],
    bins: int,
    origin: int,
    levels: int,
    smoothing: float,
) -> Tensor:
    """The threshold of least KL divergence of each row; see `workers.quant.clipping_kl`.

    Args:
        counts: int64 ``[slices, bins]``, on the CPU.
        first: As in `workers.quant.clipping_kl`, like what follows.
        last: int64 ``[slices]``.
        thresholds: Falling.
        bins: The largest.
        origin: The bin that begins at 0.
        levels: Of a window.
        smoothing: Share of the uniform distribution.

    Returns:
        int64 ``[slices]``.
    """
    kept = np.empty(len(counts), np.int64)
    module: Any = importlib.import_module("workers.quant.kernels.divergence")
    module.find_thresholds(
        counts.contiguous().numpy(),
        first.contiguous().numpy(),
        last.contiguous().numpy(),
        np.array(thresholds, np.int64),
        bins,
        origin,
        levels,
        smoothing,
        kept,
    )
    return torch.from_numpy(kept)


@cache
def _kernel(*, long: bool) -> Callable[..., Any]:
    """Imported when it is needed: importing compiles."""
    module: Any = importlib.import_module(f"workers.quant.kernels.{'rows' if long else 'lanes'}")
    found: Callable[..., Any] = module.search_rows if long else module.search_lanes
    return found


def _values() -> Any:
    return importlib.import_module("workers.quant.kernels.values")
