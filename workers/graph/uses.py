"""What a weight is multiplied with, at each of its sites."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from workers.graph.axes import root_of
from workers.graph.dataflow import Dataflow, bind
from workers.graph.sites import Site


@dataclass(frozen=True, kw_only=True)
class Use:
    """One operator that uses a unit's weight.

    Args:
        step: Index of the operator among the program's steps.
        operator: Its name, e.g. ``conv2d``.
        weight: The operand that holds the weight.
        inputs: The floating-point operands it is multiplied with, each once; none for look-ups.
    """

    step: int
    operator: str
    weight: Node
    inputs: tuple[Node, ...]


# The factors of the operator's product by the schema's names. What is added to it (a bias) is no factor.
_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "matmul": ("self", "other"),
    "addmm": ("mat1", "mat2"),
    "addbmm": ("batch1", "batch2"),
    "baddbmm": ("batch1", "batch2"),
    "bilinear": ("input1", "input2"),
    "einsum": ("tensors",),
    "embedding": (),
    "embedding_bag": (),
    "_embedding_bag_forward_only": (),
}
_LAYER = ("input",)


def use_of(flow: Dataflow, site: Site) -> Use:
    """The use that belongs to a site."""
    node = flow.live[site.position]
    arguments = bind(node)
    factors = [arguments[name] for name in _FACTORS.get(site.operator, _LAYER)]
    inputs = {
        operand for operand in _nodes(factors) if operand is not site.operand and _varies(flow, operand)
    }
    return Use(
        step=site.position,
        operator=site.operator,
        weight=site.operand,
        inputs=tuple(operand for operand in node.all_input_nodes if operand in inputs),
    )


def _nodes(operands: list[object]) -> Iterator[Node]:
    for operand in operands:
        if isinstance(operand, Node):
            yield operand
        elif isinstance(operand, list | tuple):
            yield from _nodes(list(operand))


def _varies(flow: Dataflow, operand: Node) -> bool:
    """Whether an operand holds numbers computed from the model's inputs (not another weight, however it is viewed)."""
    dtype = operand.meta.get("dtype")
    return dtype is not None and dtype.is_floating_point and flow.is_live(root_of(operand)[0])
