import itertools

import numpy as np
import pytest
import torch

from workers.contracts import Candidate, RangeMethod, Scheme
from workers.errors import ModelRefused
from workers.quant import InputMoments, WeightQuantizer, fake_quantize, fake_quantize_all

AXES = {"output_channel_axis": 0, "group_axis": 1, "name": "w"}
TEXTS = [
    f"{granularity}-{symmetry}-{method}"
    for granularity in ("tensor", "channel", "group:16")
    for symmetry in ("symmetric", "asymmetric")
    for method in (*RangeMethod, "percentile:1")
] + ["channel-symmetric-corrected", "group:16-asymmetric-mse-gptq", "channel-symmetric-kl-full"]
CANDIDATES = [Candidate(bits=b, scheme=Scheme.parse(t)) for t in TEXTS for b in (2, 4, 8)]


@pytest.fixture
def weight(generator):
    return torch.randn(9, 70, generator=generator)


@pytest.fixture
def inputs(generator):
    return InputMoments.of_inputs(torch.randn(200, 70, generator=generator) * torch.linspace(0.1, 3, 70))


@pytest.mark.parametrize("order", ["given", "by bits", "backwards"])
def test_all_at_once_are_those_one_by_one(order, weight, inputs):
    candidates = {
        "given": CANDIDATES,
        "by bits": sorted(CANDIDATES, key=lambda c: c.bits),
        "backwards": CANDIDATES[::-1],
    }[order]
    results = list(fake_quantize_all(weight, candidates, **AXES, inputs=inputs))
    assert len(results) == len(candidates)
    for candidate, result in zip(candidates, results, strict=True):
        alone = fake_quantize(weight, candidate, **AXES, inputs=inputs)
        assert torch.equal(result, alone), str(candidate)


def test_results_share_no_memory(weight, inputs):
    results = list(fake_quantize_all(weight, CANDIDATES[:9] * 2, **AXES, inputs=inputs))
    addresses = {tensor.untyped_storage().data_ptr() for tensor in (*results, weight)}
    assert len(addresses) == len(results) + 1


def test_what_is_shared_is_computed_once(weight, monkeypatch):
    sorts, histograms = itertools.count(), itertools.count()
    sort, bincount = np.sort, torch.bincount
    monkeypatch.setattr(np, "sort", lambda *a, **k: (next(sorts), sort(*a, **k))[1])
    monkeypatch.setattr(torch, "bincount", lambda *a, **k: (next(histograms), bincount(*a, **k))[1])
    schemes = ["channel-asymmetric-percentile:1", "channel-symmetric-percentile:0.1", "channel-asymmetric-kl"]
    candidates = [Candidate(bits=b, scheme=Scheme.parse(t)) for b in (2, 3, 4, 8) for t in schemes]
    list(fake_quantize_all(weight, candidates, **AXES))
    assert next(sorts) == next(histograms) == 1


def test_a_weight_is_checked_once_and_at_once(weight):
    weight[3, 3] = torch.inf
    with pytest.raises(ModelRefused, match="'w'"):
        WeightQuantizer(weight, **AXES)


def test_the_weight_stays_as_it_is(weight, inputs):
    before = weight.clone()
    for result in fake_quantize_all(weight, CANDIDATES, **AXES, inputs=inputs):
        result.zero_()
    assert torch.equal(weight, before)
