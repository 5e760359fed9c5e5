"""Which kind of file is this? Only the entries torch.export writes are accepted; the rest is refused by name."""

import pickletools
import re
from pathlib import Path
from typing import Final

from workers.errors import ModelRefused
from workers.intake.archive import Archive, map_file
from workers.intake.example_inputs import check_example_inputs
from workers.intake.limits import Limits
from workers.intake.refusals import refuse

MODEL: Final = "models/model.json"
_EXPORT_IT: Final = "export it with `bitwright export`"
_EXPECTED: Final = "a .pt2 file as written by torch.export.save or `bitwright export`"
_EXAMPLES: Final = "data/sample_inputs/model.pt"
_EXACT: Final = frozenset(
    {
        MODEL,
        _EXAMPLES,
        ".data/serialization_id",
        ".data/version",
        ".format_version",
        ".storage_alignment",
        "archive_format",
        "archive_version",
        "byteorder",
        "version",
        "data/weights/model_weights_config.json",
        "data/constants/model_constants_config.json",
    }
)
# Entries that are never read, so they may hold anything: extra files of the user, payloads no tensor refers to.
_PATTERNS: Final = re.compile(
    r"extra/.+|data/weights/weight_\d+|data/constants/tensor_\d+", re.ASCII | re.DOTALL
)
_PICKLE_HEAD: Final = re.compile(rb"\x80[\x02-\x05]")
_LONGEST_OLD_PICKLE: Final = 1 << 20


def open_model(path: Path, limits: Limits) -> Archive:
    """Open a model file, after checking that it is one and that it holds nothing that could run.

    Args:
        path: The file.
        limits: Bounds.

    Raises:
        ModelRefused: Another kind of file, or an entry that is not accepted.
        OSError: The file cannot be read.
    """
    data = map_file(path, limits)
    if bytes(data[:4]) != b"PK\x03\x04":
        raise _foreign(data)
    try:
        archive = Archive.parse(data, "model", limits)
    except ModelRefused as refusal:
        # TorchScript archives are the ones torch compresses, in part.
        raise (_torchscript() if "/code/" in str(refusal.field) else refusal) from None
    _check_kind(archive)
    for name in archive.entries:
        _check_entry(name)
    if bytes(archive.read("archive_format")) != b"pt2":
        raise refuse("not-pt2", "the archive is not a .pt2 file", field="archive_format", allowed=_EXPECTED)
    if bytes(archive.read("byteorder")) != b"little":
        raise refuse(
            "byte-order",
            "the file was written on a big-endian machine",
            field="byteorder",
            allowed="little-endian",
        )
    if _EXAMPLES in archive.entries:
        check_example_inputs(archive.read(_EXAMPLES), _EXAMPLES, limits)
    return archive


def _foreign(data: memoryview) -> Exception:
    """The refusal of a file that is no archive."""
    if _PICKLE_HEAD.match(data) or _is_old_pickle(data):
        return refuse(
            "pickle",
            f"the file is a pickle, as torch.save writes; loading it would run its code. {_EXPORT_IT.capitalize()}",
            field="model",
            value=bytes(data[:8]).hex(" "),
            allowed=_EXPECTED,
        )
    return refuse(
        "not-a-zip",
        "the file is not a zip archive, so it is not a .pt2 file",
        field="model",
        value=bytes(data[:8]).hex(" "),
        allowed=_EXPECTED,
    )


def _is_old_pickle(data: memoryview) -> bool:
    """Whether the bytes are a pickle of the text protocol, which has no marker at its start."""
    if len(data) > _LONGEST_OLD_PICKLE or bytes(data[-1:]) != b".":
        return False
    try:
        return sum(1 for _ in pickletools.genops(bytes(data))) > 1
    except Exception:  # noqa: BLE001 - arbitrary bytes; whatever it trips over, it is no pickle
        return False


def _check_kind(archive: Archive) -> None:
    """Tell the other archives torch writes from a model file."""
    names = archive.entries.keys()
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise _torchscript()
    if "data.pkl" in names:
        raise refuse(
            "pickle",
            "the file was written by torch.save and holds a pickle; loading it would run its code. "
            f"{_EXPORT_IT.capitalize()}",
            field="data.pkl",
            allowed=_EXPECTED,
        )
    if any(name.startswith("serialized_") for name in names):
        raise refuse(
            "old-format",
            "the file was written by torch.export before torch 2.8; export the model again with torch 2.13",
            field="model",
            allowed=_EXPECTED,
        )
    for name in names:
        if name.startswith("models/") and name != MODEL:
            raise refuse(
                "several-models",
                f"the archive holds a second model, {name!r}",
                field=name,
                allowed=f"only {MODEL}",
            )
    if "archive_format" not in names or MODEL not in names:
        raise refuse("not-pt2", "the archive is not a .pt2 file", field="model", allowed=_EXPECTED)


def _torchscript() -> ModelRefused:
    return refuse(
        "torchscript",
        f"the file is TorchScript, which runs code from the file; {_EXPORT_IT}",
        field="model",
        allowed=_EXPECTED,
    )


def _check_entry(name: str) -> None:
    if name in _EXACT or _PATTERNS.fullmatch(name):
        return
    if name in ("data/weights/model.pt", "data/constants/model.pt"):
        kind = name.split("/")[1]
        raise refuse(
            f"pickled-{kind}",
            f"{name!r} is a pickle with all {kind}, as older torch wrote them; loading it would run its code. "
            "Export the model again with torch 2.13",
            field=name,
            allowed=_EXPECTED,
        )
    if name.startswith(("data/constants/custom_obj_", "data/constants/opaque_obj_")):
        raise refuse(
            "opaque-constant",
            f"{name!r} is a pickled Python object; loading it would run its code",
            field=name,
            value=name,
            allowed="tensor constants",
        )
    if name.startswith(("data/aotinductor/", "data/executorch/", "data/mtia")):
        raise refuse(
            "compiled-code",
            f"{name!r} is compiled code, which is never loaded",
            field=name,
            value=name,
            allowed="the graph and its tensors",
        )
    raise refuse(
        "unknown-entry",
        f"the archive has an entry {name!r} that torch.export does not write",
        field=name,
        value=name,
        allowed=_EXPECTED,
    )
