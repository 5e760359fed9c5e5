"""Which of a model's outputs is compared."""

from dataclasses import replace

from torch.fx import Graph, Node

from workers.errors import RequestRefused
from workers.graph.model import GraphModel


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
    fitting = [node for node in outputs if _fits(model, node)]
    if wanted is None:
        chosen = fitting[0] if fitting else None
    else:
        named = {node.name: node for node in outputs} | {str(i): node for i, node in enumerate(outputs)}
        chosen = named.get(wanted)
        if chosen not in fitting:
            raise RequestRefused(
                f"the model has no output {wanted!r}"
                if chosen is None
                else f"the output {wanted!r} is no floating-point tensor whose axis 0 is the samples'",
                "output",
                wanted,
                [f"{outputs.index(node)} or {node.name}" for node in fitting],
            )
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
