"""Exact storage of a quantized weight."""

import math
from collections.abc import Sequence

from workers.contracts import Candidate
from workers.quant.slices import SliceLayout

SCALE_BITS = 32
"""Scales are computed and applied in float32: what is counted is what was measured."""


def storage_bits(
    shape: Sequence[int], candidate: Candidate, *, output_channel_axis: int, group_axis: int
) -> int:
    """Bits that a weight takes, packed without gaps, with its scales and zero points.

    ``weights * bits + slices * (32 + bits)`` for asymmetric candidates; symmetric ones store no zero point.

    Args:
        shape: Of the weight.
        candidate: Bit-width and scheme.
        output_channel_axis: Axis of the output channels.
        group_axis: Axis along which groups are formed.

    Returns:
        Number of bits, exact.

    Raises:
        RequestRefused: The weight is empty, or an axis does not exist.
    """
    layout = SliceLayout.of(
        shape, candidate.scheme.granularity, output_channel_axis=output_channel_axis, group_axis=group_axis
    )
    per_slice = SCALE_BITS + (0 if candidate.scheme.symmetric else candidate.bits)
    return math.prod(layout.shape) * candidate.bits + layout.slices * per_slice
