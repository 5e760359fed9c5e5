"""Calibration and evaluation files: every rule a data file must keep, without torch.

A data file is in the safetensors format: eight bytes with the length of a JSON header, the header, then the
tensors' bytes. Its keys are the model's input names, the first axis of each is the samples', and ``labels`` and
``position_mask`` may come with them; attention masks may be left out. The service checks uploads with this module in a process that has no torch; the workers build on it.
"""

import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from workers.contracts import InputInfo
from workers.errors import DatasetRefused, ModelRefused
from workers.intake.jsontext import Json, parse_json
from workers.intake.limits import MIB, Limits
from workers.intake.refusals import shorten

LABELS: Final = "labels"
POSITION_MASK: Final = "position_mask"
"""Which positions of the output count, for any model: ``[samples, positions...]``, 0 where not."""

ATTENTION_MASKS: Final = ("decoder_attention_mask", "attention_mask")
"""Inputs that may be left out (nothing is padding then), and that say which positions count."""

IGNORED_LABEL: Final = -100
"""The label of a token that does not count, as in torch's cross entropy."""

_LIMITS: Final = Limits(max_json_bytes=MIB, max_json_depth=8)
_CHUNK: Final = 1 << 22
_NAMES: Final[dict[str, str]] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
# bfloat16 has no numpy type: its bits are looked at.
_NUMPY: Final[dict[str, npt.DTypeLike]] = {
    **{name: name for name in _NAMES.values() if name != "bfloat16"},
    "bfloat16": "uint16",
}
_MASK_TYPES: Final = ("bool", "uint8", "int8", "int16", "int32", "int64")
_LABEL_TYPES: Final = ("int64", "int32", "int16", "int8", "uint8")
_EXPONENT_BF16: Final = 0x7F80


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a data file: its bytes are ``[start, end)`` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class DatasetHeader:
    """What a data file says of itself.

    Args:
        samples: Length of the first axis, the same for all tensors.
        tensors: Name -> tensor, labels included.
    """

    samples: int
    tensors: dict[str, StoredTensor]


def read_header(path: Path) -> DatasetHeader:
    """Read and check the header of a data file; the data themselves are not looked at.

    Args:
        path: A safetensors file.

    Raises:
        DatasetRefused: Not safetensors, an inconsistent header, no tensors, no samples, or differing numbers of them.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(_LIMITS.max_json_bytes, size - 8):
            raise _refuse(
                "not-safetensors",
                "the file is not in the safetensors format",
                field="dataset",
                value=prefix.hex(" "),
                allowed="a .safetensors file with at most 1 MiB of header",
            )
        text = file.read(length)
    try:
        tensors = read_tensors(parse_json(memoryview(text), "header", _LIMITS), 8 + length, size)
    except ModelRefused as refusal:
        raise DatasetRefused(
            f"the file is not in the safetensors format: {refusal.message}",
            refusal.field,
            refusal.value,
            refusal.allowed,
            {"rule": "not-safetensors"},
        ) from None
    return DatasetHeader(samples=_count_samples(tensors), tensors=tensors)


def read_tensors(header: Json, begin: int, size: int) -> dict[str, StoredTensor]:
    """Name -> tensor; together they must cover the data without a gap or an overlap."""
    tensors = {
        name: _stored_tensor(name, entry, begin) for name, entry in header.fields() if name != "__metadata__"
    }
    position = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            raise _refuse(
                "tensor-layout",
                f"{name!r} begins at byte {tensor.start} where {position} is the next free one",
                field=name,
                value=tensor.start,
                allowed="tensors one after another, without gaps or overlaps",
            )
        position = tensor.end
    if position != size:
        raise _refuse(
            "file-size",
            f"the file has {size} bytes where its header describes {position}; it is truncated or has been appended to",
            field="dataset",
            value=size,
            allowed=position,
        )
    return tensors


def _stored_tensor(name: str, entry: Json, begin: int) -> StoredTensor:
    shape = tuple(item.integer() for item in entry["shape"].items())
    offsets = [item.integer() for item in entry["data_offsets"].items()]
    code = entry["dtype"].text()
    dtype = _NAMES.get(code)
    if dtype is None:
        raise _refuse(
            "tensor-dtype",
            f"{name!r} has the data type {code}",
            field=name,
            value=code,
            allowed=list(_NAMES.values()),
        )
    size_bytes = math.prod(shape) * np.dtype(_NUMPY[dtype]).itemsize
    if min(shape, default=0) < 0 or len(offsets) != 2 or offsets[1] - offsets[0] != size_bytes:
        raise _refuse(
            "tensor-bytes",
            f"{name!r} of shape {list(shape)[:8]} and type {dtype} does not fill its bytes {offsets[:2]}",
            field=name,
            value=offsets[:2],
            allowed=f"{size_bytes} bytes",
        )
    return StoredTensor(dtype=dtype, shape=shape, start=begin + offsets[0], end=begin + offsets[1])


def _count_samples(tensors: Mapping[str, StoredTensor]) -> int:
    if not tensors:
        raise _refuse(
            "empty", "the file holds no tensor", field="dataset", allowed="one tensor for each input"
        )
    counts = {name: tensor.shape[0] if tensor.shape else None for name, tensor in tensors.items()}
    first = next(iter(counts.values()))
    for name, count in counts.items():
        if count is None:
            raise _refuse(
                "samples",
                f"{name!r} is a single number and has no axis for samples",
                field=name,
                value=[],
                allowed="tensors whose first axis is the samples'",
            )
        if count != first:
            raise _refuse(
                "samples",
                f"{name!r} has {count} samples where {next(iter(counts))!r} has {first}",
                field=name,
                value=count,
                allowed=first,
            )
    if not first:
        raise _refuse(
            "empty", "the file holds no sample", field="dataset", value=0, allowed="one sample or more"
        )
    return first


def check_against(
    header: DatasetHeader, inputs: Sequence[InputInfo], outputs: Sequence[InputInfo] | None = None
) -> None:
    """Check names, types and shapes against a model.

    Args:
        header: Of the data file.
        inputs: The model's inputs; axis 0 is the samples' and not compared.
        outputs: The model's outputs, if known: the first one's last axis is the classes'.

    Raises:
        DatasetRefused: Another set of names, another type or shape than an input's, or labels that do not fit.
    """
    names = [info.name for info in inputs]
    given = [name for name in header.tensors if name in names or name not in (LABELS, POSITION_MASK)]
    missing = sorted(set(names) - set(given) - set(ATTENTION_MASKS))
    unknown = sorted(set(given) - set(names))
    if missing or unknown:
        what = [f"lacks {', '.join(map(repr, missing[:4]))}"] * bool(missing)
        what += [f"has {', '.join(repr(shorten(name)) for name in unknown[:4])}"] * bool(unknown)
        raise _refuse(
            "input-names",
            f"the file's tensors are not the model's inputs: it {' and '.join(what)}",
            field="dataset",
            value=sorted(str(shorten(name)) for name in given)[:16],
            allowed=[*names, f"{LABELS} (optional)", f"{POSITION_MASK} (optional)"],
        )
    for info in inputs:
        if info.name in header.tensors:
            _check_input(header.tensors[info.name], info)
    if POSITION_MASK in header.tensors and POSITION_MASK not in names:
        _check_mask(header.tensors[POSITION_MASK], outputs)
    if LABELS in header.tensors and LABELS not in names:
        _check_labels(header.tensors[LABELS], outputs)


def _check_input(tensor: StoredTensor, info: InputInfo) -> None:
    if tensor.dtype != info.dtype:
        raise _refuse(
            "input-dtype",
            f"the input {info.name!r} is {tensor.dtype} in the file; the model takes {info.dtype}",
            field=info.name,
            value=tensor.dtype,
            allowed=info.dtype,
        )
    wanted = info.shape[1:]
    given = tensor.shape[1:]
    fits = len(wanted) == len(given) and all(w in (None, g) for w, g in zip(wanted, given, strict=True))
    if not fits or 0 in given:
        expected = ", ".join(["samples", *("any" if size is None else str(size) for size in wanted)])
        raise _refuse(
            "input-shape",
            f"the input {info.name!r} has the shape {list(tensor.shape)} in the file; the model takes [{expected}]",
            field=info.name,
            value=list(tensor.shape),
            allowed=f"[{expected}]",
        )


def _check_mask(mask: StoredTensor, outputs: Sequence[InputInfo] | None) -> None:
    if mask.dtype not in _MASK_TYPES:
        raise _refuse(
            "mask-dtype",
            f"the {POSITION_MASK} is {mask.dtype}; it says of each position whether it counts",
            field=POSITION_MASK,
            value=mask.dtype,
            allowed=list(_MASK_TYPES),
        )
    if outputs is None:
        return
    shape, given = outputs[0].shape[1:-1], mask.shape[1:]
    if len(shape) != len(given) or any(w not in (None, g) for w, g in zip(shape, given, strict=True)):
        expected = f"[{', '.join(['samples', *('positions' if s is None else str(s) for s in shape)])}]"
        raise _refuse(
            "mask-shape",
            f"the {POSITION_MASK} has the shape {list(mask.shape)}; one value for each position of the output is {expected}",
            field=POSITION_MASK,
            value=list(mask.shape),
            allowed=expected,
        )


def _check_labels(labels: StoredTensor, outputs: Sequence[InputInfo] | None) -> None:
    if labels.dtype not in _LABEL_TYPES:
        raise _refuse(
            "label-dtype",
            f"the labels are {labels.dtype}; they are class numbers",
            field=LABELS,
            value=labels.dtype,
            allowed=list(_LABEL_TYPES),
        )
    shape = outputs[0].shape[1:-1] if outputs else None
    given = labels.shape[1:]
    if shape is None:
        fits, expected = len(given) <= 1, "[samples] or [samples, tokens]"
    else:
        fits = len(shape) == len(given) and all(w in (None, g) for w, g in zip(shape, given, strict=True))
        expected = f"[{', '.join(['samples', *('tokens' if size is None else str(size) for size in shape)])}]"
    if not fits:
        raise _refuse(
            "label-shape",
            f"the labels have the shape {list(labels.shape)}; one label for each output's distribution is {expected}",
            field=LABELS,
            value=list(labels.shape),
            allowed=expected,
        )


def check_values(
    path: Path, header: DatasetHeader, inputs: Sequence[InputInfo], outputs: Sequence[InputInfo] | None = None
) -> None:
    """Look at the data: inputs must be finite, labels within the classes. Memory stays bounded.

    Args:
        path: The file ``header`` was read from.
        header: Its header, checked against the same inputs and outputs.
        inputs: The model's inputs.
        outputs: The model's outputs, if known.

    Raises:
        DatasetRefused: NaN or an infinite value, or a label out of range.
        OSError: The file cannot be read.
    """
    classes = outputs[0].shape[-1] if outputs and outputs[0].shape else None
    names = {info.name for info in inputs}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for name, tensor in header.tensors.items():
            for first, chunk in _chunks(mapped, tensor):
                if name not in names and name != POSITION_MASK:
                    _check_classes(first, chunk, tensor, classes)
                elif tensor.dtype.startswith(("float", "bfloat")):
                    _check_finite(name, first, chunk, tensor)


def _chunks(mapped: mmap.mmap, tensor: StoredTensor) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Index of the first element and the elements, a bounded number at a time."""
    dtype = np.dtype(_NUMPY[tensor.dtype])
    count = (tensor.end - tensor.start) // dtype.itemsize
    for first in range(0, count, _CHUNK):
        begin = tensor.start + first * dtype.itemsize
        raw = mapped[begin : min(begin + _CHUNK * dtype.itemsize, tensor.end)]
        yield first, np.frombuffer(raw, dtype=dtype.newbyteorder("<"))


def _check_finite(name: str, first: int, chunk: npt.NDArray[Any], tensor: StoredTensor) -> None:
    bits = tensor.dtype == "bfloat16"
    bad = (chunk & _EXPONENT_BF16) == _EXPONENT_BF16 if bits else ~np.isfinite(chunk)
    if bad.any():
        sample = (first + int(bad.argmax())) // max(math.prod(tensor.shape[1:]), 1)
        raise _refuse(
            "non-finite-data",
            f"sample {sample} of the input {name!r} holds NaN or an infinite value",
            field=name,
            value=f"sample {sample}",
            allowed="finite numbers",
        )


def _check_classes(first: int, chunk: npt.NDArray[Any], tensor: StoredTensor, classes: int | None) -> None:
    labels = chunk.astype(np.int64)
    bad = (labels < 0) & (labels != IGNORED_LABEL)
    if classes is not None:
        bad |= labels >= classes
    if bad.any():
        index = int(bad.argmax())
        sample = (first + index) // max(math.prod(tensor.shape[1:]), 1)
        top = "" if classes is None else f" to {classes - 1}"
        raise _refuse(
            "label-range",
            f"sample {sample} has the label {labels[index]}",
            field=LABELS,
            value=int(labels[index]),
            allowed=f"0{top or ' or more'}, or {IGNORED_LABEL} for tokens that do not count",
        )


def _refuse(rule: str, message: str, *, field: str, value: Any = None, allowed: Any = None) -> DatasetRefused:
    shown = value if isinstance(value, list) else shorten(value)
    return DatasetRefused(message, shorten(field), shown, allowed, {"rule": rule})
