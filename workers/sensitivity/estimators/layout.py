"""On which axis of an activation the samples lie.

Not always on the first, and not always alone: tokens are folded into the samples' axis in front of a matrix
product, attention layers put the sequence first. The graph does not say; for a fixed batch not even its
symbolic sizes do. But the gradient of one sample's outputs is 0 at the values of all others, so that two
backward walks, one per sample, show where a sample lies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SampleLayout:
    """Where the samples of a tensor lie.

    Args:
        axis: The axis that numbers them, perhaps together with something else (tokens).
        major: A sample's elements follow each other on that axis; else the samples take turns.
    """

    axis: int
    major: bool = True

    def by_sample(self, tensor: Tensor, samples: int) -> Tensor:
        """The tensor with its samples on axis 0.

        Args:
            tensor: Whose size on ``axis`` is a multiple of ``samples``.
            samples: How many there are.

        Returns:
            A view ``[samples, ...]``. What shared the axis with the samples keeps its place (axis ``axis + 1``).
        """
        rest = tensor.shape[self.axis] // samples
        if self.major:
            return torch.unflatten(tensor, self.axis, (samples, rest)).movedim(self.axis, 0)
        return torch.unflatten(tensor, self.axis, (rest, samples)).movedim(self.axis + 1, 0)


def find_layout(first: Tensor, last: Tensor, samples: int) -> SampleLayout | None:
    """The layout of an activation from its gradients.

    Args:
        first: Gradient of the first sample's outputs.
        last: Gradient of the last sample's outputs.
        samples: How many samples there are, 2 or more.

    Returns:
        The layout; ``None`` if a gradient is 0 everywhere, or samples do not lie apart from each other.
    """
    if not (bool(first.any()) and bool(last.any())):
        return None
    for axis, size in enumerate(first.shape):
        if size % samples:
            continue
        for major in (True,) if size == samples else (True, False):
            layout = SampleLayout(axis=axis, major=major)
            if not (
                bool(layout.by_sample(first, samples)[1:].any())
                or bool(layout.by_sample(last, samples)[:-1].any())
            ):
                return layout
    return None


def with_batch_stride(tensor: Tensor) -> Tensor:
    """The tensor with an ordinary stride on a first axis of length 1.

    Any stride is as good there, except to torch's (2.13) gradient of grouped convolutions by a weight with its
    channels last, which in double precision reads the wrong elements if the stride is that of another axis.
    """
    if tensor.dim() < 3 or tensor.shape[0] != 1:
        return tensor
    return tensor.as_strided(tensor.shape, (tensor.numel(), *tensor.stride()[1:]))
