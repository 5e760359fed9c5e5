"""Which of a model's outputs is compared, or which several are."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.fx import Graph, Node

from workers.errors import RequestRefused
from workers.graph.model import GraphModel

Size = int | Callable[[Mapping[str, int]], int]
"""A size, or how it follows from symbolic ones."""


def choose_output(model: GraphModel, wanted: str | None = None) -> GraphModel:
    """The model with an output put first, which is the one that is compared; the others stay.

    Args:
        model: As read.
        wanted: Name or index of the output; ``None``: the first floating-point one whose axis 0 is the samples'. A
            model without such an output is returned as it is, and refused where its output is first looked at.

    Raises:
        RequestRefused: There is no such output, or it cannot be compared.
    """
    outputs = [node for node in model.graph.output_node().args[0] if isinstance(node, Node)]  # type: ignore[union-attr]
    if wanted is None:
        chosen = next((node for node in outputs if _fits(model, node)), None)
    else:
        chosen = output_named(model, wanted)
    if chosen is None or chosen is outputs[0]:
        return model
    graph = Graph()
    made: dict[Node, Node] = {}
    for node in model.graph.nodes:
        if node.op != "output":
            made[node] = graph.node_copy(node, made.__getitem__)
            made[node].name = node.name
    graph.output((made[chosen], *(made[node] for node in outputs if node is not chosen)))
    return replace(model, graph=graph)


PACKED = "packed_outputs"
"""Name of the output that holds several."""


def pack_outputs(model: GraphModel, wanted: Sequence[str]) -> GraphModel:
    """The model with several outputs packed into one, which is put first: ``[samples, numbers]``, float32 or wider.

    Args:
        model: As read.
        wanted: Names or indices of the outputs, in the order in which they are to lie there.

    Raises:
        RequestRefused: There is no such output, it cannot be compared, or it is named twice.
    """
    chosen = [output_named(model, name) for name in wanted]
    if len(set(chosen)) < len(chosen):
        raise RequestRefused("an output is named twice", "outputs", list(wanted), "each output once")
    graph = Graph()
    made: dict[Node, Node] = {}
    for node in model.graph.nodes:
        if node.op != "output":
            made[node] = graph.node_copy(node, made.__getitem__)
            made[node].name = node.name
    dtype = torch.float32
    for node in chosen:
        dtype = torch.promote_types(dtype, node.meta["dtype"])
    rows = [_as_rows(graph, node, made[node], dtype) for node in chosen]
    packed = graph.call_function(torch.ops.aten.cat.default, (rows, 1))
    packed.name = PACKED
    packed.meta = {"shape": (chosen[0].meta["shape"][0], _total(rows)), "dtype": dtype}
    outputs = [node for node in model.graph.output_node().args[0] if isinstance(node, Node)]  # type: ignore[union-attr]
    graph.output((packed, *(made[node] for node in outputs)))
    return replace(model, graph=graph)


def output_named(model: GraphModel, wanted: str, *, packed: bool = False) -> Node:
    """The node of an output that can be compared.

    Args:
        model: The model.
        wanted: Name or index of the output.
        packed: The first output holds the others, and does not count.

    Raises:
        RequestRefused: There is no such output, or it cannot be compared.
    """
    outputs = [node for node in model.graph.output_node().args[0] if isinstance(node, Node)]  # type: ignore[union-attr]
    outputs = outputs[1:] if packed else outputs
    fitting = [node for node in outputs if _fits(model, node)]
    named = {node.name: node for node in outputs} | {str(i): node for i, node in enumerate(outputs)}
    chosen = named.get(wanted)
    if chosen is None or chosen not in fitting:
        raise RequestRefused(
            f"the model has no output {wanted!r}"
            if chosen is None
            else f"the output {wanted!r} is no floating-point tensor whose axis 0 is the samples'",
            "output",
            wanted,
            [f"{outputs.index(node)} or {node.name}" for node in fitting],
        )
    return chosen


def _as_rows(graph: Graph, node: Node, value: Node, dtype: torch.dtype) -> Node:
    """An output as one row of numbers per sample."""
    shape = node.meta["shape"]
    if node.meta["dtype"] != dtype:
        value = graph.call_function(torch.ops.aten.to.dtype, (value, dtype))
        value.meta = {"shape": shape, "dtype": dtype}
    if len(shape) == 1:
        value = graph.call_function(torch.ops.aten.unsqueeze.default, (value, 1))
        value.meta = {"shape": (shape[0], 1), "dtype": dtype}
    elif len(shape) > 2:
        value = graph.call_function(torch.ops.aten.flatten.using_ints, (value, 1, -1))
        value.meta = {"shape": (shape[0], _product(shape[1:])), "dtype": dtype}
    return value


def _product(sizes: Sequence[Size]) -> Size:
    if not any(callable(size) for size in sizes):
        return math.prod(sizes)  # type: ignore[arg-type]
    return lambda symbols: math.prod(size(symbols) if callable(size) else size for size in sizes)


def _total(rows: Sequence[Node]) -> Size:
    sizes = [row.meta["shape"][1] for row in rows]
    if not any(callable(size) for size in sizes):
        return int(sum(sizes))
    return lambda symbols: sum(size(symbols) if callable(size) else size for size in sizes)


def _fits(model: GraphModel, node: Node) -> bool:
    shape, dtype = node.meta.get("shape"), node.meta.get("dtype")
    if not shape or dtype is None or not dtype.is_floating_point:
        return False
    if model.batch_size is not None:
        return bool(shape[0] == model.batch_size)
    if not callable(shape[0]):
        return False
    # The batch's symbol is that of axis 0 of the inputs.
    batch = next(symbol for symbol, (_, axis) in model.symbols.items() if axis == 0)
    others = dict.fromkeys(model.symbols, 3)
    return all(shape[0]({**others, batch: size}) == size for size in (1, 2, 5))
