import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workers.contracts import Candidate, PerChannel, PerGroup, PerTensor, Scheme
from workers.errors import ModelRefused, RequestRefused
from workers.quant import apply, dequantize_codes, fake_quantize, quantization_parameters, quantize_codes

PROPERTY = settings(derandomize=True, deadline=None, max_examples=120)
SCHEMES = [
    f"{granularity}-{symmetry}{method}"
    for granularity in ("tensor", "channel", "group:3")
    for symmetry in ("symmetric", "asymmetric")
    for method in ("", "-percentile:1", "-kl", "-mse")
]
AXES = {"output_channel_axis": 0, "group_axis": 1}

elements = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
weights_and_axes = st.one_of(
    st.tuples(
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=elements),
        st.permutations([0, 1]),
    ),
    st.tuples(
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=4, max_dims=4, max_side=4), elements=elements),
        st.just([0, 1]),
    ),
    st.tuples(
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5), elements=elements),
        st.just([2, 1]),
    ),
)


def candidate_of(text, bits=4):
    return Candidate(bits=bits, scheme=Scheme.parse(text))


@PROPERTY
@given(
    weights_and_axes,
    st.integers(2, 16),
    st.booleans(),
    st.sampled_from([PerTensor(), PerChannel(), PerGroup(2), PerGroup(5)]),
)
def test_ours_equals_the_numpy_reference(reference, weight_and_axes, bits, symmetric, granularity):
    weight, (channel, group) = weight_and_axes
    slices = reference.slices(
        weight.shape,
        str(granularity).split(":")[0],
        channel_axis=channel,
        group_axis=group,
        group_size=getattr(granularity, "group_size", 0),
    )
    expected = reference.minmax_fake_quantize(weight, slices, bits, symmetric)
    ours = fake_quantize(
        torch.from_numpy(weight),
        Candidate(bits=bits, scheme=Scheme(granularity=granularity, symmetric=symmetric)),
        output_channel_axis=channel,
        group_axis=group,
        name="w",
    )
    np.testing.assert_array_equal(ours.numpy(), expected)


def theirs(weight, parameters, axis):
    """torch's fused operator; its zero points must be int32, within the code range."""
    codes = parameters.codes
    if parameters.layout.slices == 1:
        return torch.fake_quantize_per_tensor_affine(
            weight, parameters.scale[0], parameters.zero_point[0], codes.quant_min, codes.quant_max
        )
    return torch.fake_quantize_per_channel_affine(
        weight, parameters.scale, parameters.zero_point, axis, codes.quant_min, codes.quant_max
    )


@PROPERTY
@given(weights_and_axes, st.integers(2, 16), st.booleans(), st.booleans())
def test_ours_equals_torchs_fused_operators(weight_and_axes, bits, symmetric, per_channel):
    weight, (channel, group) = weight_and_axes
    weight = torch.from_numpy(weight)
    scheme = Scheme(granularity=PerChannel() if per_channel else PerTensor(), symmetric=symmetric)
    parameters = quantization_parameters(
        weight, Candidate(bits=bits, scheme=scheme), output_channel_axis=channel, group_axis=group, name="w"
    )
    ours, fused = apply(weight, parameters), theirs(weight, parameters, channel)
    shape = [-1 if axis == channel else 1 for axis in range(weight.dim())]
    scale = parameters.scale.reshape(shape if per_channel else [1] * weight.dim())
    # They multiply by 1/S: where r / S is a tie to float rounding, theirs may be the neighbouring code.
    quotient = weight.double() / scale
    tie = ((quotient - quotient.floor()) - 0.5).abs() <= 4e-7 * quotient.abs() + 1e-9
    assert torch.equal(torch.where(tie, 0, ours), torch.where(tie, 0, fused))
    assert bool(((ours - fused).abs() <= scale * 1.001).all())


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_codes_and_back_are_the_fake_quantized_weight(text, bits, generator, device):
    weight = torch.randn(6, 5, 3, 3, generator=generator).to(device)
    parameters = quantization_parameters(weight, candidate_of(text, bits), **AXES, name="w")
    codes = quantize_codes(weight, parameters)
    assert codes.shape == weight.shape
    assert codes.dtype == parameters.codes.dtype
    result = apply(weight, parameters)
    assert result.device == weight.device
    assert torch.equal(dequantize_codes(codes, parameters), result)
    assert torch.equal(fake_quantize(weight, candidate_of(text, bits), **AXES, name="w"), result)


@pytest.mark.parametrize("text", SCHEMES)
def test_result_is_fresh_and_free_of_gradients(text, generator):
    weight = torch.randn(6, 7, generator=generator, requires_grad=True)
    before = weight.detach().clone()
    result = fake_quantize(weight, candidate_of(text, 16), **AXES, name="w")
    assert not result.requires_grad
    assert result.is_contiguous()
    assert result.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
    result.zero_()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("text", SCHEMES)
def test_more_bits_err_less(text, generator):
    weight = torch.randn(16, 256, generator=generator)
    errors = [
        (fake_quantize(weight, candidate_of(text, bits), **AXES, name="w") - weight).square().mean().item()
        for bits in (2, 4, 6)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("text", ["channel-asymmetric", "group:4-symmetric", "tensor-asymmetric-mse"])
def test_axes_are_obeyed(text, generator):
    weight = torch.randn(6, 10, generator=generator)
    straight = fake_quantize(weight, candidate_of(text), **AXES, name="w")
    turned = fake_quantize(weight.T, candidate_of(text), output_channel_axis=1, group_axis=0, name="w")
    assert torch.equal(turned, straight.T)
    if not text.startswith("tensor"):
        other = fake_quantize(weight, candidate_of(text), output_channel_axis=1, group_axis=0, name="w")
        assert not torch.equal(other, straight)


def test_each_channel_has_its_own_scale():
    weight = torch.tensor([[1.0, -0.5], [100.0, -50.0]])
    parameters = quantization_parameters(weight, candidate_of("channel-symmetric", 8), **AXES, name="w")
    torch.testing.assert_close(parameters.scale, torch.tensor([1.0, 100.0]) / 127)
    per_tensor = fake_quantize(weight, candidate_of("tensor-symmetric", 8), **AXES, name="w")
    assert (per_tensor[0] - weight[0]).abs().max() > 0.2
    assert (apply(weight, parameters)[0] - weight[0]).abs().max() < 0.005


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("text", SCHEMES)
def test_half_precision_is_quantized_in_float32(dtype, text, generator):
    weight = torch.randn(8, 30, generator=generator).to(dtype)
    result = fake_quantize(weight, candidate_of(text, 8), **AXES, name="w")
    assert result.dtype == dtype
    assert torch.equal(
        result, fake_quantize(weight.float(), candidate_of(text, 8), **AXES, name="w").to(dtype)
    )
    parameters = quantization_parameters(weight, candidate_of(text, 8), **AXES, name="w")
    assert parameters.scale.dtype == torch.float32


def test_float64_stays_float64(generator):
    weight = torch.randn(8, 30, generator=generator, dtype=torch.float64)
    result = fake_quantize(weight, candidate_of("channel-asymmetric", 16), **AXES, name="w")
    assert result.dtype == torch.float64
    assert (result - weight).abs().max() < 1e-4


@pytest.mark.parametrize("text", SCHEMES)
def test_largest_halves_do_not_overflow(text):
    weight = torch.tensor([[65504.0, -30000.0, 12.0], [-65504.0, 65504.0, 0.0]], dtype=torch.float16)
    for bits in (2, 3, 8):
        assert bool(torch.isfinite(fake_quantize(weight, candidate_of(text, bits), **AXES, name="w")).all())


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("bits", [2, 5, 16])
@pytest.mark.parametrize("value", [0.0, -0.0, 0.37, -2.5, 1e-30])
def test_constant_weights_survive(text, bits, value):
    weight = torch.full((3, 4), value)
    parameters = quantization_parameters(weight, candidate_of(text, bits), **AXES, name="w")
    assert bool(torch.isfinite(parameters.scale).all())
    assert bool((parameters.scale > 0).all())
    torch.testing.assert_close(apply(weight, parameters), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("text", SCHEMES)
def test_a_dead_channel_harms_no_other(text, generator):
    weight = torch.randn(4, 9, generator=generator)
    weight[1] = 0
    result = fake_quantize(weight, candidate_of(text, 8), **AXES, name="w")
    assert bool((result[1] == 0).all())
    assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("text", SCHEMES)
def test_a_single_weight(text):
    weight = torch.tensor([[0.7]])
    assert fake_quantize(weight, candidate_of(text, 2), **AXES, name="w").item() == pytest.approx(0.7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", SCHEMES)
def test_non_finite_weights_name_the_layer(bad, dtype, text):
    weight = torch.ones(3, 4, dtype=dtype)
    weight[1, 2] = bad
    with pytest.raises(ModelRefused, match=r"'blocks\.0\.conv'") as refused:
        fake_quantize(weight, candidate_of(text), **AXES, name="blocks.0.conv")
    assert refused.value.field == "blocks.0.conv"


@pytest.mark.parametrize(
    ("weight", "field"),
    [
        (torch.zeros(0, 3), "shape"),  # no weights
        (torch.zeros(3, 3, dtype=torch.int8), "dtype"),  # codes already
        (torch.zeros(3, 3, dtype=torch.complex64), "dtype"),
        (torch.zeros(3), "group_axis"),  # no second axis
    ],
)
def test_what_is_no_weight_is_refused(weight, field):
    with pytest.raises(RequestRefused) as refused:
        fake_quantize(weight, candidate_of("group:2-symmetric"), **AXES, name="w")
    assert refused.value.field == field


def test_clipping_saves_the_many_from_the_few(generator):
    # One outlier in each channel; percentile, KL and MSE ranges must give it up at 3 bits.
    weight = torch.randn(4, 4000, generator=generator)
    weight[:, 0] = 50
    rest = {}
    for method in ("", "-percentile:0.5", "-kl", "-mse"):
        result = fake_quantize(weight, candidate_of("channel-asymmetric" + method, 3), **AXES, name="w")
        rest[method] = (result - weight)[:, 1:].square().mean().item()
    minmax = rest.pop("")
    assert all(error < minmax / 5 for error in rest.values()), (minmax, rest)


def test_results_do_not_depend_on_global_random_state(generator):
    weight = torch.randn(4, 100, generator=generator)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        results.append(fake_quantize(weight, candidate_of("channel-asymmetric-kl", 3), **AXES, name="w"))
    assert torch.equal(*results)
