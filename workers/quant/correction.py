"""Mean correction: the quantized weights of each output channel get the mean of the float ones back.

With ``mu_c = mean(W_c) - mean(W~_c)`` over all weights of output channel ``c``, the weight becomes ``W~_c + mu_c``.
Rounding errors of one channel that do not cancel act like a shift of the output by ``sum(x)`` times their mean, and
such shifts of successive layers add up; one number per channel takes them away.

``mu`` is stored in bfloat16 and applied as stored, so that a mean is restored to 1 part in 256 of its error. A runtime
adds it as a zero point that is no whole number, ``S (q - (Z - mu / S))``: the offset of formats that dequantize by
``d q + m``. Where the mean of the inputs is constant it folds into the layer's bias. An exact 0 of the quantizer
becomes ``mu``.

Source: R. Banner, Y. Nahshan, D. Soudry, "Post training 4-bit quantization of convolutional networks for
rapid-deployment", 2019, section 4 (bias correction). They correct the norm of each channel too,
``xi_c (W~_c + mu_c)``; ours keeps to the mean, which needs no second stored value and no change of the scale.
"""

from dataclasses import replace

import torch
from torch import Tensor

from workers.quant import acceleration
from workers.quant.fake_quantize import QuantizationParameters, apply

CORRECTION_BITS = 16
"""Bits of each channel's correction as stored (bfloat16)."""
_ROOM = 1 - 2.0**-7


def corrected(
    weight: Tensor, parameters: QuantizationParameters, *, axis: int, largest: float
) -> QuantizationParameters:
    """The parameters of a weight with what puts its means back.

    Args:
        weight: Float weights of the shape and type that the parameters are for.
        parameters: Without an offset.
        axis: Of the output channels.
        largest: Largest number of the type that the weights are stored in; no sum may go beyond it.
    """
    means = _lost_means(weight, parameters, axis % weight.dim())
    if means is not None:
        stored = means.to(torch.bfloat16).to(weight.dtype)
        codes = parameters.codes
        farthest = torch.maximum(
            parameters.zero_point - codes.quant_min, codes.quant_max - parameters.zero_point
        )
        reach = float((parameters.scale * farthest).max())
        if float(stored.abs().max()) <= largest * _ROOM - reach:
            shape = [1] * weight.dim()
            shape[axis] = -1
            return replace(parameters, offset=stored.reshape(shape))
    offset = mean_correction(weight, apply(weight, parameters), axis=axis, largest=largest)
    return replace(parameters, offset=offset)


def _lost_means(weight: Tensor, parameters: QuantizationParameters, axis: int) -> Tensor | None:
    """Of each output channel, without the quantized weight being written; ``None`` where that does not go."""
    layout = parameters.layout
    if not acceleration.suits_values(weight):
        return None
    if layout.slices == 1:
        rows = weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
        scale, zero_point = (each.expand(len(rows), 1) for each in (parameters.scale, parameters.zero_point))
    elif layout.runs == weight.shape[axis] and layout.axes[0] == axis:
        rows = layout.rows(weight)
        scale, zero_point = (
            each.reshape(layout.runs, layout.groups) for each in (parameters.scale, parameters.zero_point)
        )
    else:
        return None
    sums = acceleration.lost_by_rows(
        rows, scale, zero_point, slice_size=layout.group_size, codes=parameters.codes
    )
    return sums / rows.shape[1]


def mean_correction(weight: Tensor, quantized: Tensor, *, axis: int, largest: float) -> Tensor:
    """What to add to each output channel.

    Args:
        weight: Float weights, any shape, float32 or float64.
        quantized: The same, quantized and dequantized.
        axis: Of the output channels.
        largest: Largest number of the type that the weights are stored in; no sum may go beyond it.

    Returns:
        One value per output channel, of the type of ``weight``, in the weight's number of axes (all others of size 1);
        each representable in bfloat16.
    """
    others = [other for other in range(weight.dim()) if other != axis % weight.dim()]
    difference = (weight.double() - quantized.double()).mean(others, keepdim=True)
    stored = difference.to(torch.bfloat16).to(weight.dtype)
    reach = quantized.abs().amax(others, keepdim=True)
    # Weights next to the largest number have no room for a correction.
    return torch.where(stored.abs() <= largest * _ROOM - reach, stored, torch.zeros_like(stored))
