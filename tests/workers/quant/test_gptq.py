"""Error-compensating rounding against the algorithm written down plainly, and its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.contracts import Candidate, Scheme
from workers.errors import RequestRefused
from workers.quant import (
    InputMoments,
    compensated_codes,
    dequantize_codes,
    fake_quantize,
    quantization_parameters,
    quantize_codes,
)

AXES = {"output_channel_axis": 0, "group_axis": 1}
SCHEMES = [
    "channel-symmetric",
    "channel-asymmetric-mse",
    "group:5-asymmetric",
    "group:32-symmetric",
    "tensor-symmetric",
]


def candidate_of(text, bits=3):
    return Candidate(bits=bits, scheme=Scheme.parse(text))


def correlated(inputs, generator, samples=400, dtype=torch.float64):
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=dtype) / inputs**0.5
    shared = torch.randn(samples, 1, generator=generator, dtype=dtype)
    return torch.randn(samples, inputs, generator=generator, dtype=dtype) @ mixing + shared


def plain_gptq(weight, scale, zero_point, quant_min, quant_max, second, order):
    """Optimal brain quantization in a given order: after each input the inverse matrix loses a row and a column."""
    weight, result = weight.copy(), np.zeros_like(weight)
    damped = second + 0.01 * np.mean(np.diag(second)) * np.eye(len(second))
    inverse = np.linalg.inv(damped)
    for j in order:
        code = np.clip(np.rint(weight[:, j] / scale[:, j]) + zero_point[:, j], quant_min, quant_max)
        result[:, j] = code
        error = (weight[:, j] - (code - zero_point[:, j]) * scale[:, j]) / inverse[j, j]
        weight -= np.outer(error, inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return result


def per_weight(parameters, values, shape):
    rows = parameters.layout.split(values)
    blocks = parameters.layout.blocks(torch.zeros(shape, dtype=values.dtype))
    return parameters.layout.restore(
        [row[:, None].expand_as(block) for row, block in zip(rows, blocks, strict=True)]
    ).numpy()


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("act_order", [False, True])
# Up to 300 inputs: more than two blocks.
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (3, 7), (12, 40), (5, 300)])
def test_ours_equals_the_plain_algorithm(text, bits, act_order, outputs, inputs, generator):
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    moments = InputMoments.of_inputs(correlated(inputs, generator))
    parameters = quantization_parameters(weight, candidate_of(text, bits), **AXES, name="w")
    second = moments.matrix.numpy()
    order = np.argsort(-np.diag(second), kind="stable") if act_order else np.arange(inputs)
    expected = plain_gptq(
        weight.numpy(),
        per_weight(parameters, parameters.scale, weight.shape),
        per_weight(parameters, parameters.zero_point, weight.shape).astype(float),
        parameters.codes.quant_min,
        parameters.codes.quant_max,
        second,
        order,
    )
    ours = compensated_codes(weight, parameters, moments, **AXES, act_order=act_order)
    assert ours.dtype == parameters.codes.dtype
    np.testing.assert_array_equal(ours.numpy(), expected)


def output_error(weight, quantized, moments):
    change = (quantized - weight).double()
    return float(torch.trace(change @ moments.matrix @ change.T))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.integers(0, 2**31),
    st.sampled_from(SCHEMES),
    st.integers(2, 5),
    st.integers(4, 24),
    st.integers(24, 160),
)
def test_it_errs_less_in_the_output_than_nearest_rounding(seed, text, bits, outputs, inputs):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    moments = InputMoments.of_inputs(correlated(inputs, generator))
    nearest = fake_quantize(weight, candidate_of(text, bits), **AXES, name="w")
    ours = fake_quantize(weight, candidate_of(text + "-gptq", bits), **AXES, name="w", inputs=moments)
    assert output_error(weight, ours, moments) < output_error(weight, nearest, moments)


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("dead", [0, 1, 50])
def test_independent_inputs_make_it_nearest_rounding(text, dead, generator):
    weight = torch.randn(9, 150, generator=generator)
    diagonal = torch.rand(150, generator=generator) + 0.01
    diagonal[:dead] = 0
    moments = InputMoments(second=diagonal[None], matrix=torch.diag(diagonal))
    ours = fake_quantize(weight, candidate_of(text + "-gptq"), **AXES, name="w", inputs=moments)
    assert torch.equal(ours, fake_quantize(weight, candidate_of(text), **AXES, name="w"))


def test_inputs_that_are_always_0_make_it_nearest_rounding(generator):
    weight = torch.randn(3, 6, generator=generator)
    moments = InputMoments(second=torch.zeros(1, 6), matrix=torch.zeros(6, 6))
    parameters = quantization_parameters(weight, candidate_of("channel-symmetric"), **AXES, name="w")
    assert torch.equal(
        compensated_codes(weight, parameters, moments, **AXES), quantize_codes(weight, parameters)
    )


@pytest.mark.parametrize("text", ["channel-asymmetric", "group:5-symmetric", "tensor-symmetric"])
@pytest.mark.parametrize("shape", [(6, 12), (6, 12, 1, 1), (1, 6, 12)])
def test_axes_may_lie_anywhere(text, shape, generator):
    weight = torch.randn(6, 12, generator=generator)
    moments = InputMoments.of_inputs(correlated(12, generator))
    candidate = candidate_of(text + "-gptq")
    straight = fake_quantize(weight, candidate, **AXES, name="w", inputs=moments)
    output, group = shape.index(6), shape.index(12)
    reshaped = fake_quantize(
        weight.reshape(shape),
        candidate,
        output_channel_axis=output,
        group_axis=group,
        name="w",
        inputs=moments,
    )
    assert torch.equal(reshaped, straight.reshape(shape))
    turned = fake_quantize(weight.T, candidate, output_channel_axis=1, group_axis=0, name="w", inputs=moments)
    assert torch.equal(turned, straight.T)


def test_output_channels_do_not_influence_each_other(generator):
    # More channels than are worked on at once; products of other sizes may round differently.
    weight = torch.randn(4100, 20, generator=generator)
    moments = InputMoments.of_inputs(correlated(20, generator))
    candidate = candidate_of("channel-symmetric-gptq")
    whole = fake_quantize(weight, candidate, **AXES, name="w", inputs=moments)
    for rows in (slice(0, 5), slice(2040, 2056), slice(4095, 4100)):
        part = fake_quantize(weight[rows], candidate, **AXES, name="w", inputs=moments)
        assert (part != whole[rows]).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_survive_and_results_lie_on_the_grid(dtype, generator):
    weight = torch.randn(8, 30, generator=generator).to(dtype)
    moments = InputMoments.of_inputs(correlated(30, generator, dtype=torch.float32))
    result = fake_quantize(weight, candidate_of("channel-symmetric-gptq"), **AXES, name="w", inputs=moments)
    assert result.dtype == dtype
    assert result.is_contiguous()
    parameters = quantization_parameters(weight, candidate_of("channel-symmetric"), **AXES, name="w")
    codes = (result.to(parameters.scale.dtype) / parameters.scale[:, None]).round().to(torch.int8)
    assert torch.equal(dequantize_codes(codes, parameters).to(dtype), result)


@pytest.mark.parametrize(
    ("weight", "moments", "field"),
    [
        # No matrix.
        (torch.ones(4, 3, 3, 3), InputMoments(second=torch.ones(1, 3, 1, 1), matrix=torch.eye(3)), "scheme"),
        (torch.ones(8, 1, 3, 3), InputMoments(second=torch.ones(8, 1, 1, 1), matrix=torch.eye(1)), "scheme"),
        # Only the diagonal.
        (torch.ones(4, 3), InputMoments(second=torch.ones(1, 3)), "inputs"),
        # Other inputs.
        (torch.ones(4, 3), InputMoments(second=torch.ones(1, 3), matrix=torch.eye(4)), "inputs"),
        # Not positive semidefinite; not finite.
        (torch.ones(4, 3), InputMoments(second=torch.ones(1, 3), matrix=-torch.eye(3)), "inputs"),
        (torch.ones(4, 3), InputMoments(second=torch.ones(1, 3), matrix=torch.eye(3) * torch.nan), "inputs"),
    ],
)
def test_what_it_does_not_suit_is_refused(weight, moments, field):
    with pytest.raises(RequestRefused) as refused:
        fake_quantize(weight, candidate_of("channel-symmetric-gptq"), **AXES, name="w", inputs=moments)
    assert refused.value.field == field


def test_the_inverse_root_is_one(generator):
    moments = InputMoments.of_inputs(correlated(30, generator))
    root = moments.inverse_root
    damped = moments.matrix + 0.01 * moments.matrix.diagonal().mean() * torch.eye(30)
    torch.testing.assert_close(root.T @ root, torch.linalg.inv(damped))
    assert torch.equal(root, root.triu())
