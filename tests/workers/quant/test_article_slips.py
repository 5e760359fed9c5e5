"""The starting article's formulas where they slip: each test holds for ours and fails for the article's form.

Each test states a property, asserts that the implementation has it, and asserts that the article's formula, taken
literally, has not.
"""

import math

import pytest
import torch

from workers.contracts import Candidate, Scheme
from workers.quant import (
    CodeRange,
    QuantizedMatrix,
    dequantize,
    fake_quantize,
    fake_quantize_straight_through,
    integer_matmul,
    predicted_sqnr_for_range_db,
    quantization_parameters,
    quantize,
    scale_and_zero_point,
    sqnr_db,
)

ASYMMETRIC = CodeRange.of(8, symmetric=False)
AXES = {"output_channel_axis": 0, "group_axis": 1, "name": "w"}


def test_the_sign_of_the_zero_point():
    """``q = round(r/S) - Z`` with ``Z = round(-r_min/S)`` sends r_min to about 2 r_min / S."""
    ends = torch.tensor([-2.0, 6.0])
    scale, zero_point = scale_and_zero_point(ends[0], ends[1], ASYMMETRIC)
    assert quantize(ends, scale, zero_point, ASYMMETRIC).tolist() == [0, 255]

    article = (ends / scale).round() - zero_point
    assert article[0] == pytest.approx(2 * (ends[0] / scale), abs=1)
    assert not 0 <= article[0] <= 255
    # Its first two formulas are the same map with the zero point's sign turned: the third is what does not belong.
    turned = (ends / scale).round() - (-zero_point)
    assert turned.tolist() == [0, 255]
    assert torch.equal(scale * (turned + (-zero_point)), dequantize(turned, scale, zero_point))


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_clamped(bits, symmetric):
    """Without the clamp, what lies outside a clipped range has codes that do not exist."""
    codes = CodeRange.of(bits, symmetric=symmetric)
    scale, zero_point = scale_and_zero_point(torch.tensor(-1.0), torch.tensor(1.0), codes)
    outside = torch.tensor([-3.0, 3.0])
    assert quantize(outside, scale, zero_point, codes).tolist() == [codes.quant_min, codes.quant_max]
    article = (outside / scale).round() + zero_point
    assert article[0] < codes.quant_min
    assert article[1] > codes.quant_max


@pytest.mark.parametrize(("low", "high"), [(2.0, 3.0), (-3.0, -2.0)])
def test_the_asymmetric_range_contains_zero(low, high):
    """The article's S and Z of a range on one side of 0 give a zero point that is no code, and 0 no code at all."""
    scale, zero_point = scale_and_zero_point(torch.tensor(low), torch.tensor(high), ASYMMETRIC)
    assert 0 <= zero_point <= 255
    zero = quantize(torch.tensor(0.0), scale, zero_point, ASYMMETRIC)
    assert dequantize(zero, scale, zero_point) == 0

    article_scale = (high - low) / 255
    article_zero_point = round(-low / article_scale)
    assert not 0 <= article_zero_point <= 255
    # Clamped to a code, as a zero point is stored, it no longer represents the range.
    stored = min(max(article_zero_point, 0), 255)
    code = min(max(round(high / article_scale) + stored, 0), 255)
    assert abs(article_scale * (code - stored) - high) > 0.5


def test_symmetric_codes_are_narrow():
    """The article's denominator 2^(b-1) - 1 implies 2^b - 1 codes, not the 2^b of the full range."""
    weight = torch.tensor([[-1.0, 1.0]])
    parameters = quantization_parameters(
        weight, Candidate(bits=8, scheme=Scheme.parse("tensor-symmetric")), **AXES
    )
    assert parameters.scale.item() == pytest.approx(1 / 127)
    assert (parameters.codes.quant_min, parameters.codes.quant_max) == (-127, 127)
    # The code -128 would be a value beyond the range.
    assert -128 * parameters.scale.item() < -1.0


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_degenerate_slices_are_finite(value):
    """The article divides 0 by 0 for a slice of zeros, and r_max - r_min = 0 for any constant one."""
    weight = torch.full((2, 3), value)
    for text in ("channel-symmetric", "channel-asymmetric"):
        result = fake_quantize(weight, Candidate(bits=4, scheme=Scheme.parse(text)), **AXES)
        torch.testing.assert_close(result, weight)
    article_scale = (weight.max() - weight.min()) / 15
    assert not bool(torch.isfinite((-weight.min() / article_scale).round()))


def test_the_straight_through_gradient_is_that_of_the_dequantized_value():
    """``d r~/d r`` is 1. The article's ``d q/d r = 1`` would make it S; the true slope of q is 1/S."""
    weight = torch.linspace(-1, 1, 101).reshape(1, -1).requires_grad_()
    parameters = quantization_parameters(
        weight.detach(), Candidate(bits=4, scheme=Scheme.parse("tensor-symmetric")), **AXES
    )
    result = fake_quantize_straight_through(weight, parameters)
    result.sum().backward()
    assert bool((weight.grad == 1).all())
    scale = parameters.scale.item()
    slope = ((result[0, -1] - result[0, 0]) / (weight[0, -1] - weight[0, 0])).item()
    assert slope == pytest.approx(1)
    # S times the article's dq/dr is off by the factor S, here 1/7.
    article = scale * 1.0
    assert article != pytest.approx(slope, rel=0.5)
    assert (slope / scale) == pytest.approx(1 / scale)


def test_the_integer_product_has_sums_and_the_inner_dimension(generator):
    """``Z_A q_B``, ``q_A Z_B``, ``Z_A Z_B`` are products of constant matrices: there lie the sums and the n."""
    left, right = torch.rand(3, 5, generator=generator) + 0.2, torch.rand(5, 4, generator=generator) - 0.7
    candidate = Candidate(bits=8, scheme=Scheme.parse("tensor-asymmetric"))
    a, b = (QuantizedMatrix.of(m, candidate, channel_axis=0, name="w") for m in (left - 0.5, right))
    float_product = dequantize(a.values, a.scale, a.zero_point) @ dequantize(b.values, b.scale, b.zero_point)
    torch.testing.assert_close(integer_matmul(a, b), float_product)

    # The article's zero points have the other sign.
    scale, zero_a, zero_b = (a.scale * b.scale).item(), -a.zero_point.item(), -b.zero_point.item()
    assert zero_a * zero_b != 0
    codes_a, codes_b = a.values.double(), b.values.double()
    columns, rows = codes_b.sum(0, keepdim=True), codes_a.sum(1, keepdim=True)
    plain = codes_a @ codes_b
    meant = scale * (plain + zero_a * columns + rows * zero_b + 5 * zero_a * zero_b)
    torch.testing.assert_close(meant.float(), float_product)
    printed = scale * (plain + zero_a * columns + rows * zero_b + zero_a * zero_b)
    assert (printed - float_product).abs().min() > 0.1
    # And Z_A q_B read as a scalar times a matrix has not even the shape of the product.
    with pytest.raises(RuntimeError, match="must match"):
        plain + zero_a * codes_b


@pytest.mark.parametrize(
    ("signal", "offset"),
    [
        (torch.linspace(-1, 1, 200_001), 0.0),
        (torch.sin(torch.linspace(0, 2 * math.pi, 200_001)), 1.76),
        (torch.special.ndtri(torch.linspace(1 / 31_574, 1 - 1 / 31_574, 200_001)).clamp(-4, 4), -7.27),
    ],
    ids=["uniform", "sine", "gaussian"],
)
def test_the_noise_ratio_depends_on_the_range(signal, offset):
    """``6.02 b + 10.79`` holds only when the range equals one standard deviation."""
    candidate = Candidate(bits=8, scheme=Scheme.parse("tensor-symmetric"))
    measured = sqnr_db(signal, fake_quantize(signal, candidate, **(AXES | {"group_axis": 0})))
    width = (signal.max() - signal.min()).item()
    predicted = predicted_sqnr_for_range_db(bits=8, width=width, standard_deviation=signal.std().item())
    assert predicted == pytest.approx(measured, abs=0.15)
    assert measured == pytest.approx(6.02 * 8 + offset, abs=0.15)
    article = 6.02 * 8 + 10.79
    assert abs(article - measured) > 8
    # Where it does hold.
    assert predicted_sqnr_for_range_db(bits=8, width=1, standard_deviation=1) == pytest.approx(
        article, abs=0.05
    )
