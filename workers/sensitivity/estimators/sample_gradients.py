"""Each sample's whole gradient by each unit's weight, one unit and sample at a time.

For scores that need the gradients themselves, squared element by element; probes never make them. One walk per
sample: where the model's batch is not fixed, a sample is fed alone, else a batch is walked back once per sample of
it, with the other samples' cotangents 0.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from workers.graph.dataflow import Dataflow
from workers.graph.residency import tensors_in
from workers.graph.units import Unit
from workers.sensitivity.estimators.entries import Entries
from workers.sensitivity.estimators.feeds import Feed, Layouts
from workers.sensitivity.estimators.headway import Progress
from workers.sensitivity.estimators.layout import with_batch_stride
from workers.sensitivity.estimators.precision import Precision
from workers.sensitivity.estimators.tape import Plan, Tape, Visit
from workers.sensitivity.estimators.uses import Uses
from workers.sensitivity.exact import Setup

Starts = Callable[[Tensor, Feed], Tensor]
"""Where walks start: the outputs of a feed's samples that count -> their cotangents."""


class SampleGradients:
    """Walks over all samples.

    Args:
        setup: What to work on.
        entries: Whose units.
        tell: Told how many samples are done, and of how many.
    """

    def __init__(self, setup: Setup, entries: Entries, tell: Progress) -> None:
        self._setup = setup
        self._tell = tell
        self._units = entries.units
        self._flow = Dataflow.of(setup.program.model)
        self._uses = Uses.of(self._flow, entries.units)
        self._done_at = self._uses.done_at()
        self._plan = Plan(
            program=setup.program,
            flow=self._flow,
            active=self._uses.active,
            wanted=self._uses.at,
            through=False,
            precision=Precision(device=setup.program.device),
        )

    def each(self, start: Starts, see: Callable[[int, int, Tensor], None]) -> None:
        """Compute the gradients.

        Args:
            start: Where walks start.
            see: Is handed the number of the unit, the number of the sample (from 0), and the gradient: the weight's
                shape.

        Raises:
            MeasurementFailed: An operator failed or has no derivative.
        """
        batches, output_node = self._setup.batches, self._flow.outputs[0]
        if output_node not in self._uses.active:
            return
        for batch in range(len(batches)):
            for feed in Layouts(None).feeds(batches, batch):
                tape = Tape(self._plan, feed.inputs)
                output = tape.outputs[0]
                cotangent = start(output[: feed.kept], feed).to(output.dtype)
                starts = []
                for row in range(feed.kept):
                    alone = torch.zeros_like(output)
                    alone[row] = cotangent[row]
                    starts.append({(output_node, 0): alone})
                self._walk(tape, starts, feed, see)
                self._tell(feed.samples.stop, len(batches.samples))

    def _walk(
        self,
        tape: Tape,
        starts: list[dict[tuple[Node, int], Tensor]],
        feed: Feed,
        see: Callable[[int, int, Tensor], None],
    ) -> None:
        waiting: dict[tuple[int, int], dict[Node, Tensor]] = defaultdict(dict)

        def visit(visit: Visit) -> None:
            for use in self._uses.at[visit.step.node]:
                for row, outputs in enumerate(visit.outputs):
                    sums = waiting[use.unit, row]
                    for operand, gradient in self._by_operands(visit, use.operands, outputs).items():
                        sums[operand] = sums[operand] + gradient if operand in sums else gradient
            for number in self._done_at.get(visit.step.node, ()):
                for row in range(len(starts)):
                    finish((number, row))

        def finish(key: tuple[int, int]) -> None:
            number, row = key
            see(number, feed.samples.start + row, self._by_weight(self._units[number], waiting.pop(key)))

        tape.backward(starts, visit)
        for key in list(waiting):  # a unit whose first use does not reach the output
            finish(key)

    def _by_operands(
        self, visit: Visit, operands: tuple[Node, ...], cotangents: dict[int, Tensor]
    ) -> dict[Node, Tensor]:
        """One step's vector-Jacobian product by the constants it reads."""
        program = self._setup.program
        with torch.enable_grad():
            leaves = {node: program.constant(node).detach().requires_grad_() for node in operands}
            values = {node: _restrided(value) for node, value in visit.values.items()} | leaves
            result = visit.step.call(lambda node: values[node] if node in values else program.constant(node))
        tensors = list(tensors_in(result))
        found = torch.autograd.grad(
            [tensors[number] for number in cotangents], list(leaves.values()), list(cotangents.values())
        )
        return dict(zip(leaves, found, strict=True))

    def _by_weight(self, unit: Unit, by_operands: dict[Node, Tensor]) -> Tensor:
        """Gradients by constants, taken back to the unit's tensor that they are computed from."""
        program = self._setup.program
        with torch.enable_grad():
            weight = program.constant(unit.node).detach().requires_grad_()
            values = program.override(unit.changes(weight), gradients=True).values
        (found,) = torch.autograd.grad(
            [values[node] for node in by_operands], [weight], list(by_operands.values())
        )
        return found


def _restrided(value: Any) -> Any:
    return with_batch_stride(value) if isinstance(value, Tensor) else value
