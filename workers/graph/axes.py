"""Following a weight through operators that only move its elements.

Transposes, reshapes, slices, copies and their like do not change values, so a weight seen through them is
still that weight. To learn which axis of the stored tensor an axis of the view corresponds to, the same
operators are run on a tensor of element numbers; whatever their arguments mean, the result says where each
element came from.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from workers.graph.dataflow import operator_name, shape_of

_MOVE_NAMES = """
    alias broadcast_to chunk clone contiguous detach expand expand_as flatten flip fliplr flipud getitem
    lift_fresh lift_fresh_copy mH mT matrix_H movedim moveaxis narrow numpy_T permute ravel reshape reshape_as
    roll rot90 select slice split split_with_sizes squeeze swapaxes swapdims t tensor_split transpose unbind
    unflatten
    unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze _unsafe_view view view_as"""
_MOVES = frozenset(_MOVE_NAMES.split())
_CONVERSIONS = frozenset(("to", "_to_copy", "type_as"))
_MOST_ELEMENTS = 1 << 29


def root_of(node: Node) -> tuple[Node, tuple[Node, ...]]:
    """Where a value comes from.

    Returns:
        The first node upstream that does more than moving elements, and the moving nodes from there to
        ``node``, in order.
    """
    path: list[Node] = []
    while node.op == "call_function" and _source(node) is not None:
        path.append(node)
        source = _source(node)
        assert source is not None
        node = source
    return node, tuple(reversed(path))


def _source(node: Node) -> Node | None:
    """The tensor whose elements a node moves; ``None`` if it does anything else."""
    name = operator_name(node)
    if name not in _MOVES and name not in _CONVERSIONS:
        return None
    if name == "getitem" and node.target is not operator.getitem:
        return None
    if name in _CONVERSIONS and not node.meta["dtype"].is_floating_point:
        return None
    source = node.args[0]
    return source if isinstance(source, Node) else None


def source_axis(axis: int, elements: Tensor, shape: Sequence[int]) -> int | None:
    """The axis of a stored tensor that an axis of a view of it corresponds to.

    Args:
        axis: Of the view.
        elements: The view, holding for each element its number in the stored tensor (row by row).
        shape: Of the stored tensor.

    Returns:
        The axis; ``None`` if going along ``axis`` moves along several axes of the stored tensor, or along
        none although the stored tensor has no axis of length 1.
    """
    line = elements[tuple(slice(None) if a == axis else 0 for a in range(elements.dim()))]
    coordinates = torch.unravel_index(line.to(torch.int64), tuple(shape))
    moved = [a for a, values in enumerate(coordinates) if bool((values != values[0]).any())]
    if len(moved) == 1:
        return moved[0]
    if not moved and 1 in shape:
        return list(shape).index(1)
    return None


def element_numbers(shape: Sequence[int], strides: Sequence[int] | None = None) -> Tensor | None:
    """A tensor of that shape that holds the number of each element, row by row; ``None`` if it is too large.

    Args:
        shape: Of the tensor.
        strides: Its layout in memory; row by row unless given.
    """
    count = 1
    for size in shape:
        count *= size
    if count >= _MOST_ELEMENTS:
        return None
    numbers = torch.arange(count, dtype=torch.int32).reshape(tuple(shape))
    if strides is None or tuple(strides) == numbers.stride():
        return numbers
    return torch.empty_strided(tuple(shape), tuple(strides), dtype=torch.int32).copy_(numbers)


def moved(elements: Tensor, path: Sequence[Node], symbols: Mapping[str, int]) -> Tensor | None:
    """Run the moving nodes of a path on a tensor of element numbers.

    Args:
        elements: In the place of the path's source.
        path: From `root_of`.
        symbols: Value of each symbolic size.

    Returns:
        The element numbers at the end of the path; ``None`` if they cannot be told: a step does not work at
        these sizes, or would have to allocate far more than the source holds (an expanded tensor, copied).
    """
    try:
        return _run(elements, path, symbols)
    except (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError):
        return None  # the path was checked for other sizes; and nothing but the axes depends on it


def _run(elements: Tensor, path: Sequence[Node], symbols: Mapping[str, int]) -> Tensor | None:
    value: Any = elements
    bound = 16 * elements.numel()
    for node in path:
        if operator_name(node) in _CONVERSIONS:
            continue  # the numbers must not be rounded
        if isinstance(value, Tensor) and value.numel() > bound:
            return None
        source = _source(node)

        def argument(other: Node, source: Node | None = source, value: Any = value) -> Any:
            return value if other is source else _number(other, symbols)

        value = node.target(*map_arg(node.args, argument), **map_arg(node.kwargs, argument))  # type: ignore[operator]
    return value if isinstance(value, Tensor) else None


def _number(node: Node, symbols: Mapping[str, int]) -> Any:
    """The value of a node that computes with sizes; for tensors, one of the right shape."""
    if "shape" in node.meta:
        return torch.empty(1, dtype=torch.int32).expand(shape_of(node, symbols))
    numbers = map_arg(node.args, lambda other: _number(other, symbols))
    return node.target(*numbers)  # type: ignore[operator]
