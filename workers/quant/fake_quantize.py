"""Quantize and dequantize a weight by a candidate: parameters once, then applied as often as wanted."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.contracts import Candidate
from workers.quant.affine import (
    CodeRange,
    compute_dtype,
    dequantize,
    quantize,
    quantize_dequantize,
    require_finite,
    scale_and_zero_point,
    widen_to_zero,
)
from workers.quant.ranges import choose_range
from workers.quant.slices import SliceLayout


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizationParameters:
    """Scales and zero points of a tensor, one of each per slice.

    Args:
        layout: How the tensor is cut into slices.
        codes: The integer codes.
        scale: ``[slices]``, positive; float32 (float64 for float64 tensors).
        zero_point: ``[slices]``, int32.
        range_min: ``[slices]``: lower end of the represented range, the type of ``scale``.
        range_max: ``[slices]``: upper end.
        name: The layer.
    """

    layout: SliceLayout
    codes: CodeRange
    scale: Tensor
    zero_point: Tensor
    range_min: Tensor
    range_max: Tensor
    name: str


@torch.no_grad()
def quantization_parameters(
    weight: Tensor, candidate: Candidate, *, output_channel_axis: int, group_axis: int, name: str
) -> QuantizationParameters:
    """Choose the range of each slice, and the scale and zero point that represent it.

    Args:
        weight: Any shape, floating point, finite; half precision is searched and quantized in float32.
        candidate: Bit-width and scheme.
        output_channel_axis: Axis of the output channels.
        group_axis: Axis along which groups are formed.
        name: The layer, for messages.

    Returns:
        The parameters, on the device of ``weight``.

    Raises:
        ModelRefused: The weight holds NaN or infinities; names the layer.
        RequestRefused: The weight is empty or not floating point, or an axis does not exist.
    """
    layout = SliceLayout.of(
        weight.shape,
        candidate.scheme.granularity,
        output_channel_axis=output_channel_axis,
        group_axis=group_axis,
    )
    codes = CodeRange.of_candidate(candidate)
    values = weight.to(compute_dtype(weight.dtype))
    require_finite(values, name)
    ranges = [choose_range(block, candidate) for block in layout.blocks(values)]
    range_min = layout.join([low for low, _ in ranges])
    range_max = layout.join([high for _, high in ranges])
    scale, zero_point = scale_and_zero_point(
        range_min, range_max, codes, largest=torch.finfo(weight.dtype).max
    )
    range_min, range_max = _represented(range_min, range_max, scale, codes)
    return QuantizationParameters(
        layout=layout,
        codes=codes,
        scale=scale,
        zero_point=zero_point,
        range_min=range_min,
        range_max=range_max,
        name=name,
    )


def _represented(low: Tensor, high: Tensor, scale: Tensor, codes: CodeRange) -> tuple[Tensor, Tensor]:
    """The chosen range, widened to what the codes reach: symmetric ranges to both sides, asymmetric ones to 0."""
    if codes.symmetric:
        return torch.minimum(low, scale * codes.quant_min), torch.maximum(high, scale * codes.quant_max)
    return widen_to_zero(low, high)


@torch.no_grad()
def apply(weight: Tensor, parameters: QuantizationParameters) -> Tensor:
    """Quantize and dequantize a tensor with given parameters.

    Args:
        weight: Of the shape the parameters were made for; finite.
        parameters: From `quantization_parameters`.

    Returns:
        Same shape and type, contiguous, new storage, no gradient; equals `dequantize_codes` of `quantize_codes`.
    """
    values = weight.to(parameters.scale.dtype)
    scales, zero_points = _per_block(parameters)
    blocks = [
        quantize_dequantize(block, scale, zero_point, parameters.codes)
        for block, scale, zero_point in zip(
            parameters.layout.blocks(values), scales, zero_points, strict=True
        )
    ]
    return parameters.layout.restore(blocks).to(weight.dtype)


def fake_quantize(
    weight: Tensor, candidate: Candidate, *, output_channel_axis: int, group_axis: int, name: str
) -> Tensor:
    """Quantize and dequantize a weight: what it becomes under a candidate.

    Args:
        weight: Any shape, floating point, finite.
        candidate: Bit-width and scheme.
        output_channel_axis: Axis of the output channels.
        group_axis: Axis along which groups are formed.
        name: The layer, for messages.

    Returns:
        Same shape and type, contiguous, new storage, no gradient.

    Raises:
        ModelRefused: The weight holds NaN or infinities; names the layer.
        RequestRefused: The weight is empty or not floating point, or an axis does not exist.
    """
    parameters = quantization_parameters(
        weight, candidate, output_channel_axis=output_channel_axis, group_axis=group_axis, name=name
    )
    return apply(weight, parameters)


@torch.no_grad()
def quantize_codes(weight: Tensor, parameters: QuantizationParameters) -> Tensor:
    """The integer codes of a tensor.

    Args:
        weight: Of the shape the parameters were made for; finite.
        parameters: From `quantization_parameters`.

    Returns:
        Codes of the same shape, in ``parameters.codes.dtype``.
    """
    values = weight.to(parameters.scale.dtype)
    scales, zero_points = _per_block(parameters)
    blocks = [
        quantize(block, scale, zero_point, parameters.codes)
        for block, scale, zero_point in zip(
            parameters.layout.blocks(values), scales, zero_points, strict=True
        )
    ]
    return parameters.layout.restore(blocks)


@torch.no_grad()
def dequantize_codes(codes: Tensor, parameters: QuantizationParameters) -> Tensor:
    """The real values of integer codes.

    Args:
        codes: From `quantize_codes`.
        parameters: The same as there.

    Returns:
        Values of the same shape, in the type of ``parameters.scale``.
    """
    scales, zero_points = _per_block(parameters)
    blocks = [
        dequantize(block, scale, zero_point)
        for block, scale, zero_point in zip(parameters.layout.blocks(codes), scales, zero_points, strict=True)
    ]
    return parameters.layout.restore(blocks)


def _per_block(parameters: QuantizationParameters) -> tuple[list[Tensor], list[Tensor]]:
    """Scales and zero points as columns beside the blocks' rows."""
    layout = parameters.layout
    return (
        [part[:, None] for part in layout.split(parameters.scale)],
        [part[:, None] for part in layout.split(parameters.zero_point)],
    )
