"""Sums of inputs and of their squares, for each weight of one operator in one batch.

Every operator here is linear in its weight, so the derivative of ``sum(f(x^2, W))`` by a weight is the sum of ``x^2``
over all places where that weight is multiplied with ``x``: padding, strides, groups, transposed convolutions and
products of several inputs need no formulas of their own. Where the inputs are plain rows (linear layers, matrix
products, 1x1 convolutions) or tokens, the sums are taken directly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from workers.graph.dataflow import bind, operator_name
from workers.graph.uses import Use
from workers.sensitivity.activations import Counting

Values = Callable[[Node], Any]
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
_LOOK_UPS = ("embedding",)


@dataclass(frozen=True, kw_only=True)
class OperandMoments:
    """Sums over the places of one batch.

    Args:
        second: Sum of ``x^2`` for each weight; broadcasts against the operand.
        first: Sum of ``x``, likewise.
        count: Number of places summed over.
        look_up: The inputs are indices: ``second`` counts how often a row was taken.
        rows: ``[count, in]``, the input vectors where they are plain rows; ``None`` elsewhere.
    """

    second: Tensor
    first: Tensor
    count: int
    look_up: bool = False
    rows: Tensor | None = None


def operand_moments(call: Node, use: Use, value: Values, counts: Counting) -> OperandMoments:
    """The sums of one operator.

    Args:
        call: The operator's node.
        use: Its use of a weight.
        value: Gives the values that the operator reads.
        counts: Tells what does not count.
    """
    arguments, name = bind(call), operator_name(call)
    if name in _LOOK_UPS:
        return _of_tokens(counts.of(value(arguments["indices"])), value(use.weight))
    if "conv" in name:
        counts = counts.without_mask()  # axis 1 is that of channels
    rows = _rows(name, arguments, use, value, counts)
    if rows is not None:
        return _of_rows(*rows)
    return _by_derivative(call, use, value, counts)


def _of_tokens(tokens: Tensor, table: Tensor) -> OperandMoments:
    counts = torch.bincount(tokens.reshape(-1), minlength=len(table)).double()[:, None]
    return OperandMoments(second=counts, first=counts, count=tokens.numel(), look_up=True)


def _rows(
    name: str, arguments: dict[str, Any], use: Use, value: Values, counts: Counting
) -> tuple[Tensor, tuple[int, ...]] | None:
    """The input vectors ``[places, in]``, and the shape of one beside the weight, where the operator is a plain product."""
    if name == "linear":
        x = counts.of(value(arguments["input"]))
        return x.reshape(-1, x.shape[-1]), (1, -1)
    right = {"mm": "mat2", "addmm": "mat2", "matmul": "other"}.get(name)
    if right is not None and arguments[right] is use.weight and value(use.weight).dim() == 2:
        x = counts.of(value(arguments["mat1" if name == "addmm" else "self"]))
        return x.reshape(-1, x.shape[-1]), (-1, 1)
    if name in _CONVOLUTIONS and _is_pointwise(arguments, value(use.weight)):
        x = counts.of(value(arguments["input"]))
        for axis, stride in enumerate(_stride(arguments["stride"], x.dim() - 2), 2):
            x = x[(slice(None),) * axis + (slice(None, None, stride),)]
        return x.movedim(1, -1).reshape(-1, x.shape[1]), (1, -1, *(1,) * (x.dim() - 2))
    return None


def _is_pointwise(arguments: dict[str, Any], weight: Tensor) -> bool:
    padding = arguments["padding"]
    padded = padding not in ("valid", "same") and any(size != 0 for size in padding)
    plain = arguments["groups"] == 1 and not padded and not arguments.get("transposed", False)
    return plain and all(size == 1 for size in weight.shape[2:])


def _stride(stride: Any, axes: int) -> list[int]:
    return list(stride) if len(stride) == axes else list(stride) * axes


def _of_rows(rows: Tensor, shape: tuple[int, ...]) -> OperandMoments:
    rows = rows.float() if rows.dtype != torch.float64 else rows
    return OperandMoments(
        second=rows.square().sum(0, dtype=torch.float64).reshape(shape),
        first=rows.sum(0, dtype=torch.float64).reshape(shape),
        count=len(rows),
        rows=rows,
    )


def _by_derivative(call: Node, use: Use, value: Values, counts: Counting) -> OperandMoments:
    arguments, weight = bind(call), value(use.weight)
    if "bias" in arguments:
        arguments["bias"] = None  # may not fit the one output channel
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    alike = operator_name(call) in _CONVOLUTIONS and arguments["groups"] == 1
    alike = alike and not arguments.get("transposed", False)
    # All output channels of an ungrouped convolution see the same inputs: one of them will do.
    shape = (1, *weight.shape[1:]) if alike else weight.shape

    def total(power: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = torch.zeros(shape, dtype=dtype, device=weight.device, requires_grad=True)

        def read(node: Node) -> Any:
            if node is use.weight:
                return leaf
            found = value(node)
            if node in use.inputs:
                return counts.zeroed(power(found.to(dtype)))
            floating = isinstance(found, Tensor) and found.is_floating_point()
            return found.to(dtype).clone() if floating else found

        with torch.enable_grad():
            result = call.target(**torch.fx.node.map_arg(arguments, read))  # type: ignore[operator]
            (gradient,) = torch.autograd.grad(result.sum(), leaf)
        return gradient.double()

    places = int(total(torch.ones_like).max().round())
    return OperandMoments(second=total(torch.square), first=total(torch.clone), count=max(1, places))
