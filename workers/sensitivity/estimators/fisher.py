"""Scores from the diagonal of the Fisher information: every weight on its own, all correlations left out.

Cost in passes: a forward, a backward and the weights' gradients for each sample by itself (about 4, more where single
samples do not fill the machine); memory: one gradient per use of a unit. Gradients are those of one probe, whose signs
give the model's own (true) Fisher information without labels, or those of the cross entropy against labels
(the empirical one). Both are scaled like a probe, so that the diagonal score is in the metric's unit.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from workers.contracts import Metric
from workers.errors import RequestRefused
from workers.sensitivity.estimators.cotangents import label_cotangent, random_signs
from workers.sensitivity.estimators.entries import Entries
from workers.sensitivity.estimators.feeds import Feed
from workers.sensitivity.estimators.probe import ProbeOptions
from workers.sensitivity.estimators.sample_gradients import SampleGradients, Starts
from workers.sensitivity.estimators.starts import start_of
from workers.sensitivity.exact import Setup


def diagonal_fisher(
    setup: Setup, entries: Entries, options: ProbeOptions, *, empirical: bool = False
) -> Tensor:
    """``mean over samples of sum_w g_w^2 dW_w^2``.

    Args:
        setup: What to work on.
        entries: What to score.
        options: Seed, quantizer and masks are used.
        empirical: Gradients of the cross entropy against the data's labels.

    Returns:
        ``[entries]``, float64.

    Raises:
        RequestRefused: ``empirical`` without labels.
        MeasurementFailed: An operator failed or has no derivative.

    Source:
        The diagonal approximation of LeCun, Denker, Solla 1990, "Optimal brain damage", with the Fisher
        information in the Hessian's place.
    """
    squares = squared_gradients(setup, entries, options, empirical=empirical)
    result = torch.zeros(entries.count, dtype=torch.float64)
    for number in range(len(entries.units)):
        for row, change in entries.weight_changes(number, setup.program, options.quantize):
            result[row] = float((squares[number] * change.square()).sum())
    return result


def fit(setup: Setup, entries: Entries, options: ProbeOptions, *, empirical: bool = False) -> Tensor:
    """Trace of the unit's Fisher information times the mean squared change of its weights.

    Args:
        setup: What to work on.
        entries: What to score.
        options: Seed, quantizer and masks are used.
        empirical: Gradients of the cross entropy against the data's labels (as in the paper).

    Returns:
        ``[entries]``, float64.

    Raises:
        RequestRefused: ``empirical`` without labels.
        MeasurementFailed: An operator failed or has no derivative.

    Source:
        Zandonati et al. 2022, "FIT: A metric for model sensitivity", equation for the weights' part; measured
        quantization errors in the place of the noise model.
    """
    squares = squared_gradients(setup, entries, options, empirical=empirical)
    result = torch.zeros(entries.count, dtype=torch.float64)
    for number in range(len(entries.units)):
        trace = float(squares[number].sum())
        for row, change in entries.weight_changes(number, setup.program, options.quantize):
            result[row] = trace * float(change.square().mean())
    return result


def squared_gradients(
    setup: Setup, entries: Entries, options: ProbeOptions, *, empirical: bool = False
) -> list[Tensor]:
    """Per unit the mean over samples of the squared gradients: the weight's shape, float64."""
    squares = [
        torch.zeros_like(setup.program.constant(unit.node), dtype=torch.float64) for unit in entries.units
    ]

    def see(unit: int, _: int, gradient: Tensor) -> None:
        squares[unit] += gradient.double().square()

    start = _label_start(setup) if empirical else sign_start(setup, options, probe=0)
    SampleGradients(setup, entries, options.tell).each(start, see)
    count = len(setup.batches.samples)
    return [square / count for square in squares]


def sign_start(setup: Setup, options: ProbeOptions, *, probe: int) -> Starts:
    """Cotangents of a probe."""
    reference = setup.reference

    def start(output: Tensor, feed: Feed) -> Tensor:
        samples = setup.batches.samples[feed.samples].tolist()
        signs = random_signs(options.seed, probe, samples, output[0].numel())
        mask = options.mask(feed.batch, feed.offset, feed.kept)
        return start_of(reference, output, signs, mask)

    return start


def _label_start(setup: Setup) -> Callable[[Tensor, Feed], Tensor]:
    if setup.batches.labels is None or setup.reference.metric is Metric.MSE:
        raise RequestRefused(
            "the empirical Fisher information needs labels of classes", "labels", None, "data with labels"
        )

    def start(output: Tensor, feed: Feed) -> Tensor:
        labels = setup.batches.labels_of(feed.batch)
        assert labels is not None
        return label_cotangent(output, labels[feed.offset : feed.offset + feed.kept])

    return start
