"""Which weights share one scale: a tensor cut into slices, and put together again.

A *slice* is what gets one scale and one zero point. Slices are handed out as *blocks*: two-dimensional tensors
``[slices, weights per slice]`` whose rows are slices of equal length, so that everything after this file works on
rows and never meets a padded weight. There is one block, or two when the last group of each run is short.

What a *run*, the row of weights from which consecutive ones are grouped, is:

* per tensor: all weights in storage order;
* per channel: all weights with one index on the output-channel axis;
* per group: the weights with one index on the output-channel axis and on every axis before ``group_axis``, in storage
  order. The run therefore spans ``group_axis`` and the axes behind it: ``I`` of a linear ``[O, I]``, axis 0 of an
  addmm ``[I, O]``, ``D`` of an embedding ``[V, D]``, axis 1 of stacked experts ``[E, I, O]`` (per expert), and the
  flattened ``(I, kh, kw)`` of a convolution. The last is the inner dimension of the product that a convolution is; a
  depthwise one has ``I = 1``, and groups along that axis alone would give each weight a scale of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from workers.contracts import Granularity, PerChannel, PerGroup, PerTensor
from workers.errors import RequestRefused


@dataclass(frozen=True, kw_only=True)
class SliceLayout:
    """How a tensor of one shape is cut.

    Slices are numbered run by run, group by group.

    Args:
        shape: Of the tensor.
        axes: Permutation that brings the axes that number the runs to the front.
        runs: Number of runs.
        run_length: Weights per run.
        group_size: Weights per slice; the last slice of each run may be shorter.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    runs: int
    run_length: int
    group_size: int

    @classmethod
    def of(
        cls, shape: Sequence[int], granularity: Granularity, *, output_channel_axis: int, group_axis: int
    ) -> Self:
        """Cut a tensor.

        Args:
            shape: Of the tensor; no axis may be empty.
            granularity: What shares one scale.
            output_channel_axis: Axis of the output channels; negative ones count from the end. Unused per tensor.
            group_axis: Axis along which groups are formed. Used per group only.

        Raises:
            RequestRefused: The tensor is empty, an axis does not exist, or both axes are the same.
        """
        shape = tuple(int(size) for size in shape)
        if 0 in shape:
            raise RequestRefused(
                f"a tensor of shape {shape} has no weights", "shape", list(shape), "sizes of 1 or more"
            )
        outer = _outer_axes(shape, granularity, output_channel_axis, group_axis)
        axes = outer + tuple(axis for axis in range(len(shape)) if axis not in outer)
        runs = math.prod(shape[axis] for axis in outer)
        run_length = math.prod(shape) // runs
        size = min(granularity.group_size, run_length) if isinstance(granularity, PerGroup) else run_length
        return cls(shape=shape, axes=axes, runs=runs, run_length=run_length, group_size=size)

    @property
    def groups(self) -> int:
        """Slices per run."""
        return -(-self.run_length // self.group_size)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.runs * self.groups

    @property
    def _whole(self) -> int:
        return self.run_length // self.group_size

    def blocks(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Cut a tensor of this shape into slices of equal length.

        Args:
            tensor: Of shape ``shape``, any type.

        Returns:
            ``[runs * whole groups, group_size]`` and, if the last groups are short, ``[runs, rest]``. Views where the
            storage allows it: do not write to them.
        """
        rows = self.rows(tensor)
        cut = self._whole * self.group_size
        whole = rows[:, :cut].reshape(-1, self.group_size)
        return (whole,) if cut == self.run_length else (whole, rows[:, cut:])

    def rows(self, tensor: Tensor) -> Tensor:
        """The runs of a tensor of this shape: ``[runs, run_length]``, a view where the storage allows it."""
        if tuple(tensor.shape) != self.shape:
            raise RequestRefused(
                f"a tensor of shape {tuple(tensor.shape)} does not fit a layout for {self.shape}",
                "shape",
                list(tensor.shape),
                list(self.shape),
            )
        return tensor.permute(self.axes).reshape(self.runs, self.run_length)

    def restore(self, blocks: Sequence[Tensor]) -> Tensor:
        """Inverse of `blocks`: a contiguous tensor of shape ``shape``."""
        rows = (
            torch.cat([block.reshape(self.runs, -1) for block in blocks], 1) if len(blocks) > 1 else blocks[0]
        )
        stored = rows.reshape([self.shape[axis] for axis in self.axes])
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return stored.permute(inverse).contiguous()

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Cut one value per slice to the blocks.

        Args:
            values: ``[slices]``.

        Returns:
            One ``[rows of the block]`` per block.
        """
        table = values.reshape(self.runs, self.groups)
        whole = table[:, : self._whole].reshape(-1)
        return (whole,) if self._whole == self.groups else (whole, table[:, self._whole])

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Inverse of `split`: ``[slices]``."""
        return torch.cat([part.reshape(self.runs, -1) for part in parts], 1).reshape(-1)


def _outer_axes(
    shape: tuple[int, ...], granularity: Granularity, channel: int, group: int
) -> tuple[int, ...]:
    if isinstance(granularity, PerTensor):
        return ()
    channel = _existing_axis(channel, shape, "output_channel_axis")
    if isinstance(granularity, PerChannel):
        return (channel,)
    group = _existing_axis(group, shape, "group_axis")
    if group == channel:
        raise RequestRefused(
            f"groups along axis {group} of shape {shape}, which is the output-channel axis",
            "group_axis",
            group,
            "another axis than output_channel_axis",
        )
    return (channel, *(axis for axis in range(group) if axis != channel))


def _existing_axis(axis: int, shape: tuple[int, ...], field: str) -> int:
    if not -len(shape) <= axis < len(shape):
        raise RequestRefused(
            f"{field} {axis} does not exist in shape {shape}",
            field,
            axis,
            f"-{len(shape)} to {len(shape) - 1}",
        )
    return axis % len(shape)
