"""Fake quantization of activations: one scale for the tensor, fixed before the model runs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.quant.affine import CodeRange, compute_dtype, quantize_dequantize, scale_and_zero_point


@dataclass(frozen=True, kw_only=True)
class ActivationQuantizer:
    """A static per-tensor quantizer.

    Args:
        codes: The integer codes.
        range_min: Lower end of the represented range; asymmetric ranges are widened to contain 0.
        range_max: Upper end.
    """

    codes: CodeRange
    range_min: float
    range_max: float

    def parameters(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale and zero point for values of a type: scalars on the CPU; float32 (float64 for float64) and int32."""
        low, high = (
            torch.tensor(end, dtype=compute_dtype(dtype), device="cpu")
            for end in (self.range_min, self.range_max)
        )
        return scale_and_zero_point(low, high, self.codes, largest=torch.finfo(dtype).max)

    @torch.no_grad()
    def __call__(self, values: Tensor) -> Tensor:
        """Quantize and dequantize.

        Args:
            values: Any shape, floating point; half precision is quantized in float32. Values outside the range, infinities
                among them, saturate; NaN stays.

        Returns:
            Same shape and type, new storage.
        """
        scale, zero_point = self.parameters(values.dtype)
        return quantize_dequantize(values.to(scale.dtype), scale, zero_point, self.codes).to(values.dtype)

    @torch.no_grad()
    def inside(self, values: Tensor) -> Tensor:
        """Where values lie in the represented range: the derivative of quantizing, passed straight through.

        Args:
            values: Any shape, floating point.

        Returns:
            Same shape, bool; both ends count.

        Source: Y. Bengio et al., "Estimating or propagating gradients through stochastic neurons", 2013.
        """
        scale, zero_point = self.parameters(values.dtype)
        low, high = (
            float(scale * (code - zero_point)) for code in (self.codes.quant_min, self.codes.quant_max)
        )
        return (values >= low) & (values <= high)
