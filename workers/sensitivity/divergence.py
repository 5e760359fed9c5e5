"""KL divergence and output changes in one go over the outputs, at a third of the cost of two softmaxes in float64.

With the float model's probabilities ``p`` and the change ``d`` of the outputs, centred by its mean under ``p``,

    KL = log(sum_c p_c e^(d_c)) - sum_c p_c d_c = log1p(f + m) - m,   f = sum_c p_c (e^(d_c) - 1 - d_c),
                                                                     m = sum_c p_c d_c (0 but for rounding).

Nothing cancels: every term of ``f`` is positive and of the size of the result, so that outputs in float32 may
be compared in float32 (the difference of close numbers is exact there). Against the same in float64 from the
same outputs, means agree to 1e-7 of the value compiled, and to 1e-6 without numba (3e-5 where changes are of 1e-3).
Rows for which this does not hold (infinite outputs, classes that had no chance and now have one) are computed in
float64 from the definition.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from workers.sampling import SketchForm
from workers.sensitivity import acceleration, metrics

_CHUNK_ELEMENTS = 1 << 18
"""Rows taken together hold so many elements: they stay in cache, and calls into torch are few."""

_LARGEST_CHANGE = 60.0
"""Above this the exponential of a change times a probability may leave float32."""

TakeRows = Callable[[int, Tensor], None]
"""Receives the number of a first row, and changes ``[rows, C]`` of the rows from there on."""


def kl(
    reference: Tensor,
    output: Tensor,
    *,
    counted: Tensor | None = None,
    form: SketchForm = SketchForm.HELLINGER,
    take: TakeRows | None = None,
) -> Tensor:
    """`workers.sensitivity.metrics.kl` to rounding, and the output changes that belong to it.

    Args:
        reference: ``[n, ..., C]``, outputs of the float model, any floating type.
        output: The same shape, outputs of the quantized model.
        counted: ``[n, ...]``, boolean: positions that count; one or more per sample. ``None``: all.
        form: What changes are.
        take: Receives the change of each row (position), chunk by chunk, in order. The mean over a sample's rows
            of the sums of their squares is to second order the sample's divergence.

    Returns:
        ``[n]``, float64, in ``[0, COST_LIMIT]``; a sample that is not finite somewhere costs the limit.
    """
    kind = torch.promote_types(torch.promote_types(reference.dtype, output.dtype), torch.float32)
    weights = None if counted is None else _weights(counted).reshape(-1)
    found = []
    for start, before, after in _chunks(reference, output):
        rows, change = _compare(before.to(kind), after.to(kind), form if take is not None else None)
        if weights is not None:
            weight = weights[start : start + len(rows)]
            rows = torch.where(weight > 0, rows * weight, 0.0)
            change = torch.where(weight[:, None] > 0, change * weight.sqrt().to(kind)[:, None], 0.0)
        found.append(rows)
        if take is not None:
            take(start, change)
    per_sample = torch.cat(found).reshape(len(output), -1).mean(-1)
    limit = metrics.COST_LIMIT
    return per_sample.nan_to_num(nan=limit, posinf=limit).clamp(0.0, limit)


def _weights(counted: Tensor) -> Tensor:
    """Weights of positions, float64, with which the mean over all positions is that over those that count."""
    flat = counted.reshape(len(counted), -1).double()
    return flat / flat.mean(-1, keepdim=True)


def differences(reference: Tensor, output: Tensor, take: TakeRows, counted: Tensor | None = None) -> None:
    """Hand on the differences of outputs, row by row, as `kl` does its changes."""
    kind = torch.promote_types(torch.promote_types(reference.dtype, output.dtype), torch.float32)
    weights = None if counted is None else _weights(counted).reshape(-1)
    for start, before, after in _chunks(reference, output):
        change = after.to(kind) - before.to(kind)
        if weights is not None:
            weight = weights[start : start + len(change)]
            change = torch.where(weight[:, None] > 0, change * weight.sqrt().to(kind)[:, None], 0.0)
        take(start, change)


def _chunks(reference: Tensor, output: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    before, after = (t.reshape(-1, t.shape[-1]) if t.dim() > 1 else t[:, None] for t in (reference, output))
    step = max(1, _CHUNK_ELEMENTS // max(1, before.shape[1]))
    for start in range(0, len(before), step):
        yield start, before[start : start + step], after[start : start + step]


def _compare(before: Tensor, after: Tensor, form: SketchForm | None) -> tuple[Tensor, Tensor]:
    """Divergence of rows, float64, and their changes (an empty tensor if no form is asked for)."""
    compare = acceleration.compare if acceleration.suits(before, after) else _by_tensors
    rows, change, unusual = compare(before, after, form)
    if bool(unusual.any()):
        exact_rows, exact_change = _from_definition(before[unusual], after[unusual], form)
        rows[unusual] = exact_rows
        if form is not None:
            change[unusual] = exact_change.to(change.dtype)
    return rows, change


def _by_tensors(before: Tensor, after: Tensor, form: SketchForm | None) -> tuple[Tensor, Tensor, Tensor]:
    """`workers.sensitivity.acceleration.compare` for any floating type, on any device."""
    p = before.softmax(-1)
    d = after - before
    d -= torch.linalg.vecdot(p, d)[:, None]
    unusual = ~(d.amax(-1) < _LARGEST_CHANGE)  # NaN is
    mean = torch.linalg.vecdot(p, d).double()
    excess = torch.expm1(d).sub_(d)
    log_norm = torch.log1p(torch.linalg.vecdot(p, excess).double() + mean)
    return log_norm - mean, _change(p, d, log_norm, mean, form), unusual


def _change(p: Tensor, d: Tensor, log_norm: Tensor, mean: Tensor, form: SketchForm | None) -> Tensor:
    """``sqrt(2) (sqrt q - sqrt p)``, with ``log q = log p + d - log_norm``; or ``sqrt(p / 2) (d - mean)``."""
    if form is None:
        return p[:, :0]
    if form is SketchForm.FISHER:
        return (d - mean.to(d.dtype)[:, None]).mul_((p / 2).sqrt_())
    exponent = (d - log_norm.to(d.dtype)[:, None]).div_(2)
    return exponent.expm1_().mul_((p * 2).sqrt_())


def _from_definition(before: Tensor, after: Tensor, form: SketchForm | None) -> tuple[Tensor, Tensor]:
    """The same in float64, whatever the outputs; not finite where they are not."""
    log_p, log_q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    p = log_p.exp()
    rows = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
    if form is SketchForm.FISHER:
        d = torch.where(p > 0, after.double() - before.double(), 0.0)
        change = (p / 2).sqrt() * (d - (p * d).sum(-1, keepdim=True))
    else:
        change = 2**0.5 * ((log_q / 2).exp() - (log_p / 2).exp())
    return rows, change
