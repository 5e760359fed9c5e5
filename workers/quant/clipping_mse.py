"""The clipping range of least mean squared error, per slice (MATH.md section 2)."""

import torch
from torch import Tensor

from workers.quant.affine import CodeRange, quantize_dequantize, scale_and_zero_point, widen_to_zero

# Shares of the min-max range. The error is not convex in the range, so the coarse sweep covers everything down to a
# twenty-fifth (beyond that even three levels gain nothing on Gaussian, Laplace or outlier-ridden weights), and
# the fine ones cover the gap between two coarse points. 1 comes first: on equal errors nothing is clipped.
_COARSE = tuple(0.9**k for k in range(32))
_ONE_END = (0.3, 0.5, 0.65, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0)
_FINE = (0.94, 0.96, 0.98, 0.99, 1.01, 1.02, 1.04, 1.06)
_FINEST = (0.992, 0.994, 0.996, 0.998, 1.002, 1.004, 1.006, 1.008)

# Values worked on at once: the temporaries of a chunk stay in the processor's cache.
_CHUNK_VALUES = 1 << 17


def mse_range(rows: Tensor, codes: CodeRange, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The range that minimises ``E[(r - r~)^2]`` of each row, among clippings of its min-max range.

    Symmetric quantizers shrink both ends together; asymmetric ones each end by itself (coordinate descent from the
    best joint shrinking). The search is over shares of the min-max range, first on a geometric grid, then
    finely around its best point; min-max itself is always among the points, so the result is never worse.

    Args:
        rows: ``[slices, values]``, float32 or float64, finite.
        codes: The integer codes.
        weights: How often each value counts, same shape, not negative; once each by default.

    Returns:
        ``(range_min, range_max)``, each ``[slices]``.
    """
    per_chunk = max(1, _CHUNK_VALUES // rows.shape[1])
    chunks = [
        _Search(rows[i : i + per_chunk], codes, None if weights is None else weights[i : i + per_chunk]).run()
        for i in range(0, rows.shape[0], per_chunk)
    ]
    return torch.cat([low for low, _ in chunks]), torch.cat([high for _, high in chunks])


class _Search:
    """Shares of the min-max range of some rows, with the least error found so far."""

    def __init__(self, rows: Tensor, codes: CodeRange, weights: Tensor | None) -> None:
        low, high = torch.aminmax(rows, dim=1)
        # Asymmetric ranges contain 0, and shrink towards it.
        self.ends = (low, high) if codes.symmetric else widen_to_zero(low, high)
        # In units of its largest magnitude a row's squares neither overflow nor vanish.
        unit = torch.maximum(low.abs(), high.abs())
        unit = torch.where(unit > 0, unit, torch.ones_like(unit))
        self.rows, self.codes, self.weights = rows / unit[:, None], codes, weights
        self.low, self.high = self.ends[0] / unit, self.ends[1] / unit
        self.low_share = torch.ones_like(low)
        self.high_share = torch.ones_like(low)
        self.error = torch.full_like(low, torch.inf)

    def run(self) -> tuple[Tensor, Tensor]:
        for share in _COARSE:
            both = torch.full_like(self.error, share)
            self.consider(both, both)
        if not self.codes.symmetric:
            for factors in (_ONE_END, _ONE_END, _FINE, _FINE):
                self.sweep(factors, low=False)
                self.sweep(factors, high=False)
        self.sweep(_FINE)
        self.sweep(_FINEST)
        return self.ends[0] * self.low_share, self.ends[1] * self.high_share

    def sweep(self, factors: tuple[float, ...], *, low: bool = True, high: bool = True) -> None:
        """Try the best shares of one or both ends times each factor."""
        low_start, high_start = self.low_share, self.high_share
        for factor in factors:
            self.consider(
                (low_start * factor).clamp(max=1) if low else low_start,
                (high_start * factor).clamp(max=1) if high else high_start,
            )

    def consider(self, low_share: Tensor, high_share: Tensor) -> None:
        error = self.squared_error(self.low * low_share, self.high * high_share)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.low_share = torch.where(better, low_share, self.low_share)
        self.high_share = torch.where(better, high_share, self.high_share)

    def squared_error(self, low: Tensor, high: Tensor) -> Tensor:
        scale, zero_point = scale_and_zero_point(low, high, self.codes)
        result = quantize_dequantize(self.rows, scale[:, None], zero_point[:, None], self.codes)
        difference = result.sub_(self.rows)
        if self.weights is None:
            return difference.square_().sum(1)
        return difference.square_().mul_(self.weights).sum(1)
