import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workers.contracts import Candidate, Scheme
from workers.errors import RequestRefused
from workers.quant import (
    QuantizedMatrix,
    apply,
    dequantize_codes,
    fake_quantize,
    quantization_parameters,
    quantize_codes,
)

SCHEMES = ["tensor-asymmetric", "channel-symmetric", "channel-symmetric-full", "group:4-asymmetric-mse"]


def candidate_of(text, bits=2):
    return Candidate(bits=bits, scheme=Scheme.parse(text))


weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=6),
    elements=st.floats(-100, 100, width=32, allow_subnormal=False),
)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(weights, st.sampled_from(SCHEMES), st.integers(2, 6), st.sampled_from([(0, 1), (1, 0)]))
def test_each_output_channel_gets_its_mean_back(weight, text, bits, axes):
    keywords = {"output_channel_axis": axes[0], "group_axis": axes[1], "name": "w"}
    plain = fake_quantize(torch.from_numpy(weight), candidate_of(text, bits), **keywords).numpy()
    ours = fake_quantize(
        torch.from_numpy(weight), candidate_of(text + "-corrected", bits), **keywords
    ).numpy()
    others = tuple(axis for axis in range(weight.ndim) if axis != axes[0])
    missing = (weight.astype(float) - plain).mean(others, keepdims=True)
    left = (weight.astype(float) - ours).mean(others, keepdims=True)
    # bfloat16 holds 8 bits of it; the sums are rounded to float32.
    assert (np.abs(left) <= np.abs(missing) / 256 + 1e-5).all()
    # Nothing but the mean is touched.
    np.testing.assert_allclose(ours - plain, np.broadcast_to(missing, weight.shape), rtol=1 / 200, atol=2e-5)


def test_the_correction_is_stored_in_16_bits(generator):
    weight = torch.randn(5, 33, generator=generator)
    parameters = quantization_parameters(
        weight, candidate_of("channel-symmetric-corrected"), output_channel_axis=0, group_axis=1, name="w"
    )
    assert parameters.offset.shape == (5, 1)
    assert torch.equal(parameters.offset.to(torch.bfloat16).float(), parameters.offset)
    assert bool((parameters.offset != 0).all())


@pytest.mark.parametrize("text", SCHEMES)
def test_codes_and_back_carry_the_correction(text, generator):
    weight = torch.randn(6, 5, 3, 3, generator=generator)
    candidate = candidate_of(text + "-corrected", 3)
    keywords = {"output_channel_axis": 0, "group_axis": 1, "name": "w"}
    parameters = quantization_parameters(weight, candidate, **keywords)
    result = apply(weight, parameters)
    assert torch.equal(dequantize_codes(quantize_codes(weight, parameters), parameters), result)
    assert torch.equal(fake_quantize(weight, candidate, **keywords), result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_largest_numbers_do_not_overflow(dtype):
    most = torch.finfo(dtype).max
    weight = torch.tensor([[most, most, most * 0.6], [-most, -most * 0.7, 0]], dtype=dtype)
    for text in SCHEMES:
        result = fake_quantize(
            weight, candidate_of(text + "-corrected"), output_channel_axis=0, group_axis=1, name="w"
        )
        assert bool(torch.isfinite(result).all())


def test_a_bias_shared_by_a_channel_is_taken_off_the_output(generator):
    # Weights just above half a step are all rounded up: the product is off by their mean error.
    weight = torch.full((1, 500), 0.26) + 0.01 * torch.rand(1, 500, generator=generator)
    weight[0, 0] = 1.5
    x = 1 + 0.1 * torch.randn(500, generator=generator)
    errors = [
        abs(
            float(
                (
                    fake_quantize(
                        weight, candidate_of(text, 3), output_channel_axis=0, group_axis=1, name="w"
                    )
                    - weight
                )[0]
                @ x
            )
        )
        for text in ("channel-symmetric", "channel-symmetric-corrected")
    ]
    assert errors[1] < errors[0] / 20


@pytest.mark.parametrize(
    "text", ["channel-symmetric-corrected", "channel-symmetric-gptq", "channel-symmetric-weighted-mse"]
)
def test_the_integer_product_refuses_what_it_cannot_hold(text):
    with pytest.raises(RequestRefused, match="'w'") as refused:
        QuantizedMatrix.of(torch.ones(2, 3), candidate_of(text), channel_axis=0, name="w")
    assert refused.value.value == text
