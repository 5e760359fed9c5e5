import numpy as np
import pytest
import scipy.special
import torch

from workers.errors import DatasetRefused, MeasurementFailed, RequestRefused
from workers.sensitivity import metrics
from workers.sensitivity.reference import Spread


@pytest.fixture(params=[1 << 21, 7], ids=["one chunk", "many chunks"], autouse=True)
def chunk(request, monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", request.param)


def pair(*shape):
    torch.manual_seed(0)
    reference = 3 * torch.randn(*shape)
    return reference, reference + 0.3 * torch.randn(*shape)


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 4), (3, 2, 5, 4)])
def test_kl_is_scipys_relative_entropy_averaged_over_positions(shape):
    reference, output = pair(*shape)
    p, q = (scipy.special.softmax(t.double().numpy(), -1) for t in (reference, output))
    expected = scipy.special.rel_entr(p, q).sum(-1).reshape(shape[0], -1).mean(1)
    np.testing.assert_allclose(metrics.kl(reference, output), expected, rtol=1e-12)


def test_kl_of_equal_and_nearly_equal_outputs():
    reference, _ = pair(6, 4)
    assert metrics.kl(reference, reference).tolist() == [0.0] * 6
    # Too small a difference for float32 arithmetic, not for ours: KL ~ sum p (dz - mean dz)^2 / 2.
    output = reference.double()
    output[:, 0] += 1e-5
    p = reference.double().softmax(-1)[:, 0]
    np.testing.assert_allclose(metrics.kl(reference, output), p * (1 - p) * 1e-10 / 2, rtol=1e-3)


def test_kl_with_impossible_classes():
    reference = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert metrics.kl(reference, torch.tensor([[0.0, 1.0, 5.0]])).isfinite().all()
    assert metrics.kl(reference, reference).tolist() == [0.0]
    assert metrics.kl(reference, torch.tensor([[0.0, -torch.inf, 1.0]])).tolist() == [metrics.COST_LIMIT]


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 3, 4)])
def test_mse_is_normalised_by_the_variance_of_the_float_outputs(shape):
    reference, output = pair(*shape)
    spread = Spread()
    for part in reference.split(4):
        spread.add(part)
    variance = spread.variance()
    assert variance == pytest.approx(float(reference.double().var(correction=0)), rel=1e-12)
    errors = (output.double() - reference.double()).square().reshape(6, -1).mean(1)
    got = metrics.mse(metrics.squared_error(reference, output), variance)
    torch.testing.assert_close(got, errors / variance, rtol=1e-12, atol=0)


def test_outputs_without_variance_cannot_be_compared_by_mse():
    spread = Spread()
    spread.add(torch.ones(3, 4))
    with pytest.raises(MeasurementFailed, match="the same number everywhere"):
        spread.variance()


def test_cross_entropy_of_samples_is_torchs():
    _, output = pair(6, 4)
    labels = torch.tensor([0, 1, 2, 3, -100, 0])
    expected = torch.nn.functional.cross_entropy(output.double(), labels, reduction="none")
    expected[4] = torch.nan
    torch.testing.assert_close(metrics.cross_entropy(output, labels), expected, equal_nan=True)


def test_cross_entropy_of_tokens_is_the_mean_over_labelled_positions():
    _, output = pair(3, 5, 4)
    labels = torch.tensor([[0, 1, 2, 3, -100], [-100, -100, -100, 2, -100], [-100] * 5])
    for sample in range(2):
        expected = torch.nn.functional.cross_entropy(output[sample].double(), labels[sample])
        torch.testing.assert_close(metrics.cross_entropy(output, labels)[sample], expected)
    assert metrics.cross_entropy(output, labels)[2].isnan()
    assert metrics.loss_rise(output, output, labels)[2].isnan()


def test_loss_rise_is_paired_and_may_be_negative():
    reference, output = pair(6, 4)
    labels = torch.tensor([0, 1, 2, 3, 1, 0])
    rise = metrics.loss_rise(reference, output, labels)
    expected = metrics.cross_entropy(output, labels) - metrics.cross_entropy(reference, labels)
    torch.testing.assert_close(rise, expected)
    assert rise.min() < 0 < rise.max()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_broken_outputs_cost_the_limit(value):
    reference, output = pair(4, 3)
    output[1] = value
    output[1, 0] = 0.0
    output[2, 0] = value
    labels = torch.zeros(4, dtype=torch.int64)
    for costs in (
        metrics.kl(reference, output),
        metrics.mse(metrics.squared_error(reference, output), 1.0),
        metrics.loss_rise(reference, output, labels),
    ):
        assert costs.isfinite().all()
        assert costs.max() == metrics.COST_LIMIT
        assert costs[[0, 3]].abs().max() < 10


def test_agreement_and_accuracy():
    reference = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    output = torch.tensor([[0.0, 2.0], [0.0, 1.0], [0.0, torch.nan], [torch.inf, 1.0]])
    assert metrics.top1_agreement(reference, output).tolist() == [1, 0, 0, 1]
    labels = torch.tensor([1, 1, 1, -100])
    assert metrics.top1_accuracy(output, labels)[:3].tolist() == [1, 1, 0]
    assert metrics.top1_accuracy(output, labels)[3].isnan()
    tokens = output.reshape(2, 2, 2)
    assert metrics.top1_agreement(reference.reshape(2, 2, 2), tokens).tolist() == [0.5, 0.5]
    assert metrics.top1_accuracy(tokens, labels.reshape(2, 2)).tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 7, 1)])
def test_outputs_without_classes_are_refused(shape):
    with pytest.raises(RequestRefused, match="distributions over the last axis") as caught:
        metrics.require_classes(torch.zeros(shape), "kl")
    assert caught.value.allowed == ["mse"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), "do not fit"),
        (torch.zeros(4, 2, dtype=torch.int64), "do not fit"),
        (torch.tensor([0, 1, 2, 5]), "label 5 is out of range"),
        (torch.tensor([0, 1, -1, 2]), "label -1 is out of range"),
    ],
)
def test_labels_are_checked(labels, message):
    with pytest.raises(DatasetRefused, match=message):
        metrics.require_labels(torch.zeros(4, 5), labels)


def test_float_outputs_must_be_finite():
    output = torch.zeros(3, 2)
    metrics.require_finite_outputs(output, 0, distribution=True)
    output[1, 0] = -torch.inf
    metrics.require_finite_outputs(output, 0, distribution=True)
    with pytest.raises(MeasurementFailed, match="sample 11"):
        metrics.require_finite_outputs(output, 10, distribution=False)
    output[2] = torch.nan
    with pytest.raises(MeasurementFailed, match="sample 2"):
        metrics.require_finite_outputs(output, 0, distribution=True)
