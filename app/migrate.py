"""Brings a database to the current schema. Several processes may start at once: one migrates, the others wait."""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

import migrations
from app.db import Database

LOCK_TIMEOUT_S = 10
"""How long one statement of a migration waits for a table that is in use before it gives up (PostgreSQL)."""
TURN_TIMEOUT_S = 120
"""How long a process waits for another one that is migrating (PostgreSQL)."""

_DIRECTORY = Path(next(iter(migrations.__path__)))
_ADVISORY_KEY = int.from_bytes(hashlib.sha256(b"bitwright migrations").digest()[:8], signed=True)


def upgrade(url: str) -> None:
    """Apply all migrations that the database has not seen, in one transaction.

    Args:
        url: SQLAlchemy URL; a SQLite file is created when missing.

    Raises:
        sqlalchemy.exc.OperationalError: The database cannot be reached, or stays locked.
    """
    database = Database(url)
    try:
        with _turn(url), database.engine.begin() as connection:
            if not database.is_sqlite:
                _take_turn(connection)
            command.upgrade(_config(connection), "head")
    finally:
        database.dispose()


def is_current(database: Database) -> bool:
    """Whether the database has exactly the schema this code was written for."""
    with database.read() as session:
        found = MigrationContext.configure(session.connection()).get_current_revision()
    return found == head()


@cache
def head() -> str | None:
    """The newest revision."""
    return ScriptDirectory(str(_DIRECTORY)).get_current_head()


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_DIRECTORY).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _take_turn(connection: Connection) -> None:
    """Wait until no other process migrates; then bound the waiting for tables in use."""
    connection.execute(text(f"SET LOCAL lock_timeout = '{TURN_TIMEOUT_S}s'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_KEY})
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))


@contextmanager
def _turn(url: str) -> Iterator[None]:
    """One process at a time for a SQLite file.

    The file's own lock is not enough: turning a new file into WAL mode fails at once when two processes try.
    """
    parsed = make_url(url)
    path = parsed.database
    if parsed.get_backend_name() != "sqlite" or not path or path == ":memory:":
        yield
        return
    with Path(f"{path}.migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
