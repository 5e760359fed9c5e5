"""Which stored tensors share memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.fx import Node


@dataclass(frozen=True, kw_only=True)
class Region:
    """The stretch of a storage that a tensor covers, in elements.

    Args:
        storage: Address of the storage.
        start: First element.
        stop: One past the last element.
        elements: Number of elements of the tensor.
    """

    storage: int
    start: int
    stop: int
    elements: int

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """The region of a tensor."""
        start = int(tensor.storage_offset())
        reach = sum(
            (int(size) - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        return cls(
            storage=tensor.untyped_storage().data_ptr(),
            start=start,
            stop=start + reach + 1 if tensor.numel() else start,
            elements=tensor.numel(),
        )

    @property
    def dense(self) -> bool:
        """Whether every element of the stretch belongs to the tensor, once."""
        return self.elements == self.stop - self.start

    def overlaps(self, other: Self) -> bool:
        """Whether both share memory."""
        return self.storage == other.storage and self.start < other.stop and other.start < self.stop

    def contains(self, other: Self) -> bool:
        """Whether the other one lies inside."""
        return self.storage == other.storage and self.start <= other.start and other.stop <= self.stop


@dataclass(frozen=True, kw_only=True)
class Alias:
    """One node's view of a unit's memory.

    Args:
        node: The constant node.
        shape: Of its value.
        strides: Of its value, in elements; ``None`` if it is the whole unit in the layout of whatever is given.
        offset: Of its first element from the unit's first element.
    """

    node: Node
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    offset: int = 0

    def lay_out(self, weight: Tensor) -> Tensor:
        """The weight in this alias' memory layout, so that the same kernels run for it as for the original."""
        if self.strides is None or weight.stride() == self.strides:
            return weight
        laid_out = torch.empty_strided(self.shape, self.strides, dtype=weight.dtype, device=weight.device)
        return laid_out.copy_(weight)

    def view(self, laid_out: Tensor) -> Tensor:
        """What this alias shows of a unit's tensor."""
        if self.strides is None:
            return laid_out
        return laid_out.as_strided(self.shape, self.strides, laid_out.storage_offset() + self.offset)


def stored_bits(tensors: Iterable[Tensor]) -> int:
    """Bits that tensors take, memory that several of them share counted once."""
    regions = sorted(
        ((t.untyped_storage().data_ptr(), t.element_size(), Region.of(t)) for t in tensors),
        key=lambda entry: (entry[0], entry[2].start * entry[1]),
    )
    total, covered = 0, (0, 0)
    for storage, size, region in regions:
        start = region.start * size
        if covered[0] == storage:
            start = max(start, covered[1])
        stop = min(region.stop * size, start + region.elements * size)
        total += max(0, stop - start)
        covered = (storage, max(stop, covered[1] if covered[0] == storage else 0))
    return 8 * total
