"""Hugging Face folders as one file: which files of a folder make a model, and the one way to pack them. Torch-free.

A model needs its ``config.json`` and its safetensors; nothing else of a folder is ever read, so nothing else is
packed. The packed form is a zip archive with stored entries in a fixed order, without dates, each beginning on a
multiple of 64 bytes: the same folder always gives the same bytes (and so the same content hash), and the weights can be
used where they lie in the mapped file.
"""

import os
import re
import shutil
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from workers.errors import ModelRefused
from workers.intake.jsontext import parse_json
from workers.intake.limits import MIB, Limits
from workers.intake.refusals import refuse

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
LIMITS: Final = Limits(max_json_bytes=16 * MIB, max_json_depth=16)
"""Bounds on the texts of a folder."""

_ROOT: Final = "model"
_SHARD: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,200}\.safetensors", re.ASCII)
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CODE: Final = (".py", ".so", ".pyc", ".dll")
_ALLOWED: Final = f"{CONFIG}, and {WEIGHTS} or {INDEX} with the files that it names"
_ALIGNMENT: Final = 64
_PADDING_TAG: Final = 0xD935
_LOCAL_HEADER: Final = 30
_EXTRA_HEADER: Final = 4
_ZIP64_EXTRA: Final = 20
_NARROW: Final = (1 << 31) - 1


def shards_of(index: memoryview) -> dict[str, str]:
    """Tensor name -> file name, from the text of an index.

    Raises:
        ModelRefused: Not an index, or a file name that is more than the name of a safetensors file.
    """
    found = {}
    for tensor, file in parse_json(index, INDEX, LIMITS)["weight_map"].fields():
        name = file.text()
        if not _SHARD.fullmatch(name):
            raise refuse(
                "shard-name",
                f"{INDEX} says that {tensor!r} lies in {name!r}",
                field=INDEX,
                value=name,
                allowed="names of .safetensors files in the same folder",
            )
        found[tensor] = name
    return found


def check_names(names: Mapping[str, object], shards: Mapping[str, str] | None) -> None:
    """See that a packed folder holds what belongs to a model and nothing else.

    Args:
        names: The entries' names.
        shards: Tensor -> file, from `shards_of`, if there is an index.

    Raises:
        ModelRefused: A pickle, code, anything else that does not belong to a model, or a file that lacks.
    """
    wanted = {CONFIG, WEIGHTS} if shards is None else {CONFIG, INDEX, *shards.values()}
    for name in names:
        if name not in wanted:
            raise _stranger(name)
    for name in sorted(wanted):
        if name not in names:
            raise refuse("missing-entry", f"the folder has no {name!r}", field=name, allowed=_ALLOWED)


def _stranger(name: str) -> ModelRefused:
    """The refusal of an entry that does not belong to a packed model."""
    if name.endswith(_PICKLES):
        return refuse(
            "pickle",
            f"{name!r} is a pickle, and loading it would run its code; save the model with safe_serialization",
            field=name,
            value=name,
            allowed=_ALLOWED,
        )
    if name.endswith(_CODE):
        return refuse(
            "code",
            f"{name!r} is code; models are data, and only architectures of transformers itself are built",
            field=name,
            value=name,
            allowed=_ALLOWED,
        )
    return refuse(
        "unknown-entry",
        f"{name!r} does not belong to a packed model; `bitwright pack FOLDER` packs what does",
        field=name,
        value=name,
        allowed=_ALLOWED,
    )


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that make a model, by name; whatever else lies there is left out.

    Raises:
        ModelRefused: No config, no safetensors (with a pickle the refusal names it), or a link out of the folder.
        OSError: A file cannot be read.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).exists():
        names = [CONFIG, WEIGHTS]
    elif index.exists():
        _check_inside(folder, index)
        names = [CONFIG, INDEX, *sorted(set(shards_of(memoryview(index.read_bytes())).values()))]
    else:
        pickles = sorted(path.name for path in folder.iterdir() if path.name.endswith(_PICKLES))
        if pickles:
            raise _stranger(pickles[0])
        names = [CONFIG, WEIGHTS]
    for name in names:
        if not (folder / name).is_file():
            raise refuse(
                "missing-entry", f"the folder {folder.name!r} has no {name!r}", field=name, allowed=_ALLOWED
            )
        _check_inside(folder, folder / name)
    return {name: folder / name for name in names}


def _check_inside(folder: Path, path: Path) -> None:
    target = path.resolve()
    if not target.is_relative_to(folder.resolve()):
        raise refuse(
            "link",
            f"{path.name!r} is a link to {str(target)!r}, out of the folder; copy the folder with its files (cp -rL)",
            field=path.name,
            value=str(target),
            allowed="files that lie in the folder",
        )


def pack_folder(folder: Path, target: Path) -> None:
    """Write the packed form of a folder.

    Args:
        folder: With ``config.json`` and safetensors.
        target: The file to write; replaced in one step.

    Raises:
        ModelRefused: The folder is not a model, see `model_files`.
        OSError: A file cannot be read or written.
    """
    files = model_files(folder)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name, path in files.items():
                _add(archive, name, path)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    assert archive.fp is not None
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
    wide = path.stat().st_size > _NARROW
    start = archive.fp.tell() + _LOCAL_HEADER + len(entry.filename) + _EXTRA_HEADER + _ZIP64_EXTRA * wide
    padding = -start % _ALIGNMENT
    entry.extra = struct.pack("<2H", _PADDING_TAG, padding) + bytes(padding)
    entry.file_size = path.stat().st_size
    with path.open("rb") as source, archive.open(entry, "w", force_zip64=wide) as stored:
        shutil.copyfileobj(source, stored, MIB)


@contextmanager
def packed(path: Path) -> Iterator[Path]:
    """A model as one file: a file as it is, a folder packed for as long as the context lasts.

    Args:
        path: A model file, or a Hugging Face folder.

    Raises:
        ModelRefused: The folder is not a model, see `model_files`.
        OSError: A file cannot be read or written.
    """
    if not path.is_dir():
        yield path
        return
    with TemporaryDirectory(prefix="bitwright-") as folder:
        target = Path(folder) / f"{Path(os.path.abspath(path)).name or _ROOT}.zip"  # noqa: PTH100 - links keep their name
        pack_folder(path, target)
        yield target
