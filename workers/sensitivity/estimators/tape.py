"""Reverse-mode differentiation of a program, step by step and for several cotangents at once.

Each step is recorded by itself: the values it reads enter it through a `_Boundary`, so that its little graph
ends there. The backward walk then asks autograd for one step's vector-Jacobian products after the other, for
all cotangents, and drops the step's record. Three things come of that which one call of ``backward`` does not
give: what a unit needs (its inputs, its outputs' cotangents) is there once and freed at once; the forward
pass is paid once for all cotangents; and whoever visits a step sees all cotangents together.
Weights need no gradients, so that a backward walk is that of the activations alone.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.fx import Node

from workers.errors import MeasurementFailed
from workers.graph.dataflow import Dataflow, operator_name
from workers.graph.program import Program, Step, changed
from workers.graph.residency import tensors_in
from workers.quant.activation import ActivationQuantizer
from workers.sensitivity.estimators.precision import Precision

Place = tuple[Node, int]
"""A tensor: the node whose value it is (or is in), and its number among the value's tensors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Visit:
    """One step, as the backward walk sees it.

    Args:
        step: The step.
        values: Values of live nodes it reads, as it sees them: of all if it is wanted.
        outputs: Per cotangent: number of the output tensor -> its cotangent; those that are 0 may be left out.
        sources: Per cotangent: tensor it reads -> what comes back through this step alone, to what it sees of it.
        before: Values of nodes that it sees quantized, before that.
    """

    step: Step
    values: dict[Node, Any]
    outputs: list[dict[int, Tensor]]
    sources: list[dict[Place, Tensor]]
    before: dict[Node, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Record:
    """What is kept of a step: edges of its tensors (``None``: depends on no source), edges of its sources, values.

    Quantized inputs are made again from the values when they are needed: many steps may read one tensor.
    """

    step: Step
    outputs: dict[int, GradientEdge | None]
    sources: dict[Place, GradientEdge]
    values: dict[Node, Any]
    quantizers: Mapping[Node, ActivationQuantizer]

    def visit(self, outputs: list[dict[int, Tensor]], sources: list[dict[Place, Tensor]]) -> Visit:
        """The step as the walk sees it."""
        before = {source: self.values[source] for source in self.quantizers}
        seen = {source: quantizer(before[source]) for source, quantizer in self.quantizers.items()}
        return Visit(
            step=self.step, values=self.values | seen, before=before, outputs=outputs, sources=sources
        )

    def through_quantizers(self, back: list[dict[Place, Tensor]]) -> list[dict[Place, Tensor]]:
        """Per cotangent what comes back to the sources themselves, given what comes back to what the step sees of them."""
        if not self.quantizers:
            return back
        inside = {
            source: quantizer.inside(self.values[source]) for source, quantizer in self.quantizers.items()
        }
        return [
            {
                place: found * inside[place[0]] if place[0] in inside else found
                for place, found in each.items()
            }
            for each in back
        ]


class _Boundary(torch.autograd.Function):
    """Identity, where a step's graph ends. Unlike a leaf, it does not keep its value alive."""

    @staticmethod
    def forward(_: Any, anchor: Tensor, value: Tensor) -> Tensor:  # noqa: ARG004 - makes the result ask for gradients
        return value.view_as(value)

    @staticmethod
    def backward(_: Any, *cotangents: Any) -> Any:
        return None, cotangents[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What walks over a model need and look at.

    Args:
        program: The model.
        flow: Its graph.
        active: Steps whose cotangents are wanted.
        wanted: Steps that will be visited, with all that they read.
        kept: Further steps that will be visited: step -> what of that it reads.
        through: Whether visits want the cotangents of all that their steps read, or of active steps only.
        precision: To compute in.
        quantizers: Step -> node it reads -> what quantizes it there; derivatives are passed straight through.
    """

    program: Program
    flow: Dataflow
    active: frozenset[Node]
    wanted: Collection[Node]
    through: bool
    precision: Precision
    kept: Mapping[Node, frozenset[Node]] = field(default_factory=dict)
    quantizers: Mapping[Node, Mapping[Node, ActivationQuantizer]] = field(default_factory=dict)

    def visits(self, node: Node) -> bool:
        """Whether a step will be visited."""
        return node in self.wanted or node in self.kept


class Tape:
    """A forward pass, ready to be walked back once.

    Args:
        plan: What to record.
        inputs: One tensor per user input.

    Attributes:
        outputs: Of the model.
        computed_bytes: What its steps computed, views apart: about what it keeps.

    Raises:
        MeasurementFailed: An operator failed.
    """

    def __init__(self, plan: Plan, inputs: Sequence[Tensor]) -> None:
        self._plan = plan
        self._anchor = torch.zeros((), device=plan.program.device, requires_grad=True)
        self._records: list[_Record] = []
        self.computed_bytes = 0
        environment = plan.program.environment(inputs)
        plan.program.advance_with(environment, self._run)
        self.outputs = plan.program.outputs(environment)

    def backward(self, cotangents: Iterable[Mapping[Place, Tensor]], visit: Callable[[Visit], None]) -> None:
        """Walk back, from the last step to the first; the tape is used up.

        Args:
            cotangents: Per walk the cotangents it starts from; not kept for longer than they are needed.
            visit: Called for each wanted step that has any, and for all kept ones, with gradients off.

        Raises:
            MeasurementFailed: An operator has no derivative.
        """
        pending = [dict(given) for given in cotangents]
        with torch.no_grad():
            while self._records:
                record = self._records.pop()
                node = record.step.node
                own = [
                    {i: waiting.pop((node, i)) for i in record.outputs if (node, i) in waiting}
                    for waiting in pending
                ]
                if not any(own):
                    if node in self._plan.kept:
                        visit(record.visit(own, [{} for _ in own]))
                    continue
                back = [_products(record, each) for each in own]
                for waiting, found in zip(pending, record.through_quantizers(back), strict=True):
                    for place, cotangent in found.items():
                        if place[0] in self._plan.active:
                            waiting[place] = waiting[place] + cotangent if place in waiting else cotangent
                if self._plan.visits(node):
                    visit(record.visit(own, back))

    def _run(self, step: Step, value: Callable[[Node], Any]) -> Any:
        wanted = step.node in self._plan.wanted
        quantizers = self._plan.quantizers.get(step.node, {})
        seen = changed(quantizers, value) if quantizers else value
        read = [source for source in step.node.all_input_nodes if self._plan.flow.is_live(source)]
        bound: dict[Node, Any] = {}
        edges: dict[Place, GradientEdge] = {}
        for source in read:
            if source in self._plan.active or (wanted and self._plan.through):
                bound[source] = self._bind(source, seen(source), edges)
        result = self._plan.precision.call(
            step, lambda source: bound[source] if source in bound else seen(source)
        )
        self.computed_bytes += _new_bytes(result, [value(source) for source in read])
        if edges or self._plan.visits(step.node):
            outputs = {
                number: get_gradient_edge(tensor) if tensor.requires_grad else None
                for number, tensor in enumerate(tensors_in(result))
            }
            looked_at = read if wanted else self._plan.kept.get(step.node, frozenset()).intersection(read)
            values = {source: value(source) for source in (*looked_at, *quantizers)}
            self._records.append(
                _Record(step=step, outputs=outputs, sources=edges, values=values, quantizers=quantizers)
            )
        return _map_tensors(result, Tensor.detach)

    def _bind(self, source: Node, value: Any, edges: dict[Place, GradientEdge]) -> Any:
        """The value of a source with a boundary around each of its tensors; their edges go into ``edges``."""
        numbers = count()

        def bind(tensor: Tensor) -> Tensor:
            number = next(numbers)
            if not (tensor.is_floating_point() or tensor.is_complex()):
                return tensor
            bound: Tensor = _Boundary.apply(self._anchor, tensor)  # type: ignore[no-untyped-call]
            edges[source, number] = get_gradient_edge(bound)
            return bound

        return _map_tensors(value, bind)


def _products(record: _Record, cotangents: dict[int, Tensor]) -> dict[Place, Tensor]:
    """One step's vector-Jacobian product."""
    outputs = [
        (edge, cotangents[i]) for i, edge in record.outputs.items() if edge is not None and i in cotangents
    ]
    if not outputs or not record.sources:
        return {}
    node = record.step.node
    try:
        found = torch.autograd.grad(
            [edge for edge, _ in outputs],
            list(record.sources.values()),
            [cotangent for _, cotangent in outputs],
            retain_graph=True,  # the next cotangent walks it too; it goes with its record
            allow_unused=True,
        )
    except RuntimeError as error:
        raise MeasurementFailed(
            f"no derivative of operator {operator_name(node)} (node {node.name!r}): {error}",
            node.name,
            operator_name(node),
            "operators with a derivative",
        ) from error
    return {place: back for place, back in zip(record.sources, found, strict=True) if back is not None}


def _new_bytes(result: Any, sources: list[Any]) -> int:
    """Memory of a result that is no view of what the step reads."""
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(sources)}
    found = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors_in(result)
    }
    return sum(size for pointer, size in found.items() if pointer not in known)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A value of an environment with a function applied to its tensors, in the order of `tensors_in`."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_map_tensors(element, function) for element in value])
    return value
