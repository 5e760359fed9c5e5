"""Random vectors at the model's outputs whose squared products with an output change expect its cost.

With ``J`` the derivative of a sample's outputs z by the weights and ``dW`` a change of them, the cost of the
change is, to second order, ``c' M c`` with ``c = J dW`` and a positive semidefinite M that the metric gives:
``F / (2 T)`` for the KL divergence averaged over T positions (F the Fisher information of the softmax,
``diag(p) - p p'`` at each position), and ``I / (elements * variance)`` for the normalised squared error. If
``R R' = M`` and the entries of s are independent signs, then ``v = s' R' c`` has the expected square ``c' M c``; and
``R s``, taken back through the model, gives v for every change of every weight.

For F, ``R = (diag(sqrt(p)) - p sqrt(p)') / sqrt(2 T)``: since p sums to 1, ``R R' = (diag(p) - p p') / (2 T)``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workers.contracts import Metric
from workers.errors import RequestRefused
from workers.sensitivity.metrics import IGNORED_LABEL


def random_signs(seed: int, probe: int, samples: Sequence[int], elements: int) -> Tensor:
    """Independent signs, the same whatever the batches and the device.

    Args:
        seed: Chooses them.
        probe: Number of the probe; probes are independent.
        samples: Numbers of the samples in the data; samples are independent.
        elements: Signs per sample.

    Returns:
        ``[samples, elements]``, int8, of -1 and 1.
    """
    rows = np.empty((len(samples), elements), dtype=np.int8)
    for row, sample in zip(rows, samples, strict=True):
        draw = np.random.Generator(np.random.SFC64([seed, probe, sample]))
        bits = np.unpackbits(np.frombuffer(draw.bytes(-(-elements // 8)), dtype=np.uint8), count=elements)
        np.subtract(2 * bits.view(np.int8), 1, out=row)
    return torch.from_numpy(rows)


def cotangent(
    metric: Metric, output: Tensor, signs: Tensor, *, mask: Tensor | None, variance: float
) -> Tensor:
    """``R s``: where a probe's backward walk starts.

    Args:
        metric: ``kl`` or ``mse``.
        output: ``[n, ..., C]``, outputs of the float model.
        signs: ``[n, elements]`` of -1 and 1, on any device.
        mask: ``[n, positions]``, 0 for positions that do not count; ``None`` if all do. The positions are the axes
            between the first and the last (for ``mse`` with outputs of two axes: none, one position).
        variance: For ``mse``: of the outputs.

    Returns:
        The shape of ``output``, float32 (float64 for float64 outputs); 0 where nothing counts.

    Raises:
        RequestRefused: The metric has no second-order form, or the mask does not fit.
    """
    rows = output.reshape(len(output), -1, output.shape[-1] if output.dim() > 1 else 1)
    counts = _counted(mask, rows)
    values = rows.to(torch.promote_types(rows.dtype, torch.float32))
    signs = signs.to(device=values.device).reshape(values.shape)
    if metric is Metric.KL:
        result = torch.empty_like(values)
        # Sample by sample: the outputs of a language model are the largest tensors there are, and each step makes another.
        for found, logits, sign in zip(result, values, signs, strict=True):
            p = logits.softmax(-1)
            root = p.sqrt().mul_(sign)
            torch.sub(root, p.mul_(root.sum(-1, keepdim=True)), out=found)
        scale = (2 * counts.sum(-1)).clamp_min(1).rsqrt()
    elif metric is Metric.MSE:
        result = signs.to(values.dtype)
        scale = (counts.sum(-1) * (variance * values.shape[-1])).clamp_min(1e-300).rsqrt()
    else:
        raise _without_form(metric)
    weights = counts * scale[:, None]
    return result.mul_(weights.to(result.dtype)[..., None]).reshape(output.shape)


def cost_gradient(
    metric: Metric, reference: Tensor, output: Tensor, *, mask: Tensor | None, variance: float
) -> Tensor:
    """Derivative of each sample's cost by the outputs of a quantized model: ``(p_quantized - p_float) / T`` for ``kl``.

    Args:
        metric: ``kl`` or ``mse``.
        reference: ``[n, ..., C]``, outputs of the float model.
        output: The same shape, outputs of the quantized model.
        mask: As for `cotangent`.
        variance: Likewise.

    Returns:
        As `cotangent`.

    Raises:
        RequestRefused: As `cotangent`.
    """
    rows = output.reshape(len(output), -1, output.shape[-1] if output.dim() > 1 else 1)
    counts = _counted(mask, rows)
    precise = torch.promote_types(rows.dtype, torch.float32)
    values, floats = rows.to(precise), reference.to(output.device).reshape(rows.shape).to(precise)
    if metric is Metric.KL:
        result = torch.empty_like(values)
        for found, after, before in zip(result, values, floats, strict=True):
            torch.sub(after.softmax(-1), before.softmax(-1), out=found)
        scale = counts.sum(-1).clamp_min(1).reciprocal()
    elif metric is Metric.MSE:
        result = values - floats
        scale = 2 / (counts.sum(-1) * (variance * values.shape[-1])).clamp_min(1e-300)
    else:
        raise _without_form(metric)
    weights = counts * scale[:, None]
    return result.mul_(weights.to(result.dtype)[..., None]).reshape(output.shape)


def label_cotangent(output: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the cross entropy against labels, scaled as `cotangent` is: the empirical Fisher's.

    Args:
        output: ``[n, ..., C]``, outputs of the float model.
        labels: ``[n, ...]``; positions with `IGNORED_LABEL` do not count.

    Returns:
        The shape of ``output``: ``(p - onehot) / sqrt(2 T)``.
    """
    rows = output.reshape(len(output), -1, output.shape[-1])
    flat = labels.to(output.device).reshape(rows.shape[:2])
    counts = flat != IGNORED_LABEL
    result = rows.to(torch.promote_types(rows.dtype, torch.float32)).softmax(-1)
    result.scatter_add_(-1, flat.clamp_min(0)[..., None], -torch.ones_like(result[..., :1]))
    scale = (2 * counts.sum(-1).double()).clamp_min(1).rsqrt()
    return result.mul_((counts * scale[:, None]).to(result.dtype)[..., None]).reshape(output.shape)


def _counted(mask: Tensor | None, rows: Tensor) -> Tensor:
    """``[n, positions]``, float64, of 0 and 1."""
    if mask is None:
        return torch.ones(rows.shape[:2], dtype=torch.float64, device=rows.device)
    if mask.shape != rows.shape[:2]:
        raise RequestRefused(
            f"a mask of shape {tuple(mask.shape)} does not fit outputs with {rows.shape[1]} positions for "
            f"{rows.shape[0]} samples",
            "position_mask",
            list(mask.shape),
            list(rows.shape[:2]),
        )
    return (mask != 0).to(device=rows.device, dtype=torch.float64)


def _without_form(metric: Metric) -> RequestRefused:
    return RequestRefused(
        f"there is no estimate of the metric {metric.value!r}", "metric", metric.value, ["kl", "mse"]
    )
