"""Per-sample gradients of one step's weight, a block at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node

from workers.sensitivity.estimators.layout import SampleLayout, with_batch_stride
from workers.sensitivity.estimators.precision import Precision
from workers.sensitivity.estimators.visited import CONVOLUTIONS, VisitedStep

_MATRIX = {
    "linear": ("input", "weight"),
    "addmm": ("mat1", "mat2"),
    "mm": ("self", "mat2"),
    "matmul": ("self", "other"),
}
"""Matrix products: input and weight."""

_BLOCK_ELEMENTS = 1 << 21
"""Elements of gradients at a time: few enough to stay in the cache until they are multiplied."""
_BLOCK_SAMPLES = 16
"""Samples at a time: changes of the weight are read from memory once for all of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Some samples' gradients by some of the weight's elements.

    Args:
        samples: Which samples.
        elements: Which elements of the weight, row by row.
        values: ``[samples, elements]``.
    """

    samples: slice
    elements: slice
    values: Tensor


class Gradients(Protocol):
    """How per-sample gradients of a step are computed, and what that costs.

    Attributes:
        elements: Of the weight.
        outputs: Elements of the step's output for one sample.
        forward_cost: Of the step's forward for one sample, in multiplications of a large matrix product.
        gradient_cost: Of one sample's gradient, likewise.
    """

    elements: int
    outputs: int
    forward_cost: float
    gradient_cost: float

    def blocks(self, cotangent: Tensor) -> Iterator[Block]:
        """All gradients for one cotangent of the step's output.

        Args:
            cotangent: Of the output's shape.
        """


def find_gradients(step: VisitedStep, operand: Node) -> Gradients | None:
    """How to compute per-sample gradients by an operand; ``None`` where that is not known.

    Args:
        step: The step; linear in the operand.
        operand: A constant that it reads.
    """
    names = _MATRIX.get(step.operator)
    if names is not None:
        return _matrix_product(step, operand, *names)
    if step.operator in (*CONVOLUTIONS, "convolution") and step.arguments["weight"] is operand:
        return _convolution(step)
    return None


def _matrix_product(step: VisitedStep, operand: Node, input_name: str, weight_name: str) -> Gradients | None:
    if step.arguments[weight_name] is not operand or step.arguments.get("alpha", 1) != 1:
        return None
    source, weight = step.value(step.arguments[input_name]), step.constant(operand)
    layout = step.layouts.get(0)
    if layout is None or weight.dim() != 2 or layout.axis >= source.dim() - 1:
        return None
    return _MatrixGradients(
        source=_rows_by_sample(source, layout, step.samples),
        layout=layout,
        samples=step.samples,
        precision=step.precision,
        input_first=weight_name != "weight",
        output_width=int(weight.shape[0] if weight_name == "weight" else weight.shape[1]),
    )


def _rows_by_sample(tensor: Tensor, layout: SampleLayout, samples: int) -> Tensor:
    """``[samples, positions, width]``."""
    return layout.by_sample(tensor, samples).reshape(samples, -1, tensor.shape[-1])


@dataclass(kw_only=True, eq=False)
class _MatrixGradients:
    """``y = x W`` or ``y = x W'``: sample n's gradient is ``x_n' dY_n``, or its transpose."""

    source: Tensor
    layout: SampleLayout
    samples: int
    precision: Precision
    input_first: bool
    output_width: int
    channels_last: bool = False

    def __post_init__(self) -> None:
        positions, width = self.source.shape[1:]
        self.elements = width * self.output_width
        self.outputs = positions * self.output_width
        self.forward_cost = float(positions * self.elements)
        self.gradient_cost = 1.2 * self.forward_cost

    @cached_property
    def _factor(self) -> Tensor:
        return self.precision.rounded(self.source)

    def blocks(self, cotangent: Tensor) -> Iterator[Block]:
        outer = cotangent.movedim(1, -1) if self.channels_last else cotangent
        back = _rows_by_sample(outer, self.layout, self.samples)
        back = self.precision.rounded(back)
        source = self._factor.to(back.dtype)
        left, right = (source, back) if self.input_first else (back, source)
        width = right.shape[-1]
        samples = min(self.samples, _BLOCK_SAMPLES)
        rows = min(left.shape[-1], max(1, _BLOCK_ELEMENTS // (samples * width)))
        samples = max(1, _BLOCK_ELEMENTS // (rows * width))
        for first in range(0, self.samples, samples):
            some = slice(first, min(first + samples, self.samples))
            for row in range(0, left.shape[-1], rows):
                part = left[some, :, row : row + rows]
                values = torch.bmm(part.mT, right[some]).flatten(1)
                yield Block(
                    samples=some, elements=slice(row * width, row * width + values.shape[1]), values=values
                )


def _convolution(step: VisitedStep) -> Gradients | None:
    call = step.arguments
    source, weight = step.value(call["input"]), step.constant(call["weight"])
    layout = step.layouts.get(0)
    if layout is None or layout.axis or source.dim() != weight.dim() or isinstance(call["padding"], str):
        return None
    spatial = weight.dim() - 2
    geometry = {name: _per_axis(call[name], spatial) for name in ("stride", "padding", "dilation")}
    transposed = bool(call.get("transposed", "transpose" in step.operator))
    plain = call["groups"] == 1 and math.prod(weight.shape[2:]) == 1 and not transposed
    if plain and set(geometry["stride"]) == {1} and set(geometry["padding"]) == {0}:
        return _MatrixGradients(
            source=_rows_by_sample(source.movedim(1, -1), layout, step.samples),
            layout=layout,
            samples=step.samples,
            precision=step.precision,
            input_first=False,
            output_width=int(weight.shape[0]),
            channels_last=True,
        )
    return _ConvolutionGradients(
        source=layout.by_sample(source, step.samples),
        weight=weight,
        layout=layout,
        outputs=step.visit.outputs[0][0].numel() // step.samples,
        arguments=(
            [0],
            geometry["stride"],
            geometry["padding"],
            geometry["dilation"],
            transposed,
            _per_axis(call.get("output_padding", 0), spatial),
            int(call["groups"]),
        ),
    )


@dataclass(kw_only=True, eq=False)
class _ConvolutionGradients:
    """A convolution of any kind: torch's own gradient, one sample at a time."""

    source: Tensor
    weight: Tensor
    layout: SampleLayout
    outputs: int
    arguments: tuple[Any, ...]

    def __post_init__(self) -> None:
        groups = self.arguments[-1]
        transposed = self.arguments[4]
        self.elements = self.weight.numel()
        kernel = math.prod(self.weight.shape[1:])
        macs = kernel * (self.source[0].numel() if transposed else self.outputs)
        if groups > 1:  # bound by memory, not by multiplications; gradients suffer from large windows
            window = math.prod(self.weight.shape[2:])
            self.forward_cost = macs + 35.0 * self.source[0].numel()
            self.gradient_cost = (12.0 if window <= 9 else 25.0) * macs
        else:
            self.forward_cost, self.gradient_cost = float(macs), 1.3 * macs

    def blocks(self, cotangent: Tensor) -> Iterator[Block]:
        back = self.layout.by_sample(cotangent, len(self.source))
        step = max(1, _BLOCK_ELEMENTS // self.elements)
        for first in range(0, len(self.source), step):
            some = range(first, min(first + step, len(self.source)))
            values = torch.stack([self._gradient(back[n], self.source[n]) for n in some])
            yield Block(
                samples=slice(some.start, some.stop),
                elements=slice(0, self.elements),
                values=values.flatten(1),
            )

    def _gradient(self, back: Tensor, source: Tensor) -> Tensor:
        weight = self.weight.to(back.dtype)
        found = torch.ops.aten.convolution_backward(
            back, with_batch_stride(source.to(back.dtype)), weight, *self.arguments, [False, True, False]
        )
        return found[1]  # type: ignore[no-any-return]


def _per_axis(value: Any, axes: int) -> list[int]:
    values = [int(value)] if isinstance(value, int) else [int(size) for size in value]
    return values * axes if len(values) == 1 else values
