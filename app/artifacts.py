"""Files by content: ``artifacts/ab/<sha256>``. A file is there whole or not at all.

What arrives is written to ``artifacts/incoming/`` and hashed on the way; only what is complete, on disk (fsync) and as
announced is renamed into place. The writer holds a lock on its temporary file, so that what a dead process left can be
told from what a living one (on this or another machine of the same file system) is still writing.
"""

import base64
import binascii
import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from uuid import uuid4

from anyio import to_thread

from app.errors import (
    ChecksumMismatch,
    InvalidRequest,
    LocationRefused,
    StorageFull,
    TooLarge,
    TruncatedUpload,
)

_BLOCK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an upload must keep to.

    Args:
        max_bytes: Largest size.
        size_bytes: Announced size; ``None`` when not announced.
        sha256: Announced hash in lower-case hex; ``None`` when not announced.
    """

    max_bytes: int
    size_bytes: int | None = None
    sha256: str | None = None

    def check_size(self, size_bytes: int) -> None:
        """Raise `TooLarge` for more bytes than are accepted."""
        if size_bytes > self.max_bytes:
            raise TooLarge(
                f"the file has {size_bytes} bytes or more",
                "body",
                size_bytes,
                f"at most {self.max_bytes} bytes",
                {"maximum_bytes": self.max_bytes},
            )

    def check_sha256(self, sha256: str, size_bytes: int) -> None:
        """Raise `ChecksumMismatch` for another hash than the announced one."""
        if self.sha256 is not None and self.sha256 != sha256:
            raise ChecksumMismatch(
                f"the {size_bytes} bytes of the file have SHA-256 {sha256}", "sha256", self.sha256, sha256
            )


class Incoming:
    """A file on its way in. Used within `ArtifactStore.incoming`, which removes it unless it was kept."""

    def __init__(self, path: Path, file: FileIO, limits: Limits) -> None:
        self.path = path
        self.size_bytes = 0
        self._file = file
        self._limits = limits
        self._hash = hashlib.sha256()
        if limits.size_bytes is not None:
            limits.check_size(limits.size_bytes)

    @property
    def sha256(self) -> str:
        """Hex hash of what has arrived."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            TooLarge: More than is accepted has arrived.
            StorageFull: The file system has no room.
        """
        self._limits.check_size(self.size_bytes + len(data))
        left = memoryview(data)
        with _full_disk():
            while left:  # an unbuffered write may be cut short
                left = left[self._file.write(left) :]
        self._hash.update(data)
        self.size_bytes += len(data)

    def finish(self) -> None:
        """Everything has arrived: bring it to the disk and compare it with what was announced.

        Raises:
            TruncatedUpload: Fewer (or more) bytes arrived than were announced.
            ChecksumMismatch: Other bytes arrived than were announced.
            StorageFull: The file system has no room.
        """
        announced = self._limits.size_bytes
        if announced is not None and announced != self.size_bytes:
            raise TruncatedUpload(
                f"{self.size_bytes} of {announced} bytes arrived",
                "Content-Length",
                self.size_bytes,
                announced,
            )
        self._limits.check_sha256(self.sha256, self.size_bytes)
        with _full_disk():
            os.fsync(self._file.fileno())


class ArtifactStore:
    """The store below one directory; any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / "incoming"

    def path(self, sha256: str) -> Path:
        """Where a file with this content is, or would be.

        Raises:
            InvalidRequest: The text is no SHA-256 in lower-case hex.
        """
        if not _SHA256.fullmatch(sha256):
            raise InvalidRequest(f"{sha256!r} is no SHA-256", "sha256", sha256, "64 lower-case hex digits")
        return self.root / sha256[:2] / sha256

    def exists(self, sha256: str) -> bool:
        """Whether the content is stored."""
        return self.path(sha256).is_file()

    @contextmanager
    def incoming(self, limits: Limits) -> Iterator[Incoming]:
        """A place for a file to arrive at; it is removed at the end unless `keep` moved it into place.

        Raises:
            TooLarge: More bytes are announced than are accepted.
            StorageFull: The file system has no room.
        """
        path, file = self._create()
        try:
            with file:
                yield Incoming(path, file, limits)
        finally:
            path.unlink(missing_ok=True)

    def _create(self) -> tuple[Path, FileIO]:
        """A new temporary file, locked."""
        with _full_disk():
            self._incoming.mkdir(parents=True, exist_ok=True)
            while True:
                path = self._incoming / f"{uuid4().hex}.part"
                # Unbuffered: a full disk is told by the write, not when the file is closed.
                file = path.open("xb", buffering=0)
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink:
                    return path, file
                file.close()  # swept away before it was locked

    def keep(self, incoming: Incoming) -> bool:
        """Move a finished file into place.

        Call it while no one else can decide to `delete` the same content (see `app.kit.locks`).

        Returns:
            Whether the content is new to the store.
        """
        final = self.path(incoming.sha256)
        if final.is_file():
            return False
        with _full_disk():
            final.parent.mkdir(parents=True, exist_ok=True)
            incoming.path.replace(final)
            _sync_directory(final.parent)
        return True

    def delete(self, sha256: str) -> None:
        """Remove a content, if it is there, and what workers left beside it (`workers.intake.exported`)."""
        path = self.path(sha256)
        path.unlink(missing_ok=True)
        for beside in path.parent.glob(f"{sha256}.*"):
            beside.unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove what dead processes left half-written; returns how many files that were."""
        removed = 0
        for path in self._incoming.glob("*.part"):
            with suppress(OSError), path.open("rb") as file:
                # Fails while the writer lives.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed += 1
        return removed

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            OSError: The store cannot be written to.
        """
        self._incoming.mkdir(parents=True, exist_ok=True)
        probe = self._incoming / f"{uuid4().hex}.probe"
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)


async def receive(incoming: Incoming, chunks: AsyncIterator[bytes]) -> None:
    """Write a stream of chunks, in blocks of about a megabyte and off the event loop, and finish.

    Raises:
        TooLarge, TruncatedUpload, ChecksumMismatch, StorageFull: See `Incoming`.
    """
    pending = bytearray()
    async for chunk in chunks:
        pending += chunk
        if len(pending) >= _BLOCK:
            await to_thread.run_sync(incoming.write, bytes(pending))
            pending.clear()
    if pending:
        await to_thread.run_sync(incoming.write, bytes(pending))
    await to_thread.run_sync(incoming.finish)


@dataclass(frozen=True, kw_only=True)
class Referenced:
    """A file of this machine that stays where it is. ``path`` is free of symbolic links."""

    path: Path
    sha256: str
    size_bytes: int


def reference(source: Path, allowed: Sequence[Path], limits: Limits) -> Referenced:
    """Take a file by reference: it is read once, for its hash, and not copied, whatever its size.

    Nobody keeps its owner from changing it later. Workers therefore compare it with this hash before they use it, and
    a job whose file has changed fails and says so, rather than measure something else.

    Args:
        source: The file, as the user names it.
        allowed: Directories that it must lie in, after all symbolic links.
        limits: What it must keep to.

    Raises:
        LocationRefused: It lies elsewhere, or is no regular file that can be read.
        TooLarge: It is larger than is accepted.
        ChecksumMismatch: It is not what was announced.
    """
    with _opened(source, allowed) as file:
        size = os.fstat(file.fileno()).st_size
        limits.check_size(size)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    limits.check_sha256(digest, size)
    return Referenced(path=source.resolve(strict=True), sha256=digest, size_bytes=size)


def announced_sha256(query: str | None, header: str | None, digest: str | None) -> str | None:
    """The SHA-256 that a client announced, as lower-case hex; ``None`` when it announced none.

    Args:
        query: Value of ``?sha256=``, hex.
        header: Value of ``X-Content-SHA256``, hex.
        digest: Value of ``Content-Digest`` (RFC 9530), e.g. ``sha-256=:…base64…:``; other algorithms are passed over.

    Raises:
        InvalidRequest: A value is malformed, or two of them differ.
    """
    given = {"sha256": query, "X-Content-SHA256": header}
    found = {field: _hex(field, text) for field, text in given.items() if text is not None}
    if digest is not None and (decoded := _digest(digest)) is not None:
        found["Content-Digest"] = decoded
    if len(set(found.values())) > 1:
        raise InvalidRequest(
            "the announced SHA-256 values differ", next(iter(found)), found, "one value, or equal ones"
        )
    return next(iter(found.values()), None)


def _hex(field: str, text: str) -> str:
    if not _SHA256.fullmatch(text.lower()):
        raise InvalidRequest(f"{text!r} is no SHA-256", field, text, "64 hex digits")
    return text.lower()


def _digest(text: str) -> str | None:
    """The SHA-256 among the digests of the header, if there is one."""
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if name.lower() != "sha-256":
            continue
        with suppress(binascii.Error, ValueError):
            raw = base64.b64decode(value.strip(":"), validate=True)
            if value.startswith(":") and value.endswith(":") and len(raw) == hashlib.sha256().digest_size:
                return raw.hex()
        raise InvalidRequest(
            "the Content-Digest cannot be read", "Content-Digest", text, "sha-256=:<base64 of 32 bytes>:"
        )
    return None


@contextmanager
def _opened(source: Path, allowed: Sequence[Path]) -> Iterator[BufferedReader]:
    """A regular file inside the allowed directories, open; refused alike whether it is missing or elsewhere."""
    refused = LocationRefused(
        f"no readable file {str(source)!r} in an allowed location",
        "location",
        str(source),
        [str(directory) for directory in allowed] or "nothing: this service accepts uploads only",
    )
    try:
        # Non-blocking: opening a named pipe would wait for its writer.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(source, flags) if _inside(source, allowed) else None
    except (OSError, ValueError, RuntimeError):
        descriptor = None
    if descriptor is None:
        raise refused
    try:
        if not _is_still(source, allowed, os.fstat(descriptor)):
            raise refused
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def _is_still(source: Path, allowed: Sequence[Path], opened: os.stat_result) -> bool:
    """Whether what was opened is the regular file that the path leads to: links may have been turned meanwhile."""
    try:
        there = source.resolve(strict=True).stat()
        return stat.S_ISREG(opened.st_mode) and _inside(source, allowed) and os.path.samestat(opened, there)
    except (OSError, ValueError, RuntimeError):
        return False


def _inside(source: Path, allowed: Sequence[Path]) -> bool:
    if not source.is_absolute():
        return False
    resolved = source.resolve(strict=True)
    return any(resolved.is_relative_to(directory.resolve()) for directory in allowed)


@contextmanager
def _full_disk() -> Iterator[None]:
    """Tell a full disk from other failures."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageFull("the artifact store has no room left for this file") from None
        raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
