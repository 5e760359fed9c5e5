"""Ranges of least cubed and of least weighted error, against dense searches over clipping thresholds."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workers.contracts import Candidate, Scheme
from workers.errors import RequestRefused
from workers.quant import (
    CodeRange,
    InputMoments,
    fake_quantize,
    minmax_range,
    mse_range,
    quantize_dequantize,
    scale_and_zero_point,
)

PROPERTY = settings(derandomize=True, deadline=None, max_examples=80)
small_rows = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 30)),
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
)


def error_of(rows, low, high, codes, weights, exponent):
    scale, zero_point = scale_and_zero_point(low, high, codes)
    result = quantize_dequantize(rows, scale[:, None], zero_point[:, None], codes)
    return ((result - rows).double().abs() ** exponent * weights).sum(1)


def rows_of(name, generator):
    rows = torch.randn(6, 200, generator=generator)
    match name:
        case "cubed gaussian":
            return rows**3
        case "outlier":
            rows[:, 0] = -25
        case "one side":
            return rows.abs() + 0.5
    return rows


def naive_error(reference, values, low, high, bits, symmetric, weights, exponent):
    """One row, by the formula, in NumPy."""
    scale, zero_point = reference.scale_and_zero_point(low, high, bits, symmetric)
    result = reference.fake_quantize(values, scale, zero_point, *reference.codes(bits, symmetric))
    return float((np.abs(result.astype(float) - values) ** exponent * weights).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("exponent", "weighted"), [(3, False), (2, True)])
def test_small_slices_get_the_range_of_a_brute_force_search(reference, bits, symmetric, exponent, weighted):
    draw = np.random.default_rng(bits)
    rows = draw.standard_normal((6, 12)).astype(np.float32)
    weights = draw.exponential(size=rows.shape).astype(np.float32) if weighted else np.ones_like(rows)
    codes = CodeRange.of(bits, symmetric=symmetric)
    low, high = mse_range(
        torch.from_numpy(rows),
        codes,
        torch.from_numpy(weights) if weighted else None,
        exponent=exponent,
    )
    shares = np.linspace(0.05, 1, 60)
    pairs = [(a, a) for a in shares] if symmetric else list(itertools.product(shares, shares))
    ratios = []
    for values, weight, ours_low, ours_high in zip(rows, weights, low.numpy(), high.numpy(), strict=True):
        best = min(
            naive_error(
                reference, values, a * values.min(), b * values.max(), bits, symmetric, weight, exponent
            )
            for a, b in pairs
        )
        ours = naive_error(reference, values, ours_low, ours_high, bits, symmetric, weight, exponent)
        ratios.append(ours / best)
    # So few values make the error jagged: the search may miss a dent, but not by much on the whole.
    assert np.mean(ratios) < 1.2
    assert np.max(ratios) < 2


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("distribution", ["gaussian", "cubed gaussian", "outlier", "one side"])
@pytest.mark.parametrize("kind", ["narrow", "full", "asymmetric"])
@pytest.mark.parametrize("weighted", [False, True])
def test_dense_searches_find_nothing_better(distribution, bits, kind, weighted, generator):
    rows = rows_of(distribution, generator)
    weights = torch.rand(rows.shape, generator=generator).square() if weighted else torch.ones_like(rows)
    exponent = 2 if weighted else 3
    codes = CodeRange.of(bits, symmetric=kind != "asymmetric", full_range=kind == "full")
    low, high = minmax_range(rows)
    if kind == "asymmetric":
        low, high = low.clamp(max=0), high.clamp(min=0)
        shares = torch.cartesian_prod(torch.linspace(0.025, 1, 30), torch.linspace(0.025, 1, 30))
    else:
        shares = torch.linspace(0.005, 1, 400)[:, None].expand(-1, 2)
    best = torch.stack([error_of(rows, low * a, high * b, codes, weights, exponent) for a, b in shares]).amin(
        0
    )
    found = mse_range(rows, codes, weights if weighted else None, exponent=exponent)
    ratio = error_of(rows, *found, codes, weights, exponent) / best
    assert ratio.mean() < 1.04
    assert ratio.max() < 1.3


@PROPERTY
@given(small_rows, st.integers(2, 8), st.booleans(), st.data())
def test_never_worse_than_minmax(rows, bits, symmetric, data):
    weights = data.draw(hnp.arrays(np.float32, rows.shape, elements=st.floats(0, 100, width=32)))
    rows, weights, codes = (
        torch.from_numpy(rows),
        torch.from_numpy(weights),
        CodeRange.of(bits, symmetric=symmetric),
    )
    for exponent, counted in ((3, torch.ones_like(rows)), (2, weights), (3, weights)):
        ours = error_of(rows, *mse_range(rows, codes, counted, exponent=exponent), codes, counted, exponent)
        minmax = error_of(rows, *minmax_range(rows), codes, counted, exponent)
        assert bool((ours <= minmax * (1 + 1e-3) + 1e-6 * rows.abs().amax(1) ** exponent).all())


@PROPERTY
@given(small_rows, st.integers(2, 6), st.booleans())
def test_equal_weights_are_no_weights(rows, bits, symmetric):
    rows, codes = torch.from_numpy(rows), CodeRange.of(bits, symmetric=symmetric)
    plain = error_of(rows, *mse_range(rows, codes), codes, torch.ones_like(rows), 2)
    for factor in (1e-30, 1.0, 1e30):
        weighted = mse_range(rows, codes, torch.full_like(rows, factor))
        ours = error_of(rows, *weighted, codes, torch.ones_like(rows), 2)
        torch.testing.assert_close(ours, plain, rtol=0.05, atol=1e-6)


def test_what_no_input_reaches_does_not_hold_the_range(generator):
    # Half of the inputs are dead, and their weights ten times as large.
    weight = torch.randn(4, 400, generator=generator)
    weight[:, ::2] *= 10
    second = torch.ones(1, 400)
    second[:, ::2] = 0
    axes = {"output_channel_axis": 0, "group_axis": 1, "name": "w"}
    errors = {}
    for method in ("mse", "weighted-mse"):
        candidate = Candidate(bits=3, scheme=Scheme.parse(f"channel-asymmetric-{method}"))
        result = fake_quantize(weight, candidate, **axes, inputs=InputMoments(second=second))
        errors[method] = (result - weight)[:, 1::2].square().mean().item()
    assert errors["weighted-mse"] < errors["mse"] / 4


@pytest.mark.parametrize("text", ["tensor", "channel", "group:5"])
@pytest.mark.parametrize(("output", "group"), [(0, 1), (1, 0)])
def test_the_importance_follows_the_axes(text, output, group, generator):
    weight, second = torch.randn(6, 12, generator=generator), torch.rand(1, 12, generator=generator)
    candidate = Candidate(bits=2, scheme=Scheme.parse(f"{text}-asymmetric-weighted-mse"))
    straight = fake_quantize(
        weight, candidate, output_channel_axis=0, group_axis=1, name="w", inputs=InputMoments(second=second)
    )
    if (output, group) == (0, 1):
        rows = torch.cat([weight, weight])
        doubled = fake_quantize(
            rows, candidate, output_channel_axis=0, group_axis=1, name="w", inputs=InputMoments(second=second)
        )
        if text != "tensor":
            assert torch.equal(doubled, torch.cat([straight, straight]))
        return
    if text == "tensor":
        return  # in storage order: the search sums up in another order
    turned = fake_quantize(
        weight.T,
        candidate,
        output_channel_axis=output,
        group_axis=group,
        name="w",
        inputs=InputMoments(second=second.T),
    )
    assert torch.equal(turned, straight.T)


@pytest.mark.parametrize(
    "second", [torch.rand(1, 5), torch.full((1, 6), -1.0), torch.full((1, 6), torch.nan), torch.rand(2, 1, 6)]
)
def test_moments_that_do_not_fit_are_refused(second):
    candidate = Candidate(bits=2, scheme=Scheme.parse("channel-symmetric-weighted-mse"))
    with pytest.raises(RequestRefused, match="'up'") as refused:
        fake_quantize(
            torch.ones(3, 6),
            candidate,
            output_channel_axis=0,
            group_axis=1,
            name="up",
            inputs=InputMoments(second=second),
        )
    assert refused.value.field == "inputs"


@pytest.mark.parametrize("text", ["channel-symmetric-weighted-mse", "group:32-asymmetric-gptq"])
def test_schemes_that_need_inputs_are_refused_without(text):
    with pytest.raises(RequestRefused, match="second moments") as refused:
        fake_quantize(
            torch.ones(3, 6),
            Candidate(bits=2, scheme=Scheme.parse(text)),
            output_channel_axis=0,
            group_axis=1,
            name="w",
        )
    assert refused.value.value == text
