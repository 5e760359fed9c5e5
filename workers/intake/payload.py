"""The tensors of an archive: raw bytes, seen through the shapes the file declares. Never a pickle."""

import math
import re
from collections.abc import Sequence
from typing import Final

import torch

from workers.intake.archive import Archive
from workers.intake.jsontext import Json, parse_json
from workers.intake.limits import Limits
from workers.intake.refusals import refuse
from workers.intake.tensor_meta import MetaReader, TensorMeta

_FOLDERS: Final = {
    "weights": ("data/weights/", "data/weights/model_weights_config.json", "weight_"),
    "constants": ("data/constants/", "data/constants/model_constants_config.json", "tensor_"),
}


class Payload:
    """Reads the tensors of an archive; tensors over the same stored bytes share memory.

    Args:
        archive: The opened archive; it stays mapped as long as a tensor lives.
        limits: Bounds.
    """

    def __init__(self, archive: Archive, limits: Limits) -> None:
        self._archive = archive
        self._limits = limits
        self._meta = MetaReader(limits)
        self._records: dict[str, torch.Tensor] = {}

    def read(self, kind: str) -> dict[str, torch.Tensor]:
        """Qualified name -> tensor.

        Args:
            kind: ``"weights"`` (parameters and buffers) or ``"constants"``.

        Raises:
            ModelRefused: A pickled tensor, an object that is no tensor, or a view outside its bytes.
        """
        folder, config, prefix = _FOLDERS[kind]
        listing = parse_json(self._archive.read(config), config, self._limits)["config"]
        return {name: self._tensor(kind, folder, prefix, entry) for name, entry in listing.fields()}

    def _tensor(self, kind: str, folder: str, prefix: str, entry: Json) -> torch.Tensor:
        path = entry["path_name"].text()
        if path.startswith(("custom_obj_", "opaque_obj_")):
            raise refuse(
                "opaque-constant",
                f"{entry.where} is a pickled Python object; loading it would run its code",
                field=folder + path,
                value=path,
                allowed="plain tensors",
            )
        if entry["use_pickle"].boolean():
            raise refuse(
                f"pickled-{kind}",
                f"{entry.where} is pickled; loading it would run code from the file. Tensor subclasses "
                "(such as tensors quantized already) are stored so: export the model with plain tensors",
                field=folder + path,
                value=True,
                allowed="use_pickle false",
            )
        if not re.fullmatch(rf"{prefix}\d{{1,9}}", path, re.ASCII):
            raise refuse(
                "payload-path",
                f"{entry.where} points to {path!r}",
                field=entry.where,
                value=path,
                allowed=f"{prefix}N in {folder}",
            )
        meta = self._meta.tensor(entry["tensor_meta"])
        return self._view(self._record(folder + path), meta, folder + path, entry.where)

    def _record(self, name: str) -> torch.Tensor:
        """The bytes of one entry as a tensor over the mapped file; each entry is read once."""
        if name not in self._records:
            data = self._archive.read(name)
            self._records[name] = (
                torch.frombuffer(data, dtype=torch.uint8) if len(data) else torch.empty(0, dtype=torch.uint8)
            )
        return self._records[name]

    def _view(self, record: torch.Tensor, meta: TensorMeta, entry: str, where: str) -> torch.Tensor:
        shape, strides, offset = (
            _fixed(meta.shape, where),
            _fixed(meta.strides, where),
            _fixed([meta.offset], where)[0],
        )
        count = 1
        for size in shape:
            count *= size
        reach = (
            0 if count == 0 else offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        )
        if reach * meta.dtype.itemsize > record.numel() or record.numel() % meta.dtype.itemsize:
            raise refuse(
                "storage-size",
                f"{where} needs {reach * meta.dtype.itemsize} bytes of {entry!r}, which has {record.numel()}",
                field=entry,
                value=record.numel(),
                allowed=f"at least {reach * meta.dtype.itemsize} bytes, a multiple of {meta.dtype.itemsize}",
            )
        if count > record.numel() // meta.dtype.itemsize:
            raise refuse(
                "overlapping-storage",
                f"{where} claims {count} elements over {record.numel()} bytes: elements share memory",
                field=entry,
                value=count,
                allowed=f"at most {record.numel() // meta.dtype.itemsize} elements",
            )
        if count == 0:
            return torch.empty(shape, dtype=meta.dtype)
        if record.data_ptr() % meta.dtype.itemsize:
            # Torch aligns what it writes; other writers need not, and kernels may rely on it.
            record = self._records[entry] = record.clone()
        return record.view(meta.dtype).as_strided(shape, strides, offset)


def _fixed(sizes: Sequence[object], where: str) -> list[int]:
    numbers = [size for size in sizes if isinstance(size, int)]
    if len(numbers) != len(sizes):
        raise refuse("tensor-size", f"{where} has a symbolic size", field=where, allowed="numbers")
    return numbers


def check_finite(name: str, tensor: torch.Tensor, *, parameter: bool) -> None:
    """Refuse NaN anywhere, and infinities in parameters (buffers may hold them: attention masks do).

    Args:
        name: Qualified name.
        tensor: Of any shape and dtype.
        parameter: Whether it is a parameter.

    Raises:
        ModelRefused: A value that is not allowed.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return
    # One pass without a temporary: NaN carries through both ends.
    low, high = torch.aminmax(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
    ends = float(low), float(high)
    bad = [end for end in ends if math.isnan(end) or (parameter and math.isinf(end))]
    if bad:
        what = "NaN" if math.isnan(bad[0]) else "an infinite value"
        raise refuse(
            "non-finite-weights",
            f"{name!r} holds {what}; no range and no error can be computed from it",
            field=name,
            value=str(bad[0]),
            allowed="finite numbers",
        )
