"""The search for scales and zero points of least error, by tensors on any device: see `workers.quant.clipping_mse`.

`workers.quant.kernels.ranges` is the same compiled.
"""

import torch
from torch import Tensor

from workers.quant.affine import CodeRange

# Beyond the last share even three levels gain nothing on Gaussian, Laplace or outlier-ridden weights. 1 comes first: on
# equal errors nothing is clipped.
SHARES = (1.0, 0.97, 0.94, 0.91, *(0.88**k for k in range(1, 25)))
HOPELESS = 3.0
# What is moved after that: the scale along its slope; the scale by a share either way (below 0); zero points by a share of
# all steps, one at least; or both, by one step and to narrower scales.
SCALE, BOTH = -1.0, 1.0
MOVES = (0.2, SCALE, BOTH, -0.06, SCALE, -0.03, SCALE, -0.012, SCALE)
FARTHEST, NEAREST, NARROWER = 1.25, 0.003, 0.9

PARTS = 8
"""Values are cut into as many parts. What lies at the same place of each is added in the type of the values, these sums in
float64."""
LANES = 64
_LONG_ROW = 2048


def lanes_of(values: int) -> int:
    """Over how many lanes of the processor's vectors a row is spread: long ones over all, short ones lie side by side."""
    return LANES if values >= _LONG_ROW else 1


def in_parts(rows: Tensor) -> Tensor:
    """``[slices, PARTS, places]``: rows with zeros behind, which have no error."""
    missing = -rows.shape[1] % (PARTS * lanes_of(rows.shape[1]))
    return torch.nn.functional.pad(rows, (0, missing)).reshape(len(rows), PARTS, -1)


def search_by_tensors(  # noqa: PLR0913, PLR0917 - what the search depends on
    values: Tensor,
    weights: Tensor | None,
    codes: CodeRange,
    exponent: int,
    below: Tensor,
    above: Tensor,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of least error of each row.

    Args:
        values: `in_parts`, of 1 at most.
        weights: How much each value counts, alike.
        codes: The integer codes.
        exponent: 2 or 3.
        below: How far the range reaches below 0, float64 ``[slices]``, not negative.
        above: How far above, alike; not both 0. Symmetric: the same.
    """
    search = _Search(values, weights, codes, exponent, below)
    search.clip(below, above)
    for move in MOVES:
        if move == SCALE:
            search.move_scale()
        elif move < 0:
            search.move_aside(0, 1 - move, 1 + move)
        elif move == BOTH and not codes.symmetric:
            search.move_aside(1, NARROWER, NARROWER)
        elif not codes.symmetric:
            search.move_aside(max(round((codes.quant_max - codes.quant_min) * move), 1), 1.0, 1.0)
    return search.scale, search.zero_point


class _Search:
    """The best scale and zero point of each row so far, with their error, its slope, and how the slope bends."""

    def __init__(
        self,
        values: Tensor,
        weights: Tensor | None,
        codes: CodeRange,
        exponent: int,
        like: Tensor,
    ) -> None:
        self._values, self._weights, self._exponent = values, weights, exponent
        self._steps, self._symmetric = codes.quant_max - codes.quant_min, codes.symmetric
        self.scale, self.zero_point = torch.ones_like(like), torch.full_like(like, -codes.quant_min)
        self._error = torch.full_like(like, torch.inf)
        self._slope, self._bend = torch.zeros_like(like), torch.zeros_like(like)

    def clip(self, below: Tensor, above: Tensor) -> None:
        """Clip the ranges at shares of their larger end."""
        last_scale, last_slope = torch.zeros_like(below), torch.zeros_like(below)
        free = torch.ones_like(below, dtype=torch.bool)
        was_better = torch.zeros_like(free)
        for share in SHARES:
            bound = share * torch.maximum(below, above)
            low = torch.minimum(below, bound)
            scale = (low + torch.minimum(above, bound)) / self._steps
            zero_point = self.zero_point if self._symmetric else (low / scale).round_().clamp_(0, self._steps)
            error, slope = self._evaluate(scale, zero_point)
            better = free & (error < self._error)
            bend = (slope - last_slope) / (scale - last_scale)
            self._bend = torch.where(free & (better | was_better), bend, self._bend)
            self._keep(better, error, slope, scale=scale, zero_point=zero_point)
            free = free & (error <= HOPELESS * self._error) & (self._error > 0)
            if not bool(free.any()):
                break
            was_better, last_scale, last_slope = better, scale, slope

    def move_scale(self) -> None:
        """Try the scale where the slope would be 0, within bounds."""
        scale, slope = self.scale, self._slope
        down = slope > 0
        blind = torch.where(down, 0.1 * scale, -0.1 * scale)
        move = torch.where(self._bend > 0, slope / self._bend, blind)
        following = torch.minimum(torch.maximum(scale - move, scale / FARTHEST), scale * FARTHEST)
        least = torch.where(down, scale * (1 - NEAREST), scale * (1 + NEAREST))
        following = torch.where((following - scale).abs() < NEAREST * scale, least, following)
        error, next_slope = self._evaluate(following, self.zero_point)
        distance = (following - scale).abs()
        secant = (next_slope - slope) / (following - scale)
        bend = torch.where(secant > 0, secant, 2 * self._bend)
        better = error < self._error
        # Half of the way at most from the better point, where the next step would go as far again.
        far = ~better & (slope.abs() > 0.7 * bend * distance)
        self._bend = torch.where(far, slope.abs() / (0.5 * distance), bend)
        self._keep(better, error, next_slope, scale=following)

    def move_aside(self, shift: int, *factors: float) -> None:
        """Try zero points or scales so far away to either side."""
        start_scale, start_zero = self.scale, self.zero_point
        for side, factor in zip((1, -1), factors, strict=True):
            scale = start_scale * factor
            zero_point = (start_zero + side * shift).clamp(0, self._steps)
            error, slope = self._evaluate(scale, zero_point)
            self._keep(error < self._error, error, slope, scale=scale, zero_point=zero_point)

    def _keep(
        self,
        better: Tensor,
        error: Tensor,
        slope: Tensor,
        *,
        scale: Tensor | None = None,
        zero_point: Tensor | None = None,
    ) -> None:
        self._error = torch.where(better, error, self._error)
        self._slope = torch.where(better, slope, self._slope)
        if scale is not None:
            self.scale = torch.where(better, scale, self.scale)
        if zero_point is not None:
            self.zero_point = torch.where(better, zero_point, self.zero_point)

    def _evaluate(self, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        """Error and slope (over the exponent) of each row, float64."""
        dtype = self._values.dtype
        inverse = (1 / scale).to(dtype)[:, None, None]
        lowest = -zero_point
        highest = (self._steps + lowest).to(dtype)[:, None, None]
        steps = self._values * inverse
        level = steps.round()
        level = torch.minimum(
            torch.maximum(level, lowest.to(dtype)[:, None, None], out=level), highest, out=level
        )
        difference = torch.sub(level, steps, out=steps)
        term = difference
        if self._exponent == 3:
            term = difference * difference.abs()
        if self._weights is not None:
            term = term * self._weights
        slope = _added(level.mul_(term))
        error = _added(term * difference)
        more = scale if self._exponent == 3 else 1.0
        return error * (scale * scale * more), slope * (scale * more)


def _added(terms: Tensor) -> Tensor:
    """Sums of ``[slices, PARTS, places]``: over the parts in their order, then in float64."""
    total = terms[:, 0].clone()
    for part in range(1, PARTS):
        total += terms[:, part]
    return total.double().sum(1)
