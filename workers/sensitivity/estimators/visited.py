"""A visited step that can be run again with other constants."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from workers.graph.dataflow import bind, operator_name
from workers.graph.residency import tensors_in
from workers.sensitivity.estimators.layout import SampleLayout
from workers.sensitivity.estimators.precision import Precision
from workers.sensitivity.estimators.tape import Visit

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_ADDED = {
    **dict.fromkeys(("linear", "bilinear", "convolution", *CONVOLUTIONS), "bias"),
    **dict.fromkeys(("addmm", "addbmm", "baddbmm"), "self"),
    **dict.fromkeys(("embedding", "mm", "bmm", "matmul", "einsum"), None),
}
"""Operators that are linear in each operand, but for a term that is added."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VisitedStep:
    """A visited step with what belongs to it.

    Args:
        visit: The step, the values it reads, its cotangents.
        constant: Gives the float values of constants.
        layouts: Number of an output tensor -> where its samples lie.
        samples: How many samples were fed, fillers included.
        precision: Of the forward pass.
    """

    visit: Visit
    constant: Callable[[Node], Any]
    layouts: dict[int, SampleLayout]
    samples: int
    precision: Precision

    @property
    def operator(self) -> str:
        """Name of its operator."""
        return operator_name(self.visit.step.node)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Its arguments by name, nodes in the place of values; empty for what is not an operator of torch."""
        node = self.visit.step.node
        return bind(node) if hasattr(node.target, "_schema") else {}

    def value(self, node: Node) -> Any:
        """The float value of a node it reads."""
        return self.visit.values[node] if node in self.visit.values else self.constant(node)

    def outputs_under(self, changes: dict[Node, Tensor]) -> Iterator[list[Tensor]]:
        """What changes of constants do to its output, one change after the other.

        Args:
            changes: Constant -> ``[K, *shape]``.

        Yields:
            The changes of its output tensors (those that are not floating point come as they are).
        """
        count = len(next(iter(changes.values())))
        if self._is_linear(changes):
            added = self.arguments.get(_ADDED[self.operator] or "")
            base: list[Tensor] | None = None
            fixed = {added: torch.zeros_like(self.value(added))} if isinstance(added, Node) else {}
        else:
            base, fixed = self._call({}), {}
        for index in range(count):
            replaced = dict(fixed)
            for node, change in changes.items():
                constant = self.constant(node)
                value = change[index] if base is None else constant + change[index]
                replaced[node] = _laid_out_like(constant, value.to(constant.dtype))
            output = self._call(replaced)
            if base is not None:
                output = [
                    new - old if old.is_floating_point() else new
                    for new, old in zip(output, base, strict=True)
                ]
            yield output

    def _is_linear(self, changes: dict[Node, Tensor]) -> bool:
        """Whether the step is an operator that is linear in the one constant that changes."""
        if len(changes) > 1 or self.operator not in _ADDED:
            return False
        (changed,) = changes
        return _occurrences(changed, self.arguments) == 1 and all(
            self.arguments.get(name) is not changed
            for name in ("self", "bias")
            if name == _ADDED[self.operator]
        )

    def _call(self, replaced: dict[Node, Any]) -> list[Tensor]:
        result = self.precision.call(
            self.visit.step, lambda node: replaced[node] if node in replaced else self.value(node)
        )
        return list(tensors_in(result))


def _occurrences(node: Node, arguments: Any) -> int:
    if isinstance(arguments, dict):
        return sum(_occurrences(node, value) for value in arguments.values())
    if isinstance(arguments, list | tuple):
        return sum(_occurrences(node, value) for value in arguments)
    return int(arguments is node)


def _laid_out_like(constant: Tensor, value: Tensor) -> Tensor:
    """The value with its channels last where the constant's are, so that the same kernels run."""
    if constant.dim() == 4 and constant.is_contiguous(memory_format=torch.channels_last):
        return value.contiguous(memory_format=torch.channels_last)
    return value
