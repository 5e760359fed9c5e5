"""Plans measured on some of the samples each, one cost for each sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.contracts import Candidate, Metric, PlanRequest
from workers.mixtures import WeightedOutput, parse_mixture
from workers.sensitivity.batches import Batches
from workers.sensitivity.exact import quantized
from workers.sensitivity.metrics import COST_LIMIT
from workers.sensitivity.mixture import Packing, variances_of
from workers.sensitivity.reference import FloatOutputs, Spread, first_output, sample_costs
from workers.sensitivity.session import (
    LoadedModel,
    load_activations,
    load_float_outputs,
    load_model,
    load_moments,
)


@dataclass(frozen=True, kw_only=True)
class PlanPart:
    """A plan, and the samples to measure it on.

    Args:
        choices: Unit name -> candidate.
        positions: Among the samples that the request chooses, ascending.
    """

    choices: Mapping[str, Candidate]
    positions: tuple[int, ...]


Progress = Callable[[int, int], None]
"""Told how many samples are done, of all parts together, and of how many; may raise to stop."""


def measure_parts(
    request: PlanRequest, parts: Sequence[PlanPart], progress: Progress | None = None
) -> list[NDArray[np.float64]]:
    """Measure plans against the float model.

    Args:
        request: The model, the data, one metric without labels; its choices are passed over.
        parts: The plans.
        progress: Told before each batch, and at the end.

    Returns:
        Per part the costs of its samples, float64: as `workers.verify.plan.measure_plan` averages them.

    Raises:
        WorkerError: See `workers.verify.plan.measure_plan`.
        OSError: A file cannot be read.
    """
    loaded = load_model(request.model_path, request.device, request.output, request.compute_dtype)
    floats = load_float_outputs(request, loaded)
    comparison = _Comparison.of(request, loaded, floats)
    activations = moments = None
    if request.observation is not None:  # once, with what any of the plans needs
        wanted = [choice for part in parts for choice in part.choices.items()]
        activations = load_activations(request, loaded, request.observation, wanted)
        moments = load_moments(request, loaded, request.observation, wanted)
    found: list[NDArray[np.float64]] = []
    done, total = 0, sum(len(part.positions) for part in parts)
    for part in parts:
        choices = list(part.choices.items())
        override = quantized(
            loaded.program, loaded.table, choices, activations, moments, weights=loaded.weights
        )
        batches = replace(floats.batches, samples=floats.batches.samples[list(part.positions)])
        costs = []
        for batch in range(len(batches)):
            if progress is not None:
                progress(done, total)
            output = first_output(loaded.program.run(batches.inputs_of(batch), override), batches, batch)
            positions = part.positions[batch * batches.size : (batch + 1) * batches.size]
            costs.append(comparison.costs(floats.of_samples(positions), output, batches, batch))
            done += len(positions)
        found.append(torch.cat(costs).double().numpy())
    if progress is not None:
        progress(done, total)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Comparison:
    """How outputs are compared: one, or several by their weighted sum.

    Args:
        outputs: Each with weight and metric.
        variances: What squared errors of each are related to: over all samples, whatever part is measured.
        packing: Where they lie in the first output; ``None`` for one, which is the first output.
    """

    outputs: tuple[WeightedOutput, ...]
    variances: tuple[float, ...]
    packing: Packing | None

    @classmethod
    def of(cls, request: PlanRequest, loaded: LoadedModel, floats: FloatOutputs) -> Self:
        """What a request compares, with the variances of the float model's outputs."""
        (metric,) = request.metrics
        mixture = parse_mixture(request.output)
        packing = None if mixture is None else Packing.of(loaded.model, mixture, floats.batches)
        outputs = mixture or (WeightedOutput(name="", weight=1.0, metric=metric),)
        unscaled = cls(outputs=outputs, variances=(), packing=packing)
        if all(output.metric is not Metric.MSE for output in outputs):
            return replace(unscaled, variances=(1.0,) * len(outputs))
        spreads = [Spread() for _ in outputs]
        for batch in range(len(floats.batches)):
            for spread, part in zip(spreads, unscaled.split(floats.of(batch)), strict=True):
                spread.add(part, floats.batches.counted_of(batch, part))
        return replace(unscaled, variances=variances_of(outputs, spreads))

    def split(self, first: Tensor) -> list[Tensor]:
        """The outputs that the model's first output holds."""
        return [first] if self.packing is None else self.packing.split(first)

    def costs(self, before: Tensor, after: Tensor, batches: Batches, batch: int) -> Tensor:
        """Cost of each sample of a batch, float64."""
        total = torch.zeros(len(after), dtype=torch.float64)
        for output, variance, reference, found in zip(
            self.outputs, self.variances, self.split(before), self.split(after), strict=True
        ):
            counted = batches.counted_of(batch, found)
            total += output.weight * sample_costs(
                output.metric, reference, found, None, variance, counted=counted
            )
        return total.clamp_(max=COST_LIMIT)
