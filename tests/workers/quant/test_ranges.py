import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workers.contracts import Candidate, RangeMethod, Scheme
from workers.errors import RequestRefused
from workers.quant import (
    CodeRange,
    choose_range,
    kl_range,
    minmax_range,
    mse_range,
    percentile_range,
    quantize_dequantize,
    scale_and_zero_point,
)
from workers.quant.clipping_kl import SMOOTHING, _histogram, _PrefixSums, kl_threshold

PROPERTY = settings(derandomize=True, deadline=None, max_examples=100)
KINDS = ["narrow", "full", "asymmetric"]


def codes_of(bits, kind):
    return CodeRange.of(bits, symmetric=kind != "asymmetric", full_range=kind == "full")


def rows_of(kind, generator, rows=8, values=400):
    normal = torch.randn(rows, values, generator=generator)
    match kind:
        case "gaussian":
            return normal
        case "laplace":
            return normal.sign() * -torch.rand(rows, values, generator=generator).clamp(min=1e-6).log()
        case "outlier":
            return torch.cat([normal[:, 1:], torch.full((rows, 1), 40.0)], 1)
        case "relu":
            return normal.relu()
        case "above zero":
            return normal + 3
        case "below zero":
            return normal - 3


def squared_error(rows, low, high, codes):
    scale, zero_point = scale_and_zero_point(low, high, codes)
    result = quantize_dequantize(rows, scale[:, None], zero_point[:, None], codes)
    return (result - rows).double().square().sum(1)


small_rows = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 30)),
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
)


@PROPERTY
@given(small_rows)
def test_minmax_is_the_extremes(rows):
    low, high = minmax_range(torch.from_numpy(rows))
    assert low.tolist() == rows.min(1).tolist()
    assert high.tolist() == rows.max(1).tolist()


@PROPERTY
@given(small_rows, st.floats(0.01, 49))
def test_percentiles_are_numpys(rows, percentile):
    low, high = percentile_range(torch.from_numpy(rows), percentile)
    expected_low, expected_high = np.percentile(rows.astype(float), [percentile, 100 - percentile], axis=1)
    np.testing.assert_allclose(low.numpy(), expected_low, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(high.numpy(), expected_high, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("percentile", [0, 50, -1, 99])
def test_percentiles_outside_are_refused(percentile):
    with pytest.raises(RequestRefused, match="out of range"):
        percentile_range(torch.zeros(1, 3), percentile)


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_do_not_influence_each_other(method, symmetric, generator, device):
    rows = torch.cat(
        [rows_of(kind, generator, 3) for kind in ("gaussian", "laplace", "outlier", "above zero")]
    )
    rows = rows.to(device)
    candidate = Candidate(
        bits=3, scheme=Scheme.parse(f"channel-{'' if symmetric else 'a'}symmetric-{method}")
    )
    importance = torch.rand(12, 400, generator=generator).to(device)
    low, high = choose_range(rows, candidate, importance)
    assert low.shape == high.shape == (12,)
    assert low.device == high.device == rows.device
    for i in range(12):
        alone = choose_range(rows[i : i + 1], candidate, importance[i : i + 1])
        torch.testing.assert_close((low[i : i + 1], high[i : i + 1]), alone, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("symmetric", [True, False])
def test_many_rows_and_few_are_the_same(method, symmetric, generator):
    # More than one chunk of work; the same row everywhere must get the same range.
    rows = torch.randn(1, 300, generator=generator).expand(5000, 300)
    candidate = Candidate(
        bits=4, scheme=Scheme.parse(f"channel-{'' if symmetric else 'a'}symmetric-{method}")
    )
    importance = torch.rand(1, 300, generator=generator).expand(5000, 300)
    low, high = choose_range(rows, candidate, importance)
    assert len(low.unique()) == len(high.unique()) == 1


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 0.3, -7.5, 1e-30, 1e30])
def test_constant_rows_keep_their_value(method, kind, value):
    scheme = Scheme(
        granularity=Scheme.parse("channel-symmetric").granularity,
        symmetric=kind != "asymmetric",
        range_method=method,
        full_range=kind == "full",
    )
    for values in (1, 2, 100):
        rows = torch.full((2, values), value)
        low, high = choose_range(rows, Candidate(bits=2, scheme=scheme), torch.ones_like(rows))
        codes = codes_of(2, kind)
        scale, zero_point = scale_and_zero_point(low, high, codes)
        result = quantize_dequantize(rows, scale[:, None], zero_point[:, None], codes)
        torch.testing.assert_close(result, rows, rtol=1e-6, atol=0)


# --- mean squared error -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize(
    "distribution", ["gaussian", "laplace", "outlier", "relu", "above zero", "below zero"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_mse_finds_the_best_of_a_dense_search(kind, distribution, bits, generator):
    rows, codes = rows_of(distribution, generator), codes_of(bits, kind)
    low, high = minmax_range(rows)
    if kind == "asymmetric":
        low, high = low.clamp(max=0), high.clamp(min=0)
        shares = torch.cartesian_prod(torch.linspace(0.025, 1, 40), torch.linspace(0.025, 1, 40))
    else:
        shares = torch.linspace(0.005, 1, 500)[:, None].expand(-1, 2)
    best = torch.stack([squared_error(rows, low * a, high * b, codes) for a, b in shares]).amin(0)
    ours = squared_error(rows, *mse_range(rows, codes), codes)
    # Row by row the last percent is luck of the roundings; on average it must be there.
    assert (ours / best).mean() < 1.02
    assert (ours / best).max() < 1.3


@PROPERTY
@given(small_rows, st.integers(2, 8), st.sampled_from(KINDS))
def test_mse_is_never_worse_than_minmax(rows, bits, kind):
    rows, codes = torch.from_numpy(rows), codes_of(bits, kind)
    ours = squared_error(rows, *mse_range(rows, codes), codes)
    minmax = squared_error(rows, *minmax_range(rows), codes)
    assert bool((ours <= minmax * (1 + 1e-4) + 1e-9).all())


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_mse_does_not_depend_on_the_unit(factor, generator):
    # Squares of these numbers vanish or overflow in float32.
    rows, codes = rows_of("laplace", generator), codes_of(3, "asymmetric")
    low, high = mse_range(rows, codes)
    far_low, far_high = mse_range(rows * factor, codes)
    torch.testing.assert_close((far_low / factor, far_high / factor), (low, high), rtol=0.02, atol=0)


def test_mse_of_a_gaussian_clips_at_the_known_place():
    # J. Max, "Quantizing for minimum distortion", 1960, table II: uniform quantizer of a unit Gaussian with 4, 8 and 16
    # levels: step .9957, .5860, .3352. Those quantizers have no level at 0; ours shifts by half a step at most.
    rows = torch.randn(1, 400_000, generator=torch.Generator().manual_seed(1))
    for bits, step in [(3, 0.5860), (4, 0.3352)]:
        codes = codes_of(bits, "asymmetric")
        scale, _ = scale_and_zero_point(*mse_range(rows, codes), codes)
        assert scale.item() == pytest.approx(step, rel=0.05)


def test_mse_weights_count_values():
    rows = torch.tensor([[0.1, 0.2, 0.9, 8.0]])
    repeated = torch.cat([rows[:, :3].repeat(1, 500), rows[:, 3:]], 1)
    codes = codes_of(3, "narrow")
    weighted = mse_range(rows, codes, torch.tensor([[500.0, 500.0, 500.0, 1.0]]))
    torch.testing.assert_close(weighted, mse_range(repeated, codes), rtol=1e-4, atol=0)


# --- KL divergence ------------------------------------------------------------------------------------------------

histograms = hnp.arrays(np.int64, 64, elements=st.one_of(st.just(0), st.integers(0, 50)))


@PROPERTY
@given(histograms, st.integers(0, 62), st.integers(2, 64), st.floats(0, 1))
def test_divergence_is_that_of_the_reference(reference, histogram, start, length, share):
    stop = min(64, start + length)
    levels = 1 + int(share * (stop - start - 1))
    expected = reference.divergence(histogram, start, stop, levels)
    ours = _PrefixSums(torch.from_numpy(histogram)[None]).divergence(
        torch.tensor([start]), torch.tensor([stop]), levels
    )
    assert ours.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@PROPERTY
@given(histograms, st.integers(2, 6), st.booleans())
def test_threshold_is_the_argmin_over_all_windows(reference, histogram, bits, symmetric):
    bins = 32
    kept = int(kl_threshold(torch.from_numpy(histogram)[None], CodeRange.of(bits, symmetric=symmetric)))
    if symmetric:
        folded, levels = histogram[bins:] + histogram[:bins][::-1], 2 ** (bits - 1)
        divergences = {k: reference.divergence(folded, 0, k, levels) for k in range(levels, bins + 1)}
    else:
        occupied, levels = np.flatnonzero(histogram), 2**bits
        first = min([bins, *occupied])
        last = max([bins, *(occupied + 1)])
        windows = {k: (max(first, bins - k), min(last, bins + k)) for k in range(levels // 2, bins + 1)}
        divergences = {
            k: reference.divergence(histogram, *window, levels)
            for k, window in windows.items()
            if window[1] - window[0] >= levels and histogram.any()
        }
    best = min(divergences.values(), default=np.inf)
    if best == np.inf:
        assert kept == bins
    else:
        # On equal divergences, less is clipped.
        assert kept == bins or divergences[kept] <= best + 1e-9
        assert not any(k > kept and value < best - 1e-9 for k, value in divergences.items())


def test_histogram_is_numpys(generator):
    rows = torch.randn(5, 1000, generator=generator).double()
    largest = rows.abs().amax(1)
    ours = _histogram(rows, largest, 64)
    for row, end, counts in zip(rows, largest, ours, strict=True):
        expected, _ = np.histogram(row.numpy(), bins=128, range=(-end.item(), end.item()))
        assert counts.tolist() == expected.tolist()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_kl_clips_a_heavy_tail(bits, symmetric):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(2, 200_000, generator=generator)
    rows[:, 0] = 60
    codes = CodeRange.of(bits, symmetric=symmetric)
    _, high = kl_range(rows, codes)
    # The tail beyond 4.5 is one value in 200 000; the levels are better spent below.
    assert bool((high < 6).all())
    assert bool((high > 0.5).all())
    if bits <= 4:
        ours, minmax = kl_range(rows, codes), minmax_range(rows)
        assert bool((squared_error(rows, *ours, codes) < squared_error(rows, *minmax, codes)).all())


def test_kl_threshold_grows_with_the_bits():
    rows = torch.randn(1, 400_000, generator=torch.Generator().manual_seed(4))
    ends = [kl_range(rows, CodeRange.of(bits, symmetric=True))[1].item() for bits in (2, 3, 4, 6, 8)]
    assert ends == sorted(ends)
    assert ends[0] < 0.7 * ends[-1]


def test_kl_with_outliers_in_q_would_collapse(reference):
    # The common slip: Q made from the clipped histogram, whose last bin holds the outliers. Then clipping is free.
    rows = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(5)).abs()
    histogram = _histogram(rows, rows.amax(1), 1024)[0, 1024:].numpy()
    levels = 128

    def slipped(k):
        clipped = histogram[:k].copy()
        clipped[-1] += histogram[k:].sum()
        return reference.divergence(clipped, 0, k, levels)

    thresholds = range(levels, 1025, 8)
    assert min(thresholds, key=slipped) == levels
    ours = int(
        kl_threshold(
            torch.from_numpy(np.concatenate([np.zeros(1024, int), histogram]))[None],
            CodeRange.of(8, symmetric=True),
        )
    )
    assert ours > 600


@pytest.mark.parametrize("values", [1, 9, 32])
def test_kl_of_few_values_is_minmax(values, generator):
    rows = torch.randn(20, values, generator=generator)
    for symmetric in (True, False):
        assert all(map(torch.equal, kl_range(rows, CodeRange.of(4, symmetric=symmetric)), minmax_range(rows)))


def test_kl_of_more_levels_than_bins_is_minmax(generator):
    rows = torch.randn(2, 50_000, generator=generator)
    for bits in (13, 16):
        assert all(map(torch.equal, kl_range(rows, CodeRange.of(bits, symmetric=False)), minmax_range(rows)))


def test_smoothing_is_what_the_documentation_says():
    assert SMOOTHING == 1e-6
