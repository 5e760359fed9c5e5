"""Half-precision models computed in float32.

Differences between a float and a quantized model are small against the rounding of half types: in bfloat16 the
cost of a 4-bit candidate is off by a factor of 2.6 and that of an 8-bit one by more than 200. So the weights keep the
values they are stored with, and everything is computed in float32.
"""

from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from workers.graph.model import GraphModel

_HALVES: Final = (torch.float16, torch.bfloat16)


def in_float32(model: GraphModel) -> GraphModel:
    """The same model with float32 wherever it has a half type; inputs are still given in their own type.

    Args:
        model: As read.

    Returns:
        The model itself if there is no half type in it.
    """
    dtypes = {node.meta.get("dtype") for node in model.graph.nodes}
    if not dtypes & {*_HALVES}:
        return model
    graph = Graph()
    made: dict[Node, Node] = {}
    for node in model.graph.nodes:
        copy = graph.node_copy(node, made.__getitem__)
        copy.name = node.name
        copy.args = map_aggregate(copy.args, _widened)
        copy.kwargs = map_aggregate(copy.kwargs, _widened)
        made[node] = copy
        if node.op != "placeholder" or node.name in model.tensors:
            copy.meta = _widened_meta(node)
        elif node.meta["dtype"] in _HALVES:
            made[node] = graph.call_function(torch.ops.aten.to.dtype, (copy, torch.float32))
            made[node].meta = _widened_meta(node)
    return replace(model, graph=graph, tensors=_converted(model.tensors))


def _widened(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in _HALVES else value


def _widened_meta(node: Node) -> dict[str, Any]:
    return {key: _widened(value) for key, value in node.meta.items()}


def _converted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half tensors in float32; those that share memory still do."""
    wide: dict[tuple[int, torch.dtype], Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _HALVES or tensor.numel() == 0:
            found[name] = tensor.float() if tensor.dtype in _HALVES else tensor
            continue
        storage = tensor.untyped_storage()
        key = storage.data_ptr(), tensor.dtype
        if key not in wide:
            count = storage.nbytes() // tensor.element_size()
            wide[key] = tensor.detach().as_strided((count,), (1,), 0).float()
        found[name] = wide[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return found
