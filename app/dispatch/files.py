"""Stored files as a worker finds them: each is checked once against its SHA-256 before it is used."""

import hashlib
from functools import lru_cache
from pathlib import Path

from app.artifacts import ArtifactStore
from app.dispatch.work import FileRef
from app.settings import Settings
from workers.errors import MeasurementFailed


def verified_path(settings: Settings, ref: FileRef) -> Path:
    """Where a file lies on this machine, after making sure that its content is what was registered.

    Raises:
        MeasurementFailed: It is missing, cannot be read, or has changed.
    """
    path = Path(ref.location) if ref.location else ArtifactStore(settings.artifacts_dir).path(ref.sha256)
    try:
        status = path.stat()
        digest = _sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise MeasurementFailed(f"the stored file {path} cannot be read: {error.strerror}") from error
    if digest != ref.sha256:
        raise MeasurementFailed(
            f"the stored file {path} has changed since it was registered: its SHA-256 is {digest}, not {ref.sha256}"
        )
    return path


@lru_cache(maxsize=1024)
def _sha256(path: Path, _size: int, _mtime_ns: int, _inode: int) -> str:
    """Asked again only when the file looks different."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
