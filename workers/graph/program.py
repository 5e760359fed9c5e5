"""Execution of a graph, whole or in part.

A program is a list of steps over an *environment*, the values that are still needed. Running steps ``[i, j)``
turns the environment of cut ``i`` into that of cut ``j``; copying the environment (not the tensors in it:
steps never write to their inputs) forks the computation. So the float prefix of a model is computed once for
all the variants of a weight, and only what follows its first use is run again.

On a CPU the kernels of two-dimensional convolutions are stored with their channels last, and activations take
that layout over: EfficientNet-Lite0 takes 12 instead of 18 ms of CPU time per image (torch 2.13, batches of
16). Results differ from the plain layout's by rounding only. An exported ``view`` may not fit the layout, so
that it is run as ``reshape``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate, map_arg

from workers.errors import MeasurementFailed, ModelRefused
from workers.graph.dataflow import Dataflow, bind, depends_on, operator_name
from workers.graph.model import GraphModel

Environment = dict[Node, Any]
Operands = Mapping[int, Mapping[Node, Callable[[Any], Any]]]
"""Step index -> node it reads -> what the step sees, given the node's value. Other steps see the value itself."""


@dataclass(frozen=True, kw_only=True)
class Override:
    """Constants and operands with other values than the model's, and the first step that sees one.

    Args:
        values: Constant node -> the value to use.
        operands: Values that single steps see changed.
        first_step: Index of the first step that reads one of them; the number of steps if none does.
    """

    values: dict[Node, Any] = field(default_factory=dict)
    operands: Operands = field(default_factory=dict)
    first_step: int = 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One live node, ready to be called.

    Args:
        node: The node.
        target: What to call.
        args: Positional arguments, nodes in the place of values.
        kwargs: Keyword arguments, likewise.
        frees: Nodes whose values no later step reads.
    """

    node: Node
    target: Callable[..., Any]
    args: Any
    kwargs: Any
    frees: tuple[Node, ...]

    def call(self, value: Callable[[Node], Any]) -> Any:
        """The step's value.

        Args:
            value: Gives the values of the nodes it reads.
        """
        return self.target(*map_arg(self.args, value), **map_arg(self.kwargs, value))


NO_OVERRIDE = Override()
_CONVOLUTIONS = ("conv2d", "conv_transpose2d", "convolution")


class Program:
    """A model made ready to run on one device.

    Args:
        model: The model; its tensors are used in place on the CPU, copied once to other devices.
        device: Where to compute.

    Raises:
        ModelRefused: The graph writes to its inputs, or a constant part of it cannot be computed.
    """

    def __init__(self, model: GraphModel, device: torch.device | str = "cpu") -> None:
        self.model = model
        self.device = torch.device(device)
        self._flow = Dataflow.of(model)
        live = enumerate(self._flow.live)
        last_use = {source: index for index, node in live for source in node.all_input_nodes}
        kept = {node for node in self._flow.outputs if isinstance(node, Node)}
        frees: dict[int, list[Node]] = {}
        for node, index in last_use.items():
            if self._flow.is_live(node) and node not in kept:
                frees.setdefault(index, []).append(node)
        self._steps = tuple(
            self._step(node, tuple(frees.get(index, ()))) for index, node in enumerate(self._flow.live)
        )
        self._readers = self._find_readers()
        self._constants: dict[Node, Any] = dict(zip(self._flow.stored, self._stored(), strict=True))
        # Not in inference mode: these tensors may take part in computations with gradients.
        with computing(self.device, gradients=torch.no_grad()):
            for node in self._flow.constants:
                self._compute(node, self._constants)
        self._kernels = self._find_kernels() if self.device.type == "cpu" else frozenset()
        self._lay_out(self._constants)

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._steps)

    @property
    def steps(self) -> tuple[Step, ...]:
        """What `advance` runs."""
        return self._steps

    @property
    def first_output(self) -> Any:
        """The node of the model's first output (or a number)."""
        return self._flow.outputs[0]

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The placeholders of the user inputs."""
        return self._flow.inputs

    def environment(self, inputs: Sequence[Tensor]) -> Environment:
        """The environment before the first step.

        Args:
            inputs: One tensor per user input, in the order of the signature, samples along axis 0.
        """
        moved = [tensor.to(self.device) for tensor in inputs]
        return dict(zip(self._flow.inputs, moved, strict=True))

    def advance(
        self, environment: Environment, start: int, stop: int, override: Override = NO_OVERRIDE
    ) -> None:
        """Run steps ``[start, stop)`` on an environment of cut ``start``, dropping values after their last use.

        Raises:
            MeasurementFailed: An operator failed, or an override of its operands did; names its node.
        """
        value = self.reader(environment, override)
        with computing(self.device):
            for index, step in enumerate(self._steps[start:stop], start):
                operands = override.operands.get(index)
                environment[step.node] = call(step, value if operands is None else changed(operands, value))
                for node in step.frees:
                    environment.pop(node, None)

    def advance_with(
        self,
        environment: Environment,
        run: Callable[[Step, Callable[[Node], Any]], Any],
        override: Override = NO_OVERRIDE,
    ) -> None:
        """Run all steps with gradients enabled, each through a function that may look at it.

        Args:
            environment: Of the cut before the first step.
            run: Gives a step's value; is handed the step and the values of the nodes it reads.
            override: Constants to use in place of the model's.

        Raises:
            MeasurementFailed: An operator failed; names its node.
        """
        value = self.reader(environment, override)
        with computing(self.device, gradients=torch.enable_grad()):
            for step in self._steps:
                try:
                    environment[step.node] = run(step, value)
                except MeasurementFailed:
                    raise
                except Exception as error:
                    raise _failure(step.node, error) from error
                for node in step.frees:
                    environment.pop(node, None)

    def reader(self, environment: Environment, override: Override = NO_OVERRIDE) -> Callable[[Node], Any]:
        """Gives the values that steps read: the environment's, else the override's, else the model's."""
        values = {**self._constants, **override.values} if override.values else self._constants

        def value(node: Node) -> Any:
            return environment[node] if node in environment else values[node]

        return value

    def outputs(self, environment: Environment, override: Override = NO_OVERRIDE) -> tuple[Any, ...]:
        """The model's outputs from an environment after the last step."""
        return tuple(
            environment.get(out, override.values.get(out, self._constants.get(out)))
            if isinstance(out, Node)
            else out
            for out in self._flow.outputs
        )

    def run(self, inputs: Sequence[Tensor], override: Override = NO_OVERRIDE) -> tuple[Any, ...]:
        """The model's outputs for one batch, from beginning to end."""
        environment = self.environment(inputs)
        self.advance(environment, 0, len(self), override)
        return self.outputs(environment, override)

    def constant(self, node: Node) -> Tensor:
        """The value of a constant node, on the program's device."""
        value = self.constant_value(node)
        assert isinstance(value, Tensor)
        return value

    def constant_value(self, node: Node) -> Any:
        """The value of a constant node, tensor or not."""
        return self._constants[node]

    def override(
        self,
        changes: Mapping[Node, Tensor],
        operands: Operands | None = None,
        *,
        gradients: bool = False,
    ) -> Override:
        """Replace constants; everything computed from them is computed again.

        Args:
            changes: Constant node -> its new value. A node among them is taken as given even if it is computed
                from another one.
            operands: What single steps are to see in place of values they read.
            gradients: Whether what is computed again can be differentiated by ``changes``.

        Returns:
            The override for `advance`, `outputs` and `run`.
        """
        values: dict[Node, Any] = dict(changes)
        affected = depends_on(self._flow.constants, changes)
        with computing(self.device, gradients=torch.enable_grad() if gradients else None):
            for node in self._flow.constants:
                if node in affected and node not in changes:
                    self._compute(node, values)
            self._lay_out(values)
        operands = operands or {}
        first_step = min((self.first_step(changes), *operands))
        return Override(values=values, operands=operands, first_step=first_step)

    def replaced(self, values: Mapping[Node, Any]) -> "Program":
        """The same model with other constants for good; everything else is shared.

        Args:
            values: Of an `Override`: constant node -> its new value, with all that is computed from it.
        """
        program = copy(self)
        # What is made in inference mode can have no part in computations with gradients; a copy can.
        plain = {
            node: value.clone() if isinstance(value, Tensor) and value.is_inference() else value
            for node, value in values.items()
        }
        program._constants = {**self._constants, **plain}  # noqa: SLF001 - of the same class
        return program

    def first_step(self, nodes: Iterable[Node]) -> int:
        """Index of the first step whose result changes when these constants do."""
        return min(self.reading_steps(nodes), default=len(self))

    def reading_steps(self, nodes: Iterable[Node]) -> set[int]:
        """Indices of the steps that read these constants, or others computed from them."""
        given = set(nodes)
        given |= depends_on(self._flow.constants, given)
        return {index for node in given for index in self._readers.get(node, ())}

    def _step(self, node: Node, frees: tuple[Node, ...]) -> Step:
        return Step(
            node=node,
            target=_target(node),
            args=self._on_device(node.args),
            kwargs=self._on_device(node.kwargs),
            frees=frees,
        )

    def _on_device(self, arguments: Any) -> Any:
        """Arguments with the exporter's device replaced by ours."""
        return map_aggregate(
            arguments, lambda value: self.device if isinstance(value, torch.device) else value
        )

    def _find_readers(self) -> dict[Node, list[int]]:
        """Constant node -> the steps that read it."""
        readers: dict[Node, list[int]] = {}
        for index, step in enumerate(self._steps):
            for source in step.node.all_input_nodes:
                if not self._flow.is_live(source):
                    readers.setdefault(source, []).append(index)
        return readers

    def _stored(self) -> Iterator[Tensor]:
        """The stored tensors on the device; tied ones move together."""
        moved: dict[tuple[Any, ...], Tensor] = {}
        for node in self._flow.stored:
            tensor = self._flow.tensor(node).detach()
            key = (
                tensor.untyped_storage().data_ptr(),
                tensor.storage_offset(),
                tensor.shape,
                tensor.stride(),
                tensor.dtype,
            )
            if key not in moved:
                moved[key] = tensor.to(self.device)
            yield moved[key]

    def _find_kernels(self) -> frozenset[Node]:
        """The constants that are kernels of two-dimensional convolutions."""
        kernels = {
            bind(step.node)["weight"] for step in self._steps if operator_name(step.node) in _CONVOLUTIONS
        }
        return frozenset(
            node for node in kernels if node in self._constants and self.constant(node).dim() == 4
        )

    def _lay_out(self, values: dict[Node, Any]) -> None:
        for node in self._kernels & values.keys():
            values[node] = values[node].contiguous(memory_format=torch.channels_last)

    def _compute(self, node: Node, values: dict[Node, Any]) -> None:
        """Compute a constant node into ``values``, reading what is not there from the model's own constants."""

        def value(source: Node) -> Any:
            return values[source] if source in values else self._constants[source]

        try:
            values[node] = _target(node)(
                *map_arg(self._on_device(node.args), value), **map_arg(self._on_device(node.kwargs), value)
            )
        except Exception as error:
            raise ModelRefused(
                f"the constant {node.name!r} ({operator_name(node)}) cannot be computed: {error}",
                node.name,
                operator_name(node),
                "a graph whose constants can be computed",
                {"rule": "constant"},
            ) from error


def call(step: Step, value: Callable[[Node], Any]) -> Any:
    """Run one step.

    Args:
        step: Which.
        value: Gives the values of the nodes it reads.

    Raises:
        MeasurementFailed: The operator failed; names its node.
    """
    try:
        return step.call(value)
    except MeasurementFailed:
        raise
    except Exception as error:
        raise _failure(step.node, error) from error


@contextmanager
def computing(
    device: torch.device, *, gradients: AbstractContextManager[Any] | None = None
) -> Iterator[None]:
    """No gradients unless asked for, no automatic casts: what runs is what the graph says."""
    with ExitStack() as stack:
        stack.enter_context(gradients or torch.inference_mode())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type != "cpu":
            stack.enter_context(device)  # graphs do not say where new tensors are made
        yield


def changed(
    operands: Mapping[Node, Callable[[Any], Any]], value: Callable[[Node], Any]
) -> Callable[[Node], Any]:
    """Gives values as a step with overridden operands sees them."""

    def read(node: Node) -> Any:
        return operands[node](value(node)) if node in operands else value(node)

    return read


def _target(node: Node) -> Callable[..., Any]:
    if node.target is torch.ops.aten.view.default:
        return torch.ops.aten.reshape.default
    assert callable(node.target)
    return node.target


def _failure(node: Node, error: Exception) -> MeasurementFailed:
    return MeasurementFailed(
        f"operator {operator_name(node)} (node {node.name!r}) failed: {error}", node.name, operator_name(node)
    )
