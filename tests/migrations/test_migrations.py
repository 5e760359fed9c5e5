"""Migrations give the schema that the models describe, whoever runs them, however many at once."""

import multiprocessing
import threading

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app import migrate
from app.db import Database
from app.models import Base


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request, tmp_path):
    """URL of a database with nothing in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'bitwright.db'}"
    return request.getfixturevalue("postgres").create()


@pytest.fixture
def open_database():
    opened = []

    def open_(url):
        opened.append(Database(url))
        return opened[-1]

    yield open_
    for database in opened:
        database.dispose()


def structure(engine):
    """Everything the database tells of its tables, comparable."""
    inspector = sa.inspect(engine)
    found = {}
    for table in sorted(set(inspector.get_table_names()) - {"alembic_version"}):
        found[table] = {
            "columns": {
                c["name"]: (str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)
            },
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": sorted(inspector.get_foreign_keys(table), key=lambda k: k["name"]),
            "unique": sorted(inspector.get_unique_constraints(table), key=lambda k: k["name"]),
            "checks": sorted(
                (k["name"], " ".join(k["sqltext"].split())) for k in inspector.get_check_constraints(table)
            ),
            "indexes": sorted(
                (i["name"], i["column_names"], bool(i["unique"])) for i in inspector.get_indexes(table)
            ),
        }
    return found


def test_the_migrated_schema_is_the_models(empty_url, open_database, tmp_path, request):
    migrate.upgrade(empty_url)
    database = open_database(empty_url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []

    # Alembic compares no check constraints and no cascades: what the models create tells them.
    if empty_url.startswith("sqlite"):
        other_url = f"sqlite:///{tmp_path / 'models.db'}"
    else:
        other_url = request.getfixturevalue("postgres").create()
    other = open_database(other_url)
    Base.metadata.create_all(other.engine)
    assert structure(database.engine) == structure(other.engine)


def test_down_and_up_again_gives_the_same(empty_url, open_database):
    from alembic import command

    migrate.upgrade(empty_url)
    database = open_database(empty_url)
    before = structure(database.engine)
    with database.engine.begin() as connection:
        command.downgrade(migrate._config(connection), "base")
    assert structure(database.engine) == {}
    migrate.upgrade(empty_url)
    assert structure(database.engine) == before


def test_migrating_again_changes_nothing_and_keeps_what_is_there(empty_url, open_database):
    migrate.upgrade(empty_url)
    database = open_database(empty_url)
    with database.write() as session:
        session.execute(sa.text("INSERT INTO leases (name, holder, until) VALUES ('a', 'b', 1.0)"))
    before = structure(database.engine)
    migrate.upgrade(empty_url)
    assert structure(database.engine) == before
    with database.read() as session:
        assert session.execute(sa.text("SELECT holder FROM leases")).scalar_one() == "b"


def test_processes_that_start_at_once_all_come_up(empty_url, open_database):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=migrate.upgrade, args=(empty_url,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0] * 3
    assert migrate.is_current(open_database(empty_url))


def test_a_migration_that_fails_leaves_everything_as_it_was(empty_url, open_database, monkeypatch):
    from alembic import op

    real, created = op.create_table, []

    def failing(name, *columns, **more):
        if len(created) == 5:
            raise RuntimeError("power cut")
        created.append(name)
        return real(name, *columns, **more)

    monkeypatch.setattr(op, "create_table", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        migrate.upgrade(empty_url)
    monkeypatch.undo()

    assert len(created) == 5
    assert structure(open_database(empty_url).engine) == {}
    migrate.upgrade(empty_url)
    assert migrate.is_current(open_database(empty_url))


def test_a_database_without_migrations_is_not_current(empty_url, open_database):
    assert not migrate.is_current(open_database(empty_url))


def test_a_table_in_use_is_not_waited_for_for_ever(postgres, open_database, monkeypatch):
    url = postgres.create()
    migrate.upgrade(url)
    database = open_database(url)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_S", 1)
    with database.engine.begin() as connection:
        # A later migration would change the table that somebody reads.
        connection.execute(sa.text("LOCK TABLE jobs IN ACCESS SHARE MODE"))
        with database.engine.begin() as other:
            migrate._take_turn(other)
            with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
                other.execute(sa.text("ALTER TABLE jobs ADD COLUMN later integer"))


def test_another_process_that_migrates_is_waited_for(postgres, open_database):
    url = postgres.create()
    database = open_database(url)
    waited = threading.Event()

    def upgrade():
        migrate.upgrade(url)
        waited.set()

    with database.engine.begin() as connection:
        migrate._take_turn(connection)
        thread = threading.Thread(target=upgrade)
        thread.start()
        assert not waited.wait(0.3)
    thread.join(30)
    assert waited.is_set()


def test_there_is_one_newest_revision():
    assert ScriptDirectory(str(migrate._DIRECTORY)).get_heads() == [migrate.head()]


def test_migrations_are_numbered_and_described():
    revisions = list(ScriptDirectory(str(migrate._DIRECTORY)).walk_revisions())
    assert [r.revision for r in reversed(revisions)] == [f"{i:04}" for i in range(1, len(revisions) + 1)]
    assert all(r.doc for r in revisions)
