import pytest
import torch

from workers.contracts import UnitInfo
from workers.menus import Target, menu
from workers.quant import InputMoments, quantization_parameters, quantize_codes
from workers.quant.fake_quantize import dequantize_codes
from workers.schemes import Candidate, PerGroup, Rounding, Scheme

WIDTHS = (2, 3, 4, 5, 6, 8)


def unit(operator="linear", shape=(64, 256), output=0, group=1):
    weights = 1
    for size in shape:
        weights *= size
    return UnitInfo(
        name="u",
        operator=operator,
        shape=shape,
        weights=weights,
        output_channel_axis=output,
        group_axis=group,
        macs=1,
    )


UNITS = {
    "linear": unit(),
    "addmm": unit("addmm", (256, 64), 1, 0),
    "narrow": unit(shape=(64, 48)),
    "embedding": unit("embedding", (100, 64)),
    "conv": unit("conv2d", (16, 8, 3, 3)),
    "pointwise": unit("conv2d", (16, 64, 1, 1)),
    "depthwise": unit("conv2d", (16, 1, 3, 3)),
    "transposed conv": unit("conv_transpose2d", (8, 16, 2, 2), 1, 0),
    "experts": unit("bmm", (2, 64, 96), 2, 1),
}


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("name", UNITS)
def test_whatever_is_offered_can_be_quantized(target, name):
    generator = torch.Generator().manual_seed(0)
    one = UNITS[name]
    offered = menu(target, one, (4, 8), moments=True, matrix=True)
    assert len(set(offered)) == len(offered)
    assert [c.bits for c in offered] == sorted(c.bits for c in offered)
    weight = torch.randn(one.shape, generator=generator)
    inputs = InputMoments(
        second=torch.ones([1] * len(one.shape)), matrix=torch.eye(one.shape[one.group_axis])
    )
    for candidate in {str(c.scheme): c for c in offered}.values():
        axes = {"output_channel_axis": one.output_channel_axis, "group_axis": one.group_axis}
        parameters = quantization_parameters(weight, candidate, **axes, name="u", inputs=inputs)
        if isinstance(candidate.scheme.granularity, PerGroup):
            # No group of one weight alone, none that is the channel already.
            assert target is not Target.ANY or parameters.layout.groups > 1
            assert target is Target.ANY or parameters.layout.run_length % parameters.layout.group_size == 0


def texts(target, one, widths=WIDTHS, **options):
    return {str(candidate) for candidate in menu(target, one, widths, **options)}


def test_int8_kernels_have_neither_zero_points_nor_groups():
    for one in UNITS.values():
        offered = menu(Target.INT8_KERNELS, one, WIDTHS, thorough=True)
        assert {c.bits for c in offered} == {4, 8}
        assert all(str(c.scheme).startswith("channel-symmetric") and not c.scheme.full_range for c in offered)
        assert not any(c.scheme.corrected for c in offered)


def test_gguf_offers_its_plain_blocks():
    plain = {
        "4:group:32-symmetric-full",
        "5:group:32-symmetric-full",
        "8:group:32-symmetric",
        "4:group:32-asymmetric",
        "5:group:32-asymmetric",
    }
    offered = menu(Target.GGUF, UNITS["linear"], WIDTHS)
    minmax = {str(c) for c in offered if c.scheme.range_method == "minmax" and not c.scheme.corrected}
    assert minmax == plain
    # Only the types with a minimum of their own can hold a corrected mean.
    assert all(not c.scheme.symmetric for c in offered if c.scheme.corrected)
    # Rows of 48 are no whole number of blocks; convolutions are no matrices.
    assert not menu(Target.GGUF, UNITS["narrow"], WIDTHS)
    assert not menu(Target.GGUF, UNITS["conv"], WIDTHS)
    assert menu(Target.GGUF, UNITS["embedding"], WIDTHS)


@pytest.mark.parametrize(
    ("bits", "symmetric", "least", "most"),
    [(4, True, -8, 7), (5, True, -16, 15), (8, True, -127, 127), (4, False, 0, 15), (5, False, 0, 31)],
)
def test_gguf_blocks_hold_what_was_measured(bits, symmetric, least, most):
    """Written as llama.cpp reads it: ``d * q`` or ``d * q + m``, block by block."""
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    candidate = next(
        c for c in menu(Target.GGUF, unit(shape=(4, 64)), [bits]) if c.scheme.symmetric == symmetric
    )
    parameters = quantization_parameters(weight, candidate, output_channel_axis=0, group_axis=1, name="u")
    codes = quantize_codes(weight, parameters)
    assert least <= codes.min()
    assert codes.max() <= most
    blocks = codes.reshape(-1, 32).float()
    d = parameters.scale[:, None]
    m = -d * parameters.zero_point[:, None]
    torch.testing.assert_close(
        (d * blocks + m).reshape(4, 64), dequantize_codes(codes, parameters), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("target", "widths"), [(Target.GPTQ_AWQ, {2, 3, 4, 8}), (Target.COMPRESSED_TENSORS, {4, 8})]
)
def test_packed_files_take_linear_layers_in_groups_or_channels(target, widths):
    offered = menu(target, UNITS["linear"], WIDTHS)
    assert {c.bits for c in offered} == widths
    assert {str(c.scheme.granularity) for c in offered} == {"channel", "group:32", "group:64", "group:128"}
    assert all(c.scheme.full_range for c in offered if c.scheme.symmetric)
    assert not any(c.scheme.corrected for c in offered)
    assert {str(c.scheme.granularity) for c in menu(target, UNITS["narrow"], WIDTHS)} == {"channel"}
    for name in ("embedding", "conv", "experts"):
        assert not menu(target, UNITS[name], WIDTHS)
    assert menu(target, UNITS["addmm"], WIDTHS)


def test_input_statistics_open_the_schemes_that_need_them():
    one = UNITS["linear"]
    assert not any(c.scheme.needs_inputs for c in menu(Target.ANY, one, WIDTHS, thorough=True))
    weighted = menu(Target.ANY, one, WIDTHS, moments=True)
    assert any(c.scheme.range_method == "weighted-mse" for c in weighted)
    assert not any(c.scheme.needs_input_matrix for c in weighted)
    assert any(
        c.scheme.rounding is Rounding.GPTQ for c in menu(Target.ANY, UNITS["pointwise"], WIDTHS, matrix=True)
    )
    for name in ("conv", "depthwise", "embedding", "experts"):
        assert not any(
            c.scheme.needs_input_matrix for c in menu(Target.ANY, UNITS[name], WIDTHS, matrix=True)
        )


def test_groups_are_offered_where_they_divide_something():
    granularities = {str(c.scheme.granularity) for c in menu(Target.ANY, UNITS["narrow"], [4])}
    assert granularities == {"tensor", "channel", "group:32"}
    assert {str(c.scheme.granularity) for c in menu(Target.ANY, UNITS["depthwise"], [4])} == {
        "tensor",
        "channel",
    }
    # The flattened (inputs, height, width) of a convolution.
    assert "group:64" in {str(c.scheme.granularity) for c in menu(Target.ANY, UNITS["conv"], [4])}


def test_widths_that_a_target_cannot_execute_are_left_out():
    assert menu(Target.GGUF, UNITS["linear"], [2, 3, 6]) == ()
    assert texts(Target.INT8_KERNELS, UNITS["linear"], [8]) == {
        "8:channel-symmetric",
        "8:channel-symmetric-mse",
    }


def test_thorough_menus_hold_the_short_ones():
    for target in Target:
        short = set(menu(target, UNITS["linear"], WIDTHS, moments=True, matrix=True))
        assert short < set(menu(target, UNITS["linear"], WIDTHS, moments=True, matrix=True, thorough=True))
    percentile = Candidate(bits=4, scheme=Scheme.parse("channel-asymmetric-percentile:1"))
    assert percentile in menu(Target.ANY, UNITS["conv"], [4], thorough=True)
