"""A file that has arrived, and the transaction in which it gets its row."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore, Incoming
from app.db import Database
from app.kit.locks import lock_name


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """A file that is complete and as announced. Exactly one of ``incoming`` and ``location`` is set.

    Args:
        path: Where its bytes are just now.
        sha256: Hex.
        size_bytes: Its size.
        incoming: It was uploaded; still in its temporary place.
        location: It stays where it is.
    """

    path: Path
    sha256: str
    size_bytes: int
    incoming: Incoming | None = None
    location: str | None = None


@contextmanager
def place(database: Database, store: ArtifactStore, arrived: Arrived) -> Iterator[Session]:
    """A transaction in which an arrived file gets its row; the file moves into place with it.

    No one else can register or drop the same content meanwhile. If the transaction fails, a file that came with it goes.
    """
    kept = False
    try:
        with database.write() as session:
            lock_name(session, f"content:{arrived.sha256}")
            yield session
            session.flush()
            if arrived.incoming is not None:
                kept = store.keep(arrived.incoming)
    except BaseException:
        if kept:
            # Should someone else have registered the content since, an upload of it mends what this takes away.
            with suppress(OSError):
                store.delete(arrived.sha256)
        raise
