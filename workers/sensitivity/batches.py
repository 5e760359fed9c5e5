"""Samples in, costs out: which samples are used, and in which batches they are fed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.errors import DatasetRefused, RequestRefused
from workers.intake.dataset import PositionMask
from workers.sampling import SampleBlock
from workers.sensitivity.blocks import positions_of


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which samples to use, and how many at a time.

    Args:
        samples: How many; ``None`` for all.
        indices: Which there are to choose from, ascending; ``None`` for all of the file.
        seed: Chooses them when there are more.
        batch_size: Samples per batch, unless the model's is fixed; ``None`` for what suits the model.
        block: Which part of them, in random order; ``None`` for all.
    """

    samples: int | None
    indices: tuple[int, ...] | None = None
    seed: int
    batch_size: int | None
    block: SampleBlock | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """A data set cut into batches.

    A model with a fixed batch is always fed exactly that many samples (it would compute wrong numbers from
    others): the last batch is filled up by repeating its last sample, and the results of the fillers are
    dropped.

    Args:
        inputs: One tensor per input of the model, in the order of its signature, samples along axis 0.
        labels: ``[samples, ...]`` or ``None``.
        samples: Numbers of the samples in use, ascending.
        size: Samples per batch.
        fixed: Batches are filled up to ``size``.
        mask: Which positions count; ``None``: all.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    samples: Tensor
    size: int
    fixed: bool
    mask: PositionMask | None = None

    @classmethod
    def of(  # noqa: PLR0913 - one keyword for each thing that decides how samples are cut
        cls,
        inputs: Sequence[Tensor],
        labels: Tensor | None,
        selection: Selection,
        *,
        fixed_batch: int | None,
        usual_batch: int = 32,
        mask: PositionMask | None = None,
    ) -> Self:
        """Choose samples and cut them into batches.

        Args:
            inputs: One tensor per input of the model; the same number of samples each.
            labels: Of the samples, or ``None``.
            selection: Which samples, and how many at a time.
            fixed_batch: The model's batch if it is fixed.
            usual_batch: Samples per batch where the selection does not say.
            mask: Of the samples, or ``None``.

        Raises:
            RequestRefused: Less than one sample, or more than there are, a batch of less than one sample, or a
                block that ends behind the last sample.
        """
        pool = _pool(selection.indices, len(inputs[0]))
        available = len(pool)
        wanted = available if selection.samples is None else selection.samples
        if not 1 <= wanted <= available:
            raise RequestRefused(
                f"{wanted} samples were asked for, the data has {available}",
                "samples",
                wanted,
                f"whole numbers from 1 to {available}",
            )
        size = usual_batch if selection.batch_size is None else selection.batch_size
        if size < 1:
            raise RequestRefused(f"a batch of {size} samples", "batch_size", size, "1 or more")
        chosen = pool
        if wanted < available:
            drawn = np.random.default_rng(selection.seed).choice(available, wanted, replace=False)
            chosen = pool[np.sort(drawn)]
        if selection.block is not None:
            chosen = _block_of(chosen, selection.block, selection.seed)
        return cls(
            inputs=tuple(inputs),
            labels=labels,
            samples=torch.from_numpy(chosen),
            size=fixed_batch or size,
            fixed=fixed_batch is not None,
            mask=mask,
        )

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self.samples) / self.size)

    def kept(self, batch: int) -> int:
        """Number of samples of a batch that count."""
        return min(self.size, len(self.samples) - batch * self.size)

    def inputs_of(self, batch: int) -> list[Tensor]:
        """What the model is fed, fillers included."""
        numbers = self._numbers(batch)
        if self.fixed and len(numbers) < self.size:
            numbers = torch.cat([numbers, numbers[-1:].expand(self.size - len(numbers))])
        return [_rows(tensor, numbers) for tensor in self.inputs]

    def labels_of(self, batch: int) -> Tensor | None:
        """Labels of the samples that count."""
        return None if self.labels is None else self.rows_of(self.labels, batch)

    def rows_of(self, tensor: Tensor, batch: int) -> Tensor:
        """The rows of a tensor ``[samples of the data, ...]`` that belong to a batch's samples; no fillers."""
        return _rows(tensor, self._numbers(batch))

    def counted_of(self, batch: int, output: Tensor) -> Tensor | None:
        """Which positions of the samples that count do so themselves.

        Args:
            batch: Which batch.
            output: ``[kept, positions..., C]``, of the model.

        Returns:
            ``[kept, positions...]``, boolean, on the output's device; ``None`` if all do.

        Raises:
            DatasetRefused: The data's own mask does not fit the output.
        """
        if self.mask is None:
            return None
        mask = self.mask.values
        if mask.shape[1:] != output.shape[1:-1]:
            if self.mask.required:
                raise DatasetRefused(
                    f"a position_mask of shape {tuple(mask.shape)} does not fit outputs of shape {tuple(output.shape)}",
                    "position_mask",
                    list(mask.shape),
                    f"one value per sample and position: {list(output.shape[:-1])}",
                )
            return None
        return _rows(mask, self._numbers(batch)).to(output.device)

    def _numbers(self, batch: int) -> Tensor:
        return self.samples[batch * self.size : (batch + 1) * self.size]


def _pool(indices: tuple[int, ...] | None, count: int) -> NDArray[np.int64]:
    """The samples there are to choose from."""
    if indices is None:
        return np.arange(count, dtype=np.int64)
    pool = np.asarray(indices, dtype=np.int64)
    if len(pool) and (pool[0] < 0 or pool[-1] >= count or (np.diff(pool) <= 0).any()):
        raise RequestRefused(
            f"the samples to choose from are not ascending numbers below {count}",
            "indices",
            [int(number) for number in pool[:10]],
            f"ascending whole numbers from 0 to {count - 1}",
        )
    return pool


def _block_of(chosen: NDArray[np.int64], block: SampleBlock, seed: int) -> NDArray[np.int64]:
    """The samples of a block, ascending, so that the block of all samples is what no block is."""
    if block.stop > len(chosen):
        raise RequestRefused(
            f"the block ends at {block.stop}, there are {len(chosen)} samples",
            "block",
            [block.start, block.stop],
            f"a stop of at most {len(chosen)}",
        )
    return chosen[positions_of(block, len(chosen), seed)]


def _rows(tensor: Tensor, numbers: Tensor) -> Tensor:
    """The rows of those numbers: a view where they follow each other, else a copy."""
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first == len(numbers) - 1 and bool((numbers.diff() == 1).all()):
        return tensor[first : last + 1]
    return tensor[numbers]
