import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workers.contracts import Candidate, Scheme
from workers.errors import ModelRefused, RequestRefused
from workers.quant import CodeRange, QuantizedMatrix, dequantize, fake_quantize, integer_matmul
from workers.quant.integer import _float64_product, _integer_product, accumulate

PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)
SCHEMES = [
    "tensor-symmetric",
    "tensor-asymmetric",
    "tensor-symmetric-full",
    "channel-symmetric",
    "channel-asymmetric",
]
elements = st.floats(-100, 100, width=32, allow_subnormal=False)


@st.composite
def matrix_pairs(draw):
    m, n, p = (draw(st.integers(1, 9)) for _ in range(3))
    return draw(hnp.arrays(np.float32, (m, n), elements=elements)), draw(
        hnp.arrays(np.float32, (n, p), elements=elements)
    )


def quantized(matrix, text, bits, *, axis):
    return QuantizedMatrix.of(
        matrix, Candidate(bits=bits, scheme=Scheme.parse(text)), channel_axis=axis, name="w"
    )


@PROPERTY
@given(
    matrix_pairs(), st.sampled_from(SCHEMES), st.sampled_from(SCHEMES), st.integers(2, 8), st.integers(2, 8)
)
def test_equals_the_fake_quantized_float_product(pair, left_scheme, right_scheme, left_bits, right_bits):
    left, right = map(torch.from_numpy, pair)
    fake = [
        fake_quantize(
            matrix,
            Candidate(bits=bits, scheme=Scheme.parse(text)),
            output_channel_axis=axis,
            group_axis=1 - axis,
            name="w",
        ).double()
        for matrix, bits, text, axis in (
            (left, left_bits, left_scheme, 0),
            (right, right_bits, right_scheme, 1),
        )
    ]
    product = integer_matmul(
        quantized(left, left_scheme, left_bits, axis=0), quantized(right, right_scheme, right_bits, axis=1)
    )
    # Rounding is relative to the terms, not to the sum, which may cancel.
    allowed = 1e-6 * (fake[0].abs() @ fake[1].abs()) + 1e-30
    assert product.dtype == torch.float32
    assert bool(((product - fake[0] @ fake[1]).abs() <= allowed).all())


def test_all_correction_terms_by_hand():
    codes = CodeRange.of(8, symmetric=False)
    left = QuantizedMatrix(
        values=torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8),
        scale=torch.tensor([0.5]),
        zero_point=torch.tensor([3]),
        codes=codes,
    )
    right = QuantizedMatrix(
        values=torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8),
        scale=torch.tensor([2.0, 1.0, 4.0]),
        zero_point=torch.tensor([7, 0, 9]),
        codes=codes,
        channel_axis=1,
    )
    # (7 17; 27 37) times (-6 2 -6; -3 5 -3), then times (1, .5, 2).
    assert integer_matmul(left, right).tolist() == [[-93.0, 49.5, -186.0], [-273.0, 119.5, -546.0]]


def test_the_accumulator_is_int32_and_exact(generator, device):
    left = torch.randint(-128, 128, (17, 300), generator=generator, dtype=torch.int8)
    right = torch.randint(0, 256, (300, 9), generator=generator, dtype=torch.uint8)
    product = accumulate(left.to(device), right.to(device))
    assert product.dtype == torch.int32
    assert product.tolist() == (left.numpy().astype(np.int64) @ right.numpy().astype(np.int64)).tolist()


@pytest.mark.parametrize("product", [_integer_product, _float64_product])
def test_either_accumulator_is_exact_at_the_largest_sums(product, generator):
    right = torch.randint(253, 256, (33_000, 2), generator=generator, dtype=torch.uint8)
    left = torch.full((2, 33_000), 255, dtype=torch.uint8)
    expected = left.numpy().astype(np.int64) @ right.numpy().astype(np.int64)
    assert 2**31 - 2**26 < expected.max() < 2**31
    assert product(left, right).dtype == torch.int32
    assert product(left, right).tolist() == expected.tolist()


def constant(rows, columns, code, *, symmetric=False, full_range=False):
    codes = CodeRange.of(8, symmetric=symmetric, full_range=full_range)
    return QuantizedMatrix(
        values=torch.full((rows, columns), code, dtype=codes.dtype),
        scale=torch.ones(1),
        zero_point=torch.zeros(1, dtype=torch.int32),
        codes=codes,
    )


def test_the_accumulator_bound_is_checked_to_the_last_term():
    fits = (2**31 - 1) // 255**2
    assert integer_matmul(constant(1, fits, 255), constant(fits, 1, 255)).item() == pytest.approx(
        fits * 255**2
    )
    with pytest.raises(RequestRefused, match="32-bit accumulator") as refused:
        integer_matmul(constant(1, fits + 1, 0), constant(fits + 1, 1, 0))
    assert refused.value.value == fits + 1
    assert refused.value.allowed == f"at most {fits}"
    # Narrow symmetric codes leave more room.
    integer_matmul(constant(1, fits + 1, 1, symmetric=True), constant(fits + 1, 1, 1, symmetric=True))


def test_the_accumulator_bound_counts_the_code_minus_128():
    full = {"symmetric": True, "full_range": True}
    limit = 2**31 // 128**2
    with pytest.raises(RequestRefused, match=str(2**31)):
        integer_matmul(constant(1, limit, 0, **full), constant(limit, 1, 0, **full))
    integer_matmul(constant(1, limit - 1, 0, **full), constant(limit - 1, 1, 0, **full))


def test_scales_along_the_inner_dimension_are_refused(generator):
    left, right = torch.randn(3, 4, generator=generator), torch.randn(4, 5, generator=generator)
    with pytest.raises(RequestRefused, match="left matrix has scales along the inner dimension"):
        integer_matmul(quantized(left, SCHEMES[3], 8, axis=1), quantized(right, SCHEMES[0], 8, axis=1))
    with pytest.raises(RequestRefused, match="right matrix has scales along the inner dimension"):
        integer_matmul(quantized(left, SCHEMES[0], 8, axis=0), quantized(right, SCHEMES[3], 8, axis=0))


def test_groups_cannot_be_factored_out(generator):
    with pytest.raises(RequestRefused, match="per group"):
        quantized(torch.randn(3, 4, generator=generator), "group:2-symmetric", 8, axis=0)


def test_inner_dimensions_must_agree(generator):
    left = quantized(torch.randn(3, 4, generator=generator), SCHEMES[0], 8, axis=0)
    with pytest.raises(RequestRefused, match="cannot be multiplied"):
        integer_matmul(left, left)


def test_non_finite_matrices_name_the_layer():
    with pytest.raises(ModelRefused, match="'w'"):
        quantized(torch.tensor([[float("nan")]]), SCHEMES[0], 8, axis=0)


GOOD = {
    "values": torch.zeros(2, 3, dtype=torch.int8),
    "scale": torch.ones(1),
    "zero_point": torch.zeros(1, dtype=torch.int32),
    "codes": CodeRange.of(8, symmetric=True),
}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"values": torch.zeros(2, 3, dtype=torch.int16)}, "values"),  # wider than 8 bits
        ({"values": torch.zeros(2, 3)}, "values"),  # not codes
        ({"values": torch.zeros(6, dtype=torch.int8)}, "values"),  # no matrix
        ({"channel_axis": 2}, "channel_axis"),
        ({"scale": torch.ones(2)}, "scale"),  # one per row, but no channel axis
        (
            {"channel_axis": 1, "scale": torch.ones(2), "zero_point": torch.zeros(2)},
            "scale",
        ),  # one per row, not column
        ({"zero_point": torch.zeros(3)}, "zero_point"),
        ({"scale": torch.tensor(1.0)}, "scale"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(change, field):
    with pytest.raises(RequestRefused) as refused:
        QuantizedMatrix(**(GOOD | change))
    assert refused.value.field == field


def test_codes_of_more_than_8_bits_are_refused(generator):
    with pytest.raises(RequestRefused, match="8-bit"):
        quantized(torch.randn(3, 4, generator=generator), SCHEMES[0], 9, axis=0)


def test_dequantized_codes_are_the_matrix(generator):
    matrix = torch.randn(3, 4, generator=generator)
    result = quantized(matrix, "channel-asymmetric", 8, axis=0)
    back = dequantize(result.values, result.scale[:, None], result.zero_point[:, None])
    assert (back - matrix).abs().max() <= result.scale.max() / 2 + 1e-6
