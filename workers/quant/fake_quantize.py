"""Quantize and dequantize a weight by given scales and zero points."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.quant import acceleration
from workers.quant.affine import (
    CodeRange,
    dequantize,
    largest_level,
    quantize,
    quantize_dequantize,
    scale_and_zero_point,
    widen_to_zero,
)
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
        offset: What is added to the dequantized tensor, of its shape but for sizes of 1: one value per output channel
            where means are corrected, ``None`` where they are not.
    """

    layout: SliceLayout
    codes: CodeRange
    scale: Tensor
    zero_point: Tensor
    range_min: Tensor
    range_max: Tensor
    name: str
    offset: Tensor | None = None


@torch.no_grad()
def represent(
    ranges: tuple[Tensor, Tensor], layout: SliceLayout, codes: CodeRange, *, dtype: torch.dtype, name: str
) -> QuantizationParameters:
    """Scales and zero points that represent given ranges.

    Args:
        ranges: Lower and upper ends, each ``[slices]``, float32 or float64.
        layout: How the tensor is cut.
        codes: The integer codes.
        dtype: Of the tensor: its largest number bounds the scales.
        name: The layer.
    """
    largest = torch.finfo(dtype).max
    if acceleration.suits_values(ranges[0]):
        found = acceleration.represent(*ranges, codes, largest_level(largest, ranges[0].dtype))
        scale, zero_point, range_min, range_max = found
    else:
        scale, zero_point = scale_and_zero_point(*ranges, codes, largest=largest)
        range_min, range_max = _represented(*ranges, scale, codes)
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
        parameters: Of the tensor.

    Returns:
        Same shape and type, contiguous, new storage, no gradient; equals `dequantize_codes` of `quantize_codes`.
    """
    values = weight.detach().to(parameters.scale.dtype)
    if acceleration.suits_values(values):
        return _apply_compiled(values, parameters).to(weight.dtype)
    return apply_by_tensors(values, parameters).to(weight.dtype)


def apply_by_tensors(values: Tensor, parameters: QuantizationParameters) -> Tensor:
    """`apply` for values of the type of the parameters, on any device."""
    scales, zero_points = _per_block(parameters)
    blocks = [
        quantize_dequantize(block, scale, zero_point, parameters.codes)
        for block, scale, zero_point in zip(
            parameters.layout.blocks(values), scales, zero_points, strict=True
        )
    ]
    return _offset(parameters.layout.restore(blocks), parameters)


def _apply_compiled(values: Tensor, parameters: QuantizationParameters) -> Tensor:
    layout, offset = parameters.layout, parameters.offset
    # One value for each run (it is the channel) is added on the way, others by tensors.
    by_run = None if offset is None or offset.numel() != layout.runs else offset.reshape(-1)
    rows = acceleration.quantize_dequantize_rows(
        layout.rows(values),
        parameters.scale.reshape(layout.runs, layout.groups),
        parameters.zero_point.reshape(layout.runs, layout.groups),
        offset=by_run,
        slice_size=layout.group_size,
        codes=parameters.codes,
    )
    result = layout.restore([rows])
    return result if by_run is not None else _offset(result, parameters)


@torch.no_grad()
def quantize_codes(weight: Tensor, parameters: QuantizationParameters) -> Tensor:
    """The integer codes of a tensor.

    Args:
        weight: Of the shape the parameters were made for; finite.
        parameters: Of the tensor.

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
    return _offset(parameters.layout.restore(blocks), parameters)


def _offset(values: Tensor, parameters: QuantizationParameters) -> Tensor:
    return values if parameters.offset is None else values.add_(parameters.offset)


def _per_block(parameters: QuantizationParameters) -> tuple[list[Tensor], list[Tensor]]:
    """Scales and zero points as columns beside the blocks' rows."""
    layout = parameters.layout
    return (
        [part[:, None] for part in layout.split(parameters.scale)],
        [part[:, None] for part in layout.split(parameters.zero_point)],
    )
