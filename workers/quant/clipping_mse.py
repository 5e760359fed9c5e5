"""The range of least error, per slice: mean squared, weighted, or cubed (MATH.md section 2).

A range is a scale ``S`` and a zero point ``Z``: levels ``S k`` for whole ``k`` from ``-Z`` to ``N - Z``. Its error
``E = sum_j v_j |S k_j - r_j|^p`` has the slope ``dE/dS = p sum_j v_j |S k_j - r_j|^(p-1) sign(S k_j - r_j) k_j``: that
codes change with ``S`` adds nothing, since each is the best for its value. One pass gives both. The error is not convex,
and jagged where values are few, so the search goes from coarse to fine:

1. the min-max range is clipped at shares of its larger end. A row is done once its error is three times its best: what
   is clipped only grows from there, and alone is more than the best error by then;
2. asymmetric only: the zero point moves either way, the scale kept or a little narrower;
3. in between, the scale moves to where a secant puts the zero of the slope, within bounds, and is tried some shares
   aside: local minima lie close together where there are many levels and few values.

Where `workers.quant.acceleration` has it compiled, an evaluation is one pass in the processor's registers. Its result is
that by tensors, bit for bit but for ties of float64: errors of values are made by the same operations, and are added
in float32 in the same order, these sums in float64 (`workers.quant.least_error.PARTS`).

Source: Y. Nahshan et al., "Loss aware post-training quantization", 2019, section 4: ranges of least p-norm of the error,
p between 2 and 4. Ours searches per slice, and zero points.
"""

import torch
from torch import Tensor

from workers.quant import acceleration
from workers.quant.affine import CodeRange, widen_to_zero
from workers.quant.least_error import in_parts, lanes_of, search_by_tensors

# Values worked on at once by tensors: enough that the calls on one number per row do not count, few enough for the cache.
_CHUNK_VALUES = 1 << 18
# Rows of more values are not kept beside the weight in the order in which the search wants them.
_KEPT_VALUES = 1 << 24


def mse_range(
    rows: Tensor, codes: CodeRange, weights: Tensor | None = None, *, exponent: int = 2
) -> tuple[Tensor, Tensor]:
    """The range that minimises ``sum_j v_j |r_j - r~_j|^p`` of each row.

    Symmetric quantizers have the zero point 0; asymmetric ones any. Min-max itself is always among the points, so the
    result is never worse.

    Args:
        rows: ``[slices, values]``, float32 or float64, finite.
        codes: The integer codes.
        weights: ``v``: how much each value counts, same shape, not negative and finite; once each by default.
        exponent: ``p``, 2 (mean squared error) or 3 (the L3 norm).

    Returns:
        ``(range_min, range_max)``, each ``[slices]``.
    """
    return LeastError(rows, weights).range(codes, exponent)


class LeastError:
    """Some rows, ready to be searched for the range of least error of one quantizer after another.

    Args:
        rows: ``[slices, values]``, float32 or float64, finite.
        weights: How much each value counts, as in `mse_range`.
    """

    def __init__(self, rows: Tensor, weights: Tensor | None = None) -> None:
        self._rows = rows
        if weights is not None:
            largest = weights.max()
            weights = weights / torch.where(largest > 0, largest, torch.ones_like(largest))
            weights = weights.to(rows.dtype)
        self._weights = weights
        self._low, self._high = torch.aminmax(rows, dim=1)
        self._largest = torch.maximum(self._low.abs(), self._high.abs())
        self._packed: tuple[acceleration.Packed, ...] | None = None

    def range(self, codes: CodeRange, exponent: int = 2) -> tuple[Tensor, Tensor]:
        """See `mse_range`."""
        compiled = acceleration.suits(self._rows, self._weights, exponent)
        return self._ranges(codes, *(self._compiled if compiled else self._by_tensors)(codes, exponent))

    def range_by_tensors(self, codes: CodeRange, exponent: int = 2) -> tuple[Tensor, Tensor]:
        """`range` for any device and type: what the compiled search is measured by."""
        return self._ranges(codes, *self._by_tensors(codes, exponent))

    def _ranges(self, codes: CodeRange, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of the levels, in the unit of the rows."""
        steps = codes.quant_max - codes.quant_min
        unit, most = self._largest.double(), torch.finfo(self._rows.dtype).max
        ends = (-zero_point * scale * unit, (steps - zero_point) * scale * unit)
        low, high = (end.clamp(-most, most).to(self._rows.dtype) for end in ends)
        return low, high

    def _reach(self, codes: CodeRange) -> tuple[Tensor, Tensor]:
        """How far the min-max range reaches below and above 0, in units of a row's largest magnitude, float64."""
        unit = torch.where(self._largest > 0, self._largest, torch.ones_like(self._largest))
        low, high = widen_to_zero((self._low / unit).double(), (self._high / unit).double())
        if codes.symmetric:
            scale = torch.maximum(low / codes.quant_min, high / codes.quant_max)
            half = scale * ((codes.quant_max - codes.quant_min) / 2)
            half = torch.where(half > 0, half, 1.0)
            return half, half
        return torch.where(self._largest > 0, -low, 1.0), high

    def _scaled(self, rows: slice) -> Tensor:
        """Some rows in units of their largest magnitude: their squares neither overflow nor vanish."""
        unit = self._largest[rows]
        return self._rows[rows] / torch.where(unit > 0, unit, torch.ones_like(unit))[:, None]

    def _chunks(self, values: int) -> list[slice]:
        step = max(1, values // self._rows.shape[1])
        return [slice(i, i + step) for i in range(0, len(self._rows), step)]

    def _compiled(self, codes: CodeRange, exponent: int) -> tuple[Tensor, Tensor]:
        below, above = self._reach(codes)
        packed = self._packed
        if packed is None and self._rows.numel() <= _KEPT_VALUES:
            packed = self._packed = (self._pack(slice(None)),)
        chunks = [slice(None)] if packed is not None else self._chunks(_KEPT_VALUES)
        found = [
            acceleration.search(
                self._pack(rows) if packed is None else packed[0],
                below[rows],
                above[rows],
                codes,
                exponent,
            )
            for rows in chunks
        ]
        return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])

    def _pack(self, rows: slice) -> acceleration.Packed:
        weights = None if self._weights is None else self._weights[rows]
        return acceleration.Packed.of(self._scaled(rows), weights, width=lanes_of(self._rows.shape[1]))

    def _by_tensors(self, codes: CodeRange, exponent: int) -> tuple[Tensor, Tensor]:
        below, above = self._reach(codes)
        found = []
        for rows in self._chunks(_CHUNK_VALUES):
            values = in_parts(self._scaled(rows))
            weights = None if self._weights is None else in_parts(self._weights[rows])
            found.append(search_by_tensors(values, weights, codes, exponent, below[rows], above[rows]))
        return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])
