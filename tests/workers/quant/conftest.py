"""An independent NumPy reference, written from the formulas alone: loops over slices, no torch."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch


class Reference:
    """MATH.md sections 1 and 2, one slice at a time."""

    @staticmethod
    def slices(shape, kind, *, channel_axis, group_axis, group_size=0):
        """Flat indices of each slice, in storage order."""
        index = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        if kind == "tensor":
            return [index.reshape(-1)]
        channels = [np.take(index, c, axis=channel_axis) for c in range(shape[channel_axis])]
        if kind == "channel":
            return [channel.reshape(-1) for channel in channels]
        before = [axis for axis in range(group_axis) if axis != channel_axis]
        # Without the channel axis, the axes before group_axis come first.
        places = list(itertools.product(*(range(shape[axis]) for axis in before)))
        runs = [channel[place].reshape(-1) for channel in channels for place in places]
        return [run[i : i + group_size] for run in runs for i in range(0, len(run), group_size)]

    @staticmethod
    def codes(bits, symmetric, full_range=False):
        if not symmetric:
            return 0, 2**bits - 1
        return -(2 ** (bits - 1)) + (0 if full_range else 1), 2 ** (bits - 1) - 1

    @classmethod
    def scale_and_zero_point(cls, low, high, bits, symmetric):
        """Scale and zero point of a range, in float32; never a subnormal scale, and 1 for a range of nothing but 0."""
        tiny = np.finfo(np.float32).tiny
        low, high = np.float32(low), np.float32(high)
        quant_min, quant_max = cls.codes(bits, symmetric)
        if symmetric:
            scale = max(abs(low), abs(high)) / np.float32(2 ** (bits - 1) - 1)
            return (max(scale, tiny) if scale else np.float32(1)), 0
        low, high = min(low, np.float32(0)), max(high, np.float32(0))
        scale = (high - low) / np.float32(2**bits - 1)
        scale = max(scale, tiny) if scale else np.float32(1)
        return scale, int(np.clip(np.rint(-low / scale), quant_min, quant_max))

    @staticmethod
    def fake_quantize(values, scale, zero_point, quant_min, quant_max):
        codes = np.clip(np.rint(values / np.float32(scale)) + zero_point, quant_min, quant_max)
        return ((codes - zero_point).astype(np.float32) * np.float32(scale)).astype(np.float32)

    @classmethod
    def minmax_fake_quantize(cls, weight, slices, bits, symmetric):
        flat, result = weight.reshape(-1), np.empty(weight.size, np.float32)
        for index in slices:
            values = flat[index]
            scale, zero_point = cls.scale_and_zero_point(values.min(), values.max(), bits, symmetric)
            result[index] = cls.fake_quantize(values, scale, zero_point, *cls.codes(bits, symmetric))
        return result.reshape(weight.shape)

    @staticmethod
    def divergence(histogram, start, stop, levels, smoothing=1e-6):
        """``D_KL(P || Q)`` of MATH.md section 2 for the window ``[start, stop)``, bin by bin."""
        histogram = np.asarray(histogram, float)
        inside, width = histogram[start:stop], stop - start
        if inside.sum() == 0:
            return np.inf
        p = inside.copy()
        p[0] += histogram[:start].sum()
        p[-1] += histogram[stop:].sum()
        p /= p.sum()
        level = np.arange(width) * levels // width
        q = np.zeros(width)
        for one in range(levels):
            occupied = (level == one) & (inside > 0)
            if occupied.any():
                q[occupied] = inside[level == one].sum() / occupied.sum()
        q = (1 - smoothing) * q / q.sum() + smoothing / width
        assert abs(p.sum() - 1) < 1e-9
        assert abs(q.sum() - 1) < 1e-9
        some = p > 0
        return float((p[some] * np.log(p[some] / q[some])).sum())


@pytest.fixture(scope="session")
def reference() -> type[Reference]:
    return Reference


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
