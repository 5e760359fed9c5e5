"""One pass for several variants of a weight: their samples stand behind each other along the samples' axis.

Steps that read the weight run once per variant, on the variant's samples, and their results are joined. Steps
behind them run once for all. Values that do not depend on the weight are computed once and repeated where they meet
ones that do; sizes that count samples are those of the whole stack.

Whether that is right cannot be told from the graph in general (an operator may mix samples, or count them in a way
that the declared shapes do not show), and kernels may round otherwise for more samples. So results are to be compared
with plain ones: see `workers.sensitivity.stacking`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from workers.errors import MeasurementFailed
from workers.graph.dataflow import operator_name, shape_of
from workers.graph.program import Environment, Override, Program, Step, call, computing


def stacked_outputs(
    program: Program,
    environment: Environment,
    indices: Sequence[int],
    overrides: Sequence[Override],
    symbols: Mapping[str, int],
) -> list[Tensor]:
    """First outputs of several variants.

    Args:
        program: The model, with a batch of any size.
        environment: What the steps read; used up.
        indices: The steps to run, with all that see a change and lead to the first output, in order.
        overrides: The variants; the same constants changed in each.
        symbols: The model's symbolic sizes for the samples in the environment.

    Returns:
        One tensor per variant.

    Raises:
        MeasurementFailed: The graph does not allow it, or an operator failed.
    """
    stack = _Stack(program, environment, overrides, symbols)
    with computing(program.device):
        for index in indices:
            stack.run(program.steps[index])
        return stack.first_outputs()


class _Stack:
    """Values during a stacked pass: of all variants together where they differ, else as in a plain pass."""

    def __init__(
        self,
        program: Program,
        environment: Environment,
        overrides: Sequence[Override],
        symbols: Mapping[str, int],
    ) -> None:
        self._program = program
        self._values = environment
        self._overrides = overrides
        self._varies: set[Node] = set()
        self._repeated: dict[Node, Tensor] = {}
        self._one = symbols
        batch = {name for name, (_, axis) in program.model.symbols.items() if axis == 0}
        self._all = {
            name: size * len(overrides) if name in batch else size for name, size in self._one.items()
        }

    def run(self, step: Step) -> None:
        """Run one step."""
        node, sources = step.node, step.node.all_input_nodes
        if self._is_size(node):
            self._values[node] = _size(node, self._one)
        elif any(source in self._overrides[0].values for source in sources):
            results = [call(step, self._of(variant)) for variant in range(len(self._overrides))]
            self._values[node] = torch.cat(results, self._require_axis(node))
            self._varies.add(node)
        elif any(source in self._varies for source in sources):
            self._values[node] = call(step, self._of_all)
            self._varies.add(node)
        else:
            self._values[node] = call(step, self._common)
        for freed in step.frees:
            self._values.pop(freed, None)
            self._repeated.pop(freed, None)

    def first_outputs(self) -> list[Tensor]:
        """The parts of the first output that belong to each variant."""
        first = self._program.first_output
        if first not in self._varies:
            raise _unsuitable("the first output", "does not depend on the weight")
        return [self._part(first, variant) for variant in range(len(self._overrides))]

    def _is_size(self, node: Node) -> bool:
        """Whether a node computes a number from sizes."""
        if operator_name(node) == "sym_size":
            return True
        sources = node.all_input_nodes
        return bool(sources) and all(isinstance(self._values.get(s), int | float) for s in sources)

    def _common(self, node: Node) -> Any:
        return self._values[node] if node in self._values else self._program.constant_value(node)

    def _of(self, variant: int) -> Callable[[Node], Any]:
        """Values as one variant sees them."""
        changed = self._overrides[variant].values

        def value(node: Node) -> Any:
            if node in self._varies:
                return self._part(node, variant)
            return changed[node] if node in changed else self._common(node)

        return value

    def _of_all(self, node: Node) -> Any:
        """Values for all variants together."""
        found = self._common(node)
        if node in self._varies or node not in self._values:
            return found
        if isinstance(found, int | float):
            return _size(node, self._all)
        if node not in self._repeated:
            self._repeated[node] = self._repeat(node, found)
        return self._repeated[node]

    def _repeat(self, node: Node, value: Tensor) -> Tensor:
        axis = self._axis(node)
        return value if axis is None else torch.cat([value] * len(self._overrides), axis)

    def _part(self, node: Node, variant: int) -> Tensor:
        """What belongs to one variant."""
        variants = len(self._overrides)
        return cast("Tensor", self._values[node]).tensor_split(variants, self._require_axis(node))[variant]

    def _require_axis(self, node: Node) -> int:
        axis = self._axis(node)
        if axis is None:
            raise _unsuitable(node.name, "has no axis of the samples")
        return axis

    def _axis(self, node: Node) -> int | None:
        """The axis along which a value's samples lie, by how its shape grows with them."""
        if "shape" not in node.meta:
            raise _unsuitable(node.name, "holds several values")
        one, all_ = shape_of(node, self._one), shape_of(node, self._all)
        grown = [axis for axis, (before, after) in enumerate(zip(one, all_, strict=True)) if before != after]
        if not grown:
            return None
        if len(grown) > 1 or all_[grown[0]] != len(self._overrides) * one[grown[0]]:
            raise _unsuitable(node.name, "has its samples along several axes")
        return grown[0]


def _size(node: Node, symbols: Mapping[str, int]) -> Any:
    """The value of a node that computes a number from sizes."""
    if operator_name(node) == "sym_size":
        source, axis = node.args
        assert isinstance(source, Node)
        assert isinstance(axis, int)
        return shape_of(source, symbols)[axis]
    return node.target(*map_arg(node.args, lambda source: _size(source, symbols)))  # type: ignore[operator]


def _unsuitable(name: str, why: str) -> MeasurementFailed:
    return MeasurementFailed(f"variants cannot be stacked: {name} {why}", name, why)
