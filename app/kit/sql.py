"""What the database's errors mean to those who ask it."""

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import AppError, DatabaseUnavailable, StorageFull

AWAY = (OperationalError, InterfaceError, PoolTimeout)
"""Raised while the database cannot be reached, is locked for too long, or has no room."""

_DISK_FULL = "53100"  # PostgreSQL's SQLSTATE


def told(error: DBAPIError | PoolTimeout) -> AppError | None:
    """An error of the database in our own words; ``None`` for a defect of ours."""
    if _is_full(error):
        return StorageFull("the database has no room left")
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if lost or isinstance(error, AWAY):
        return DatabaseUnavailable("the database cannot be reached just now; try again in a moment")
    return None


def _is_full(error: DBAPIError | PoolTimeout) -> bool:
    original = getattr(error, "orig", None)
    return getattr(original, "sqlstate", None) == _DISK_FULL or "database or disk is full" in str(original)
