"""The tensors of safetensors files inside an archive: over the mapped bytes, never copied, never a pickle."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from workers.errors import DatasetRefused, ModelRefused
from workers.intake.archive import Archive
from workers.intake.dataset_header import StoredTensor, read_tensors
from workers.intake.jsontext import parse_json
from workers.intake.limits import MIB, Limits
from workers.intake.packing import INDEX
from workers.intake.refusals import refuse

_LIMITS = Limits(max_json_bytes=64 * MIB, max_json_depth=8)


def read_weights(
    archive: Archive, files: Sequence[str], index: Mapping[str, str] | None
) -> dict[str, Tensor]:
    """Qualified name -> tensor.

    Args:
        archive: The folder's files.
        files: Names of the safetensors files.
        index: Tensor -> file, as the folder's index says; ``None`` without one.

    Returns:
        Tensors over the mapped archive.

    Raises:
        ModelRefused: A file is not in the safetensors format, or the index and the files disagree.
    """
    found: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    for file in files:
        data = archive.read(file)
        for name, stored in _header(data, file).items():
            if name in found:
                raise refuse(
                    "duplicate-tensor",
                    f"both {places[name]!r} and {file!r} hold {name!r}",
                    field=file,
                    value=name,
                    allowed="every tensor once",
                )
            found[name], places[name] = _view(data, stored), file
    if index is not None and places != dict(index):
        name = min(name for name in {*places, *index} if places.get(name) != index.get(name))
        raise refuse(
            "index",
            f"{INDEX} says that {name!r} lies in {index.get(name, 'no file')!r}; it lies in {places.get(name, 'no file')!r}",
            field=INDEX,
            value=name,
            allowed="an index that names every tensor with its file",
        )
    if not found:
        raise refuse("empty", "the folder holds no tensor", field=files[0], allowed="one tensor or more")
    return found


def _header(data: memoryview, file: str) -> dict[str, StoredTensor]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise refuse(
            "not-safetensors",
            f"{file!r} is not in the safetensors format",
            field=file,
            value=bytes(data[:8]).hex(" "),
            allowed="a .safetensors file",
        )
    try:
        return read_tensors(parse_json(data[8 : 8 + length], file, _LIMITS), 8 + length, len(data))
    except DatasetRefused as refusal:
        raise ModelRefused(
            f"{file!r} is not in the safetensors format: {refusal.message}",
            file,
            refusal.value,
            refusal.allowed,
            refusal.extra,
        ) from None


def _view(data: memoryview, stored: StoredTensor) -> Tensor:
    dtype: torch.dtype = getattr(torch, stored.dtype)
    if stored.start == stored.end:
        return torch.empty(stored.shape, dtype=dtype)
    raw = torch.frombuffer(data[stored.start : stored.end], dtype=torch.uint8)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()  # the format aligns nothing beyond the header; kernels may rely on alignment
    return raw.view(dtype).view(stored.shape)
