"""The compiled search against the one by tensors, which dense searches are the reference of (`test_ranges`)."""

import numpy as np
import pytest
import torch

from workers.quant import CodeRange, acceleration, quantize_dequantize, scale_and_zero_point
from workers.quant.acceleration import suits
from workers.quant.clipping_kl import kl_range
from workers.quant.clipping_mse import LeastError, mse_range

pytest.importorskip("numba")

SHAPES = {
    "short rows": (150, 32),
    "odd rows": (70, 27),
    "one row more than lanes": (65, 40),
    "long row": (2, 9000),
}


def values_of(kind, shape, generator):
    rows = torch.randn(shape, generator=generator)
    match kind:
        case "cubed gaussian":
            return rows**3
        case "outlier":
            rows[:, 0] = -25
        case "one side":
            return rows.abs() + 0.5
        case "huge":
            return rows * 1e30
        case "tiny":
            return rows * 1e-36
    return rows


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("codes_kind", ["narrow", "full", "asymmetric"])
@pytest.mark.parametrize(("exponent", "weighted"), [(2, False), (3, False), (2, True)])
@pytest.mark.parametrize("kind", ["gaussian", "cubed gaussian", "outlier", "one side", "huge", "tiny"])
def test_compiled_ranges_are_those_by_tensors_bit_for_bit(
    shape, codes_kind, exponent, weighted, kind, generator
):
    rows = values_of(kind, SHAPES[shape], generator)
    weights = torch.rand(rows.shape, generator=generator) if weighted else None
    assert suits(rows, weights, exponent)
    for bits in (2, 4, 8):
        codes = CodeRange.of(bits, symmetric=codes_kind != "asymmetric", full_range=codes_kind == "full")
        search = LeastError(rows, weights)
        compiled, tensors = search.range(codes, exponent), search.range_by_tensors(codes, exponent)
        assert torch.equal(compiled[0], tensors[0])
        assert torch.equal(compiled[1], tensors[1])


def test_rows_of_zeros_and_constants_are_exact():
    rows = torch.zeros(64, 32)
    rows[1::2] = torch.linspace(-3, 3, 32)[:, None]
    for symmetric in (True, False):
        codes = CodeRange.of(2, symmetric=symmetric)
        scale, zero_point = scale_and_zero_point(*mse_range(rows, codes), codes)
        result = quantize_dequantize(rows, scale[:, None], zero_point[:, None], codes)
        torch.testing.assert_close(result, rows, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES.values())
def test_rows_side_by_side_do_not_influence_each_other(shape, generator):
    rows, codes = torch.randn(shape, generator=generator), CodeRange.of(3, symmetric=False)
    low, high = mse_range(rows, codes)
    turned = mse_range(rows.flip(0), codes)
    assert torch.equal(low, turned[0].flip(0))
    assert torch.equal(high, turned[1].flip(0))


def test_rows_that_may_not_be_written_to_and_views_are_searched(generator):
    array = torch.randn(40, 64, generator=generator).numpy()
    array.setflags(write=False)
    codes = CodeRange.of(3, symmetric=True)
    with np.errstate(all="raise"), pytest.warns(UserWarning, match="not writable"):
        fixed = torch.from_numpy(array)
    expected = mse_range(torch.tensor(array), codes)
    assert torch.equal(mse_range(fixed, codes)[1], expected[1])
    assert torch.equal(mse_range(fixed.T.contiguous().T, codes)[1], expected[1])


@pytest.mark.parametrize(
    ("rows", "weights", "exponent"),
    [
        (torch.ones(20, 100, dtype=torch.float64), None, 2),
        (torch.ones(20, 100), torch.ones(20, 100), 3),
    ],
)
def test_what_does_not_suit_goes_by_tensors(rows, weights, exponent):
    assert not suits(rows, weights, exponent)


@pytest.mark.parametrize("codes_kind", ["narrow", "full", "asymmetric"])
@pytest.mark.parametrize("kind", ["gaussian", "cubed gaussian", "outlier", "one side"])
@pytest.mark.parametrize("values", [40, 700, 20_000])
def test_compiled_thresholds_are_those_by_tensors(codes_kind, kind, values, generator, monkeypatch):
    rows = values_of(kind, (20, values), generator)
    rows[3] = 0
    rows[4] = -2.5
    for bits in (2, 4, 8):
        codes = CodeRange.of(bits, symmetric=codes_kind != "asymmetric", full_range=codes_kind == "full")
        compiled = kl_range(rows, codes)
        with monkeypatch.context() as patched:
            patched.setattr(acceleration, "suits_counts", lambda _: False)
            tensors = kl_range(rows, codes)
        # Sums in another order may tip the scale between equals.
        same = (compiled[0] == tensors[0]) & (compiled[1] == tensors[1])
        assert same.float().mean() >= 0.95
