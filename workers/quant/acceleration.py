"""Whether searches for ranges, and quantizing, run compiled, and the calls of them.

Compiled code is used for float32 weights on the CPU where numba is installed: however many rows there are, one gets
the same range whenever it is searched by the same installation. Compiling takes some seconds once; the result is kept
on disk where that can be written.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from workers.quant import least_error
from workers.quant.affine import CodeRange


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


def warm_up() -> None:
    """Load the code that every candidate needs, and compile it if that has not been done on this machine: seconds."""
    if _installed():
        represent(torch.zeros(1), torch.ones(1), CodeRange.of(8, symmetric=False), 1.0)


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Rows as the compiled search goes through them.

    Args:
        values: ``[chunks, parts, places, lanes]``; a row takes as many lanes side by side as it is spread over, and
            zeros are put behind it. So are rows of zeros behind the last.
        weights: How much each value counts, alike.
        width: Lanes of a row.
        rows: How many there are.
    """

    values: np.ndarray
    weights: np.ndarray | None
    width: int
    rows: int

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor | None, *, width: int) -> Self:
        """Pack ``[slices, values]``."""
        packed = [None if each is None else _packed(each, width) for each in (rows, weights)]
        assert packed[0] is not None
        return cls(values=packed[0], weights=packed[1], width=width, rows=len(rows))


def _packed(rows: Tensor, width: int) -> np.ndarray:
    side_by_side = least_error.LANES // width
    padded = torch.nn.functional.pad(
        rows, (0, -rows.shape[1] % (least_error.PARTS * width), 0, -len(rows) % side_by_side)
    )
    cut = padded.reshape(
        -1, side_by_side, least_error.PARTS, padded.shape[1] // (least_error.PARTS * width), width
    )
    return (
        cut.permute(0, 2, 3, 1, 4)
        .reshape(len(cut), least_error.PARTS, -1, least_error.LANES)
        .contiguous()
        .numpy()
    )


def search(
    packed: Packed, below: Tensor, above: Tensor, codes: CodeRange, exponent: int
) -> tuple[Tensor, Tensor]:
    """`workers.quant.least_error.search_by_tensors`, to the last bit.

    Args:
        packed: The rows.
        below: How far the range reaches, float64 ``[rows]``; not both ends 0.
        above: Alike.
        codes: The integer codes.
        exponent: 2 or 3; 2 with weights.
    """
    starts = []
    for each in (below, above):
        table = np.ones((len(packed.values), least_error.LANES // packed.width))
        table.reshape(-1)[: packed.rows] = each.numpy()
        starts.append(table)
    found = np.empty_like(starts[0]), np.empty_like(starts[1])
    _module("ranges").search(
        packed.values,
        packed.values if packed.weights is None else packed.weights,
        *starts,
        codes.quant_max - codes.quant_min,
        -codes.quant_min,
        codes.symmetric,
        exponent if packed.weights is None else 0,
        least_error.HOPELESS,
        np.array(least_error.SHARES),
        np.array(least_error.MOVES),
        least_error.FARTHEST,
        least_error.NEAREST,
        least_error.NARROWER,
        *found,
    )
    best, zero = (torch.from_numpy(each.reshape(-1)[: packed.rows]) for each in found)
    return best, zero


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
    _module("divergence").find_thresholds(
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
def _module(name: str) -> Any:
    """Imported when it is needed: importing compiles."""
    return importlib.import_module(f"workers.quant.kernels.{name}")


def _values() -> Any:
    return _module("values")
