"""Plans measured on some of the samples each, one cost for each sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.contracts import Candidate, Metric, PlanRequest
from workers.sensitivity.exact import quantized
from workers.sensitivity.reference import FloatOutputs, Spread, first_output, sample_costs
from workers.sensitivity.session import load_float_outputs, load_model, load_moments


@dataclass(frozen=True, kw_only=True)
class PlanPart:
    """A plan, and the samples to measure it on.

    Args:
        choices: Unit name -> candidate; without activation bits.
        positions: Among the samples that the request chooses, ascending.
    """

    choices: Mapping[str, Candidate]
    positions: tuple[int, ...]


def measure_parts(request: PlanRequest, parts: Sequence[PlanPart]) -> list[NDArray[np.float64]]:
    """Measure plans against the float model.

    Args:
        request: The model, the data, one metric without labels; its choices are passed over.
        parts: The plans.

    Returns:
        Per part the costs of its samples, float64: as `workers.verify.plan.measure_plan` averages them.

    Raises:
        WorkerError: See `workers.verify.plan.measure_plan`.
        OSError: A file cannot be read.
    """
    (metric,) = request.metrics
    loaded = load_model(request.model_path, request.device, request.output)
    floats = load_float_outputs(request, loaded)
    variance = _variance(floats) if metric is Metric.MSE else 1.0
    moments = None
    if request.observation is not None:  # once, with what any of the plans needs
        wanted = [choice for part in parts for choice in part.choices.items()]
        moments = load_moments(request, loaded, request.observation, wanted)
    found = []
    for part in parts:
        override = quantized(loaded.program, loaded.table, list(part.choices.items()), moments=moments)
        batches = replace(floats.batches, samples=floats.batches.samples[list(part.positions)])
        costs = []
        for batch in range(len(batches)):
            output = first_output(loaded.program.run(batches.inputs_of(batch), override), batches, batch)
            positions = part.positions[batch * batches.size : (batch + 1) * batches.size]
            counted = batches.counted_of(batch, output)
            costs.append(
                sample_costs(metric, _rows(floats, positions), output, None, variance, counted=counted)
            )
        found.append(torch.cat(costs).double().numpy())
    return found


def _rows(floats: FloatOutputs, positions: Sequence[int]) -> Tensor:
    """The float model's outputs for some samples, whatever batches they are in."""
    size = floats.batches.size
    rows = []
    for batch in sorted({position // size for position in positions}):
        inside = [position % size for position in positions if position // size == batch]
        rows.append(floats.of(batch)[inside])
    return torch.cat(rows)


def _variance(floats: FloatOutputs) -> float:
    spread = Spread()
    batches = floats.batches
    for batch in range(len(batches)):
        output = floats.of(batch)
        spread.add(output, batches.counted_of(batch, output))
    return spread.variance()
