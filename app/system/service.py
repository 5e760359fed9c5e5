"""Whether this process can do its work."""

from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.artifacts import ArtifactStore
from app.db import Database
from app.migrate import is_current
from app.system import repository

LEASE_GRACE_S = 10.0
"""A dispatcher whose lease ran out this short a time ago may be in the middle of a restart."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that has to work. One that is not ``required`` is told but keeps no request from being answered."""

    name: str
    ok: bool
    detail: str
    required: bool = True


def check(database: Database, store: ArtifactStore) -> list[Check]:
    """Look at everything that requests depend on."""
    return [_schema(database), _store(store), _dispatcher(database)]


def _schema(database: Database) -> Check:
    try:
        current = is_current(database)
    except (DBAPIError, PoolTimeout) as error:
        return Check(name="database", ok=False, detail=f"cannot be reached ({type(error).__name__})")
    detail = "reachable, schema current" if current else "reachable, but its schema is not this version's"
    return Check(name="database", ok=current, detail=detail)


def _store(store: ArtifactStore) -> Check:
    try:
        store.check_writable()
    except OSError as error:
        return Check(name="store", ok=False, detail=f"cannot be written to ({error.strerror})")
    return Check(name="store", ok=True, detail="writable")


def _dispatcher(database: Database) -> Check:
    """Submitting works without a dispatcher: what is submitted waits for one."""
    try:
        with database.read() as session:
            left_s = repository.lease_left_s(session, database)
    except (DBAPIError, PoolTimeout):
        left_s = None
    ok = left_s is not None and left_s > -LEASE_GRACE_S
    detail = "a dispatcher is at work" if ok else "no dispatcher is at work; jobs wait"
    return Check(name="dispatcher", ok=ok, detail=detail, required=False)
