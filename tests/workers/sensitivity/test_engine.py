import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from workers.contracts import Candidate, Metric, Scheme
from workers.errors import DatasetRefused, MeasurementFailed, ModelRefused, RequestRefused
from workers.quant import fake_quantize
from workers.sensitivity.engine import measure
from workers.sensitivity.metrics import COST_LIMIT
from workers.sensitivity.statistics import run_lengths


def eager_costs(case, unit, candidate, labels=None):
    """The same by hand: the eager model with one weight replaced; MSE and KL per sample."""
    with torch.no_grad():
        reference = case.module(*case.inputs).double()
        parameter = dict(case.module.named_parameters())[unit]
        kept = parameter.clone()
        parameter.copy_(fake_quantize(kept, candidate, output_channel_axis=0, group_axis=1, name=unit))
        output = case.module(*case.inputs).double()
        parameter.copy_(kept)
    p, q = reference.log_softmax(-1), output.log_softmax(-1)
    loss = nn.functional.cross_entropy
    return {
        Metric.KL: (p.exp() * (p - q)).sum(-1),
        Metric.MSE: (output - reference).square().mean(-1) / reference.var(correction=0),
        Metric.LOSS: None
        if labels is None
        else loss(output, labels, reduction="none") - loss(reference, labels, reduction="none"),
    }


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("fixed_batch", [None, 3])
def test_entries_against_the_eager_model(make_case, metric, fixed_batch):
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    case = make_case(labels=labels, fixed_batch=fixed_batch)
    request = case.request(metric=metric)
    entries = list(measure(request))
    assert [(e.unit, e.bits, e.scheme) for e in entries] == [
        (unit, candidate.bits, "channel-asymmetric") for unit, candidate in request.wanted
    ]
    for entry, (unit, candidate) in zip(entries, request.wanted, strict=True):
        costs = eager_costs(case, unit, candidate, labels)[metric]
        assert entry.samples == 8
        assert entry.mean == pytest.approx(float(costs.mean()), rel=1e-3, abs=1e-7)
        assert entry.standard_error == pytest.approx(float(costs.std()) / math.sqrt(8), rel=1e-3, abs=1e-7)
        assert entry.seconds > 0
        weights = dict(case.module.named_parameters())[unit].numel()
        channels = len(dict(case.module.named_parameters())[unit])
        assert entry.size_bits == weights * entry.bits
        assert entry.storage_bits == entry.size_bits + channels * (32 + entry.bits)
    # All but what is kept as bytes.
    json.dumps([asdict(entry) | {"runs": None} for entry in entries], allow_nan=False)
    for entry in entries:
        runs = np.frombuffer(entry.runs, "<f8")
        assert len(runs) == min(entry.samples, 64)
        assert np.average(runs, weights=run_lengths(entry.samples)) == pytest.approx(entry.mean, abs=1e-12)


def test_entries_do_not_depend_on_their_neighbours(make_case):
    case = make_case()
    together = {(e.unit, e.bits): e.mean for e in measure(case.request())}
    for unit, candidate in case.wanted(4)[::-1]:
        (alone,) = measure(case.request(wanted=((unit, candidate),)))
        assert alone.mean == together[unit, 4]


def test_shards_of_one_job_share_their_preparation(make_case, monkeypatch):
    case = make_case()
    wanted = case.wanted(2, 4)
    whole = [e.mean for e in measure(case.request(wanted=wanted))]
    first = [e.mean for e in measure(case.request(wanted=wanted[:4]))]
    monkeypatch.setattr(
        "workers.sensitivity.session.read_model", None
    )  # would fail: it must not be read again
    monkeypatch.setattr("workers.sensitivity.session.Reference", None)
    second = [e.mean for e in measure(case.request(wanted=wanted[4:]))]
    assert first + second == whole


def test_a_changed_file_is_read_again(make_case):
    before = [e.mean for e in measure(make_case(seed=0).request())]
    after = [e.mean for e in measure(make_case(seed=1).request())]
    assert before != after


def test_stopping_early_and_going_on(make_case):
    case = make_case()
    whole = [e.mean for e in measure(case.request())]
    running = measure(case.request())
    assert [next(running).mean for _ in range(3)] == whole[:3]
    running.close()
    assert [e.mean for e in measure(case.request(wanted=case.request().wanted[3:]))] == whole[3:]


def test_a_subset_is_chosen_by_the_seed(make_case):
    case = make_case()

    def mean(**changes):
        return next(measure(case.request(**changes))).mean

    assert mean(samples=4) == mean(samples=4)
    assert mean(samples=4) != mean(samples=4, seed=1)
    assert mean(samples=8, seed=1) == mean()
    assert next(measure(case.request(samples=1))).standard_error is None


def test_held_out_samples_are_not_used(make_case):
    case = make_case()
    whole = next(measure(case.request(indices=tuple(range(8))))).mean
    half = [next(measure(case.request(indices=part))).mean for part in ((0, 1, 2, 3), (4, 5, 6, 7))]
    assert whole == next(measure(case.request())).mean
    assert sum(half) / 2 == pytest.approx(whole)
    assert half[0] != half[1]


def test_nothing_quantized_would_cost_nothing(make_case):
    """16 bits are as good as none; the cost is not exactly 0 only because the weight is not exactly kept."""
    case = make_case()
    assert all(e.mean < 1e-6 for e in measure(case.request(wanted=case.wanted(16))))


def test_a_broken_candidate_costs_the_limit(make_case, monkeypatch):
    case = make_case()
    spoil = lambda weight, *_, **__: torch.full_like(weight, torch.nan)  # noqa: E731
    monkeypatch.setattr("workers.quant.store.apply", spoil)
    assert {e.mean for e in measure(case.request())} == {COST_LIMIT}


BAD_REQUESTS = {
    # what is changed -> (error, field, part of the message)
    "unknown unit": ({"wanted": "unknown"}, RequestRefused, "unit", "no unit 'nowhere'"),
    "loss without labels": ({"metric": Metric.LOSS}, RequestRefused, "metric", "needs labels"),
    "too many samples": ({"samples": 9}, RequestRefused, "samples", "the data has 8"),
    "no samples": ({"samples": 0}, RequestRefused, "samples", "the data has 8"),
    "unknown device": ({"device": "abacus"}, RequestRefused, "device", "abacus"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests(make_case, name):
    changes, error, field, message = BAD_REQUESTS[name]
    if changes == {"wanted": "unknown"}:
        candidate = Candidate(bits=4, scheme=Scheme.parse("channel-symmetric"))
        changes = {"wanted": (("nowhere", candidate),)}
    with pytest.raises(error, match=message) as caught:
        next(measure(make_case().request(**changes)))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 4, 5, 0, 0]), "5"),
        (torch.zeros(8, 2, dtype=torch.int64), "fit"),
        (torch.full((8,), -100), "no sample has a label"),
    ],
)
def test_bad_labels(make_case, labels, message):
    case = make_case(labels=labels)
    with pytest.raises(DatasetRefused, match=message):
        next(measure(case.request(metric=Metric.LOSS)))


def test_a_float_model_with_nan_outputs_is_named(make_case):
    def explode(module):
        module.norm.running_var.fill_(-1.0)

    with pytest.raises(MeasurementFailed, match="not finite for sample 0"):
        next(measure(make_case(edit=explode).request()))


def test_a_weight_with_nan_is_refused_by_name(make_case):
    def spoil(module):
        module.point.weight[3] = torch.nan

    with torch.no_grad(), pytest.raises((ModelRefused, MeasurementFailed), match=r"point|finite"):
        list(measure(make_case(edit=spoil).request()))


def test_a_regression_model_has_no_kl(make_case):
    def one_output(module):
        module.head = nn.Linear(8, 1)

    case = make_case(edit=one_output)
    with pytest.raises(RequestRefused, match="distributions"):
        next(measure(case.request()))
    assert next(measure(case.request(metric=Metric.MSE))).mean > 0
