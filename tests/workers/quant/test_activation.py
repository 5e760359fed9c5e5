"""The activation quantizer against PyTorch's own kernel."""

import numpy as np
import pytest
import torch

from workers.quant import CodeRange
from workers.quant.activation import ActivationQuantizer


def quantizer(low, high, bits, *, symmetric=False):
    return ActivationQuantizer(codes=CodeRange.of(bits, symmetric=symmetric), range_min=low, range_max=high)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize(("low", "high"), [(-1.31, 2.1), (0.4, 3.0), (-2.0, -0.5), (0.0, 6.0)])
def test_equals_the_kernel_of_pytorch(bits, low, high):
    values = torch.randn(5000, generator=torch.Generator().manual_seed(bits)) * 3
    ours = quantizer(low, high, bits)(values)
    bottom, top = min(low, 0.0), max(high, 0.0)
    scale = (top - bottom) / (2**bits - 1)
    zero_point = int(np.round(-bottom / scale))
    theirs = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 2**bits - 1)
    difference = (ours - theirs).abs()
    # The kernel multiplies by 1 / scale: values within rounding of a tie may fall to the other side.
    assert (difference > scale * 0.5).float().mean() < 2e-3
    assert difference.max() <= scale * 1.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_type_shape_and_layout(dtype):
    values = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    values = values.contiguous(memory_format=torch.channels_last)
    before = values.clone()
    result = quantizer(-1.0, 1.0, 4)(values)
    assert (result.dtype, result.shape, result.stride()) == (dtype, values.shape, values.stride())
    assert torch.equal(values, before)
    assert len(result.unique()) <= 16


def test_zero_is_exact_and_the_outside_saturates():
    values = torch.tensor([0.0, torch.inf, -torch.inf, 100.0, torch.nan])
    result = quantizer(-0.77, 1.9, 3)(values)
    assert result[0] == 0
    assert result[1] == result[3] == result[:4].max()
    assert result[2] == result[:4].min()
    assert result[4].isnan()


def test_symmetric():
    result = quantizer(-0.5, 2.0, 3, symmetric=True)(torch.linspace(-4, 4, 99))
    torch.testing.assert_close(result.unique(), torch.arange(-3, 4) * (2.0 / 3))


@pytest.mark.parametrize("symmetric", [False, True])
def test_inside_is_where_rounding_moves_values_by_half_a_step_at_most(symmetric):
    """Both ends count; elsewhere a value is clipped, and a change of it changes nothing."""
    found = quantizer(-0.77, 1.9, 3, symmetric=symmetric)
    values = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    scale, zero_point = (float(value) for value in found.parameters(torch.float64))
    low, high = ((code - zero_point) * scale for code in (found.codes.quant_min, found.codes.quant_max))
    inside = found.inside(values)
    assert torch.equal(inside, (values >= low) & (values <= high))
    assert bool(found.inside(torch.tensor([low, high], dtype=torch.float64)).all())
    moved = (found(values) - values).abs()
    assert float(moved[inside].max()) <= scale / 2 + 1e-12
    assert torch.equal(found(values[~inside]), found(values[~inside] + 0.01 * values[~inside].sign()))
