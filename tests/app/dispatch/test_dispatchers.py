"""Several dispatchers on one database, and the thread one runs in."""

import logging

from sqlalchemy.exc import OperationalError

from app.dispatch import store
from app.dispatch.dispatcher import Dispatcher, start
from app.dispatch.engine import Phase, Report
from app.models import TaskState

from .conftest import wait_until
from .rows import add_job
from .theatre import FakeEngine, Theatre

# Two dispatchers -------------------------------------------------------------------------------------------------


def test_one_leads_the_other_waits_until_the_lease_runs_out(theatre, monkeypatch):
    second = theatre.another()
    theatre.add(add_job, shards=1)
    assert theatre.tick()
    assert not second.tick()
    assert theatre.tasks()[0].state is TaskState.RUNNING
    wait_until(
        second.tick, seconds=5
    )  # the first is dead: it renews nothing, and the database's clock goes on
    assert second.leading


def test_a_new_leader_takes_up_what_runs_and_repeats_what_does_not(theatre):
    theatre.add(add_job, shards=2)
    theatre.tick()
    kept, lost = theatre.engine.submitted
    del theatre.engine.reports[lost]
    theatre.dispatcher.resign()
    second = theatre.another()
    assert second.tick()
    second.tick()
    tasks = {t.id: t.attempt for t in theatre.tasks()}
    assert tasks == {kept.split("/")[0]: 0, lost.split("/")[0]: 1}


def test_a_leader_that_slept_through_its_lease_changes_nothing(theatre, served):
    """It looked while it led, and its engine has lost a task; by the time it acts, another leads and knows better."""
    theatre.add(add_job, shards=1)
    theatre.tick()
    theatre.engine.reports.clear()
    wise = FakeEngine()
    wise.reports = {theatre.engine.submitted[0]: Report(phase=Phase.RUNNING)}
    second = Dispatcher(served, wise, conclude=theatre.conclude)
    look = theatre.dispatcher._look

    def look_and_sleep():
        situation = look()
        assert [r.phase for r in situation.reports.values()] == [Phase.UNKNOWN]
        wait_until(second.tick, seconds=5)
        return situation

    theatre.dispatcher._look = look_and_sleep
    theatre.tick()
    task = theatre.tasks()[0]
    assert (task.state, task.attempt) == (TaskState.RUNNING, 0)


def test_a_leader_resigns_in_favour_of_the_next(theatre):
    theatre.tick()
    theatre.dispatcher.resign()
    assert not theatre.dispatcher.leading
    assert theatre.another().tick()


# The thread --------------------------------------------------------------------------------------------------------


def test_the_handle_dispatches_and_stops(served):
    engine = FakeEngine()
    theatre = Theatre(served, engine)
    handle = start(served, engine)
    theatre.add(add_job, shards=1)
    wait_until(lambda: engine.submitted)
    assert handle.leading
    assert handle.capacity() == 10
    handle.stop()
    assert engine.closed
    assert theatre.another().tick(), "the lease was given back"


def test_the_thread_survives_a_database_that_is_away(served, monkeypatch, caplog):
    engine = FakeEngine()
    theatre = Theatre(served, engine)
    theatre.add(add_job, shards=1)
    away = True
    look = store.active_jobs

    def flaky(session):
        if away:
            raise OperationalError("select", {}, Exception("connection refused"))
        return look(session)

    monkeypatch.setattr(store, "active_jobs", flaky)
    with caplog.at_level(logging.WARNING):
        handle = start(served, engine)
        wait_until(lambda: "database_unavailable" in caplog.text)
        away = False
        wait_until(lambda: engine.submitted)
        handle.stop()
    assert caplog.text.count("database_unavailable") == 1


def test_the_thread_survives_a_defect(served, monkeypatch, caplog):
    engine = FakeEngine()
    Theatre(served, engine).add(add_job, shards=1)
    honest, calls = engine.capacity, []

    def broken_once():
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("a defect")
        return honest()

    engine.capacity = broken_once
    handle = start(served, engine)
    wait_until(lambda: engine.submitted)
    handle.stop()
    assert "round_failed" in caplog.text
