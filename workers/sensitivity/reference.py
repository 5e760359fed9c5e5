"""The float model's outputs, which every quantized model is compared with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from workers.contracts import Metric
from workers.errors import MeasurementFailed, RequestRefused
from workers.graph.program import Program
from workers.sampling import SketchForm, SketchRequest
from workers.sensitivity import divergence, metrics
from workers.sensitivity.batches import Batches
from workers.sensitivity.sketches import Projection

KEPT_OUTPUT_BYTES = 512 << 20
"""Bound on the float model's outputs that are kept from plan to plan, for each of two data sets."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """First outputs of the float model for all batches, as far as memory allows.

    Args:
        metric: What costs are.
        batches: The samples.
        outputs: Per batch ``[kept, ...]``, or ``None`` where it has to be computed again.
        variance: Of all elements of all outputs; 1 for metrics that do not need it.
        sample_shape: Shape of the output for one sample.
        device: Where outputs are.
        projection: From output changes to sketches, if those were asked for.
    """

    metric: Metric
    batches: Batches
    outputs: tuple[Tensor | None, ...]
    variance: float
    sample_shape: tuple[int, ...]
    device: torch.device
    projection: Projection | None = None

    @classmethod
    def measure(
        cls,
        program: Program,
        batches: Batches,
        metric: Metric,
        *,
        memory_bytes: int,
        variance: float | None = None,
    ) -> Self:
        """Run the float model over all batches.

        Args:
            program: The model.
            batches: The samples.
            metric: What will be compared; decides what is checked.
            memory_bytes: Bound on the outputs kept; batches beyond it are computed again when needed.
            variance: What ``mse`` is related to, if not the variance of these outputs.

        Raises:
            RequestRefused: The metric does not suit the outputs, or needs labels that the data does not have.
            DatasetRefused: Labels do not fit the outputs.
            MeasurementFailed: Outputs are not finite, or (for ``mse``) all the same.
        """
        if metric is Metric.LOSS and batches.labels is None:
            raise RequestRefused(
                "the metric 'loss' needs labels, and the data has none", "metric", "loss", ["kl", "mse"]
            )
        outputs: list[Tensor | None] = []
        spread = Spread()
        room = memory_bytes
        for batch in range(len(batches)):
            output = first_output(program.run(batches.inputs_of(batch)), batches, batch)
            check(metric, output, batches, batch)
            if metric is Metric.MSE and variance is None:
                spread.add(output, batches.counted_of(batch, output))
            room -= output.numel() * output.element_size()
            # A clone: the first output may be a view of something larger.
            outputs.append(output.clone() if room >= 0 else None)
        if variance is None:
            variance = spread.variance() if metric is Metric.MSE else 1.0
        return cls(
            metric=metric,
            batches=batches,
            outputs=tuple(outputs),
            variance=variance,
            sample_shape=tuple(output.shape[1:]),
            device=output.device,
        )

    def with_sketches(self, sketch: SketchRequest, seed: int) -> Self:
        """The same, to compare outputs and to keep their changes.

        Args:
            sketch: What is kept.
            seed: Draws the signs, together with the samples' numbers.
        """
        projection = Projection.of(
            sketch,
            rows=len(self.batches.samples) * self._positions,
            classes=self.sample_shape[-1] if self.sample_shape else 1,
            seed=(seed, *self.batches.samples.tolist()),
            device=self.device,
        )
        return replace(self, projection=projection)

    @property
    def kept_bytes(self) -> int:
        """Memory that the outputs take."""
        return sum(output.numel() * output.element_size() for output in self.outputs if output is not None)

    def start_sketch(self) -> list[Tensor] | None:
        """The sketch of no change, for `costs` to add to; ``None`` if sketches were not asked for."""
        return None if self.projection is None else [self.projection.start()]

    def costs(
        self, batch: int, output: Tensor, recompute: Callable[[], Tensor], sketch: list[Tensor] | None = None
    ) -> Tensor:
        """Costs of a batch's samples.

        Args:
            batch: Which batch.
            output: ``[kept, ...]``, from `first_output` of the quantized model.
            recompute: Gives the float model's outputs where they were not kept.
            sketch: From `start_sketch`; the batch's output change is added to it.

        Returns:
            ``[kept]``, float64, on the CPU; NaN for samples that have no label where the metric needs one.
        """
        reference = self.outputs[batch]
        if reference is None:
            reference = recompute()
        take = None if sketch is None else self._adding(sketch[0], batch)
        labels = self.batches.labels_of(batch) if self.metric is Metric.LOSS else None
        return self._compared(reference, output, labels, take, counted=self.batches.counted_of(batch, output))

    def finished(self, sketch: list[Tensor]) -> bytes | None:
        """A sketch to which all batches were added, as it is stored; ``None`` if it is not finite."""
        assert self.projection is not None
        rows = self.projection.rows
        if self.metric is Metric.MSE:
            scaled = sketch[0].double() / (rows * self.projection.classes * self.variance) ** 0.5
        else:
            scaled = sketch[0].double() / rows**0.5
        values = scaled.flatten().float().cpu()
        return values.numpy().astype("<f4").tobytes() if bool(values.isfinite().all()) else None

    @property
    def _positions(self) -> int:
        """Rows per sample."""
        return math.prod(self.sample_shape[:-1])

    def _adding(self, sketch: Tensor, batch: int) -> divergence.TakeRows:
        projection = self.projection
        assert projection is not None
        offset = batch * self.batches.size * self._positions
        return lambda first, change: projection.add(sketch, offset + first, change)

    @torch.inference_mode()
    def _compared(
        self,
        reference: Tensor,
        output: Tensor,
        labels: Tensor | None,
        take: divergence.TakeRows | None,
        *,
        counted: Tensor | None,
    ) -> Tensor:
        form = SketchForm.HELLINGER if self.projection is None else self.projection.request.form
        if self.metric is Metric.KL:
            return divergence.kl(reference, output, counted=counted, form=form, take=take).cpu()
        if take is not None and self.metric is Metric.MSE:
            divergence.differences(reference, output, take, counted)
        elif take is not None:
            divergence.kl(reference, output, counted=counted, form=form, take=take)
        return sample_costs(self.metric, reference, output, labels, self.variance, counted=counted)


def output_variance(program: Program, batches: Batches) -> float:
    """Variance of the float model's first outputs, all elements of all samples alike.

    Raises:
        MeasurementFailed: Outputs are not finite, or all the same.
        RequestRefused: The first output is not one row of numbers per sample.
    """
    spread = Spread()
    for batch in range(len(batches)):
        output = first_output(program.run(batches.inputs_of(batch)), batches, batch)
        check(Metric.MSE, output, batches, batch)
        spread.add(output, batches.counted_of(batch, output))
    return spread.variance()


class Spread:
    """Mean and variance of a stream of tensors, in float64 (Chan, Golub, LeVeque 1983)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self, values: Tensor, counted: Tensor | None = None) -> None:
        """Take in the elements of a tensor ``[n, positions..., C]``, those of the positions that count."""
        flat = (values if counted is None else values[counted]).double().flatten()
        count, mean = flat.numel(), float(flat.mean())
        difference, total = mean - self._mean, self._count + count
        self._squares += float((flat - mean).square().sum()) + difference**2 * self._count * count / total
        self._mean += difference * count / total
        self._count = total

    def variance(self) -> float:
        """Mean squared distance from the mean.

        Raises:
            MeasurementFailed: It is 0.
        """
        if self._squares <= 0:
            raise MeasurementFailed(
                "the float model's outputs are the same number everywhere: errors cannot be related to a variance",
                "metric",
                "mse",
                "outputs that depend on the input",
            )
        return self._squares / self._count


@torch.inference_mode()
def sample_costs(  # noqa: PLR0913 - what a cost is made of
    metric: Metric,
    reference: Tensor,
    output: Tensor,
    labels: Tensor | None,
    variance: float,
    *,
    counted: Tensor | None = None,
) -> Tensor:
    """Costs per sample, ``[n]``, float64, on the CPU: see `workers.sensitivity.metrics`."""
    if metric is Metric.KL:
        return divergence.kl(reference, output, counted=counted).cpu()
    if metric is Metric.MSE:
        return metrics.mse(metrics.squared_error(reference, output, counted), variance).cpu()
    assert labels is not None
    return metrics.loss_rise(reference, output, labels.to(output.device), counted).cpu()


@torch.inference_mode()
def check(metric: Metric, output: Tensor, batches: Batches, batch: int) -> None:
    """Whether a batch of the float model's outputs can be compared by a metric.

    Raises:
        RequestRefused: The outputs hold no distribution.
        DatasetRefused: Labels do not fit the outputs.
        MeasurementFailed: Outputs are not finite.
    """
    if metric is not Metric.MSE:
        metrics.require_classes(output, metric.value)
    first = int(batches.samples[batch * batches.size])
    counted = batches.counted_of(batch, output)
    metrics.require_finite_outputs(output, first, distribution=metric is not Metric.MSE, counted=counted)
    labels = batches.labels_of(batch)
    if metric is Metric.LOSS and labels is not None:
        metrics.require_labels(output, labels)


def first_output(outputs: tuple[Any, ...], batches: Batches, batch: int) -> Tensor:
    """The first output of a run, fillers dropped.

    Raises:
        RequestRefused: It is not a floating-point tensor with one row per sample.
    """
    output = outputs[0]
    fed = batches.size if batches.fixed else batches.kept(batch)
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:1] != (fed,):
        found = (
            f"{output.dtype} of shape {tuple(output.shape)}" if isinstance(output, Tensor) else repr(output)
        )
        raise RequestRefused(
            f"the model's first output is {found} for a batch of {fed} samples",
            "model",
            found,
            "a floating-point tensor whose axis 0 is the samples' axis",
        )
    return output[: batches.kept(batch)]


@dataclass(kw_only=True, eq=False)
class FloatOutputs:
    """The float model's first outputs for a data set, batch by batch, kept for the next plan as far as memory allows.

    Args:
        program: The model.
        batches: The samples.
    """

    program: Program
    batches: Batches
    _kept: dict[int, Tensor] = field(default_factory=dict)
    _sample_bytes: int | None = None

    def keep(self) -> None:
        """Run the float model now for as many batches as are kept."""
        for batch in range(len(self.batches)):
            if self._sample_bytes is not None and not self._keeps(batch):
                return
            self.of(batch)

    def of(self, batch: int) -> Tensor:
        """A batch's outputs, fillers dropped."""
        if batch in self._kept:
            return self._kept[batch]
        output = first_output(self.program.run(self.batches.inputs_of(batch)), self.batches, batch)
        self._sample_bytes = output[0].numel() * output.element_size()
        if self._keeps(batch):
            self._kept[batch] = output.clone()  # the first output may be a view of something larger
        return output

    def of_samples(self, positions: Sequence[int]) -> Tensor:
        """The outputs of some samples: of those in batches that are kept, and of the others by running them alone.

        Args:
            positions: Among the samples, ascending; at most as many as a batch has.
        """
        if self._sample_bytes is None:
            self.of(0)
        size = self.batches.size
        kept = [position for position in positions if self._keeps(position // size)]
        alone = [position for position in positions if not self._keeps(position // size)]
        rows = [
            self.of(batch)[[position % size for position in kept if position // size == batch]]
            for batch in sorted({position // size for position in kept})
        ]
        if alone:
            batches = replace(self.batches, samples=self.batches.samples[alone])
            rows.append(first_output(self.program.run(batches.inputs_of(0)), batches, 0))
        return torch.cat(rows)

    def _keeps(self, batch: int) -> bool:
        """Whether a batch has room: the first ones have, in whatever order they are asked for."""
        assert self._sample_bytes is not None
        samples = batch * self.batches.size + self.batches.kept(batch)
        return samples * self._sample_bytes <= KEPT_OUTPUT_BYTES
