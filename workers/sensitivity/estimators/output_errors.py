"""Scores from what a candidate does to its own unit's output, the rest of the model seen little or not at all."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from workers.graph.dataflow import Dataflow
from workers.graph.program import Step
from workers.sensitivity.estimators.changes import Changes
from workers.sensitivity.estimators.entries import Entries
from workers.sensitivity.estimators.feeds import Layouts
from workers.sensitivity.estimators.fisher import sign_start
from workers.sensitivity.estimators.precision import Precision
from workers.sensitivity.estimators.probe import ProbeOptions
from workers.sensitivity.estimators.tape import Plan, Tape, Visit
from workers.sensitivity.estimators.uses import Uses
from workers.sensitivity.estimators.visited import VisitedStep
from workers.sensitivity.exact import Setup

Weigh = Callable[[Visit, list[Tensor]], float]


def output_error(setup: Setup, entries: Entries, options: ProbeOptions) -> Tensor:
    """Squared error of the unit's own output: ``tr(dW H dW')`` with H the second moments of its input, for a linear layer.

    Args:
        setup: What to work on.
        entries: What to score.
        options: Quantizer and memory for candidates are used.

    Returns:
        ``[entries]``, float64: per sample, summed over positions, channels and uses. Fillers of a fixed batch count
        like the sample that they repeat.

    Raises:
        MeasurementFailed: An operator failed.

    Source:
        The layer-wise objective of Nagel et al. 2020, "Up or down? Adaptive rounding for post-training
        quantization", equation 13, and of Frantar et al. 2022, "GPTQ". Passes: 1, and 1 per candidate.
    """
    scoring = _Scoring(setup, entries, options)

    def run(step: Step, value: Callable[[Node], Any]) -> Any:
        result = step.call(value)
        if step.node in scoring.uses.at:
            values = {n: value(n) for n in step.node.all_input_nodes if scoring.flow.is_live(n)}
            visit = Visit(step=step, values=values, outputs=[], sources=[])
            with torch.no_grad():
                scoring.add(visit, _squares)
        return result

    for batch in range(len(setup.batches)):
        environment = setup.program.environment(setup.batches.inputs_of(batch))
        setup.program.advance_with(environment, run)
        options.tell(batch + 1, len(setup.batches))
    return scoring.result / scoring.samples_fed


def output_hessian(setup: Setup, entries: Entries, options: ProbeOptions) -> Tensor:
    """Squared error of the unit's output, each element weighed by the squared gradient of the model's output by it.

    Args:
        setup: What to work on.
        entries: What to score.
        options: Seed, quantizer, masks and memory for candidates are used.

    Returns:
        ``[entries]``, float64, in the metric's unit: what a probe would say if no two errors of a layer's outputs
        had anything to do with each other.

    Raises:
        MeasurementFailed: An operator failed or has no derivative.

    Source:
        The score of AutoQuantize in NVIDIA's Model Optimizer, a diagonal Gauss-Newton form in the layer's outputs;
        with a probe's gradients (see `workers.sensitivity.estimators.cotangents`). Passes: about 2, and 1 per candidate.
    """
    scoring = _Scoring(setup, entries, options)
    output_node = scoring.flow.outputs[0]
    if output_node not in scoring.uses.active:
        return scoring.result
    plan = Plan(
        program=setup.program,
        flow=scoring.flow,
        active=scoring.uses.active,
        wanted=scoring.uses.at,
        through=False,
        precision=scoring.precision,
    )
    start = sign_start(setup, options, probe=0)
    for batch in range(len(setup.batches)):
        for feed in Layouts({}).feeds(setup.batches, batch):
            tape = Tape(plan, feed.inputs)
            output = tape.outputs[0]
            cotangent = torch.zeros_like(output)
            cotangent[: feed.kept] = start(output[: feed.kept], feed)
            tape.backward([{(output_node, 0): cotangent}], lambda visit: scoring.add(visit, _weighed_squares))
            options.tell(feed.samples.stop, len(setup.batches.samples))
    return scoring.result / len(setup.batches.samples)


def _squares(_: Visit, output: list[Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in output if tensor.is_floating_point())


def _weighed_squares(visit: Visit, output: list[Tensor]) -> float:
    return sum(
        float((output[number] * gradient).double().square().sum())
        for number, gradient in visit.outputs[0].items()
    )


class _Scoring:
    """Sums over steps."""

    def __init__(self, setup: Setup, entries: Entries, options: ProbeOptions) -> None:
        self.flow = Dataflow.of(setup.program.model)
        self.uses = Uses.of(self.flow, entries.units)
        self.result = torch.zeros(entries.count, dtype=torch.float64)
        self.precision = Precision(device=setup.program.device)
        self._setup = setup
        self._entries = entries
        self._changes = Changes(
            program=setup.program,
            units=entries.units,
            candidates=entries.candidates,
            operands=self.uses.operands,
            quantize=options.quantize,
            memory_bytes=options.changes_bytes,
        )

    @property
    def samples_fed(self) -> int:
        """How many samples all batches hold, fillers included."""
        batches = self._setup.batches
        return len(batches) * batches.size if batches.fixed else len(batches.samples)

    def add(self, visit: Visit, weigh: Weigh) -> None:
        """Add what each candidate does to one step's output."""
        step = VisitedStep(
            visit=visit,
            constant=self._setup.program.constant,
            layouts={},
            samples=0,
            precision=self.precision,
        )
        for use in self.uses.at[visit.step.node]:
            for changes in self._changes.of(use.unit):
                rows = self._entries.rows[use.unit][changes.candidates].tolist()
                found = step.outputs_under({operand: changes.of[operand] for operand in use.operands})
                for row, output in zip(rows, found, strict=True):
                    self.result[row] += weigh(visit, output)
