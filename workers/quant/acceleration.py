"""Whether searches for ranges run compiled, and the calls of them.

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
    return (
        rows.dtype == torch.float32
        and rows.device.type == "cpu"
        and not (weights is not None and exponent != 2)
        and find_spec("numba") is not None
    )


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
    return counts.device.type == "cpu" and find_spec("numba") is not None


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
