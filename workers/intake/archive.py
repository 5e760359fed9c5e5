"""A strict reader of the zip archives torch writes: stored entries, no overlaps, nothing ambiguous.

Torch writes every entry uncompressed, so the file can be mapped and an entry is a slice of the mapping: nothing is
decompressed and nothing is copied. The standard library's reader is more lenient than is good for untrusted
input (text before and after the archive, headers that disagree, entries that overlap).
"""

import mmap
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from workers.intake.limits import Limits
from workers.intake.refusals import refuse

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_CENTRAL_MAGIC: Final = b"PK\x01\x02"
_END_MAGIC: Final = b"PK\x05\x06"
_END64_LOCATOR_MAGIC: Final = b"PK\x06\x07"
_END64_MAGIC: Final = b"PK\x06\x06"
_IN_EXTRA_16: Final = 0xFFFF
_IN_EXTRA_32: Final = 0xFFFFFFFF
_EXPECTED: Final = "a .pt2 file as written by torch.export.save or `bitwright export`"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored entry: ``size`` bytes at ``start`` of the archive; ``header`` is where its local header begins."""

    name: str
    header: int
    start: int
    size: int
    crc: int


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A mapped archive with its checked table of contents; entry names are without the root folder."""

    data: memoryview
    root: str
    entries: dict[str, Entry]

    @classmethod
    def parse(cls, data: memoryview, field: str, limits: Limits) -> Self:
        """Check the table of contents of an archive in memory.

        Args:
            data: The archive's bytes.
            field: What to call the archive in a refusal.
            limits: Bounds.

        Raises:
            ModelRefused: The bytes are not an archive as torch writes it.
        """
        directory, count = _find_directory(data, field)
        if count > limits.max_entries:
            raise refuse(
                "too-many-entries",
                f"the archive announces {count} entries",
                field=field,
                value=count,
                allowed=f"at most {limits.max_entries}",
            )
        listed = _Directory(data, field, limits).read(directory, count)
        _check_layout(listed, directory, field)
        root, entries = _strip_root(listed, field)
        return cls(data=data, root=root, entries=entries)

    def read(self, name: str) -> memoryview:
        """The bytes of an entry, not copied, after checking them against the stored checksum.

        Raises:
            ModelRefused: There is no such entry, or its bytes are damaged.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise refuse("missing-entry", f"the archive has no entry {name!r}", field=name, allowed=_EXPECTED)
        view = self.data[entry.start : entry.start + entry.size]
        if zlib.crc32(view) != entry.crc:
            raise refuse(
                "checksum",
                f"the bytes of {name!r} do not match the checksum stored with them; the file is damaged",
                field=name,
                value=f"{zlib.crc32(view):08x}",
                allowed=f"{entry.crc:08x}",
            )
        return view


def map_file(path: Path, limits: Limits) -> memoryview:
    """Map a file into memory without reading it.

    The mapping is private and copy-on-write: tensors can be built on it without a copy, and nothing that is
    done to them reaches the file.

    Raises:
        ModelRefused: The file is empty or too large.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    if size > limits.max_file_bytes:
        raise refuse(
            "file-size",
            f"the model file has {size} bytes",
            field="model",
            value=size,
            allowed=f"at most {limits.max_file_bytes} bytes",
        )
    if size == 0:
        raise refuse("empty-file", "the model file is empty", field="model", value=0, allowed=_EXPECTED)
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _find_directory(data: memoryview, field: str) -> tuple[int, int]:
    """Offset of the central directory and the number of its entries."""
    end = len(data) - _END.size
    if end < 0 or bytes(data[end : end + 4]) != _END_MAGIC:
        raise refuse(
            "truncated",
            "the archive has no table of contents at its end; the file is truncated or has been appended to",
            field=field,
            value=len(data),
            allowed=_EXPECTED,
        )
    _, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(data, end)
    end64 = end - _END64_LOCATOR.size
    if end64 >= 0 and bytes(data[end64 : end64 + 4]) == _END64_LOCATOR_MAGIC:
        end = _END64_LOCATOR.unpack_from(data, end64)[2]
        if end + _END64.size != end64 or bytes(data[end : end + 4]) != _END64_MAGIC:
            raise _damaged(field, "its 64-bit table of contents is not where it is said to be")
        _, _, _, _, disk, first_disk, here, count, size, offset = _END64.unpack_from(data, end)
    if disk or first_disk or here != count or comment:
        raise _damaged(field, "it claims several volumes or carries a comment")
    if offset + size != end:
        raise _damaged(field, "its table of contents has the wrong size")
    return offset, count


class _Directory:
    """Reads the headers of an archive; each method checks what it reads."""

    def __init__(self, data: memoryview, field: str, limits: Limits) -> None:
        self._data = data
        self._field = field
        self._limits = limits
        self._end = len(data)

    def read(self, offset: int, count: int) -> list[Entry]:
        """All entries in the order of the central directory, which begins at ``offset``."""
        self._end = offset
        entries = []
        for _ in range(count):
            entry, offset = self._central(offset)
            entries.append(entry)
        if bytes(self._data[offset : offset + 4]) not in (_END_MAGIC, _END64_MAGIC):
            raise _damaged(self._field, "its table of contents has more entries than it announces")
        return entries

    def _central(self, offset: int) -> tuple[Entry, int]:
        if offset + _CENTRAL.size > len(self._data):
            raise _damaged(self._field, "its table of contents ends early")
        (magic, _, _, flags, method, _, _, crc, stored, size, *lengths, _, _, _, header) = (
            _CENTRAL.unpack_from(self._data, offset)
        )
        name_length, extra_length, comment_length = lengths
        if magic != _CENTRAL_MAGIC:
            raise _damaged(self._field, "its table of contents has fewer entries than it announces")
        name = self._name(offset + _CENTRAL.size, name_length)
        extra = offset + _CENTRAL.size + name_length
        size, stored, header = self._wide(name, extra, extra_length, [size, stored, header])
        if method != 0 or stored != size:
            raise refuse(
                "compressed-entry",
                f"{name!r} is compressed; torch never compresses, and a small entry could unfold without bound",
                field=name,
                value=method,
                allowed="stored entries only",
            )
        if flags & 1:
            raise refuse(
                "encrypted-entry", f"{name!r} is encrypted", field=name, allowed="plain entries only"
            )
        start = self._local(name, header, name_length)
        entry = Entry(name=name, header=header, start=start, size=size, crc=crc)
        return entry, extra + extra_length + comment_length

    def _local(self, name: str, header: int, name_length: int) -> int:
        """Where the entry's bytes begin, from a local header that agrees with the central one."""
        if header + _LOCAL.size > self._end:
            raise _damaged(name, "its header lies outside the archive's entries")
        magic, _, flags, method, *_, local_length, extra_length = _LOCAL.unpack_from(self._data, header)
        if magic != _LOCAL_MAGIC or method != 0 or flags & 1 or local_length != name_length:
            raise _damaged(name, "its own header and the table of contents disagree")
        if self._name(header + _LOCAL.size, local_length) != name:
            raise _damaged(name, "its own header and the table of contents disagree about the name")
        return int(header + _LOCAL.size + local_length + extra_length)

    def _name(self, offset: int, length: int) -> str:
        raw = bytes(self._data[offset : offset + length])
        if length > self._limits.max_name_length or len(raw) != length:
            raise _damaged(self._field, f"the name of an entry is {length} bytes long")
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _damaged(self._field, "the name of an entry is not UTF-8") from None
        if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise refuse(
                "entry-name",
                f"the archive has an entry with the name {name!r}",
                field=self._field,
                value=name,
                allowed="relative paths without empty, '.' or '..' parts",
            )
        return name

    def _wide(self, name: str, offset: int, length: int, narrow: list[int]) -> list[int]:
        """Replace fields that did not fit 32 bits by those of the 64-bit extra field, in the order given."""
        missing = [i for i, value in enumerate(narrow) if value == _IN_EXTRA_32]
        extra = bytes(self._data[offset : offset + length])
        while missing and len(extra) >= 4:
            tag, size = struct.unpack_from("<2H", extra)
            if tag == 1 and len(extra) >= 4 + size >= 4 + 8 * len(missing):
                for i, value in zip(missing, struct.unpack_from(f"<{len(missing)}Q", extra, 4), strict=True):
                    narrow[i] = value
                return narrow
            extra = extra[4 + size :]
        if missing:
            raise _damaged(name, "its 64-bit sizes are missing")
        return narrow


def _check_layout(entries: list[Entry], directory: int, field: str) -> None:
    """No entry may share bytes with another or with the table of contents; the first begins the file."""
    position = 0
    for entry in sorted(entries, key=lambda e: e.header):
        if entry.header < position or entry.start + entry.size > directory:
            raise refuse(
                "overlapping-entries",
                f"{entry.name!r} shares bytes with another entry of the archive",
                field=entry.name,
                value=entry.header,
                allowed=f"an entry that begins at byte {position} or later",
            )
        if position == 0 and entry.header != 0:
            raise _damaged(field, "there are bytes before its first entry")
        position = entry.start + entry.size


def _strip_root(listed: list[Entry], field: str) -> tuple[str, dict[str, Entry]]:
    """The common root folder, and the entries by their name below it."""
    roots = {entry.name.partition("/")[0] for entry in listed}
    if len(roots) != 1:
        raise refuse(
            "archive-root",
            f"the archive has {len(roots)} folders at its root",
            field=field,
            value=", ".join(sorted(roots)[:4]),
            allowed="one",
        )
    entries: dict[str, Entry] = {}
    for entry in listed:
        name = entry.name.partition("/")[2]
        if name in entries:
            raise refuse(
                "duplicate-entry",
                f"the archive holds {name!r} twice",
                field=name,
                allowed="every name once",
            )
        entries[name] = entry
    return roots.pop(), entries


def _damaged(field: str, why: str) -> Exception:
    return refuse("damaged-archive", f"the archive is damaged: {why}", field=field, allowed=_EXPECTED)
