"""The named scores, against per-sample gradients by `torch.func`, Hessians written out, and NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.workers.sensitivity.estimators import models
from workers.contracts import Estimator, Metric
from workers.errors import RequestRefused
from workers.sensitivity.estimators.changes import round_to_nearest
from workers.sensitivity.estimators.cotangents import cotangent, random_signs
from workers.sensitivity.estimators.entries import Entries
from workers.sensitivity.estimators.fisher import diagonal_fisher, fit
from workers.sensitivity.estimators.hessian_trace import hessian_trace
from workers.sensitivity.estimators.probe import ProbeOptions
from workers.sensitivity.estimators.scores import scores


def weight_and_changes(case, unit):
    weight = case.setup.program.constant(unit.node)
    changes = [round_to_nearest(unit, weight, candidate) - weight for candidate in case.candidates]
    return weight, torch.stack(changes)


def test_weight_errors_are_those_of_numpy(make_setup):
    case = make_setup(*models.build("linear"))
    mse = scores(case.setup, case.wanted, Estimator.WEIGHT_MSE)
    ratio = scores(case.setup, case.wanted, Estimator.WEIGHT_SQNR)
    row = 0
    for unit in case.units:
        weight, changes = (tensor.numpy() for tensor in weight_and_changes(case, unit))
        for change in changes:
            assert float(mse[row]) == pytest.approx(np.mean(change**2), rel=1e-12)
            assert float(ratio[row]) == pytest.approx(np.sum(change**2) / np.sum(weight**2), rel=1e-12)
            row += 1


@pytest.mark.parametrize("fixed", [None, 2])
@pytest.mark.parametrize("name", ["convolutions", "tied", "twice", "normed", "folded", "experts"])
def test_fisher_scores_square_each_samples_gradient(make_setup, name, fixed):
    case = make_setup(*models.build(name), fixed=fixed)
    options = ProbeOptions(seed=5)
    entries = Entries.of(case.setup.table, case.wanted)
    diagonal, trace = diagonal_fisher(case.setup, entries, options), fit(case.setup, entries, options)
    plain = models.twin(case.module)
    values = {key: value.detach() for key, value in plain.named_parameters()}
    row = 0
    for unit in case.units:
        squares = 0
        for sample in range(5):

            def outputs(weight, sample=sample, name=unit.info.name):
                inputs = tuple(tensor[sample : sample + 1] for tensor in case.inputs)
                return torch.func.functional_call(plain, values | {name: weight}, inputs)

            found, back = torch.func.vjp(outputs, values[unit.info.name])
            signs = random_signs(5, 0, [sample], found.numel())
            (gradient,) = back(cotangent(Metric.KL, found, signs, mask=None, variance=1.0))
            squares = squares + gradient.square() / 5
        for change in weight_and_changes(case, unit)[1]:
            assert float(diagonal[row]) == pytest.approx(float((squares * change.square()).sum()), rel=1e-9)
            expected = float(squares.sum()) * float(change.square().mean())
            assert float(trace[row]) == pytest.approx(expected, rel=1e-9)
            row += 1


def test_empirical_fisher_takes_the_gradient_of_the_cross_entropy(make_setup):
    labels = torch.tensor([[0, 1, -100, 2], [3, 3, 3, 3], [-100] * 4, [10, 0, 0, 1], [5, -100, 6, 7]])
    case = make_setup(*models.build("tied"), labels=labels)
    entries = Entries.of(case.setup.table, case.wanted)
    found = diagonal_fisher(case.setup, entries, ProbeOptions(), empirical=True)
    unit = case.units[0]
    squares = torch.zeros(unit.info.shape, dtype=torch.double)
    for sample in range(5):
        weight = case.module.embed.weight
        case.module.zero_grad()
        counted = max(1, int((labels[sample] != -100).sum()))
        loss = nn.functional.cross_entropy(
            case.module(case.inputs[0][sample : sample + 1])[0], labels[sample], reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss / (2 * counted) ** 0.5, [weight])
        squares += gradient.square() / 5
    for row, change in enumerate(weight_and_changes(case, unit)[1]):
        assert float(found[row]) == pytest.approx(float((squares * change.square()).sum()), rel=1e-9)


def test_empirical_fisher_needs_labels(make_setup):
    case = make_setup(*models.build("linear"))
    with pytest.raises(RequestRefused, match="labels"):
        diagonal_fisher(case.setup, Entries.of(case.setup.table, case.wanted), ProbeOptions(), empirical=True)


def test_output_error_is_the_trace_with_the_inputs_second_moments(make_setup):
    case = make_setup(*models.build("tokens"), fixed=None)
    found = scores(case.setup, case.wanted, Estimator.OUTPUT_ERROR)
    first, _, last = case.module
    inputs = {"0.weight": case.inputs[0], "2.weight": torch.tanh(first(case.inputs[0])).detach()}
    row = 0
    for unit in case.units:
        x = inputs[unit.info.name].reshape(-1, last.in_features if unit.info.name == "2.weight" else 4)
        moments = x.T @ x / 5
        for change in weight_and_changes(case, unit)[1]:
            assert float(found[row]) == pytest.approx(
                float(torch.trace(change @ moments @ change.T)), rel=1e-9
            )
            row += 1


@pytest.mark.parametrize("fixed", [None, 2])
def test_output_hessian_weighs_errors_by_squared_gradients(make_setup, fixed):
    case = make_setup(*models.build("tokens"), fixed=fixed)
    found = scores(case.setup, case.wanted, Estimator.OUTPUT_HESSIAN, ProbeOptions(seed=2))
    first, middle, last = case.module
    x = case.inputs[0]
    hidden = first(x).detach().requires_grad_()
    logits = last(middle(hidden))
    signs = random_signs(2, 0, range(5), logits[0].numel())
    starts = cotangent(Metric.KL, logits.detach(), signs, mask=None, variance=1.0)
    (gradient,) = torch.autograd.grad(logits, [hidden], starts)
    seen = {"0.weight": (x, gradient), "2.weight": (middle(hidden).detach(), starts)}
    row = 0
    for unit in case.units:
        inputs, weights = seen[unit.info.name]
        for change in weight_and_changes(case, unit)[1]:
            expected = float((weights * (inputs @ change.T)).square().sum()) / 5
            assert float(found[row]) == pytest.approx(expected, rel=1e-9)
            row += 1


@pytest.mark.parametrize("name", ["linear", "normed", "tied", "sequence-first"])
def test_hessian_trace_is_that_of_the_hessian_written_out(make_setup, name):
    case = make_setup(*models.build(name), batch_size=5)
    entries = Entries.of(case.setup.table, case.wanted)
    draws = 400
    found = hessian_trace(case.setup, entries, ProbeOptions(), draws=draws)
    plain = models.twin(case.module)
    values = {key: value.detach() for key, value in plain.named_parameters()}
    names = [unit.info.name for unit in case.units]

    def loss(weights):
        logits = torch.func.functional_call(plain, values | weights, case.inputs)
        flat = logits.reshape(-1, logits.shape[-1])
        return nn.functional.cross_entropy(flat, flat.detach().argmax(-1))

    hessian = torch.func.jacrev(torch.func.jacrev(loss))({key: values[key] for key in names})
    total = torch.cat(
        [torch.cat([hessian[a][b].reshape(values[a].numel(), -1) for b in names], 1) for a in names]
    )
    row = start = 0
    for unit in case.units:
        block = slice(start, start + unit.info.weights)
        start = block.stop
        trace = float(total[block, block].trace())
        # Of v_i (H v)_i summed over the block: the squared rest of its rows, once more within the block.
        rest = total - torch.diag(total.diagonal())
        spread = float((rest[block].square().sum() + rest[block, block].square().sum()) / draws) ** 0.5
        for change in weight_and_changes(case, unit)[1]:
            scale = float(change.square().sum()) / unit.info.weights
            assert abs(float(found[row]) - trace * scale) < 5 * spread * scale + 1e-12
            row += 1


def test_hessian_trace_is_of_classes(make_setup):
    case = make_setup(*models.build("linear"), metric=Metric.MSE)
    with pytest.raises(RequestRefused, match="cross entropy"):
        scores(case.setup, case.wanted, Estimator.HESSIAN_TRACE)


def test_every_estimator_gives_a_finite_number_per_entry(make_setup):
    case = make_setup(*models.build("convolutions"))
    for estimator in Estimator:
        found = scores(case.setup, case.wanted, estimator)
        assert found.shape == (len(case.wanted),)
        assert bool(found.isfinite().all())
        if estimator is not Estimator.HESSIAN_TRACE:
            assert bool((found > 0).all())


@pytest.mark.parametrize("estimator", sorted(set(Estimator) - {Estimator.WEIGHT_MSE, Estimator.WEIGHT_SQNR}))
def test_whoever_looks_at_data_tells_how_far_it_is_and_may_be_stopped(make_setup, estimator):
    case = make_setup(*models.build("linear"), batch_size=2)
    told = []
    scores(case.setup, case.wanted, estimator, ProbeOptions(progress=lambda *given: told.append(given)))
    shares = [done / total for done, total in told]
    assert shares == sorted(shares)
    assert len(set(shares)) >= 3, "five samples, two at a time"
    assert shares[-1] == 1.0

    class Stopped(RuntimeError):
        """As operators' own errors are."""

    def stop(_done, _total):
        raise Stopped

    with pytest.raises(Stopped):
        scores(case.setup, case.wanted, estimator, ProbeOptions(progress=stop))
