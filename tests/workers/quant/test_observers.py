import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.contracts import Candidate, RangeMethod, Scheme
from workers.errors import MeasurementFailed, RequestRefused
from workers.quant import (
    CodeRange,
    HistogramObserver,
    MinMaxObserver,
    choose_range,
    quantize_dequantize,
    scale_and_zero_point,
)

METHODS = [method for method in RangeMethod if method is not RangeMethod.WEIGHTED_MSE]
PROPERTY = settings(derandomize=True, deadline=None, max_examples=100)
values_and_cuts = st.tuples(
    st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=40),
    st.lists(st.integers(0, 40), max_size=6),
)


def candidate_of(method, *, symmetric=False, bits=4):
    return Candidate(bits=bits, scheme=Scheme.parse(f"tensor-{'' if symmetric else 'a'}symmetric-{method}"))


def observed(observer, batches):
    for batch in batches:
        observer.update(batch)
    return observer


def cut(values, cuts):
    ends = sorted({0, len(values), *(c for c in cuts if c < len(values))})
    return [values[a:b] for a, b in itertools.pairwise(ends)]


def state(observer):
    return observer.counts.tolist(), observer.exponent, observer.ends.low, observer.ends.high


@PROPERTY
@given(values_and_cuts)
def test_minmax_is_exact_whatever_the_split(values_and_cuts):
    values, cuts = values_and_cuts
    values = torch.tensor(values)
    assert observed(MinMaxObserver("x"), cut(values, cuts)).range() == (
        values.min().item(),
        values.max().item(),
    )


@PROPERTY
@given(values_and_cuts, st.randoms(use_true_random=False))
def test_histogram_is_the_same_whatever_the_split_the_order_and_the_merging(values_and_cuts, random):
    values, cuts = values_and_cuts
    values = torch.tensor(values)
    whole = observed(HistogramObserver("x", bins=16), [values])
    batches = cut(values, cuts)
    random.shuffle(batches)
    assert state(observed(HistogramObserver("x", bins=16), batches)) == state(whole)

    parts = [observed(HistogramObserver("x", bins=16), [batch]) for batch in batches]
    merged = HistogramObserver("x", bins=16)
    for part in parts:
        merged.merge(part)
    assert state(merged) == state(whole)


@PROPERTY
@given(values_and_cuts)
def test_histogram_counts_each_value_in_its_bin(values_and_cuts):
    values, cuts = values_and_cuts
    values = torch.tensor(values)
    observer = observed(HistogramObserver("x", bins=32), cut(values, cuts))
    edges = (np.arange(65) - 32) * observer.bin_width
    expected, _ = np.histogram(values.double().numpy(), bins=edges)
    assert observer.counts.tolist() == expected.tolist()


@PROPERTY
@given(values_and_cuts)
def test_half_of_the_bins_are_in_use(values_and_cuts):
    values, cuts = values_and_cuts
    largest = max(map(abs, values))
    observer = observed(HistogramObserver("x", bins=32), cut(torch.tensor(values), cuts))
    if largest > 1e-36:
        assert 16 <= largest / observer.bin_width < 32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_do_not_depend_on_the_split(method, symmetric, generator, device):
    values = torch.randn(10_000, generator=generator).relu().mul(3).to(device)
    candidate = candidate_of(method, symmetric=symmetric)
    whole = observed(HistogramObserver("x"), [values]).range(candidate)
    pieces = observed(HistogramObserver("x"), values.sort().values.split(777)).range(candidate)
    assert whole == pieces
    assert whole[0].device == device


@pytest.mark.parametrize("percentile", [0.01, 0.1, 1, 25])
def test_percentiles_are_within_a_bin(percentile, generator):
    values = torch.randn(5000, generator=generator).exp()
    observer = observed(HistogramObserver("x"), values.split(100))
    candidate = candidate_of(f"percentile:{percentile}")
    ours = [end.item() for end in observer.range(candidate)]
    expected = np.percentile(values.double().numpy(), [percentile, 100 - percentile])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=observer.bin_width)


def test_percentiles_are_interpolated_within_well_filled_bins():
    values = torch.linspace(-0.9999, 0.9999, 10_000)
    observer = observed(HistogramObserver("x", bins=16), values.split(100))
    ours = [end.item() for end in observer.range(candidate_of("percentile:3"))]
    expected = np.percentile(values.double().numpy(), [3, 97])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=observer.bin_width / 50)


def test_percentiles_never_leave_the_values():
    observer = observed(HistogramObserver("x", bins=2), [torch.tensor([0.4, 0.6])])
    low, high = observer.range(candidate_of("percentile:0.01"))
    assert 0.4 - 1e-6 <= low <= high <= 0.6 + 1e-6


def test_activations_have_no_inputs_to_weight_errors_by():
    observer = observed(HistogramObserver("gate"), [torch.ones(3)])
    with pytest.raises(RequestRefused, match="'gate'") as refused:
        observer.range(candidate_of("weighted-mse"))
    assert "mse" in refused.value.allowed


@pytest.mark.parametrize("method", ["kl", "mse", "l3"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_searches_agree_with_those_on_all_values(method, symmetric, bits, generator):
    values = torch.randn(60_000, generator=generator)
    values = values.sign() * values.abs() ** 1.5
    candidate = candidate_of(method, symmetric=symmetric, bits=bits)
    observer = observed(HistogramObserver("x"), values.split(999))
    codes = CodeRange.of_candidate(candidate)

    def error(low, high):
        scale, zero_point = scale_and_zero_point(low.float(), high.float(), codes)
        difference = quantize_dequantize(values, scale, zero_point, codes) - values
        return difference.abs().pow(3 if method == "l3" else 2).mean().item()

    low, high = choose_range(values[None], candidate)
    direct, ours = error(low[0], high[0]), error(*observer.range(candidate))
    assert ours == pytest.approx(direct, rel=0.2 if method == "kl" else 0.01)


def test_minmax_of_the_histogram_is_exact(generator):
    values = torch.randn(100, generator=generator)
    low, high = observed(HistogramObserver("x", bins=4), values.split(7)).range(candidate_of("minmax"))
    assert (low.item(), high.item()) == (values.min().item(), values.max().item())


@pytest.mark.parametrize("method", METHODS)
def test_zeros_only(method):
    low, high = observed(HistogramObserver("x"), [torch.zeros(5), torch.zeros(2)]).range(candidate_of(method))
    assert (low.item(), high.item()) == (0, 0)


def test_memory_is_bounded():
    observer = HistogramObserver("x", bins=64)
    for power in range(-120, 120, 3):
        observer.update(torch.tensor([2.0**power, -(2.0**power)]))
    assert observer.counts.shape == (128,)
    assert observer.counts.sum() == 160


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype, generator):
    values = torch.randn(50, generator=generator).to(dtype)
    observer = observed(HistogramObserver("x"), [values])
    assert state(observer) == state(
        observed(HistogramObserver("x"), [values.float() if dtype != torch.float64 else values])
    )
    assert observer.ends.high == values.double().max().item()


@pytest.mark.parametrize("make", [MinMaxObserver, HistogramObserver])
def test_empty_batches_change_nothing(make):
    observer = make("encoder.act")
    observer.update(torch.zeros(0, 3))
    with pytest.raises(MeasurementFailed, match=r"nothing was observed for 'encoder\.act'"):
        observer.range(candidate_of("kl")) if make is HistogramObserver else observer.range()


@pytest.mark.parametrize("make", [MinMaxObserver, HistogramObserver])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_name_the_layer_and_leave_the_state(make, bad):
    observer = observed(make("encoder.act"), [torch.tensor([1.0, 2.0])])
    before = pickle.dumps(observer)
    with pytest.raises(MeasurementFailed, match=r"'encoder\.act'") as failed:
        observer.update(torch.tensor([5.0, bad]))
    assert failed.value.field == "encoder.act"
    assert pickle.dumps(observer) == before


def test_integers_are_refused():
    with pytest.raises(RequestRefused, match="int64"):
        MinMaxObserver("x").update(torch.tensor([1, 2]))


def test_observers_travel_by_pickle(generator):
    observer = observed(HistogramObserver("x"), [torch.randn(50, generator=generator)])
    copy = pickle.loads(pickle.dumps(observer))
    assert state(copy) == state(observer)


@pytest.mark.parametrize("bins", [0, 1, 3, 100, -4])
def test_bins_are_a_power_of_two(bins):
    with pytest.raises(RequestRefused, match="power of two"):
        HistogramObserver("x", bins=bins)


def test_histograms_of_other_sizes_are_not_merged():
    with pytest.raises(RequestRefused, match="4 and 8"):
        HistogramObserver("x", bins=8).merge(HistogramObserver("x", bins=4))
