"""What quantization costs, sample by sample: the first output of the quantized model against the float model's.

Everything is computed in float64 from the outputs as they come (float32 or half), in chunks of rows, so that
the memory in use stays small next to the outputs themselves. Outputs are ``[samples, ..., classes]``: the
last axis holds the classes, the axes between are positions (tokens, pixels) over which a sample's cost is
averaged.

A quantized model can break: NaN, infinities, or costs beyond every scale. Such samples are charged
`COST_LIMIT`, and so are finite costs above it, so that a broken candidate is worse than every working one,
costs stay finite numbers, and the solver's objective stays well scaled. KL divergences of working models are
tens of nats at most. The float model gets no such mercy: where its outputs are not finite, nothing can be
measured.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from workers.errors import DatasetRefused, MeasurementFailed, RequestRefused

COST_LIMIT = 1e4
"""Largest cost of a sample, in the metric's unit; the cost of samples without finite outputs."""

IGNORED_LABEL = -100
"""Positions with this label do not count (torch's convention)."""

_CHUNK_ELEMENTS = 1 << 21


def kl(reference: Tensor, output: Tensor, counted: Tensor | None = None) -> Tensor:
    """KL divergence of the softmax of the float model's outputs from the quantized model's, in nats.

    ``mean over positions of sum_c p_c (log p_c - log q_c)``; 0 where ``p_c`` is 0 (MATH.md section 6).

    Args:
        reference: ``[n, ..., C]``, outputs of the float model, any floating type.
        output: The same shape, outputs of the quantized model.
        counted: ``[n, ...]``, boolean: positions that count; ``None``: all.

    Returns:
        ``[n]``, float64, in ``[0, COST_LIMIT]``.
    """

    def divergence(rows: slice) -> Tensor:
        log_p = _rows(reference)[rows].double().log_softmax(-1)
        log_q = _rows(output)[rows].double().log_softmax(-1)
        p = log_p.exp()
        return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)

    return _saturated(_per_sample(reference, divergence, counted)).clamp_min(0.0)


def squared_error(reference: Tensor, output: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean squared error of the outputs.

    Args:
        reference: ``[n, ...]``, outputs of the float model.
        output: The same shape, outputs of the quantized model.
        counted: ``[n, ...]``, boolean: positions that count; ``None``: all.

    Returns:
        ``[n]``, float64; may be infinite or NaN.
    """

    def error(rows: slice) -> Tensor:
        return (_rows(output)[rows].double() - _rows(reference)[rows].double()).square().mean(-1)

    return _per_sample(reference, error, counted)


def mse(squared_errors: Tensor, variance: float) -> Tensor:
    """Mean squared errors over the variance of the float model's outputs (MATH.md section 6).

    Args:
        squared_errors: ``[n]``, from `squared_error`.
        variance: Of the float model's outputs over all samples, all elements alike.

    Returns:
        ``[n]``, float64, in ``[0, COST_LIMIT]``.
    """
    return _saturated(squared_errors / variance)


def cross_entropy(output: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """Cross entropy against labels, averaged over a sample's labelled positions, in nats.

    Args:
        output: ``[n, ..., C]``.
        labels: ``[n, ...]``, integers in ``[0, C)`` or `IGNORED_LABEL`. For language models the label at a
            position is the next token: labels are compared position by position, never shifted.
        counted: ``[n, ...]``, boolean: positions that count; ``None``: all.

    Returns:
        ``[n]``, float64; NaN for samples without a label, and where the outputs are not finite.
    """
    flat = labels.reshape(-1)

    def surprise(rows: slice) -> Tensor:
        logits = _rows(output)[rows].double()
        wanted = flat[rows]
        picked = logits.gather(-1, wanted.clamp_min(0)[:, None])[:, 0]
        return torch.where(wanted == IGNORED_LABEL, 0.0, logits.logsumexp(-1) - picked)

    return _per_sample(output, surprise, _labelled(labels, counted))


def loss_rise(reference: Tensor, output: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """Rise of the cross entropy from the float model to the quantized one, paired per sample, in nats.

    Args:
        reference: ``[n, ..., C]``, outputs of the float model.
        output: The same shape, outputs of the quantized model.
        labels: As for `cross_entropy`.
        counted: ``[n, ...]``, boolean: positions that count; ``None``: all.

    Returns:
        ``[n]``, float64, in ``[-COST_LIMIT, COST_LIMIT]``; NaN for samples without a label.
    """
    rise = cross_entropy(output, labels, counted) - cross_entropy(reference, labels, counted)
    unlabelled = ~_labelled(labels, counted).reshape(len(labels), -1).any(-1)
    return torch.where(unlabelled, torch.nan, _saturated(rise))


def top1_agreement(reference: Tensor, output: Tensor, counted: Tensor | None = None) -> Tensor:
    """Share of a sample's positions at which both models have the same largest output.

    Args:
        reference: ``[n, ..., C]``, outputs of the float model.
        output: The same shape, outputs of the quantized model; NaN agrees with nothing.
        counted: ``[n, ...]``, boolean: positions that count; ``None``: all.

    Returns:
        ``[n]``, float64, in ``[0, 1]``.
    """

    def agrees(rows: slice) -> Tensor:
        ours = _rows(output)[rows]
        same = _rows(reference)[rows].argmax(-1) == ours.argmax(-1)
        return (same & ~ours.isnan().any(-1)).double()

    return _per_sample(reference, agrees, counted)


def top1_accuracy(output: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """Share of a sample's labelled positions at which the largest output is the label's.

    Args:
        output: ``[n, ..., C]``; NaN is never right.
        labels: As for `cross_entropy`.
        counted: ``[n, ...]``, boolean: positions that count; ``None``: all.

    Returns:
        ``[n]``, float64, in ``[0, 1]``; NaN for samples without a label.
    """
    flat = labels.reshape(-1)

    def right(rows: slice) -> Tensor:
        logits = _rows(output)[rows]
        return ((logits.argmax(-1) == flat[rows]) & ~logits.isnan().any(-1)).double()

    return _per_sample(output, right, _labelled(labels, counted))


def require_classes(output: Tensor, wanted: str) -> None:
    """Refuse metrics of distributions for outputs that hold none.

    Raises:
        RequestRefused: The output has no class axis of length 2 or more.
    """
    if output.dim() < 2 or output.shape[-1] < 2:
        raise RequestRefused(
            f"{wanted} compares distributions over the last axis, but the model's first output has shape "
            f"{tuple(output.shape)}",
            "metric",
            wanted,
            ["mse"],
        )


def require_labels(output: Tensor, labels: Tensor) -> None:
    """Check labels against the outputs they belong to.

    Raises:
        DatasetRefused: Wrong shape, or a label out of range.
    """
    if labels.shape != output.shape[:-1]:
        raise DatasetRefused(
            f"labels of shape {tuple(labels.shape)} do not fit outputs of shape {tuple(output.shape)}",
            "labels",
            list(labels.shape),
            f"one label per sample and position: {list(output.shape[:-1])}",
        )
    classes = output.shape[-1]
    wrong = ((labels < 0) | (labels >= classes)) & (labels != IGNORED_LABEL)
    if bool(wrong.any()):
        raise DatasetRefused(
            f"label {int(labels[wrong][0])} is out of range for {classes} classes",
            "labels",
            int(labels[wrong][0]),
            f"whole numbers from 0 to {classes - 1}, or {IGNORED_LABEL} for positions that do not count",
        )


def require_finite_outputs(
    output: Tensor, first_sample: int, *, distribution: bool, counted: Tensor | None = None
) -> None:
    """Check the float model's outputs.

    Args:
        output: ``[n, ...]``.
        first_sample: Number of the first sample in the data, for the message.
        distribution: Minus infinity is allowed (an impossible class), as long as some class is possible.
        counted: ``[n, ...]``, boolean: positions that count; ``None``: all.

    Raises:
        MeasurementFailed: A sample's outputs are not finite.
    """

    def bad(rows: slice) -> Tensor:
        values = _rows(output)[rows]
        if distribution:
            return (~values.double().logsumexp(-1).isfinite()).double()
        return (~values.isfinite()).any(-1).double()

    samples = _per_sample(output, bad, counted).nonzero()
    if len(samples):
        sample = first_sample + int(samples[0])
        raise MeasurementFailed(
            f"the float model's outputs are not finite for sample {sample}",
            "outputs",
            sample,
            "finite outputs",
        )


def _labelled(labels: Tensor, counted: Tensor | None) -> Tensor:
    """Positions that have a label and count."""
    labelled = labels != IGNORED_LABEL
    return labelled if counted is None else labelled & counted


def _rows(output: Tensor) -> Tensor:
    """``[n * positions, C]``; outputs without a class axis become rows of one element."""
    return output.reshape(-1, output.shape[-1]) if output.dim() > 1 else output[:, None]


def _chunks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _per_sample(output: Tensor, of_rows: Callable[[slice], Tensor], counted: Tensor | None = None) -> Tensor:
    """Average a value per row over each sample's rows (those ``counted``), chunk by chunk."""
    rows = _rows(output)
    values = torch.cat([of_rows(chunk) for chunk in _chunks(*rows.shape)]).reshape(len(output), -1)
    if counted is None:
        return values.mean(-1)
    kept = counted.reshape(len(output), -1)
    return torch.where(kept, values, 0.0).sum(-1) / kept.sum(-1)


def _saturated(costs: Tensor) -> Tensor:
    return costs.nan_to_num(nan=COST_LIMIT, posinf=COST_LIMIT, neginf=-COST_LIMIT).clamp(
        -COST_LIMIT, COST_LIMIT
    )
