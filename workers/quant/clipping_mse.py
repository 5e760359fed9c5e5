"""The clipping range of least error, per slice: mean squared, weighted, or cubed (MATH.md section 2).

The error of a range is not convex in it, so the search goes from coarse to fine in shares of the min-max range:

1. both ends shrink together on a geometric grid. A row is done once its error is three times its best: what is
   clipped only grows from there, and the rounding error of the best point cannot be undercut by as much;
2. asymmetric only: each end by itself, by large factors;
3. small factors either way, halved from step to step, each end by itself where there are two.

An evaluation is a handful of passes over the values, in buffers that are used again: 20 to 30 of them for a symmetric
quantizer, 45 to 55 for an asymmetric one. Where `workers.quant.acceleration` has it compiled, it is one pass in the
processor's registers.

Source: Y. Nahshan et al., "Loss aware post-training quantization", 2019, section 4: ranges of least p-norm of the error,
p between 2 and 4. Ours searches per slice, and both ends.
"""

import torch
from torch import Tensor

from workers.quant import acceleration
from workers.quant.affine import CodeRange, widen_to_zero

# Shares of the min-max range. Beyond the last one even three levels gain nothing on Gaussian, Laplace or outlier-ridden
# weights. 1 comes first: on equal errors nothing is clipped.
_COARSE = tuple(0.82**k for k in range(17))
_HOPELESS = 3.0
_ONE_END = (0.4, 0.65, 1.5, 2.4)
_STEPS = (0.12, 0.06, 0.03, 0.015, 0.008, 0.004)

# Values worked on at once: enough that the calls on one number per row do not count, few enough for the cache (2^16 takes
# 80 ns per weight, 2^18 56, 2^20 52).
_CHUNK_VALUES = 1 << 18


def mse_range(
    rows: Tensor, codes: CodeRange, weights: Tensor | None = None, *, exponent: int = 2
) -> tuple[Tensor, Tensor]:
    """The range that minimises ``sum_j v_j |r_j - r~_j|^p`` of each row, among clippings of its min-max range.

    Symmetric quantizers shrink both ends together; asymmetric ones also each end by itself. Min-max itself is always
    among the points, so the result is never worse.

    Args:
        rows: ``[slices, values]``, float32 or float64, finite.
        codes: The integer codes.
        weights: ``v``: how much each value counts, same shape, not negative and finite; once each by default.
        exponent: ``p``, 2 (mean squared error) or 3 (the L3 norm).

    Returns:
        ``(range_min, range_max)``, each ``[slices]``.
    """
    if weights is not None:
        largest = weights.max()
        weights = weights / torch.where(largest > 0, largest, torch.ones_like(largest))
    if acceleration.suits(rows, weights, exponent):
        return acceleration.search(
            rows,
            codes,
            None if weights is None else weights.to(rows.dtype),
            exponent,
            hopeless=_HOPELESS,
            coarse=_COARSE,
            one_end=_ONE_END,
            steps=_STEPS,
        )
    return mse_range_by_tensors(rows, codes, weights, exponent=exponent)


def mse_range_by_tensors(
    rows: Tensor, codes: CodeRange, weights: Tensor | None = None, *, exponent: int = 2
) -> tuple[Tensor, Tensor]:
    """`mse_range` for any device and type, for weights of 1 at most: what the compiled search is measured by."""
    per_chunk = max(1, _CHUNK_VALUES // rows.shape[1])
    chunks = [
        _Search(
            rows[i : i + per_chunk],
            codes,
            None if weights is None else weights[i : i + per_chunk].to(rows.dtype),
            exponent,
        ).run()
        for i in range(0, rows.shape[0], per_chunk)
    ]
    return torch.cat([low for low, _ in chunks]), torch.cat([high for _, high in chunks])


class _Search:
    """Shares of the min-max range of some rows, with the least error found so far."""

    def __init__(self, rows: Tensor, codes: CodeRange, weights: Tensor | None, exponent: int) -> None:
        low, high = torch.aminmax(rows, dim=1)
        # Asymmetric ranges contain 0, and shrink towards it.
        self.ends = (low, high) if codes.symmetric else widen_to_zero(low, high)
        # In units of its largest magnitude a row's squares neither overflow nor vanish.
        unit = torch.maximum(low.abs(), high.abs())
        unit = torch.where(unit > 0, unit, torch.ones_like(unit))
        self.rows, self.codes, self.weights, self.exponent = rows / unit[:, None], codes, weights, exponent
        self.low, self.high = self.ends[0] / unit, self.ends[1] / unit
        self.low_share = torch.ones_like(low)
        self.high_share = torch.ones_like(low)
        self.error = torch.full_like(low, torch.inf)
        self._buffers = torch.empty_like(self.rows), torch.empty_like(self.rows)

    def run(self) -> tuple[Tensor, Tensor]:
        self.shrink()
        if not self.codes.symmetric:
            for factors in (_ONE_END, _ONE_END):
                self.sweep(factors, low=False)
                self.sweep(factors, high=False)
        for step in _STEPS:
            either_way = (1 - step, 1 + step)
            if self.codes.symmetric:
                self.sweep(either_way)
            else:
                self.sweep(either_way, low=False)
                self.sweep(either_way, high=False)
        return self.ends[0] * self.low_share, self.ends[1] * self.high_share

    def shrink(self) -> None:
        """Shrink both ends together."""
        hopeless = torch.zeros_like(self.error, dtype=torch.bool)
        for share in _COARSE:
            both = torch.full_like(self.error, share)
            error = self.consider(both, both, hopeless)
            hopeless |= error > _HOPELESS * self.error
            if bool(hopeless.all()):
                break

    def sweep(self, factors: tuple[float, ...], *, low: bool = True, high: bool = True) -> None:
        """Try the best shares of one or both ends times each factor."""
        low_start, high_start = self.low_share, self.high_share
        for factor in factors:
            self.consider(
                (low_start * factor).clamp(max=1) if low else low_start,
                (high_start * factor).clamp(max=1) if high else high_start,
            )

    def consider(self, low_share: Tensor, high_share: Tensor, barred: Tensor | None = None) -> Tensor:
        """Keep the shares where their error is less; returns the error."""
        error = self.error_of(self.low * low_share, self.high * high_share)
        better = error < self.error
        if barred is not None:
            better &= ~barred
        self.error = torch.where(better, error, self.error)
        self.low_share = torch.where(better, low_share, self.low_share)
        self.high_share = torch.where(better, high_share, self.high_share)
        return error

    def error_of(self, low: Tensor, high: Tensor) -> Tensor:
        """The error of each row, computed in steps: what is rounded is ``r / S + Z``."""
        codes, (steps, rounded) = self.codes, self._buffers
        if codes.symmetric:
            scale = torch.maximum(low / codes.quant_min, high / codes.quant_max)
            scale = scale.clamp_(min=torch.finfo(scale.dtype).tiny)
            torch.div(self.rows, scale[:, None], out=steps)
        else:
            scale = ((high - low) / codes.quant_max).clamp_(min=torch.finfo(low.dtype).tiny)
            zero_point = (-low / scale).round_().clamp_(0, codes.quant_max)
            torch.div(self.rows, scale[:, None], out=steps).add_(zero_point[:, None])
        torch.round(steps, out=rounded).clamp_(codes.quant_min, codes.quant_max).sub_(steps)
        return self._power_sum(rounded, steps) * scale**self.exponent

    def _power_sum(self, difference: Tensor, scratch: Tensor) -> Tensor:
        if self.weights is None and self.exponent == 2:
            norm: Tensor = torch.linalg.vector_norm(difference, dim=1)
            return norm.square_()
        power = torch.mul(difference, difference, out=scratch)
        if self.exponent == 3:
            power.mul_(difference.abs_())
        return (power if self.weights is None else power.mul_(self.weights)).sum(1)
