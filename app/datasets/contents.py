"""What a data file holds: read once, when it arrives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workers.contracts import InputInfo, ModelDescription
from workers.intake.dataset_header import (
    IGNORED_LABEL,
    LABELS,
    POSITION_MASK,
    DatasetHeader,
    StoredTensor,
    check_against,
    check_values,
    read_header,
)

_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A data file's part of its row. ``tensors``: name -> {dtype, shape}, for labels also {minimum, maximum}."""

    samples: int
    tensors: dict[str, dict[str, Any]]


def read_contents(path: Path, description: ModelDescription | None) -> Contents:
    """Check a data file, against a model when one is given, and tell what is in it.

    Args:
        path: A safetensors file.
        description: Of the model; without it any input names, types and shapes will do.

    Raises:
        DatasetRefused: The file breaks a rule of the format, holds NaN or infinite values, or does not fit the model.
    """
    header = read_header(path)
    inputs, outputs = _any_inputs(header), None
    if description is not None:
        inputs, outputs = description.inputs, description.outputs
    check_against(header, inputs, outputs)
    check_values(path, header, inputs, outputs)
    tensors: dict[str, dict[str, Any]] = {
        name: {"dtype": t.dtype, "shape": list(t.shape)} for name, t in header.tensors.items()
    }
    if LABELS in header.tensors:
        tensors[LABELS] |= _extremes(path, header.tensors[LABELS])
    return Contents(samples=header.samples, tensors=tensors)


def _any_inputs(header: DatasetHeader) -> tuple[InputInfo, ...]:
    """The inputs of a model that the file would fit."""
    return tuple(
        InputInfo(name=name, dtype=tensor.dtype, shape=(None, *tensor.shape[1:]))
        for name, tensor in header.tensors.items()
        if name not in (LABELS, POSITION_MASK)
    )


def _extremes(path: Path, labels: StoredTensor) -> dict[str, int]:
    """Smallest and largest label that counts; nothing when none does."""
    dtype = np.dtype(labels.dtype).newbyteorder("<")
    lowest: list[int] = []
    highest: list[int] = []
    with path.open("rb") as file:
        file.seek(labels.start)
        left = labels.end - labels.start
        while left:
            raw = file.read(min(left, _BLOCK * dtype.itemsize))
            left -= len(raw)
            values = np.frombuffer(raw, dtype)
            values = values[values != IGNORED_LABEL] if dtype.kind == "i" else values
            if values.size:
                lowest.append(int(values.min()))
                highest.append(int(values.max()))
    return {"minimum": min(lowest), "maximum": max(highest)} if lowest else {}
