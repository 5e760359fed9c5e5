"""Several variants of a weight run side by side: step by step each on its own, or all in one call.

In one call the samples of all variants stand behind each other along axis 0. Values that do not depend on the weight are
repeated where they meet ones that do; sizes that count samples are those of the whole stack. Steps that read the weight
are run for each variant, as are those whose values have their samples elsewhere.

Whether one call is right cannot be told from the graph (an operator may mix samples, or count them in a way that the
declared shapes do not show), and kernels may round otherwise for more samples. So both are run and compared, step by
step, before a step is run in one call alone: see `workers.sensitivity.stacking`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from workers.errors import MeasurementFailed
from workers.graph.dataflow import operator_name, shape_of
from workers.graph.program import Environment, Override, Program, call, changed, computing
from workers.graph.reach import Reach

_ALIGNMENT = 64
"""Bytes: where tensors of their own begin, which kernels may sum in another order than others."""


class Mode(StrEnum):
    """How a stretch of steps is run for several variants."""

    APART = "apart"  # one variant after the other
    TOGETHER = "together"  # each step in one call for all
    COMPARED = "compared"  # each step apart, and together if that is possible, to see what is faster and whether it is equal


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Some of the steps that a unit reaches, by their places among them, and how they are run."""

    mode: Mode
    places: range


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a step takes for all variants, in seconds.

    Args:
        apart: In one call for each.
        together: In one call for all, if their inputs are joined.
        joining: To join the inputs.
        equal: Results are the same bit for bit, and laid out alike.
    """

    apart: float
    together: float
    joining: float
    equal: bool


IMPOSSIBLE = Comparison(apart=0.0, together=0.0, joining=0.0, equal=False)


class Variants:
    """One batch of several variants on its way through the steps that a unit reaches.

    Args:
        program: The model, with a batch of any size.
        reach: Of the unit.
        boundary: The values that the steps read, of the float model.
        overrides: The variants; the same constants changed in each.
        symbols: The model's symbolic sizes for the batch.
        clock: Gives seconds, for comparisons.
    """

    def __init__(  # noqa: PLR0913 - what a pass is made of
        self,
        program: Program,
        reach: Reach,
        boundary: Environment,
        *,
        overrides: Sequence[Override],
        symbols: Mapping[str, int],
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._program = program
        self._reach = reach
        self._overrides = overrides
        self._environments = [dict(boundary) for _ in overrides]
        self._readers = [
            program.reader(environment, override)
            for environment, override in zip(self._environments, overrides, strict=True)
        ]
        self._joined: Environment = {}
        self._one = symbols
        self._all = {
            name: size * len(overrides) if program.model.symbols[name][1] == 0 else size
            for name, size in symbols.items()
        }
        self._clock = clock
        self.comparisons: dict[int, Comparison] = {}
        """By place, of the steps that were run in that mode and see the change through others alone."""

    def run(self, stretches: Sequence[Stretch]) -> Iterator[Environment]:
        """Run all steps.

        Args:
            stretches: All places, in order.

        Yields:
            Per variant an environment with the first output.

        Raises:
            MeasurementFailed: An operator failed; names its node.
        """
        *most, last = stretches
        for stretch in most:
            for _ in self._run(stretch):
                pass
        for environment in self._run(last):
            yield environment
            environment.clear()  # one output at a time

    def _run(self, stretch: Stretch) -> Iterator[Environment]:
        if stretch.mode is Mode.APART:
            for variant, environment in enumerate(self._environments):
                with computing(self._program.device):
                    for place in stretch.places:
                        self._run_apart(place, variant)
                        for node in self._reach.affected.frees[place]:
                            environment.pop(node, None)
                yield environment
            for place in stretch.places:
                self._free(place)
            return
        with computing(self._program.device):
            for place in stretch.places:
                if stretch.mode is Mode.TOGETHER:
                    self._joined[self._node(place)] = self._run_together(place)
                else:
                    self._compare(place)
                self._free(place)
        first = self._program.first_output
        for variant, environment in enumerate(self._environments):
            if first in self._joined:
                self._value(first, variant)
            yield environment

    def _node(self, place: int) -> Node:
        return self._program.steps[self._reach.affected.indices[place]].node

    def _free(self, place: int) -> None:
        for node in self._reach.affected.frees[place]:
            self._joined.pop(node, None)
            for environment in self._environments:
                environment.pop(node, None)

    def _run_apart(self, place: int, variant: int) -> Any:
        index = self._reach.affected.indices[place]
        step, operands = self._program.steps[index], self._overrides[variant].operands.get(index)

        def value(node: Node) -> Any:
            return self._value(node, variant)

        result = call(step, value if operands is None else changed(operands, value))
        self._environments[variant][step.node] = result
        return result

    def _run_together(self, place: int) -> Any:
        return call(self._program.steps[self._reach.affected.indices[place]], self._value_of_all)

    def _compare(self, place: int) -> None:
        started = self._clock()
        results = [self._run_apart(place, variant) for variant in range(len(self._overrides))]
        apart = self._clock() - started
        # What sees the change first-hand is never run in one call, and says nothing of units that do not change it.
        if self._reach.affected.indices[place] not in self._reach.seeds:
            self.comparisons[place] = self._compared(place, results, apart)

    def _compared(self, place: int, results: Sequence[Any], apart: float) -> Comparison:
        """A step in one call for all variants, against their results in one for each."""
        try:
            if not self._has_samples(self._node(place)):
                return IMPOSSIBLE
            started = self._clock()
            for source in self._node(place).all_input_nodes:
                self._value_of_all(source)
            joined = self._clock()
            result = self._run_together(place)
        except MeasurementFailed:
            return IMPOSSIBLE
        return Comparison(
            apart=apart,
            together=self._clock() - joined,
            joining=joined - started,
            equal=_alike(result, results),
        )

    def _value(self, node: Node, variant: int) -> Any:
        """A value as one variant sees it."""
        environment = self._environments[variant]
        if node in self._joined and node not in environment:
            with computing(self._program.device):
                environment[node] = _part(self._joined[node], variant, len(self._environments))
        return self._readers[variant](node)

    def _value_of_all(self, node: Node) -> Any:
        """A value for all variants together."""
        if node in self._joined:
            return self._joined[node]
        values = [self._value(node, variant) for variant in range(len(self._environments))]
        if node not in self._environments[0]:
            return values[0]  # a constant
        if isinstance(values[0], int | float):
            return _size(node, self._all)
        if not isinstance(values[0], Tensor):
            raise _unsuitable(node, "holds several values")
        if self._has_samples(node):
            self._joined[node] = torch.cat(values)
        elif node in self._reach.boundary:
            self._joined[node] = values[0]
        else:
            raise _unsuitable(node, "has no axis of the samples")
        return self._joined[node]

    def _has_samples(self, node: Node) -> bool:
        """Whether a value's samples lie along axis 0, by how its shape grows with them; false if it has none.

        Raises:
            MeasurementFailed: They lie elsewhere, or the value is no tensor.
        """
        if "shape" not in node.meta:
            raise _unsuitable(node, "holds several values")
        one, all_ = shape_of(node, self._one), shape_of(node, self._all)
        grown = [axis for axis, (before, after) in enumerate(zip(one, all_, strict=True)) if before != after]
        if grown and (grown != [0] or all_[0] != len(self._overrides) * one[0]):
            raise _unsuitable(node, "has its samples along other axes")
        return bool(grown)


def narrow_places(program: Program, reach: Reach, symbols: Mapping[str, int], limit_bytes: int) -> range:
    """The longest run of places at which what one variant has computed so far, and still needs, stays within a bound.

    Args:
        program: The model.
        reach: Of a unit.
        symbols: The model's symbolic sizes for the batch.
        limit_bytes: The bound.
    """
    sizes: dict[Node, int] = {}
    best, start = range(0), 0
    for place, (index, frees) in enumerate(zip(reach.affected.indices, reach.affected.frees, strict=True)):
        node = program.steps[index].node
        if "shape" in node.meta:
            sizes[node] = prod(shape_of(node, symbols)) * node.meta["dtype"].itemsize
        if sum(sizes.values()) > limit_bytes:
            start = place + 1
        elif place + 1 - start > len(best):
            best = range(start, place + 1)
        for freed in frees:
            sizes.pop(freed, None)
    return best


def _part(joined: Tensor, variant: int, variants: int) -> Tensor:
    """What belongs to a variant, placed in memory as a tensor of its own would be."""
    part = joined.tensor_split(variants)[variant]
    return part if part.data_ptr() % _ALIGNMENT == 0 else part.clone()


def _alike(joined: Any, results: Sequence[Any]) -> bool:
    """Whether the parts of a value have the bits, the type and the layout of others."""
    if not isinstance(joined, Tensor) or joined.shape[0] != sum(len(result) for result in results):
        return False
    if _strides(joined) != _strides(torch.cat(list(results))):
        return False  # the next step would see another layout than the one it was compared for
    return all(
        part.dtype == result.dtype and _strides(part) == _strides(result) and torch.equal(part, result)
        for part, result in zip(joined.tensor_split(len(results)), results, strict=True)
    )


def _strides(tensor: Tensor) -> list[int]:
    """Strides along axes that have more than one element."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _size(node: Node, symbols: Mapping[str, int]) -> Any:
    """The value of a node that computes a number from sizes."""
    if operator_name(node) == "sym_size":
        source, axis = node.args
        assert isinstance(source, Node)
        assert isinstance(axis, int)
        return shape_of(source, symbols)[axis]
    if "shape" in node.meta or node.op != "call_function":
        raise _unsuitable(node, "is a number that depends on the data")
    return node.target(*map_arg(node.args, lambda source: _size(source, symbols)))  # type: ignore[operator]


def _unsuitable(node: Node, why: str) -> MeasurementFailed:
    return MeasurementFailed(f"variants cannot be stacked: {node.name} {why}", node.name, why)
