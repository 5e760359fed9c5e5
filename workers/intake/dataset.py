"""Calibration and evaluation data as tensors over the mapped file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from workers.contracts import InputInfo
from workers.intake.archive import map_file
from workers.intake.dataset_header import LABELS, StoredTensor, check_against, check_values, read_header
from workers.intake.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A checked data file.

    Args:
        inputs: Input name -> tensor of shape [samples, ...], over the mapped file.
        labels: Class numbers, int64, [samples] or [samples, tokens]; -100 does not count. ``None`` without labels.
        samples: Number of samples.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    samples: int


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
    named = {info.name: tensors.pop(info.name) for info in inputs}
    labels = tensors.get(LABELS)
    return Dataset(
        inputs=named, labels=None if labels is None else labels.to(torch.int64), samples=header.samples
    )


def _view(data: memoryview, stored: StoredTensor) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, stored.dtype)
    if stored.start == stored.end:
        return torch.empty(stored.shape, dtype=dtype)
    raw = torch.frombuffer(data[stored.start : stored.end], dtype=torch.uint8)
    if raw.data_ptr() % dtype.itemsize:
        # The format aligns nothing beyond the header; kernels may rely on alignment.
        raw = raw.clone()
    return raw.view(dtype).view(stored.shape)
