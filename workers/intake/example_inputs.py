"""Example inputs: torch pickles them into every file. They are never loaded; their opcodes are looked at.

A file whose example inputs would run code when someone else loads it is refused, so that nothing hostile is stored
and handed on. ``pickletools`` reads opcodes without executing any.
"""

import pickletools
import re
from typing import Final

from workers.intake.archive import Archive
from workers.intake.limits import Limits
from workers.intake.refusals import refuse

_RULE: Final = "pickled-example-inputs"
_ALLOWED: Final = "tensors, numbers, text, None, and tuples, lists and dicts of these"
_ENTRIES: Final = re.compile(
    r"data\.pkl|data/\d+|byteorder|version|\.data/(version|serialization_id)|\.format_version|\.storage_alignment",
    re.ASCII,
)
# What rebuilding a plain tensor needs, and nothing that calls anything else.
_GLOBALS: Final = re.compile(
    r"torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch [A-Z][A-Za-z0-9]{2,15}Storage"
    r"|torch\.storage (UntypedStorage|TypedStorage)|torch (Size|device)|torch (b?float|u?int|complex)\d{1,3}|torch bool"
    r"|torch\.nn\.parameter Parameter|collections OrderedDict",
    re.ASCII,
)
_FORBIDDEN: Final = frozenset({"INST", "OBJ", "EXT1", "EXT2", "EXT4"})
_TEXTS: Final = frozenset({"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})


def check_example_inputs(data: memoryview, entry: str, limits: Limits) -> None:
    """Refuse example inputs that are more than tensors and plain values.

    Args:
        data: The bytes of the entry: nothing, or an archive as torch.save writes.
        entry: Its name, for refusals.
        limits: Bounds.

    Raises:
        ModelRefused: Anything but plain tensors and values.
    """
    if len(data) == 0:
        return
    if len(data) > limits.max_example_bytes or bytes(data[:4]) != b"PK\x03\x04":
        raise _refused(entry, "they are not in the container torch writes", None)
    archive = Archive.parse(data, entry, limits)
    for name in archive.entries:
        if not _ENTRIES.fullmatch(name):
            raise _refused(f"{entry}/{name}", f"they come with an entry {name!r}", name)
    pickled = archive.read("data.pkl")
    if len(pickled) > limits.max_pickle_bytes:
        raise _refused(entry, f"their pickle has {len(pickled)} bytes", len(pickled))
    for name in _globals(bytes(pickled), entry):
        if not _GLOBALS.fullmatch(name):
            raise _refused(
                entry, f"loading them would call {name.replace(' ', '.')!r}", name.replace(" ", ".")
            )


def _globals(pickled: bytes, entry: str) -> list[str]:
    """All names a pickle refers to, as ``module name``."""
    found: list[str] = []
    memo: dict[int, str] = {}
    recent = ["", ""]
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            name = opcode.name
            if name in _FORBIDDEN:
                raise _refused(entry, f"their pickle uses the opcode {name}", name)
            if name == "GLOBAL":
                found.append(str(argument))
            elif name == "STACK_GLOBAL":
                found.append(f"{recent[0]} {recent[1]}")
            if name in _TEXTS:
                recent = [recent[1], str(argument)]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                recent = [recent[1], memo.get(int(argument or 0), "")]
            elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                memo[len(memo) if name == "MEMOIZE" else int(argument or 0)] = recent[1]
            elif name not in ("PROTO", "FRAME"):
                # Anything else on the stack is no text, so it can name nothing.
                recent = [recent[1], ""] if name != "STACK_GLOBAL" else ["", ""]
    except (ValueError, KeyError, IndexError, OverflowError, UnicodeError) as error:
        raise _refused(entry, f"their pickle is damaged: {error}", None) from None
    return found


def _refused(field: str, why: str, value: str | int | None) -> Exception:
    return refuse(
        _RULE,
        f"the example inputs in the file are not plain tensors: {why}. Export the model with tensors as arguments",
        field=field,
        value=value,
        allowed=_ALLOWED,
    )
