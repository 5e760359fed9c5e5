"""Gradients through quantization (MATH.md section 3)."""

from typing import Any

import torch
from torch import Tensor, nn

from workers.errors import RequestRefused
from workers.quant.affine import CodeRange, quantize_dequantize
from workers.quant.fake_quantize import QuantizationParameters, apply


def fake_quantize_straight_through(weight: Tensor, parameters: QuantizationParameters) -> Tensor:
    """Quantize and dequantize, with ``d r~/d r = 1`` inside ``[r_min, r_max]`` and 0 outside.

    The article gives ``d q/d r``, which is smaller by the factor ``1/S``; training needs the derivative of ``r~``.
    (torch's fused operators let gradients pass half a step further out.)

    Args:
        weight: Of the shape the parameters were made for; finite.
        parameters: From `quantization_parameters`; constants here.

    Returns:
        Same shape and type; the values of `apply`.

    Source: Y. Bengio et al., "Estimating or propagating gradients through stochastic neurons", 2013.
    """
    result: Tensor = _StraightThrough.apply(weight, parameters)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, parameters: QuantizationParameters) -> Tensor:
        layout = parameters.layout
        parts = zip(
            layout.blocks(weight.to(parameters.scale.dtype)),
            layout.split(parameters.range_min),
            layout.split(parameters.range_max),
            strict=True,
        )
        inside = [(rows >= low[:, None]) & (rows <= high[:, None]) for rows, low, high in parts]
        ctx.save_for_backward(layout.restore(inside))
        return apply(weight, parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None


class LearnedQuantizer(nn.Module):
    """Fake quantization whose scales, and on request zero points, are learned (LSQ).

    With ``v = r / S`` and the represented range ``quant_min - Z <= v <= quant_max - Z``:

    * ``d r~/d r`` is 1 inside, 0 outside;
    * ``d r~/d S`` is ``round(v) - v`` inside, ``quant_min - Z`` below, ``quant_max - Z`` above;
    * ``d r~/d Z`` is 0 inside, ``-S`` outside (the rounding of ``Z`` itself is passed straight through).

    With ``scale_gradients`` the gradients of ``S`` and ``Z`` are multiplied by ``1 / sqrt(N quant_max)``, ``N`` the
    weights of the slice, which balances their step sizes with the weights'.

    Args:
        parameters: Where learning starts.
        learn_zero_point: Asymmetric quantizers only.
        scale_gradients: Multiply the gradients of scales and zero points as above.

    Raises:
        RequestRefused: The zero point of a symmetric quantizer was to be learned.

    Source: S. Esser et al., "Learned step size quantization", ICLR 2020, equations 1 to 3 and section 2.2; zero points
    as in Y. Bhalgat et al., "LSQ+", 2020. Learning starts from a searched range, not from ``2 E|r| / sqrt(quant_max)``.
    """

    def __init__(
        self,
        parameters: QuantizationParameters,
        *,
        learn_zero_point: bool = False,
        scale_gradients: bool = True,
    ) -> None:
        if learn_zero_point and parameters.codes.symmetric:
            raise RequestRefused(
                f"the zero point of {parameters.name!r} is 0: its quantizer is symmetric",
                "learn_zero_point",
                learn_zero_point,
                False,
            )
        super().__init__()
        self.start = parameters
        self.scale_gradients = scale_gradients
        self.scale = nn.Parameter(parameters.scale.clone())
        zero_point = parameters.zero_point.to(parameters.scale.dtype)
        self.zero_point = nn.Parameter(zero_point, requires_grad=learn_zero_point)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize and dequantize.

        Args:
            weight: Of the shape the parameters were made for; finite.

        Returns:
            Same shape and type.
        """
        layout, codes = self.start.layout, self.start.codes
        parts = zip(
            layout.blocks(weight.to(self.scale.dtype)),
            layout.split(_positive(self.scale)),
            layout.split(self.zero_point),
            strict=True,
        )
        blocks = [self._step(block, scale[:, None], zero[:, None], codes) for block, scale, zero in parts]
        return layout.restore(blocks).to(weight.dtype)

    def _step(self, rows: Tensor, scale: Tensor, zero_point: Tensor, codes: CodeRange) -> Tensor:
        factor = (rows.shape[1] * codes.quant_max) ** -0.5 if self.scale_gradients else 1.0
        result: Tensor = _LearnedStep.apply(rows, scale, zero_point, (codes, factor))  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def quantization_parameters(self) -> QuantizationParameters:
        """What was learned, as constants: scales made positive, zero points rounded into the code range."""
        codes = self.start.codes
        scale = _positive(self.scale).clone()
        zero_point = _rounded(self.zero_point, codes).to(torch.int32)
        return QuantizationParameters(
            layout=self.start.layout,
            codes=codes,
            scale=scale,
            zero_point=zero_point,
            range_min=scale * (codes.quant_min - zero_point),
            range_max=scale * (codes.quant_max - zero_point),
            name=self.start.name,
        )


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, scale: Tensor, zero_point: Tensor, settings: tuple[CodeRange, float]
    ) -> Tensor:
        ctx.codes, ctx.factor = codes, _ = settings
        zero_point = _rounded(zero_point, codes)
        ctx.save_for_backward(rows, scale, zero_point)
        return quantize_dequantize(rows, scale, zero_point, codes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        rows, scale, zero_point = ctx.saved_tensors
        steps = rows / scale
        lowest, highest = ctx.codes.quant_min - zero_point, ctx.codes.quant_max - zero_point
        inside = (steps >= lowest) & (steps <= highest)
        by_scale = torch.where(inside, steps.round() - steps, torch.where(steps < lowest, lowest, highest))
        by_zero_point = torch.where(inside, torch.zeros_like(scale), -scale)
        return (
            gradient * inside,
            (gradient * by_scale).sum(1, keepdim=True) * ctx.factor,
            (gradient * by_zero_point).sum(1, keepdim=True) * ctx.factor,
            None,
        )


def _rounded(zero_point: Tensor, codes: CodeRange) -> Tensor:
    return zero_point.round().clamp(codes.quant_min, codes.quant_max)


def _positive(scale: Tensor) -> Tensor:
    """A step of the optimiser may carry a scale across 0; the magnitude is what counts."""
    return scale.abs().clamp(min=torch.finfo(scale.dtype).tiny)
