"""Which operand of an operator is a weight, and on which axes of it the output channels and the inputs lie.

Every operator here is linear in its weight. A scale may differ along an axis of the weight only where it can
be taken out of the sum again, that is along an axis that the output keeps; that axis is the output-channel
axis. Groups are formed along the axis that is summed over.

Grouped transposed convolutions deserve a word: their weight is ``[in, out / groups, ...]``, so no axis of it
numbers the output channels. With one input channel per group (a depthwise one) each index on axis 0 is a
group of its own, and axis 0 gives every group its scale (every output channel, when ``out / groups`` is 1).
Otherwise axis 0 is summed over, axis 1 is the only choice, and the j-th channels of all groups share a scale.
Both remain functions of the output channel alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from workers.graph import einsum
from workers.graph.dataflow import bind, operator_name, shape_of

Symbols = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Role:
    """One operand in its role as a weight.

    Args:
        operand: The node.
        output_axis: Its axis that the output keeps; from 0.
        group_axis: Its axis that is summed over (for look-ups: the axis of what is looked up); from 0.
        macs: Multiply-accumulates of the operator for one sample; 0 for look-ups.
    """

    operand: Node
    output_axis: int
    group_axis: int
    macs: int


class UnclearAxes(ValueError):
    """The operand has no axis that could be its output-channel or its input axis; the text says why."""


def weight_roles(node: Node, is_weight: Callable[[Node], bool], symbols: Symbols) -> list[Role]:
    """The weights of an operator.

    Args:
        node: A ``call_function`` node.
        is_weight: Whether an operand does not depend on the model's inputs.
        symbols: Symbolic sizes for one sample.

    Returns:
        One role per weight operand; none for operators without one.

    Raises:
        UnclearAxes: An operand is used as a weight, but its axes cannot be told.
    """
    find = _OPERATORS.get(operator_name(node)) if hasattr(node.target, "_schema") else None
    if find is None:
        return []
    return find(_Call(node, bind(node), is_weight, symbols))


@dataclass(frozen=True)
class _Call:
    node: Node
    arguments: dict[str, Any]
    is_weight: Callable[[Node], bool]
    symbols: Symbols

    def weight(self, name: str) -> Node | None:
        """The operand of that name if it is a weight of two axes or more."""
        operand = self.arguments[name]
        if not isinstance(operand, Node) or not self.is_weight(operand) or len(self.shape(operand)) < 2:
            return None
        return operand

    def shape(self, node: Node) -> tuple[int, ...]:
        return shape_of(node, self.symbols)

    @property
    def result(self) -> tuple[int, ...]:
        return self.shape(self.node)


def _linear(call: _Call) -> list[Role]:
    weight = call.weight("weight")
    if weight is None:
        return []
    macs = math.prod(call.result) * call.shape(weight)[1]
    return [Role(operand=weight, output_axis=0, group_axis=1, macs=macs)]


def _convolution(call: _Call) -> list[Role]:
    if call.arguments.get("transposed", False):
        return _transposed_convolution(call)
    weight = call.weight("weight")
    if weight is None:
        return []
    macs = math.prod(call.result) * math.prod(call.shape(weight)[1:])
    return [Role(operand=weight, output_axis=0, group_axis=1, macs=macs)]


def _transposed_convolution(call: _Call) -> list[Role]:
    weight = call.weight("weight")
    if weight is None:
        return []
    shape, groups = call.shape(weight), int(call.arguments["groups"])
    macs = math.prod(call.shape(call.arguments["input"])) * math.prod(shape[1:])
    depthwise = groups > 1 and shape[0] == groups
    output, group = (0, 1) if depthwise else (1, 0)
    return [Role(operand=weight, output_axis=output, group_axis=group, macs=macs)]


def _lookup(call: _Call) -> list[Role]:
    weight = call.weight("weight")
    return [] if weight is None else [Role(operand=weight, output_axis=0, group_axis=1, macs=0)]


def _product(left: str, right: str) -> Callable[[_Call], list[Role]]:
    """Matrix products: ``x @ W`` keeps the last axis of W, ``W @ x`` the last but one."""

    def find(call: _Call) -> list[Role]:
        roles = []
        for name, output, group in ((right, -1, -2), (left, -2, -1)):
            weight = call.weight(name)
            if weight is None:
                continue
            shape = call.shape(weight)
            macs = _product_macs(call, call.shape(call.arguments[left]))
            axes = len(shape)
            roles.append(Role(operand=weight, output_axis=output % axes, group_axis=group % axes, macs=macs))
        return roles

    return find


def _product_macs(call: _Call, left: tuple[int, ...]) -> int:
    if operator_name(call.node) == "addbmm":  # the products of the batch are summed up
        return math.prod(call.result) * left[-1] * left[0]
    return math.prod(call.result) * left[-1]


def _bilinear(call: _Call) -> list[Role]:
    weight = call.weight("weight")
    if weight is None:
        return []
    macs = math.prod(call.result) * math.prod(call.shape(weight)[1:])
    return [Role(operand=weight, output_axis=0, group_axis=2, macs=macs)]


def _einsum(call: _Call) -> list[Role]:
    operands = call.arguments["tensors"]
    shapes = [call.shape(operand) for operand in operands]
    roles = []
    for index, operand in enumerate(operands):
        if not call.is_weight(operand) or len(shapes[index]) < 2:
            continue
        try:
            found = einsum.weight_axes(str(call.arguments["equation"]), shapes, index)
        except ValueError as error:
            raise UnclearAxes(str(error)) from error
        roles.append(
            Role(
                operand=operand,
                output_axis=found.output_axis,
                group_axis=found.group_axis,
                macs=found.multiplications,
            )
        )
    return roles


def _recurrent(call: _Call) -> list[Role]:
    """LSTM, GRU and plain recurrent layers: every matrix of the list is multiplied at each time step."""
    sequence = call.shape(call.arguments["input"])
    steps = sequence[0] * sequence[1]  # times samples, in whichever order
    return [
        Role(operand=weight, output_axis=0, group_axis=1, macs=steps * math.prod(call.shape(weight)))
        for weight in call.arguments["params"]
        if call.is_weight(weight) and len(call.shape(weight)) == 2
    ]


def _recurrent_cell(call: _Call) -> list[Role]:
    found = [call.weight(name) for name in ("w_ih", "w_hh")]
    samples = math.prod(call.shape(call.arguments["input"])[:-1])
    return [
        Role(operand=weight, output_axis=0, group_axis=1, macs=samples * math.prod(call.shape(weight)))
        for weight in found
        if weight is not None
    ]


_OPERATORS: dict[str, Callable[[_Call], list[Role]]] = {
    "linear": _linear,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "convolution": _convolution,
    "conv_transpose1d": _transposed_convolution,
    "conv_transpose2d": _transposed_convolution,
    "conv_transpose3d": _transposed_convolution,
    "embedding": _lookup,
    "embedding_bag": _lookup,
    "_embedding_bag_forward_only": _lookup,
    "mm": _product("self", "mat2"),
    "bmm": _product("self", "mat2"),
    "matmul": _product("self", "other"),
    "addmm": _product("mat1", "mat2"),
    "addbmm": _product("batch1", "batch2"),
    "baddbmm": _product("batch1", "batch2"),
    "bilinear": _bilinear,
    "einsum": _einsum,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _recurrent_cell),
}
