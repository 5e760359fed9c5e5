"""Exact storage of a quantized weight."""

import math
from collections.abc import Sequence

from workers.contracts import Candidate
from workers.quant.correction import CORRECTION_BITS
from workers.quant.slices import SliceLayout

SCALE_BITS = 32
"""Scales are computed and applied in float32: what is counted is what was measured."""


def storage_bits(
    shape: Sequence[int], candidate: Candidate, *, output_channel_axis: int, group_axis: int
) -> int:
    """Bits that a weight takes, packed without gaps, with its scales, zero points and corrections.

    ``weights * bits + slices * (32 + bits)`` for asymmetric candidates; symmetric ones store no zero point. A short last
    group has a scale like any other. Corrected means take 16 bits for each output channel. Ranges and rounding leave
    no trace in storage.

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
    corrections = layout.shape[output_channel_axis] * CORRECTION_BITS if candidate.scheme.corrected else 0
    return math.prod(layout.shape) * candidate.bits + layout.slices * per_slice + corrections
