"""The float model's outputs, which every quantized model is compared with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from workers.contracts import Metric
from workers.errors import MeasurementFailed, RequestRefused
from workers.graph.program import Program
from workers.sensitivity import metrics
from workers.sensitivity.batches import Batches


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """First outputs of the float model for all batches, as far as memory allows.

    Args:
        metric: What costs are.
        batches: The samples.
        outputs: Per batch ``[kept, ...]``, or ``None`` where it has to be computed again.
        variance: Of all elements of all outputs; 1 for metrics that do not need it.
    """

    metric: Metric
    batches: Batches
    outputs: tuple[Tensor | None, ...]
    variance: float

    @classmethod
    def measure(cls, program: Program, batches: Batches, metric: Metric, *, memory_bytes: int) -> Self:
        """Run the float model over all batches.

        Args:
            program: The model.
            batches: The samples.
            metric: What will be compared; decides what is checked.
            memory_bytes: Bound on the outputs kept; batches beyond it are computed again when needed.

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
            if metric is Metric.MSE:
                spread.add(output)
            room -= output.numel() * output.element_size()
            # A clone: the first output may be a view of something larger.
            outputs.append(output.clone() if room >= 0 else None)
        variance = spread.variance() if metric is Metric.MSE else 1.0
        return cls(metric=metric, batches=batches, outputs=tuple(outputs), variance=variance)

    @property
    def kept_bytes(self) -> int:
        """Memory that the outputs take."""
        return sum(output.numel() * output.element_size() for output in self.outputs if output is not None)

    def costs(self, batch: int, output: Tensor, recompute: Callable[[], Tensor]) -> Tensor:
        """Costs of a batch's samples.

        Args:
            batch: Which batch.
            output: ``[kept, ...]``, from `first_output` of the quantized model.
            recompute: Gives the float model's outputs where they were not kept.

        Returns:
            ``[kept]``, float64, on the CPU; NaN for samples that have no label where the metric needs one.
        """
        reference = self.outputs[batch]
        if reference is None:
            reference = recompute()
        labels = self.batches.labels_of(batch) if self.metric is Metric.LOSS else None
        return sample_costs(self.metric, reference, output, labels, self.variance)


class Spread:
    """Mean and variance of a stream of tensors, in float64 (Chan, Golub, LeVeque 1983)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self, values: Tensor) -> None:
        """Take in the elements of a tensor."""
        flat = values.double().flatten()
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
def sample_costs(
    metric: Metric, reference: Tensor, output: Tensor, labels: Tensor | None, variance: float
) -> Tensor:
    """Costs per sample, ``[n]``, float64, on the CPU: see `workers.sensitivity.metrics`."""
    if metric is Metric.KL:
        return metrics.kl(reference, output).cpu()
    if metric is Metric.MSE:
        return metrics.mse(metrics.squared_error(reference, output), variance).cpu()
    assert labels is not None
    return metrics.loss_rise(reference, output, labels.to(output.device)).cpu()


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
    metrics.require_finite_outputs(output, first, distribution=metric is not Metric.MSE)
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
