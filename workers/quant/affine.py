"""The affine map between real values and integer codes (MATH.md section 1).

``q = clamp(round(r / S) + Z, quant_min, quant_max)`` and ``r~ = S (q - Z)``, the convention of ONNX and PyTorch,
rounding half to even. Everything here works element by element on tensors that broadcast against each other, on
whatever device they lie on.

torch's fused fake-quantize operators are the cross-check in the tests, not the implementation: they multiply by
``1 / S`` (another code at ties and at 16 bits), let gradients through half a step outside the range, send a value
beyond 2^63 steps to the *wrong* end of the range, and take 6 to 10 times longer on a CPU (torch 2.13).
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from workers.contracts import MAX_BITS, MIN_BITS, Candidate
from workers.errors import ModelRefused, RequestRefused


@dataclass(frozen=True, kw_only=True)
class CodeRange:
    """The integer codes of a quantizer.

    A symmetric quantizer uses the narrow range ``[-(2^(b-1)-1), 2^(b-1)-1]`` (so 2 bits have *three* levels), or,
    with ``full_range``, all of ``[-2^(b-1), 2^(b-1)-1]``; an asymmetric one uses ``[0, 2^b - 1]``.

    Args:
        quant_min: Smallest code.
        quant_max: Largest code.
        symmetric: The zero point is fixed at 0.
    """

    quant_min: int
    quant_max: int
    symmetric: bool

    @classmethod
    def of(cls, bits: int, *, symmetric: bool, full_range: bool = False) -> Self:
        """The codes of a bit-width.

        Raises:
            RequestRefused: ``bits`` is outside 2..16, or a full range is asked of an asymmetric quantizer.
        """
        if not MIN_BITS <= bits <= MAX_BITS:
            raise RequestRefused(
                f"bit-width {bits} is not offered",
                "bits",
                bits,
                f"whole numbers from {MIN_BITS} to {MAX_BITS}",
            )
        if full_range and not symmetric:
            raise RequestRefused(
                "the full range is an option of symmetric quantizers only", "full_range", full_range, False
            )
        if not symmetric:
            return cls(quant_min=0, quant_max=2**bits - 1, symmetric=False)
        top = 2 ** (bits - 1) - 1
        return cls(quant_min=-top - 1 if full_range else -top, quant_max=top, symmetric=True)

    @classmethod
    def of_candidate(cls, candidate: Candidate) -> Self:
        """The codes of a candidate."""
        scheme = candidate.scheme
        return cls.of(candidate.bits, symmetric=scheme.symmetric, full_range=scheme.full_range)

    @property
    def levels(self) -> int:
        """Number of codes."""
        return self.quant_max - self.quant_min + 1

    @property
    def dtype(self) -> torch.dtype:
        """Smallest integer type that holds the codes: signed for symmetric, unsigned for asymmetric quantizers."""
        wide = self.levels > 2**8
        if self.symmetric:
            return torch.int16 if wide else torch.int8
        return torch.uint16 if wide else torch.uint8


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which weights of ``dtype`` are quantized: float32, or float64 for float64.

    Raises:
        RequestRefused: ``dtype`` is not a real floating-point type.
    """
    if not dtype.is_floating_point:
        raise RequestRefused(
            f"tensors of type {dtype} cannot be quantized", "dtype", str(dtype), "a floating-point type"
        )
    return torch.float64 if dtype == torch.float64 else torch.float32


def require_finite(values: Tensor, name: str) -> None:
    """Refuse NaN and infinities.

    Args:
        values: Any shape, floating point.
        name: The layer, for the message.

    Raises:
        ModelRefused: Some value is not finite; names the layer and counts the values.
    """
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    nans = int(torch.isnan(values).sum())
    infinities = values.numel() - int(finite.sum()) - nans
    raise ModelRefused(
        f"layer {name!r} holds {nans} NaN and {infinities} infinite of {values.numel()} values",
        name,
        {"nan": nans, "infinite": infinities},
        "finite values",
        {"rule": "finite-values"},
    )


def widen_to_zero(range_min: Tensor, range_max: Tensor) -> tuple[Tensor, Tensor]:
    """The range widened to contain 0, so that zero (padding, ReLU) has an exact code. Any equal shapes."""
    return range_min.clamp(max=0), range_max.clamp(min=0)


def scale_and_zero_point(
    range_min: Tensor, range_max: Tensor, codes: CodeRange, *, largest: float | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that represent a range.

    Symmetric: ``S = max(|r_min|, |r_max|) / (2^(b-1) - 1)``, ``Z = 0``; with the full range the smallest ``S`` whose
    codes reach both ends, ``max(-r_min / 2^(b-1), r_max / (2^(b-1) - 1))``. Asymmetric: the range is widened to contain
    0, ``S = (r_max - r_min) / (2^b - 1)``, ``Z = clamp(round(-r_min / S))``. A range that is only 0 (or whose quotient
    vanishes in floating point) gets ``S = 1``, and zeros stay exact; ``S`` is never below the smallest normal number, and
    never so large that a level overflows.

    Args:
        range_min: Lower ends, any shape, float32 or float64, finite.
        range_max: Upper ends, same shape, not below ``range_min``.
        codes: The integer codes.
        largest: Largest finite value of the type the result is cast to; that of ``range_min`` by default.

    Returns:
        Scale (same shape and type, positive and finite) and zero point (int32).
    """
    if codes.symmetric:
        scale = _symmetric_scale(range_min, range_max, codes)
        zero_point = torch.zeros_like(range_min, dtype=torch.int32)
    else:
        low, high = widen_to_zero(range_min, range_max)
        steps = codes.quant_max - codes.quant_min
        width = high - low
        # The width of a finite range may overflow; its quotient does not.
        scale = torch.where(torch.isfinite(width), width / steps, high / steps - low / steps)
        scale = _positive(scale)
        zero_point = (
            (codes.quant_min - low / scale).round_().clamp_(codes.quant_min, codes.quant_max).to(torch.int32)
        )
    largest = torch.finfo(range_min.dtype).max if largest is None else largest
    farthest = torch.maximum((codes.quant_min - zero_point).abs(), (codes.quant_max - zero_point).abs())
    bound = largest_level(largest, scale.dtype) / farthest.to(scale.dtype)
    return torch.minimum(_positive(scale), bound), zero_point


def largest_level(largest: float, dtype: torch.dtype) -> float:
    """How far from 0 a level may be for its product with a scale of some type not to overflow."""
    return largest * (1 - 4 * torch.finfo(dtype).eps)


def _symmetric_scale(range_min: Tensor, range_max: Tensor, codes: CodeRange) -> Tensor:
    if -codes.quant_min == codes.quant_max:
        return torch.maximum(range_min.abs(), range_max.abs()) / codes.quant_max
    return torch.maximum(range_min / codes.quant_min, range_max / codes.quant_max)


def _positive(scale: Tensor) -> Tensor:
    floored = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    return torch.where(scale > 0, floored, torch.ones_like(scale))


def quantize(values: Tensor, scale: Tensor, zero_point: Tensor, codes: CodeRange) -> Tensor:
    """Codes of real values: ``clamp(round(r / S) + Z, quant_min, quant_max)``, half to even.

    Args:
        values: Real values, any shape, float32 or float64, finite.
        scale: Broadcasts against ``values``, same type, positive.
        zero_point: Broadcasts against ``values``, integer.
        codes: The integer codes.

    Returns:
        Codes in ``codes.dtype``, of the shape of ``values``.
    """
    return _float_codes(values, scale, zero_point.to(values.dtype), codes).to(codes.dtype)


def dequantize(quantized: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Real values of codes: ``S (q - Z)``.

    Args:
        quantized: Codes, any shape, any integer type.
        scale: Broadcasts against ``quantized``, float32 or float64.
        zero_point: Broadcasts against ``quantized``, integer.

    Returns:
        Values of the type of ``scale``.
    """
    return quantized.to(scale.dtype).sub_(zero_point.to(scale.dtype)).mul_(scale)


def quantize_dequantize(values: Tensor, scale: Tensor, zero_point: Tensor, codes: CodeRange) -> Tensor:
    """``dequantize(quantize(values))`` bit for bit, without the detour over integers.

    Args:
        values: Real values, any shape, float32 or float64, finite.
        scale: Broadcasts against ``values``, same type, positive.
        zero_point: Broadcasts against ``values``, integer.
        codes: The integer codes.

    Returns:
        New storage, shape and type of ``values``.
    """
    offset = zero_point.to(values.dtype)
    return _float_codes(values, scale, offset, codes).sub_(offset).mul_(scale)


def _float_codes(values: Tensor, scale: Tensor, offset: Tensor, codes: CodeRange) -> Tensor:
    return values.div(scale).round_().add_(offset).clamp_(codes.quant_min, codes.quant_max)
