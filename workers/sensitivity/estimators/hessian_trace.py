"""The score of HAWQ-V2: mean trace of a unit's Hessian times the squared change of its weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from workers.contracts import Metric
from workers.errors import MeasurementFailed, RequestRefused
from workers.sensitivity.estimators.entries import Entries
from workers.sensitivity.estimators.probe import ProbeOptions
from workers.sensitivity.exact import Setup
from workers.sensitivity.metrics import IGNORED_LABEL


def hessian_trace(setup: Setup, entries: Entries, options: ProbeOptions, *, draws: int = 8) -> Tensor:
    """``tr(H) / weights * |dW|^2``, the trace by Hutchinson's method.

    H is the Hessian of the mean cross entropy against the data's labels, or, without labels, against the float
    model's most likely classes. Signs of one draw are drawn for all units together, so that the terms between
    units average out over draws (as in the paper).

    Args:
        setup: What to work on; its metric says that the outputs are logits.
        entries: What to score.
        options: Seed and quantizer are used.
        draws: How many random vectors.

    Returns:
        ``[entries]``, float64; may be negative, as traces of a Hessian may.

    Raises:
        RequestRefused: The metric is ``mse``: its Hessian at the float model is what probes estimate.
        MeasurementFailed: An operator failed or has no second derivative.

    Source:
        Dong et al. 2020, "HAWQ-V2: Hessian aware trace-weighted quantization of neural networks", equation 9.
        Passes: about 3, and 4 per draw (Hessian-vector products by double backward). Memory: two gradients of all weights
        and the graph of the gradient, for one batch; no other score here needs so much.
    """
    if setup.reference.metric is Metric.MSE:
        raise RequestRefused(
            "the Hessian trace is that of a cross entropy",
            "metric",
            setup.reference.metric.value,
            ["kl", "loss"],
        )
    traces = torch.zeros(len(entries.units), dtype=torch.float64)
    for batch in range(len(setup.batches)):
        kept = setup.batches.kept(batch)
        traces += kept * _batch_traces(setup, entries, batch, options, draws=draws)
    traces /= len(setup.batches.samples)
    result = torch.zeros(entries.count, dtype=torch.float64)
    for number, unit in enumerate(entries.units):
        for row, change in entries.weight_changes(number, setup.program, options.quantize):
            result[row] = float(traces[number]) / unit.info.weights * float(change.square().sum())
    return result


def _batch_traces(setup: Setup, entries: Entries, batch: int, options: ProbeOptions, *, draws: int) -> Tensor:
    program = setup.program
    weights = [program.constant(unit.node).detach().requires_grad_() for unit in entries.units]
    with torch.enable_grad():
        changes = {
            node: value
            for unit, weight in zip(entries.units, weights, strict=True)
            for node, value in unit.changes(weight).items()
        }
    environment = program.environment(setup.batches.inputs_of(batch))
    override = program.override(changes, gradients=True)
    traces = torch.zeros(len(weights), dtype=torch.float64)
    # Fused attention has no second derivative; the plain form computes the same.
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        program.advance_with(environment, lambda step, value: step.call(value), override)
        loss = _loss(setup, program.outputs(environment, override)[0], batch)
        with _twice_differentiable():
            gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        for draw in range(draws):
            with _twice_differentiable():
                traces += _one_draw(weights, gradients, seed=options.seed + 1009 * draw + 9176 * batch)
            options.tell(draws * batch + draw + 1, draws * len(setup.batches))
    return traces / draws


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Says so where a model is not."""
    try:
        yield
    except RuntimeError as error:
        raise MeasurementFailed(
            f"the model has no second derivative: {error}",
            "estimator",
            "hessian-trace",
            "another estimator: 'probe' needs first derivatives only",
        ) from error


def _one_draw(weights: list[Tensor], gradients: tuple[Tensor | None, ...], *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    signs = [
        torch.randint(0, 2, weight.shape, generator=generator).to(weight).mul_(2).sub_(1)
        for weight in weights
    ]
    product = sum(
        (
            (gradient * sign).sum()
            for gradient, sign in zip(gradients, signs, strict=True)
            if gradient is not None
        ),
        start=torch.zeros((), device=weights[0].device),
    )
    if not product.requires_grad:  # the loss is linear in all weights
        return torch.zeros(len(weights), dtype=torch.float64)
    back = torch.autograd.grad(product, weights, retain_graph=True, allow_unused=True)
    found = [
        0.0 if each is None else float((each.double() * sign.double()).sum())
        for each, sign in zip(back, signs, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)


def _loss(setup: Setup, output: Tensor, batch: int) -> Tensor:
    """Mean over samples of the mean cross entropy over their positions."""
    logits = output[: setup.batches.kept(batch)]
    labels = setup.batches.labels_of(batch)
    wanted = logits.detach().argmax(-1) if labels is None else labels.to(logits.device)
    flat = wanted.reshape(len(logits), -1)
    losses = cross_entropy(
        logits.reshape(-1, logits.shape[-1]), flat.reshape(-1), ignore_index=IGNORED_LABEL, reduction="none"
    ).reshape(flat.shape)
    counts = (flat != IGNORED_LABEL).sum(-1).clamp_min(1)
    return (losses.sum(-1) / counts).mean()
