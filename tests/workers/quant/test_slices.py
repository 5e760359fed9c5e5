import numpy as np
import pytest
import torch

from workers.contracts import Candidate, PerChannel, PerGroup, PerTensor, Scheme
from workers.errors import RequestRefused
from workers.quant import SliceLayout, storage_bits

# shape, output-channel axis, group axis
SHAPES = {
    "linear": ((6, 10), 0, 1),
    "addmm": ((10, 6), 1, 0),
    "embedding": ((7, 5), 0, 1),
    "conv": ((4, 3, 3, 3), 0, 1),
    "depthwise": ((8, 1, 3, 3), 0, 1),
    "transposed conv": ((3, 4, 2, 2), 1, 0),
    "experts": ((2, 10, 3), 2, 1),
    "vector": ((9,), 0, 0),
    "one weight": ((1, 1), 0, 1),
}
GRANULARITIES = [PerTensor(), PerChannel(), PerGroup(2), PerGroup(4), PerGroup(1000)]
CASES = [
    pytest.param(shape, channel, group, granularity, id=f"{name}-{granularity}")
    for name, (shape, channel, group) in SHAPES.items()
    for granularity in GRANULARITIES
    if not (isinstance(granularity, PerGroup) and channel == group)
]


def expected_slices(reference, shape, granularity, channel, group):
    return reference.slices(
        shape,
        str(granularity).split(":")[0],
        channel_axis=channel,
        group_axis=group,
        group_size=getattr(granularity, "group_size", 0),
    )


@pytest.mark.parametrize(("shape", "channel", "group", "granularity"), CASES)
def test_slices_are_those_of_the_reference(shape, channel, group, granularity, reference):
    layout = SliceLayout.of(shape, granularity, output_channel_axis=channel, group_axis=group)
    index = torch.arange(np.prod(shape, dtype=int)).reshape(shape)
    expected = expected_slices(reference, shape, granularity, channel, group)
    assert layout.slices == len(expected)

    # Number the slices, and spread the numbers over the weights.
    numbers = layout.split(torch.arange(layout.slices))
    blocks = [
        part[:, None].expand_as(block) for part, block in zip(numbers, layout.blocks(index), strict=True)
    ]
    number_of = layout.restore(blocks).reshape(-1)
    for number, members in enumerate(expected):
        assert torch.nonzero(number_of == number)[:, 0].tolist() == sorted(members.tolist())


@pytest.mark.parametrize(("shape", "channel", "group", "granularity"), CASES)
def test_blocks_and_back(shape, channel, group, granularity):
    layout = SliceLayout.of(shape, granularity, output_channel_axis=channel, group_axis=group)
    tensor = torch.randn(shape)
    blocks = layout.blocks(tensor)
    assert sum(len(block) for block in blocks) == layout.slices
    restored = layout.restore(blocks)
    assert torch.equal(restored, tensor)
    assert restored.is_contiguous()
    values = torch.randn(layout.slices)
    assert torch.equal(layout.join(layout.split(values)), values)


def test_the_last_group_is_short():
    layout = SliceLayout.of((3, 10), PerGroup(4), output_channel_axis=0, group_axis=1)
    assert [tuple(block.shape) for block in layout.blocks(torch.zeros(3, 10))] == [(6, 4), (3, 2)]


def test_groups_of_a_convolution_run_over_its_flattened_inputs():
    weight = torch.arange(2 * 2 * 9.0).reshape(2, 2, 3, 3)
    layout = SliceLayout.of(weight.shape, PerGroup(6), output_channel_axis=0, group_axis=1)
    (rows,) = layout.blocks(weight)
    assert torch.equal(rows, torch.arange(36.0).reshape(6, 6))


def test_groups_of_experts_do_not_cross_experts():
    weight = torch.arange(2 * 3 * 2.0).reshape(2, 3, 2)
    layout = SliceLayout.of(weight.shape, PerGroup(2), output_channel_axis=2, group_axis=1)
    whole, short = layout.blocks(weight)
    assert whole.tolist() == [[0, 2], [6, 8], [1, 3], [7, 9]]
    assert short.tolist() == [[4], [10], [5], [11]]


def test_negative_axes_count_from_the_end():
    plain = SliceLayout.of((4, 6), PerGroup(4), output_channel_axis=1, group_axis=0)
    assert SliceLayout.of((4, 6), PerGroup(4), output_channel_axis=-1, group_axis=-2) == plain


def test_strided_tensors_are_cut_by_index_not_by_memory():
    tensor = torch.randn(5, 4).T
    layout = SliceLayout.of((4, 5), PerChannel(), output_channel_axis=0, group_axis=1)
    assert torch.equal(layout.blocks(tensor)[0], tensor)


@pytest.mark.parametrize(
    ("shape", "channel", "group", "field"),
    [
        ((3, 0), 0, 1, "shape"),  # no weights
        ((3, 4), 2, 1, "output_channel_axis"),  # beyond the last axis
        ((3, 4), -3, 1, "output_channel_axis"),  # before the first
        ((3, 4), 0, 2, "group_axis"),
        ((3, 4), 1, 1, "group_axis"),  # groups across output channels
        ((3, 4), 1, -1, "group_axis"),  # the same, counted from the end
        ((), 0, 0, "output_channel_axis"),  # a scalar has no channels
    ],
)
def test_impossible_layouts_are_refused(shape, channel, group, field):
    with pytest.raises(RequestRefused) as refused:
        SliceLayout.of(shape, PerGroup(2), output_channel_axis=channel, group_axis=group)
    assert refused.value.field == field


def test_a_tensor_of_another_shape_is_refused():
    layout = SliceLayout.of((3, 4), PerChannel(), output_channel_axis=0, group_axis=1)
    with pytest.raises(RequestRefused, match=r"\(4, 3\) does not fit a layout for \(3, 4\)"):
        layout.blocks(torch.zeros(4, 3))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize(("shape", "channel", "group", "granularity"), CASES)
def test_storage_counts_codes_scales_and_zero_points(
    shape, channel, group, granularity, bits, symmetric, reference
):
    candidate = Candidate(bits=bits, scheme=Scheme(granularity=granularity, symmetric=symmetric))
    slices = len(expected_slices(reference, shape, granularity, channel, group))
    expected = int(np.prod(shape)) * bits + slices * (32 if symmetric else 32 + bits)
    assert storage_bits(shape, candidate, output_channel_axis=channel, group_axis=group) == expected


def test_storage_of_known_layers():
    def bits(shape, text, width):
        candidate = Candidate(bits=width, scheme=Scheme.parse(text))
        return storage_bits(shape, candidate, output_channel_axis=0, group_axis=1)

    assert bits((1000, 1280), "channel-symmetric", 4) == 5_120_000 + 32_000
    assert bits((1000, 1280), "channel-asymmetric", 4) == 5_120_000 + 36_000
    assert bits((1000, 1280), "tensor-asymmetric", 8) == 10_240_000 + 40
    # 40 groups of 32 a row; 100 inputs make 3 whole groups and a short one.
    assert bits((1000, 1280), "group:32-asymmetric", 3) == 3_840_000 + 40_000 * 35
    assert bits((10, 100), "group:32-symmetric", 2) == 2_000 + 40 * 32


@pytest.mark.parametrize(("shape", "channel", "group", "granularity"), CASES)
def test_corrected_means_take_16_bits_per_output_channel(shape, channel, group, granularity):
    def bits(corrected):
        scheme = Scheme(granularity=granularity, symmetric=False, corrected=corrected)
        return storage_bits(
            shape, Candidate(bits=3, scheme=scheme), output_channel_axis=channel, group_axis=group
        )

    assert bits(corrected=True) - bits(corrected=False) == 16 * shape[channel]


@pytest.mark.parametrize("text", ["-mse", "-l3", "-weighted-mse", "-kl", "-percentile:1", "-gptq"])
def test_ranges_and_rounding_take_no_storage(text):
    sizes = {
        storage_bits(
            (10, 100),
            Candidate(bits=3, scheme=Scheme.parse("group:32-asymmetric" + method)),
            output_channel_axis=0,
            group_axis=1,
        )
        for method in ("", text)
    }
    assert sizes == {3_000 + 40 * 35}
