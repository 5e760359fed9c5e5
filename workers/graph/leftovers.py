"""Weights that stay in float, and why."""

import math
from collections.abc import Iterable, Mapping

from torch.fx import Node

from workers.contracts import UnsupportedWeight
from workers.graph.axes import root_of
from workers.graph.dataflow import Dataflow, operator_name
from workers.graph.sites import Site

# Their parameters scale and shift channels: nobody calls them weights to quantize.
_NORMALIZATION_NAMES = """
    batch_norm group_norm instance_norm layer_norm rms_norm _fused_rms_norm
    _native_batch_norm_legit_no_training
    native_group_norm native_layer_norm prelu"""
_NORMALIZATIONS = frozenset(_NORMALIZATION_NAMES.split())
_REASONS = {
    **dict.fromkeys(
        ("add", "sub", "subtract", "rsub"),
        "it is added to a value that depends on the input, not multiplied with it",
    ),
    **dict.fromkeys(
        ("mul", "multiply", "div", "divide", "true_divide"),
        "it is scaled element by element by a value that depends on the input, so it is not constant",
    ),
    **dict.fromkeys(
        ("index", "_unsafe_index", "index_select", "gather", "take", "take_along_dim"),
        "it is looked up by an index that depends on the input, other than by an embedding",
    ),
    "scaled_dot_product_attention": "it takes part in attention as a learned query, key or value",
}


def unsupported_parameters(
    flow: Dataflow, handled: Iterable[Node], refused: Mapping[Node, str]
) -> list[UnsupportedWeight]:
    """Parameters with two axes or more that belong to no unit.

    Vectors (biases, scales: at most one axis is longer than 1) and the parameters of norms are not weights to
    quantize and are not listed, unless they stand for a weight (``refused``).

    Args:
        flow: The graph.
        handled: Parameters of units.
        refused: Parameter -> reason, where it is known already.
    """
    done = set(handled)
    found = []
    for node in flow.stored:
        tensor = flow.tensor(node)
        if node in done or str(node.target) not in flow.model.parameters:
            continue
        if sum(size > 1 for size in tensor.shape) < 2 and node not in refused:
            continue
        operator, reason = _first_use(flow, node)
        if operator in _NORMALIZATIONS:
            continue
        if not tensor.is_floating_point():
            reason = f"its type is {str(tensor.dtype).removeprefix('torch.')}, not a floating-point one"
        found.append(
            UnsupportedWeight(
                name=flow.qualified_name(node),
                operator=operator,
                shape=tuple(tensor.shape),
                weights=tensor.numel(),
                reason=refused.get(node, reason),
            )
        )
    return found


def unsupported_buffers(flow: Dataflow, sites: Iterable[Site]) -> list[UnsupportedWeight]:
    """Buffers and constants that are multiplied with inputs like weights: fixed kernels and tables."""
    found = {}
    for site in sites:
        if site.root.op != "placeholder" or str(site.root.target) in flow.model.parameters:
            continue
        tensor = flow.tensor(site.root)
        if sum(size > 1 for size in tensor.shape) < 2:
            continue
        found[site.root] = UnsupportedWeight(
            name=flow.qualified_name(site.root),
            operator=site.operator,
            shape=tuple(tensor.shape),
            weights=math.prod(tensor.shape),
            reason="it is a buffer, not a parameter: a fixed table or kernel",
        )
    return list(found.values())


def _first_use(flow: Dataflow, node: Node) -> tuple[str, str]:
    """The operator that first does more with a parameter than move its elements, and what that means."""
    reached = {node}
    for user in (*flow.constants, *flow.live):
        if not any(source in reached for source in user.all_input_nodes):
            continue
        if root_of(user)[0] is node:
            reached.add(user)
            continue
        name = operator_name(user)
        if not flow.is_live(user):
            return name, f"only values that do not depend on the input are computed from it (by {name})"
        return name, _REASONS.get(name, f"operator {name} does not use it as a weight")
    return "", "the outputs do not depend on it" if len(reached) == 1 else "it is returned as it is"
