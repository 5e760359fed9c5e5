"""Choosing the represented range of each slice (MATH.md section 2).

All functions take rows ``[slices, values]`` and give one range per row, vectorised; the searches live in
`clipping_mse` and `clipping_kl`.
"""

import torch
from torch import Tensor

from workers.contracts import Candidate, RangeMethod
from workers.errors import RequestRefused
from workers.quant.affine import CodeRange
from workers.quant.clipping_kl import kl_range
from workers.quant.clipping_mse import mse_range


def choose_range(rows: Tensor, candidate: Candidate) -> tuple[Tensor, Tensor]:
    """The range of each row by the candidate's method.

    Args:
        rows: ``[slices, values]``, float32 or float64, finite.
        candidate: Bit-width and scheme.

    Returns:
        ``(range_min, range_max)``, each ``[slices]``, of the type of ``rows``; not yet widened to contain 0.
    """
    match candidate.scheme.range_method:
        case RangeMethod.MINMAX:
            return minmax_range(rows)
        case RangeMethod.PERCENTILE:
            return percentile_range(rows, candidate.scheme.percentile)
        case RangeMethod.KL:
            return kl_range(rows, CodeRange.of_candidate(candidate))
        case RangeMethod.MSE:
            return mse_range(rows, CodeRange.of_candidate(candidate))


def minmax_range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each row.

    Args:
        rows: ``[slices, values]``.

    Returns:
        ``(range_min, range_max)``, each ``[slices]``.
    """
    low, high = torch.aminmax(rows, dim=1)
    return low, high


def percentile_range(rows: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """``percentile(r, a)`` and ``percentile(r, 100 - a)`` of each row, linear between neighbours.

    Args:
        rows: ``[slices, values]``.
        percentile: ``a`` in percent, in (0, 50).

    Returns:
        ``(range_min, range_max)``, each ``[slices]``.

    Raises:
        RequestRefused: ``percentile`` is outside (0, 50).
    """
    if not 0 < percentile < 50:
        raise RequestRefused(
            f"percentile {percentile} is out of range", "percentile", percentile, "0 < a < 50 (percent)"
        )
    # torch.quantile refuses more than 2^24 values; a sort has no such limit.
    ordered = rows.sort(dim=1).values
    return _at_share(ordered, percentile / 100), _at_share(ordered, 1 - percentile / 100)


def _at_share(ordered: Tensor, share: float) -> Tensor:
    position = share * (ordered.shape[1] - 1)
    below = min(int(position), ordered.shape[1] - 1)
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], position - below)
