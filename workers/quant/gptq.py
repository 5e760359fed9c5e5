"""Error-compensating rounding of matrix-shaped weights (GPTQ).

The inputs are gone through one after the other. Each weight of the current input is rounded to its nearest level, and
what that does to the output is made up for, as well as least squares can, by the weights of the inputs still to come:

    e = (w_j - w~_j) / R_jj,    w_k <- w_k - e R_jk  for k > j,    R' R = (H + d I)^-1, R upper triangular.

Scales and zero points are chosen before, from the weights as they are (the "static groups" of the authors' program),
so that the storage and the parameters are those of the same scheme without compensation. With a diagonal ``H`` the
result is nearest rounding. Updates beyond the current block of inputs are gathered and done as one product.

Source: E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: accurate post-training quantization for generative
pre-trained transformers", 2022, algorithm 1; the order of largest diagonal first is the option of its authors' program.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.errors import RequestRefused
from workers.quant.affine import CodeRange
from workers.quant.fake_quantize import QuantizationParameters
from workers.quant.moments import InputMoments

_BLOCK = 128
# Output channels worked on at once: they do not influence each other, and a block of them stays in the cache.
_CHANNELS = 2048


@torch.no_grad()
def compensated_codes(  # noqa: PLR0913 - what the rounding depends on
    weight: Tensor,
    parameters: QuantizationParameters,
    inputs: InputMoments,
    *,
    output_channel_axis: int,
    group_axis: int,
    act_order: bool = False,
) -> Tensor:
    """The integer codes of a weight, each rounding error made up for by later inputs' weights.

    Args:
        weight: Of two axes longer than 1 at most (a linear layer or a 1x1 convolution), finite.
        parameters: Of the same weight.
        inputs: With the second-moment matrix.
        output_channel_axis: Axis of the output channels.
        group_axis: Input axis.
        act_order: Go through the inputs by falling second moment instead of in storage order.

    Returns:
        Codes of the shape of ``weight``, in ``parameters.codes.dtype``, for `dequantize_codes`.

    Raises:
        RequestRefused: The weight is no matrix, the moments have no matrix, or that of other inputs.
    """
    order = _matrix_axes(weight.shape, output_channel_axis, group_axis, parameters.name)
    # One row per input: what a step reads and writes is contiguous.
    moved = weight.to(parameters.scale.dtype).permute(order)
    size, channels = moved.shape[:2]
    working = moved.reshape(size, channels).clone(memory_format=torch.contiguous_format)
    _require_size(inputs, size, parameters.name)
    root, sequence = _root_and_order(inputs, act_order=act_order)
    root = root.to(device=weight.device, dtype=working.dtype)
    grid = _Grid.of(parameters, sequence.tolist())
    working = working[sequence.to(weight.device)] if act_order else working
    for start in range(0, channels, _CHANNELS):
        stop = min(start + _CHANNELS, channels)
        part = working[:, start:stop].contiguous()
        _round_all(part, root, grid.columns(start, stop))
        working[:, start:stop] = part
    codes = torch.empty_like(working)
    codes[sequence.to(weight.device)] = working
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return codes.reshape(moved.shape).permute(inverse).contiguous().to(parameters.codes.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Grid:
    """Scales and zero points by group of inputs: ``[groups, channels]`` (or one for all), and each input's group."""

    scale: Tensor
    zero_point: Tensor
    groups: Sequence[int]
    codes: CodeRange

    @classmethod
    def of(cls, parameters: QuantizationParameters, sequence: Sequence[int]) -> "_Grid":
        layout = parameters.layout
        table = (layout.runs, layout.groups)
        return cls(
            scale=parameters.scale.reshape(table).T.contiguous(),
            zero_point=parameters.zero_point.reshape(table).T.to(parameters.scale.dtype).contiguous(),
            groups=[position // layout.group_size if layout.groups > 1 else 0 for position in sequence],
            codes=parameters.codes,
        )

    def columns(self, start: int, stop: int) -> "_Grid":
        if self.scale.shape[1] == 1:
            return self
        return _Grid(
            scale=self.scale[:, start:stop].contiguous(),
            zero_point=self.zero_point[:, start:stop].contiguous(),
            groups=self.groups,
            codes=self.codes,
        )


def _round_all(working: Tensor, root: Tensor, grid: _Grid) -> None:
    """Replace weights ``[in, channels]`` by their codes, in place."""
    diagonal = root.diagonal().tolist()
    errors = torch.empty(
        (min(_BLOCK, len(working)), working.shape[1]), dtype=working.dtype, device=working.device
    )
    for start in range(0, len(working), _BLOCK):
        stop = min(start + _BLOCK, len(working))
        for j in range(start, stop):
            scale, zero_point = grid.scale[grid.groups[j]], grid.zero_point[grid.groups[j]]
            row, error = working[j], errors[j - start]
            code = torch.div(row, scale).round_().add_(zero_point)
            code.clamp_(grid.codes.quant_min, grid.codes.quant_max)
            torch.sub(code, zero_point, out=error).mul_(scale).sub_(row).div_(-diagonal[j])
            row.copy_(code)
            if j + 1 < stop:
                working[j + 1 : stop].addr_(root[j, j + 1 : stop], error, alpha=-1)
        if stop < len(working):
            working[stop:].addmm_(root[start:stop, stop:].T, errors[: stop - start], alpha=-1)


def _root_and_order(inputs: InputMoments, *, act_order: bool) -> tuple[Tensor, Tensor]:
    """``R`` and the order of the inputs that it is for."""
    if not act_order or inputs.matrix is None:
        root = inputs.inverse_root
        return root, torch.arange(len(root))
    order = inputs.matrix.diagonal().argsort(descending=True, stable=True)
    turned = InputMoments(second=inputs.second, matrix=inputs.matrix[order][:, order])
    return turned.inverse_root, order


def _matrix_axes(shape: Sequence[int], output: int, group: int, name: str) -> tuple[int, ...]:
    """The axes with the inputs' first, the output channels' second, and those of size 1 behind."""
    output, group = output % len(shape), group % len(shape)
    rest = [axis for axis in range(len(shape)) if axis not in (output, group)]
    if output == group or any(shape[axis] != 1 for axis in rest):
        raise RequestRefused(
            f"error-compensating rounding does not suit {name!r}: its weight of shape {tuple(shape)} is no matrix",
            "scheme",
            "gptq",
            "linear layers and 1x1 convolutions",
        )
    return group, output, *rest


def _require_size(inputs: InputMoments, size: int, name: str) -> None:
    if inputs.matrix is not None and tuple(inputs.matrix.shape) != (size, size):
        raise RequestRefused(
            f"a second-moment matrix of shape {tuple(inputs.matrix.shape)} does not fit the {size} inputs of {name!r}",
            "inputs",
            list(inputs.matrix.shape),
            [size, size],
        )
