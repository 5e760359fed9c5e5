import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.errors import ModelRefused, RequestRefused
from workers.quant import CodeRange, dequantize, quantize, quantize_dequantize, scale_and_zero_point
from workers.quant.affine import compute_dtype, require_finite

PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)
BITS = range(2, 17)
reals = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


def both_ends(first, second):
    return torch.tensor([min(first, second)]), torch.tensor([max(first, second)])


@pytest.mark.parametrize("bits", BITS)
def test_codes_of_a_bit_width(bits):
    narrow = CodeRange.of(bits, symmetric=True)
    full = CodeRange.of(bits, symmetric=True, full_range=True)
    asymmetric = CodeRange.of(bits, symmetric=False)

    assert (narrow.quant_min, narrow.quant_max) == (-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1)
    assert (full.quant_min, full.quant_max) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert (asymmetric.quant_min, asymmetric.quant_max) == (0, 2**bits - 1)
    assert (narrow.levels, full.levels, asymmetric.levels) == (2**bits - 1, 2**bits, 2**bits)
    for codes in (narrow, full, asymmetric):
        limits = torch.iinfo(codes.dtype)
        assert limits.min <= codes.quant_min
        assert codes.quant_max <= limits.max
        assert codes.dtype.itemsize == (1 if bits <= 8 else 2)


def test_two_bits_symmetric_has_three_levels():
    codes = CodeRange.of(2, symmetric=True)
    scale, zero_point = scale_and_zero_point(torch.tensor(-1.0), torch.tensor(1.0), codes)
    values = torch.linspace(-1, 1, 101)
    assert quantize_dequantize(values, scale, zero_point, codes).unique().tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("bits", [1, 17, 0, -3])
def test_bit_widths_outside_are_refused(bits):
    with pytest.raises(RequestRefused, match=str(bits)):
        CodeRange.of(bits, symmetric=True)


def test_full_range_is_for_symmetric_codes():
    with pytest.raises(RequestRefused, match="symmetric"):
        CodeRange.of(4, symmetric=False, full_range=True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_scale_follows_the_formula(bits, symmetric, reference, device):
    for low, high in [(-1.5, 0.7), (0.25, 3.0), (-4.0, -1.0), (-1e-3, 1e3), (0.0, 6.0)]:
        codes = CodeRange.of(bits, symmetric=symmetric)
        scale, zero_point = scale_and_zero_point(
            torch.tensor(low, device=device), torch.tensor(high, device=device), codes
        )
        expected = reference.scale_and_zero_point(low, high, bits, symmetric)
        assert (np.float32(scale.item()), zero_point.item()) == expected
        assert zero_point.dtype == torch.int32
        assert scale.device == zero_point.device == torch.empty(0, device=device).device


@PROPERTY
@given(reals, reals, st.sampled_from(BITS), st.sampled_from(["narrow", "full", "asymmetric"]))
def test_every_value_in_the_range_is_within_half_a_step(first, second, bits, kind):
    codes = CodeRange.of(bits, symmetric=kind != "asymmetric", full_range=kind == "full")
    low, high = both_ends(first, second)
    scale, zero_point = scale_and_zero_point(low, high, codes)

    assert 0 < scale.item() < math.inf
    assert codes.quant_min <= zero_point.item() <= codes.quant_max
    values = torch.cat([low, high, torch.lerp(low, high, torch.linspace(0, 1, 33))])
    result = quantize_dequantize(values, scale, zero_point, codes)
    # Half a step, and the rounding of r / S and of S (q - Z) in float32.
    allowed = 0.5 * scale + 4e-7 * values.abs() + 1e-36
    assert bool(((result - values).abs() <= allowed).all())


@PROPERTY
@given(reals, reals, st.sampled_from(BITS), st.booleans())
def test_zero_is_exact(first, second, bits, symmetric):
    codes = CodeRange.of(bits, symmetric=symmetric)
    scale, zero_point = scale_and_zero_point(*both_ends(first, second), codes)
    assert quantize_dequantize(torch.zeros(1), scale, zero_point, codes).item() == 0


@PROPERTY
@given(st.lists(reals, min_size=1, max_size=20), st.sampled_from(BITS), st.booleans())
def test_codes_give_the_fake_quantized_values_bit_for_bit(values, bits, symmetric):
    codes = CodeRange.of(bits, symmetric=symmetric)
    values = torch.tensor(values)
    scale, zero_point = scale_and_zero_point(values.min(), values.max(), codes)
    quantized = quantize(values, scale, zero_point, codes)

    assert quantized.dtype == codes.dtype
    assert codes.quant_min <= int(quantized.to(torch.int32).min())
    assert int(quantized.to(torch.int32).max()) <= codes.quant_max
    assert torch.equal(
        dequantize(quantized, scale, zero_point), quantize_dequantize(values, scale, zero_point, codes)
    )


@PROPERTY
@given(st.lists(reals, min_size=1, max_size=20), st.sampled_from(BITS), st.booleans())
def test_quantizing_twice_changes_nothing(values, bits, symmetric):
    codes = CodeRange.of(bits, symmetric=symmetric)
    values = torch.tensor(values)
    scale, zero_point = scale_and_zero_point(values.min(), values.max(), codes)
    once = quantize_dequantize(values, scale, zero_point, codes)
    assert torch.equal(quantize_dequantize(once, scale, zero_point, codes), once)


def test_ties_go_to_even():
    codes = CodeRange.of(4, symmetric=True)
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert quantize(values, torch.tensor(1.0), torch.tensor(0), codes).tolist() == [0, 2, 2, 0, -2, -2]


def test_the_quotient_is_a_division_not_a_product_with_the_reciprocal():
    # Exact ties r / S = 2.5; r * (1 / S) misses some of them, and lands on 3.
    scale = torch.arange(1, 4000, dtype=torch.float32) / 1024
    values = scale * 2.5
    tie = (values.double() / scale.double()) == 2.5
    by_reciprocal = (values[tie] * (1 / scale[tie])).round()
    assert bool((by_reciprocal != 2).any())
    zero = torch.tensor(0)
    assert bool((quantize(values[tie], scale[tie], zero, CodeRange.of(4, symmetric=True)) == 2).all())


def test_values_outside_the_range_are_clamped_to_its_end_however_far():
    codes = CodeRange.of(4, symmetric=True)
    scale, zero_point = torch.tensor(1e-5), torch.tensor(0)
    values = torch.tensor([3e38, 1e30, 1.0, -1.0, -1e30, -3e38])
    # torch's fused operators wrap beyond 2^63 steps.
    assert quantize(values, scale, zero_point, codes).tolist() == [7, 7, 7, -7, -7, -7]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_full_range_uses_its_extra_code_under_minmax(bits):
    codes = CodeRange.of(bits, symmetric=True, full_range=True)
    scale, zero_point = scale_and_zero_point(torch.tensor(-1.0), torch.tensor(0.4), codes)
    assert scale.item() == 1 / 2 ** (bits - 1)
    assert quantize(torch.tensor(-1.0), scale, zero_point, codes).item() == -(2 ** (bits - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_largest_numbers_stay_finite(dtype, symmetric):
    largest = torch.finfo(dtype).max
    for low, high in [(-largest, largest), (0.0, largest), (-largest, 0.0), (-largest / 3, largest)]:
        ends = torch.tensor([low, high], dtype=dtype)
        for bits in BITS:
            codes = CodeRange.of(bits, symmetric=symmetric)
            scale, zero_point = scale_and_zero_point(ends[0], ends[1], codes)
            result = quantize_dequantize(ends, scale, zero_point, codes)
            assert bool(torch.isfinite(result).all())
            # The zero point may shift the range by half a step; both are rounded.
            assert bool(((result - ends).abs() <= scale + ends.abs() * 1e-6).all())


@pytest.mark.parametrize("value", [1e-37, 1e-44])
def test_the_smallest_numbers_get_a_normal_scale(value):
    # The scales of these ranges would be a subnormal number, and 0.
    codes = CodeRange.of(8, symmetric=False)
    end = torch.tensor(value)
    scale, zero_point = scale_and_zero_point(-end, end, codes)
    assert scale.item() >= torch.finfo(torch.float32).tiny
    error = quantize_dequantize(end, scale, zero_point, codes) - end
    assert abs(error.item()) <= torch.finfo(torch.float32).tiny


def test_compute_dtype():
    assert compute_dtype(torch.float16) == compute_dtype(torch.bfloat16) == torch.float32
    assert compute_dtype(torch.float64) == torch.float64
    with pytest.raises(RequestRefused, match="int32"):
        compute_dtype(torch.int32)


def test_non_finite_values_are_refused_by_layer_and_count():
    values = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    with pytest.raises(
        ModelRefused, match=r"'features\.3.weight' holds 1 NaN and 2 infinite of 4"
    ) as refused:
        require_finite(values, "features.3.weight")
    assert refused.value.field == "features.3.weight"
    assert refused.value.value == {"nan": 1, "infinite": 2}
