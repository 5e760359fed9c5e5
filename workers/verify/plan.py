"""Measuring a plan: all its choices applied together, on whatever data."""

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from workers.contracts import Measured, Metric, PlanRequest
from workers.errors import RequestRefused
from workers.graph.program import Override
from workers.mixtures import WeightedOutput, parse_mixture
from workers.sensitivity import metrics
from workers.sensitivity.exact import quantized
from workers.sensitivity.mixture import Packing
from workers.sensitivity.reference import FloatOutputs, Spread, check, first_output, sample_costs
from workers.sensitivity.session import (
    LoadedModel,
    load_activations,
    load_float_outputs,
    load_model,
    load_moments,
)
from workers.sensitivity.statistics import summarize

Progress = Callable[[int, int], None]
"""Told how many batches are done, and of how many; may raise to stop."""


def measure_plan(request: PlanRequest, progress: Progress | None = None) -> dict[str, Measured]:
    """Measure a jointly quantized model against the float one.

    Args:
        request: The plan, the data, and the metrics asked for.
        progress: Told before the first batch and after each; what is done once for all plans comes before.

    Returns:
        The metrics asked for, by their names; further ``top1_agreement`` (share of samples, or positions,
        where both models have the same largest output) if the outputs have classes: not where squared errors alone are asked
        for, of embeddings or images, unless there are labels; and with labels ``top1_accuracy`` and ``float_top1_accuracy``.

    Raises:
        ModelRefused: The model file breaks a rule, or a weight is not finite.
        DatasetRefused: The data does not fit the model, or labels do not fit the outputs.
        RequestRefused: Unknown unit, more samples than there are, a metric that model or data cannot give, or
            activations without samples to observe them on.
        MeasurementFailed: The float model's outputs are not finite, or an operator failed.
        OSError: A file cannot be read.
    """
    loaded = load_model(request.model_path, request.device, request.output, request.compute_dtype)
    floats = load_float_outputs(request, loaded)
    batches = floats.batches
    if Metric.LOSS in request.metrics and batches.labels is None:
        raise RequestRefused(
            "the metric 'loss' needs labels, and the data has none", "metrics", "loss", ["kl", "mse"]
        )
    choices = list(request.choices.items())
    activations = moments = None
    if request.observation is not None:
        activations = load_activations(request, loaded, request.observation, choices)
        moments = load_moments(request, loaded, request.observation, choices)
    override = quantized(loaded.program, loaded.table, choices, activations, moments, weights=loaded.weights)
    mixture = parse_mixture(request.output)
    if mixture is not None:
        return _measure_mixture(request, loaded, floats, override, mixture, progress=progress)
    spread = Spread()
    costs: dict[str, list[Tensor]] = defaultdict(list)
    for batch in _followed(floats, progress):
        reference = floats.of(batch)
        output = first_output(loaded.program.run(batches.inputs_of(batch), override), batches, batch)
        for metric in request.metrics:
            check(metric, reference, batches, batch)
        counted = batches.counted_of(batch, output)
        spread.add(reference, counted)
        labels = batches.labels_of(batch)
        for name, values in _compare(request.metrics, reference, output, labels, counted).items():
            costs[name].append(values.cpu())
    joined = {name: torch.cat(values) for name, values in costs.items()}
    if Metric.MSE in request.metrics:
        joined[Metric.MSE.value] = metrics.mse(joined[Metric.MSE.value], spread.variance())
    return {name: summarize(values.numpy()) for name, values in joined.items()}


def _followed(floats: FloatOutputs, progress: Progress | None) -> Iterator[int]:
    """The batches' numbers, with progress told in between."""
    count = len(floats.batches)
    if progress is None:
        yield from range(count)
        return
    floats.keep()
    for batch in range(count):
        progress(batch, count)
        yield batch
    progress(count, count)


def _measure_mixture(  # noqa: PLR0913 - what a plan is measured with
    request: PlanRequest,
    loaded: LoadedModel,
    floats: FloatOutputs,
    override: Override,
    mixture: tuple[WeightedOutput, ...],
    *,
    progress: Progress | None,
) -> dict[str, Measured]:
    """The weighted sum of what several outputs cost, and the agreement of the first that has classes."""
    batches = floats.batches
    packing = Packing.of(loaded.model, mixture, batches)
    spreads = [Spread() for _ in mixture]
    costs: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in mixture]
    for batch in _followed(floats, progress):
        before = packing.split(floats.of(batch))
        packed = first_output(loaded.program.run(batches.inputs_of(batch), override), batches, batch)
        for number, (output, after) in enumerate(zip(mixture, packing.split(packed), strict=True)):
            check(output.metric, before[number], batches, batch)
            counted = batches.counted_of(batch, after)
            spreads[number].add(before[number], counted)
            found = _compare((output.metric,), before[number], after, None, counted)
            for name, values in found.items():
                costs[number][name].append(values.cpu())
    joined = [{name: torch.cat(values) for name, values in found.items()} for found in costs]
    total = torch.zeros(len(batches.samples), dtype=torch.float64)
    for output, found, spread in zip(mixture, joined, spreads, strict=True):
        values = found[output.metric.value]
        if output.metric is Metric.MSE:
            values = metrics.mse(values, spread.variance())
        total += output.weight * values
    total.clamp_(max=metrics.COST_LIMIT)
    measured = {metric.value: summarize(total.numpy()) for metric in request.metrics}
    for output, found in zip(mixture, joined, strict=True):
        if output.metric is Metric.KL and "top1_agreement" in found:
            return measured | {"top1_agreement": summarize(found["top1_agreement"].numpy())}
    return measured


@torch.inference_mode()
def _compare(
    wanted: tuple[Metric, ...],
    reference: Tensor,
    output: Tensor,
    labels: Tensor | None,
    counted: Tensor | None,
) -> dict[str, Tensor]:
    """Values per sample; squared errors where ``mse`` is wanted, since the variance is known at the end only."""
    found: dict[str, Tensor] = {}
    labels = None if labels is None else labels.to(output.device)
    for metric in wanted:
        if metric is Metric.MSE:
            found[metric.value] = metrics.squared_error(reference, output, counted)
        else:
            found[metric.value] = sample_costs(metric, reference, output, labels, 1.0, counted=counted)
    classes = labels is not None or any(metric is not Metric.MSE for metric in wanted)
    if classes and output.dim() > 1 and output.shape[-1] > 1:
        found["top1_agreement"] = metrics.top1_agreement(reference, output, counted)
        if labels is not None:
            metrics.require_labels(output, labels)
            found["top1_accuracy"] = metrics.top1_accuracy(output, labels, counted)
            found["float_top1_accuracy"] = metrics.top1_accuracy(reference, labels, counted)
    return found
