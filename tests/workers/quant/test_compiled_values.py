"""Scales, quantized values and corrected means by compiled code: those by tensors, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workers.contracts import Candidate, Scheme
from workers.quant import CodeRange, acceleration, quantization_parameters, scale_and_zero_point
from workers.quant.fake_quantize import _represented, apply, apply_by_tensors

pytest.importorskip("numba")

KINDS = ["narrow", "full", "asymmetric"]
# Shape, axis of the output channels, axis of the groups: of which the channels are runs, are not, and lie behind.
WEIGHTS = {
    "linear": ((12, 70), 0, 1),
    "addmm": ((70, 12), 1, 0),
    "convolution": ((8, 6, 3, 3), 0, 1),
    "transposed convolution": ((6, 8, 3, 3), 1, 0),
    "depthwise": ((9, 1, 3, 3), 0, 1),
    "experts": ((3, 40, 5), 2, 1),
    "one channel": ((1, 50), 0, 1),
    "as many channels as experts": ((4, 40, 4), 2, 1),
}
SCHEMES = [
    "tensor-asymmetric",
    "tensor-symmetric-full",
    "channel-symmetric",
    "channel-asymmetric-percentile:5",
    "group:16-asymmetric",
    "group:7-symmetric-percentile:9-full",
]


def by_tensors(monkeypatch):
    monkeypatch.setattr(acceleration, "suits_values", lambda _: False)


@pytest.mark.parametrize("shape", WEIGHTS)
@pytest.mark.parametrize("scheme", [text + end for text in SCHEMES for end in ("", "-corrected")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_become_the_same_by_tensors(shape, scheme, dtype, generator, monkeypatch):
    sizes, output, group = WEIGHTS[shape]
    weight = (torch.randn(sizes, generator=generator) + 0.2).to(dtype)
    for bits in (2, 4, 8, 16):
        candidate = Candidate(bits=bits, scheme=Scheme.parse(scheme))
        results = []
        for compiled in (True, False):
            with monkeypatch.context() as patched:
                if not compiled:
                    by_tensors(patched)
                found = quantization_parameters(
                    weight, candidate, output_channel_axis=output, group_axis=group, name="w"
                )
                results.append((found, apply(weight, found)))
        (ours, result), (theirs, expected) = results
        for field in ("scale", "zero_point", "range_min", "range_max"):
            assert torch.equal(getattr(ours, field), getattr(theirs, field)), field
            assert getattr(ours, field).dtype == getattr(theirs, field).dtype
        assert (ours.offset is None) == (theirs.offset is None)
        assert ours.offset is None or torch.equal(ours.offset, theirs.offset)
        assert result.dtype == dtype
        assert torch.equal(result, expected)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.just(2), st.integers(1, 40)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.integers(2, 16),
    st.sampled_from(KINDS),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_scales_are_those_by_tensors_up_to_the_largest_numbers(ends, bits, kind, dtype):
    low, high = torch.from_numpy(np.sort(ends, axis=0))
    codes = CodeRange.of(bits, symmetric=kind != "asymmetric", full_range=kind == "full")
    largest = torch.finfo(dtype).max
    scale, zero_point = scale_and_zero_point(low, high, codes, largest=largest)
    ours = acceleration.represent(low, high, codes, largest * (1 - 4 * torch.finfo(torch.float32).eps))
    for found, expected in zip(
        ours, (scale, zero_point, *_represented(low, high, scale, codes)), strict=True
    ):
        assert torch.equal(found, expected)


def test_what_lies_otherwise_in_memory_becomes_the_same(generator):
    weight = torch.randn(8, 6, 3, 3, generator=generator)
    candidate = Candidate(bits=3, scheme=Scheme.parse("channel-asymmetric-corrected"))
    found = quantization_parameters(weight, candidate, output_channel_axis=0, group_axis=1, name="w")
    for turned in (
        weight.to(memory_format=torch.channels_last),
        weight.flip(0).flip(0),
        weight.repeat(1, 1, 1, 2)[..., :3],
    ):
        result = apply(turned, found)
        assert result.is_contiguous()
        assert torch.equal(result, apply_by_tensors(weight, found))


def test_means_next_to_the_largest_number_are_left_as_by_tensors(monkeypatch):
    most = torch.finfo(torch.float32).max
    weight = torch.tensor([[most, most, most * 0.6], [1.0, 2.0, 0.3]])
    candidate = Candidate(bits=2, scheme=Scheme.parse("channel-symmetric-corrected"))
    keywords = {"output_channel_axis": 0, "group_axis": 1, "name": "w"}
    ours = quantization_parameters(weight, candidate, **keywords)
    by_tensors(monkeypatch)
    assert torch.equal(ours.offset, quantization_parameters(weight, candidate, **keywords).offset)
    assert ours.offset[0] == 0
    assert ours.offset[1] != 0
