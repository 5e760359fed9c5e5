"""The places of a graph where a weight meets an input."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.fx import Node

from workers.graph.axes import root_of
from workers.graph.dataflow import Dataflow, operator_name
from workers.graph.operators import UnclearAxes, weight_roles


@dataclass(frozen=True, kw_only=True)
class Site:
    """An operator with a weight operand.

    Args:
        operator: Name of the operator, e.g. ``conv2d``.
        position: Index of the operator among the live nodes.
        operand: The operand.
        root: Where the operand's elements come from: a stored tensor or a computed constant.
        path: The nodes that move the elements, from the root to the operand.
        output_axis: Output-channel axis of the operand.
        group_axis: Input axis of the operand.
        macs: Multiply-accumulates for one sample (for the whole batch if the model's batch is fixed).
    """

    operator: str
    position: int
    operand: Node
    root: Node
    path: tuple[Node, ...]
    output_axis: int
    group_axis: int
    macs: int


def find_sites(flow: Dataflow, symbols: Mapping[str, int]) -> tuple[list[Site], dict[Node, str]]:
    """All sites of a graph, in execution order.

    Args:
        flow: The graph.
        symbols: Value of each symbolic size for one sample.

    Returns:
        The sites; and root -> reason for operands that are used as weights in a way whose axes cannot be
        told.
    """
    is_weight = _weight_test(flow)
    sites: list[Site] = []
    unclear: dict[Node, str] = {}
    for position, node in enumerate(flow.live):
        try:
            roles = weight_roles(node, is_weight, symbols)
        except UnclearAxes as error:
            for source in node.all_input_nodes:
                if is_weight(source):
                    unclear[root_of(source)[0]] = str(error)
            continue
        for role in roles:
            root, path = root_of(role.operand)
            sites.append(
                Site(
                    operator=operator_name(node),
                    position=position,
                    operand=role.operand,
                    root=root,
                    path=path,
                    output_axis=role.output_axis,
                    group_axis=role.group_axis,
                    macs=role.macs,
                )
            )
    return sites, unclear


def _weight_test(flow: Dataflow) -> Callable[[Node], bool]:
    known: dict[Node, bool] = {}

    def is_weight(node: Node) -> bool:
        if node not in known:
            dtype = node.meta.get("dtype")
            floating = dtype is not None and dtype.is_floating_point
            known[node] = floating and not flow.is_live(root_of(node)[0])
        return known[node]

    return is_weight
