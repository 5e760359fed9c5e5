"""Calibration and evaluation data as tensors over the mapped file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from workers.contracts import InputInfo
from workers.errors import DatasetRefused
from workers.intake.archive import map_file
from workers.intake.dataset_header import (
    ATTENTION_MASKS,
    LABELS,
    POSITION_MASK,
    StoredTensor,
    check_against,
    check_values,
    read_header,
)
from workers.intake.limits import Limits


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionMask:
    """Which positions count.

    Args:
        values: ``[samples, positions...]``, boolean, one or more of each sample.
        required: The data file's own ``position_mask``, which must fit the output; an attention mask counts for
            outputs of the same positions only.
    """

    values: torch.Tensor
    required: bool


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A checked data file.

    Args:
        inputs: Input name -> tensor of shape [samples, ...], over the mapped file.
        labels: Class numbers, int64, [samples] or [samples, tokens]; -100 does not count. ``None`` without labels.
        samples: Number of samples.
        mask: Which positions count; ``None``: all.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    samples: int
    mask: PositionMask | None = None


def read_dataset(
    path: Path, inputs: Sequence[InputInfo], *, outputs: Sequence[InputInfo] | None = None
) -> Dataset:
    """Read a data file for a model.

    Args:
        path: A safetensors file; it must not change while its tensors live.
        inputs: The model's inputs.
        outputs: The model's outputs, if known; labels are then checked against the number of classes.

    Returns:
        The data; tensors are mapped, not copied.

    Raises:
        DatasetRefused: The file breaks a rule of the format or does not fit the model.
        OSError: The file cannot be read.
    """
    header = read_header(path)
    check_against(header, inputs, outputs)
    check_values(path, header, inputs, outputs)
    data = map_file(path, Limits())
    tensors = {name: _view(data, tensor) for name, tensor in header.tensors.items()}
    names = [info.name for info in inputs]
    filled = {name: _nothing_padded(name, names, tensors) for name in names if name not in tensors}
    named = {name: filled[name] if name in filled else tensors.pop(name) for name in names}
    labels = tensors.get(LABELS)
    source = next((name for name in (POSITION_MASK, *ATTENTION_MASKS) if name in {**tensors, **named}), None)
    if source == ATTENTION_MASKS[-1] and "decoder_input_ids" in named:
        source = None  # the outputs are the decoder's
    return Dataset(
        inputs=named,
        labels=None if labels is None else labels.to(torch.int64),
        samples=header.samples,
        mask=None if source is None or source in filled else _mask(source, {**tensors, **named}[source]),
    )


def _nothing_padded(name: str, names: Sequence[str], tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """An attention mask of ones for a file that has none."""
    tokens = name.removesuffix("attention_mask") + "input_ids"
    if tokens not in names:
        raise DatasetRefused(
            f"the file lacks {name!r}, and the model has no {tokens!r} whose positions it could be made for",
            name,
            None,
            f"a tensor {name!r}",
            {"rule": "input-names"},
        )
    return torch.ones((), dtype=torch.int64).expand(tensors[tokens].shape)


def _mask(name: str, values: torch.Tensor) -> PositionMask | None:
    """Where a mask counts; ``None`` if it is none that says so position by position, or says that all do."""
    if values.dim() < 2 or values.is_floating_point():
        return None
    mask = values != 0
    empty = (~mask.flatten(1).any(1)).nonzero()
    if len(empty):
        raise DatasetRefused(
            f"sample {int(empty[0])} has no position that counts ({name!r} is 0 everywhere)",
            name,
            f"sample {int(empty[0])}",
            "at least one position of each sample",
            {"rule": "empty-mask"},
        )
    required = name == POSITION_MASK
    return None if bool(mask.all()) and not required else PositionMask(values=mask, required=required)


def _view(data: memoryview, stored: StoredTensor) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, stored.dtype)
    if stored.start == stored.end:
        return torch.empty(stored.shape, dtype=dtype)
    raw = torch.frombuffer(data[stored.start : stored.end], dtype=torch.uint8)
    if raw.data_ptr() % dtype.itemsize:
        # The format aligns nothing beyond the header; kernels may rely on alignment.
        raw = raw.clone()
    return raw.view(dtype).view(stored.shape)
