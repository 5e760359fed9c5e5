import itertools

import pytest
import torch

from workers.contracts import Candidate, RangeMethod, Scheme, UnitInfo
from workers.errors import ModelRefused
from workers.quant import InputMoments, QuantizedWeights, by_shared_work, fake_quantize
from workers.quant.ranges import RangeChooser

AXES = {"output_channel_axis": 0, "group_axis": 1, "name": "w"}
INFO = UnitInfo(operator="linear", shape=(9, 70), weights=630, macs=0, **AXES)
TEXTS = [
    f"{granularity}-{symmetry}-{method}{ending}"
    for granularity in ("tensor", "channel", "group:16")
    for symmetry in ("symmetric", "asymmetric")
    for method in RangeMethod
    for ending in ("", "-corrected", "-gptq")
]
CANDIDATES = [Candidate(bits=b, scheme=Scheme.parse(t)) for b in (2, 4) for t in TEXTS]


@pytest.fixture
def weight(generator):
    return torch.randn(9, 70, generator=generator)


@pytest.fixture
def inputs(generator):
    return InputMoments.of_inputs(torch.randn(200, 70, generator=generator) * torch.linspace(0.1, 3, 70))


@pytest.fixture
def searches(monkeypatch):
    """How many ranges were searched for so far."""
    count = itertools.count()
    find = RangeChooser.range
    monkeypatch.setattr(RangeChooser, "range", lambda *a: (next(count), find(*a))[1])
    return count


def test_weights_are_those_of_fake_quantize_time_and_again(weight, inputs):
    store = QuantizedWeights()
    for _ in range(2):
        for candidate in CANDIDATES:
            expected = fake_quantize(weight, candidate, **AXES, inputs=inputs)
            assert torch.equal(store.fake_quantize(INFO, weight, candidate, inputs), expected), str(candidate)
    assert store.kept == len(CANDIDATES)


def test_ranges_are_searched_once_even_where_they_serve_several_candidates(weight, inputs, searches):
    store = QuantizedWeights()
    for _ in range(2):
        for number in by_shared_work(CANDIDATES):
            store.fake_quantize(INFO, weight, CANDIDATES[number], inputs)
    # A short last group is a block of its own.
    ranges = {(c.bits, c.scheme.granularity, c.scheme.symmetric, c.scheme.range_method) for c in CANDIDATES}
    assert next(searches) == sum(2 if str(granularity) == "group:16" else 1 for _, granularity, *_ in ranges)


def test_other_weights_and_other_inputs_are_not_taken_for_those_known(weight, inputs):
    store = QuantizedWeights()
    other = InputMoments(second=inputs.second.flip(1), matrix=inputs.matrix.flip(0, 1))
    for candidate in CANDIDATES:
        for values, moments in ((weight, inputs), (weight, other), (weight * 2 + 1, other)):
            expected = fake_quantize(values, candidate, **AXES, inputs=moments)
            assert torch.equal(store.fake_quantize(INFO, values, candidate, moments), expected), str(
                candidate
            )


def test_activation_bits_make_no_other_weight(weight, searches):
    store, scheme = QuantizedWeights(), Scheme.parse("channel-symmetric-mse")
    for bits in (None, 8, 4):
        store.fake_quantize(INFO, weight, Candidate(bits=3, scheme=scheme, activation_bits=bits))
    assert store.kept == 1
    assert next(searches) == 1


def test_what_is_kept_is_bounded_and_the_last_used_stay(weight, inputs, searches):
    scheme = Scheme.parse("channel-symmetric-mse")
    candidates = [Candidate(bits=bits, scheme=scheme) for bits in (2, 3, 4)]
    each = 9 * 16  # scale, zero point and both ends of nine channels
    store = QuantizedWeights(2 * each)
    for candidate in (*candidates[:2], candidates[0], candidates[2]):
        store.fake_quantize(INFO, weight, candidate)
    assert store.kept == 2
    before = next(searches)
    store.fake_quantize(INFO, weight, candidates[0])
    assert next(searches) == before + 1  # counting counts itself
    store.fake_quantize(INFO, weight, candidates[1])
    assert next(searches) == before + 3
    nothing = QuantizedWeights(0)
    expected = fake_quantize(weight, CANDIDATES[2], **AXES, inputs=inputs)
    assert torch.equal(nothing.fake_quantize(INFO, weight, CANDIDATES[2], inputs), expected)
    assert nothing.kept == 0


def test_results_share_no_memory_with_what_is_kept(weight):
    store, candidate = QuantizedWeights(), CANDIDATES[0]
    first = store.fake_quantize(INFO, weight, candidate)
    kept = first.clone()
    first.zero_()
    assert torch.equal(store.fake_quantize(INFO, weight, candidate), kept)


def test_weights_that_are_not_finite_are_refused_by_name(weight):
    weight[3, 3] = torch.nan
    with pytest.raises(ModelRefused, match="'w'"):
        QuantizedWeights().fake_quantize(INFO, weight, CANDIDATES[0])
