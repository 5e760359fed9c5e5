"""Choosing the represented range of each slice (MATH.md section 2).

All functions take rows ``[slices, values]`` and give one range per row, vectorised; the searches live in
`clipping_mse` and `clipping_kl`.
"""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from workers.contracts import Candidate, RangeMethod
from workers.errors import RequestRefused
from workers.quant.affine import CodeRange
from workers.quant.clipping_kl import Histograms
from workers.quant.clipping_mse import LeastError


class RangeChooser:
    """Ranges of the same rows for one candidate after another; what bit-widths share is computed once.

    Args:
        rows: ``[slices, values]``, float32 or float64, finite.
        importance: How much the squared error of each value counts, same shape, not negative; needed for ranges of
            least weighted error only.
    """

    def __init__(self, rows: Tensor, importance: Tensor | None = None) -> None:
        self.rows = rows
        self.importance = importance

    def range(self, candidate: Candidate) -> tuple[Tensor, Tensor]:
        """The range of each row by the candidate's method.

        Returns:
            ``(range_min, range_max)``, each ``[slices]``, of the type of the rows; not yet widened to contain 0.

        Raises:
            RequestRefused: The method needs the values' importance.
        """
        codes = CodeRange.of_candidate(candidate)
        match candidate.scheme.range_method:
            case RangeMethod.MINMAX:
                return self._minmax
            case RangeMethod.PERCENTILE:
                return percentile_of_ordered(self._ordered, candidate.scheme.percentile)
            case RangeMethod.KL:
                return self._histograms.range(codes)
            case RangeMethod.MSE:
                return self._least_error.range(codes)
            case RangeMethod.L3:
                return self._least_error.range(codes, exponent=3)
            case RangeMethod.WEIGHTED_MSE:
                if self.importance is None:
                    raise needs_inputs(candidate)
                return self._weighted_error.range(codes)

    @cached_property
    def _minmax(self) -> tuple[Tensor, Tensor]:
        return minmax_range(self.rows)

    @cached_property
    def _ordered(self) -> Tensor:
        return _ascending(self.rows)

    @cached_property
    def _least_error(self) -> LeastError:
        return LeastError(self.rows)

    @cached_property
    def _weighted_error(self) -> LeastError:
        return LeastError(self.rows, self.importance)

    @cached_property
    def _histograms(self) -> Histograms:
        return Histograms(self.rows)


def needs_inputs(candidate: Candidate) -> RequestRefused:
    """The refusal of a scheme whose input statistics are not there."""
    return RequestRefused(
        f"the scheme {str(candidate.scheme)!r} needs the second moments of the inputs, and there are none",
        "scheme",
        str(candidate.scheme),
        "a scheme without weighted-mse and gptq, or calibration data",
    )


def choose_range(
    rows: Tensor, candidate: Candidate, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The range of each row by the candidate's method.

    Args:
        rows: ``[slices, values]``, float32 or float64, finite.
        candidate: Bit-width and scheme.
        importance: How much the squared error of each value counts, same shape, not negative; needed for ranges of
            least weighted error only.

    Returns:
        ``(range_min, range_max)``, each ``[slices]``, of the type of ``rows``; not yet widened to contain 0.

    Raises:
        RequestRefused: The method needs the values' importance.
    """
    return RangeChooser(rows, importance).range(candidate)


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
    # torch.quantile refuses more than 2^24 values; a sort has no such limit.
    return percentile_of_ordered(_ascending(rows), percentile)


def _ascending(rows: Tensor) -> Tensor:
    """The values of each row sorted: by NumPy on the CPU, which is several times faster (it keeps no positions)."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    return torch.from_numpy(np.sort(rows.numpy(), axis=1))


def percentile_of_ordered(ordered: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """`percentile_range` of rows whose values ascend."""
    if not 0 < percentile < 50:
        raise RequestRefused(
            f"percentile {percentile} is out of range", "percentile", percentile, "0 < a < 50 (percent)"
        )
    return _at_share(ordered, percentile / 100), _at_share(ordered, 1 - percentile / 100)


def _at_share(ordered: Tensor, share: float) -> Tensor:
    position = share * (ordered.shape[1] - 1)
    below = min(int(position), ordered.shape[1] - 1)
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], position - below)
