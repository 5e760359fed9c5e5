"""An instruction that comes late does nothing: every change names the states it starts from."""

import pytest
from sqlalchemy import select

from app.db import get_database
from app.dispatch import store
from app.dispatch.lifecycle import GiveUp, Requeue
from app.models import Job, JobState, Model, ModelState, Stage, Task, TaskKind, TaskState

from .rows import add_job, add_model, add_task


@pytest.fixture
def session(served):
    with get_database(served.resolved_database_url).write() as session:
        yield session


def job_in(session, state, stage=None):
    return add_job(session, shards=1, state=state, stage=stage).id


def solves(session, job_id):
    return session.scalars(select(Task).where(Task.job_id == job_id, Task.kind == TaskKind.SOLVE)).all()


def finish_tasks(session, job_id):
    for task in session.scalars(select(Task).where(Task.job_id == job_id)):
        task.state = TaskState.DONE
    session.flush()


def test_a_stage_is_entered_once_and_from_the_one_before(session):
    job_id = job_in(session, JobState.RUNNING, Stage.MEASURE)
    assert not store.enter_stage(session, job_id, Stage.VERIFY)
    finish_tasks(session, job_id)
    assert store.enter_stage(session, job_id, Stage.SOLVE)
    assert not store.enter_stage(session, job_id, Stage.SOLVE)
    assert len(solves(session, job_id)) == 1
    finish_tasks(session, job_id)
    assert store.enter_stage(session, job_id, Stage.VERIFY)
    assert not store.enter_stage(session, job_id, Stage.SOLVE)
    assert session.get_one(Job, job_id, populate_existing=True).stage is Stage.VERIFY


@pytest.mark.parametrize("state", [TaskState.PENDING, TaskState.RUNNING])
@pytest.mark.parametrize(
    ("stage", "kind", "then"),
    [
        (Stage.PROBE, TaskKind.PROBE, Stage.SOLVE),
        (Stage.MEASURE, TaskKind.MEASURE, Stage.SOLVE),
        (Stage.SOLVE, TaskKind.SOLVE, Stage.VERIFY),
    ],
)
def test_an_instruction_from_an_earlier_visit_to_the_stage_does_nothing(session, stage, kind, then, state):
    job_id = job_in(session, JobState.RUNNING, stage)
    finish_tasks(session, job_id)
    task = add_task(session, kind, job_id=job_id, ordinal=1, state=state)
    assert not store.enter_stage(session, job_id, then)
    assert session.get_one(Job, job_id, populate_existing=True).stage is stage
    task.state = TaskState.DONE
    session.flush()
    assert store.enter_stage(session, job_id, then)


def test_a_job_that_estimates_starts_by_it(session):
    job_id = job_in(session, JobState.QUEUED)
    add_task(session, TaskKind.PROBE, job_id=job_id)
    other = job_in(session, JobState.QUEUED)
    assert store.start_job(session, job_id)
    assert store.start_job(session, other)
    assert not store.start_job(session, job_id)
    assert session.get_one(Job, job_id, populate_existing=True).stage is Stage.PROBE
    assert session.get_one(Job, other, populate_existing=True).stage is Stage.MEASURE


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.DONE, JobState.FAILED, JobState.CANCELLED])
def test_only_running_jobs_go_on(session, state):
    job_id = job_in(session, state, Stage.MEASURE)
    assert not store.enter_stage(session, job_id, Stage.SOLVE)
    assert solves(session, job_id) == []


@pytest.mark.parametrize("state", [JobState.DONE, JobState.FAILED, JobState.CANCELLED])
def test_final_states_are_final(session, state):
    job_id = job_in(session, state)
    assert not store.start_job(session, job_id)
    assert not store.finish_job(session, job_id)
    assert not store.fail_job(session, job_id, {"detail": "late"})
    job = session.get_one(Job, job_id, populate_existing=True)
    assert (job.state, job.problem) == (state, None)


STALE = [
    ({"state": TaskState.DONE}, 0),
    ({"state": TaskState.CANCELLED}, 0),
    ({"state": TaskState.PENDING}, 0),
    ({}, 1),
]


@pytest.mark.parametrize(("values", "attempt"), STALE)
def test_late_news_of_a_task_change_nothing(session, values, attempt):
    model = add_model(session)
    task = add_task(
        session, TaskKind.INSPECT, model_id=model.id, **{"state": TaskState.RUNNING, "attempt": 0} | values
    )
    before = (task.state, task.attempt, task.failures)
    assert not store.requeue(
        session, Requeue(task_id=task.id, attempt=attempt, failed=True), {"detail": "late"}
    )
    assert not store.give_up(session, GiveUp(task_id=task.id, attempt=attempt), {"detail": "late"})
    after = session.get_one(Task, task.id, populate_existing=True)
    assert (after.state, after.attempt, after.failures) == before
    assert session.get_one(Model, model.id, populate_existing=True).state is ModelState.INSPECTING


def test_a_task_starts_once_and_only_for_a_job_that_wants_it(session):
    wanted, cancelled = job_in(session, JobState.QUEUED), job_in(session, JobState.QUEUED)
    pending = {t.job_id: t for t in store.pending_tasks(session)}
    assert set(pending) == {wanted, cancelled}
    session.get_one(Job, cancelled).state = JobState.CANCELLED
    session.flush()
    assert store.start_task(session, pending[wanted])
    assert not store.start_task(session, pending[wanted])
    assert not store.start_task(session, pending[cancelled])
    assert session.get_one(Job, wanted, populate_existing=True).state is JobState.RUNNING
    assert session.get_one(Job, cancelled, populate_existing=True).state is JobState.CANCELLED
