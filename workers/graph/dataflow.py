"""What a graph's values depend on, and how its sizes and arguments are read.

Two kinds of nodes: *live* ones depend on a user input (or on its sizes) and run once per batch; *constant*
ones depend on parameters, buffers and literals only, and are computed once. The result of dropping what the
outputs do not need is the same, and both engines and the unit finder start from it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch.fx import Node

from workers.errors import ModelRefused
from workers.graph.model import GraphModel

Size = int | Callable[[Mapping[str, int]], int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataflow:
    """The nodes that the outputs need, in graph order, by kind.

    Args:
        model: The model.
        inputs: Placeholders of the user inputs, in the order of the signature.
        stored: Placeholders of parameters, buffers and constants.
        constants: ``call_function`` nodes that depend on ``stored`` alone.
        live: ``call_function`` nodes that depend on a user input.
        position: Live node -> index in ``live``.
        outputs: What the output node returns.
    """

    model: GraphModel
    inputs: tuple[Node, ...]
    stored: tuple[Node, ...]
    constants: tuple[Node, ...]
    live: tuple[Node, ...]
    position: dict[Node, int]
    outputs: tuple[Any, ...]

    @classmethod
    def of(cls, model: GraphModel) -> Self:
        """Sort a model's nodes.

        Raises:
            ModelRefused: A node writes to its inputs, so that parts of the graph could not be run again.
        """
        placeholders = {str(node.target): node for node in model.graph.nodes if node.op == "placeholder"}
        inputs = tuple(placeholders[info.name] for info in model.inputs)
        output = next(node for node in model.graph.nodes if node.op == "output")
        needed = ancestors(output)
        depends = set(inputs)
        constants: list[Node] = []
        live: list[Node] = []
        for node in model.graph.nodes:
            if node.op != "call_function" or node not in needed:
                continue
            _require_pure(node)
            if any(source in depends for source in node.all_input_nodes):
                depends.add(node)
                live.append(node)
            else:
                constants.append(node)
        return cls(
            model=model,
            inputs=inputs,
            stored=tuple(node for name, node in placeholders.items() if name in model.tensors),
            constants=tuple(constants),
            live=tuple(live),
            position={node: index for index, node in enumerate(live)},
            outputs=tuple(output.args[0]),
        )

    def is_live(self, node: Node) -> bool:
        """Whether a node's value depends on a user input."""
        return node in self.position or node in self.inputs

    def tensor(self, node: Node) -> torch.Tensor:
        """The tensor behind a placeholder of ``stored``."""
        return self.model.tensors[str(node.target)]

    def qualified_name(self, node: Node) -> str:
        """The qualified name behind a placeholder of ``stored``."""
        return self.model.qualified_names[str(node.target)]


def ancestors(output: Node) -> set[Node]:
    """Everything a node's value needs, itself included."""
    found = {output}
    pending = [output]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                pending.append(source)
    return found


def _require_pure(node: Node) -> None:
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        raise ModelRefused(
            f"node {node.name!r} ({operator_name(node)}) writes to its input",
            node.name,
            str(node.target),
            "operators without side effects",
            {"rule": "in-place-operator"},
        )


def operator_name(node: Node) -> str:
    """Name of the operator of a ``call_function`` node without name space and overload, e.g. ``conv2d``."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return str(schema.name).split("::")[-1]
    return str(getattr(node.target, "__name__", node.target))


@cache
def _argument_names(target: Any) -> tuple[tuple[str, bool, Any], ...]:
    return tuple(
        (argument.name, bool(argument.kwarg_only), argument.default_value)
        for argument in target._schema.arguments  # noqa: SLF001 - the only way to an overload's signature
    )


def bind(node: Node) -> dict[str, Any]:
    """Arguments of an aten node by the schema's names, defaults filled in."""
    positional = iter(node.args)
    bound: dict[str, Any] = {}
    for name, keyword_only, default in _argument_names(node.target):
        value = default if keyword_only else next(positional, default)
        bound[name] = node.kwargs.get(name, value)
    return bound


def shape_of(node: Node, symbols: Mapping[str, int]) -> tuple[int, ...]:
    """Declared shape of a tensor node, symbolic sizes evaluated.

    Args:
        node: A node with ``meta["shape"]``.
        symbols: Value of each symbolic size.
    """
    return tuple(_evaluate(size, symbols) for size in node.meta["shape"])


def _evaluate(size: Size, symbols: Mapping[str, int]) -> int:
    return int(size(symbols)) if callable(size) else int(size)


def one_sample(model: GraphModel) -> dict[str, int]:
    """Symbolic sizes for one sample: 1 for the batch, for the rest the smallest power of two that suits the graph.

    A symbolic length is 1 as a rule (so that multiply-accumulates are counted per token). Strided layers need
    larger ones: at less, some declared size would vanish.
    """
    batch = {name: 1 for name, (_, axis) in model.symbols.items() if axis == 0}
    others = model.symbols.keys() - batch.keys()
    choices = [batch | dict.fromkeys(others, 1 << power) for power in (range(12) if others else (0,))]
    return min(choices, key=lambda symbols: _vanishing(model, symbols))


def _vanishing(model: GraphModel, symbols: Mapping[str, int]) -> int:
    """How many tensors have no elements at these sizes."""
    return sum(
        any(size < 1 for size in shape_of(node, symbols))
        for node in model.graph.nodes
        if "shape" in node.meta
    )


def depends_on(targets: Iterable[Node], sources: Iterable[Node]) -> set[Node]:
    """Those of ``targets`` (in graph order) that are computed from ``sources``; without ``sources`` themselves."""
    reached = set(sources)
    found: set[Node] = set()
    for node in targets:
        if node not in reached and any(source in reached for source in node.all_input_nodes):
            reached.add(node)
            found.add(node)
    return found
