"""The database: engine, sessions, clock. SQLite on one machine, PostgreSQL for any number."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Float, create_engine, event, literal_column
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

_READ_ONLY = "bitwright_read_only"
BUSY_TIMEOUT_MS = 30_000


class Database:
    """One engine for one URL; sessions are transactions.

    A SQLite transaction that begins deferred fails at once when it turns from reading to writing while another
    writes; the busy timeout does not help there. Writers therefore begin with BEGIN IMMEDIATE, readers do not.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self.engine: Engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
            _prepare_sqlite(self.engine)
        else:
            self.engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 5})

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading; rolled back at the end."""
        with (
            self.engine.connect().execution_options(**{_READ_ONLY: True}) as connection,
            Session(connection) as session,
        ):
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session for writing; committed at the end, rolled back on an exception."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def now(self) -> ColumnElement[float]:
        """Seconds since the epoch by the database's clock, as a SQL expression."""
        sqlite, postgres = (
            "(julianday('now') - 2440587.5) * 86400.0",
            "extract(epoch from clock_timestamp())::float8",
        )
        return literal_column(sqlite if self.is_sqlite else postgres, Float)

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@lru_cache(maxsize=8)
def _database(url: str, _pid: int) -> Database:
    return Database(url)


def get_database(url: str) -> Database:
    """The process's database for a URL (an engine must not cross a fork)."""
    return _database(url, os.getpid())
