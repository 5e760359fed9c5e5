"""The dispatcher on a real database, with an engine whose every move the test decides."""

import queue
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from app.dispatch import dispatcher
from app.dispatch.dispatcher import Dispatcher, DispatcherHandle
from app.dispatch.engine import Phase
from app.dispatch.lifecycle import MAX_LOSSES
from app.errors import EngineUnavailable
from app.models import Job, JobState, Model, ModelState, PlanRole, Stage, Task, TaskKind, TaskState

from .rows import add_job, add_model, add_plan, add_task, at
from .theatre import FakeEngine, Theatre


def test_a_job_goes_all_the_way(theatre):
    job_id = theatre.add(add_job, shards=2)
    theatre.tick()
    job = theatre.get(Job, job_id)
    assert (job.state, job.stage) == (JobState.RUNNING, Stage.MEASURE)
    assert job.started_at is not None
    assert [t.state for t in theatre.tasks()] == [TaskState.RUNNING] * 2
    assert theatre.engine.submitted == [f"{t.id}/0" for t in theatre.tasks()]

    theatre.work(job_id, TaskKind.MEASURE)
    theatre.tick(2)
    assert theatre.get(Job, job_id).stage is Stage.SOLVE
    assert [t.state for t in theatre.tasks(job_id, TaskKind.SOLVE)] == [TaskState.RUNNING]

    plan_id = theatre.add(lambda s: add_plan(s, s.get_one(Job, job_id)))
    theatre.add(add_task, TaskKind.VERIFY, job_id=job_id, plan_id=plan_id)
    theatre.work(job_id, TaskKind.SOLVE)
    theatre.tick(2)
    assert theatre.get(Job, job_id).stage is Stage.VERIFY
    assert theatre.concluded == []

    theatre.work(job_id, TaskKind.VERIFY)
    theatre.tick()
    job = theatre.get(Job, job_id)
    assert job.state is JobState.DONE
    assert job.started_at <= job.measured_at <= job.solved_at <= job.finished_at
    assert theatre.concluded == [job_id]
    theatre.tick(3)
    assert theatre.concluded == [job_id]
    assert len(theatre.engine.submitted) == 4


def test_a_round_tells_whether_more_may_follow_at_once(theatre):
    theatre.tick()
    assert not theatre.dispatcher.moved
    job_id = theatre.add(add_job, shards=1)
    told = []
    for _ in range(2):
        theatre.tick()
        told.append(theatre.dispatcher.moved)
    theatre.work(job_id, TaskKind.MEASURE)
    for _ in range(3):
        theatre.tick()
        told.append(theatre.dispatcher.moved)
    # The shard is started; it runs; the job enters its next stage; the task of that is started; it runs.
    assert told == [True, False, True, True, False]


@dataclass
class Held:
    """A thread that a test runs itself."""

    target: Callable[[], None]
    name: str
    daemon: bool

    def start(self):
        pass


def test_what_moves_is_not_waited_for_but_does_not_crowd_out_the_rest(monkeypatch):
    """Pauses before each round: none after rounds that moved something, but for one after four of them."""
    moved, pauses = [False, True, True, False, *[True] * 6, False], []

    class Watch:
        def wait(self, seconds):
            pauses.append(seconds)

        def is_set(self):
            return len(pauses) > len(moved)

        def clear(self):
            pass

        def set(self):
            pass

    class Rounds:
        moved = False

        def tick(self):
            self.moved = moved[len(pauses) - 1]

        def resign(self):
            pass

    monkeypatch.setattr(dispatcher, "threading", SimpleNamespace(Event=Watch, Thread=Held))
    DispatcherHandle(Rounds(), FakeEngine(), 0.5)._thread.target()
    assert pauses == [0.5, 0.5, 0, 0, 0.5, 0, 0, 0, 0.5, 0, 0, 0.5]


def test_what_comes_after_a_task_does_not_wait_for_the_end_of_a_pause():
    rounds = queue.Queue()

    class Rounds:
        moved = False

        def tick(self):
            rounds.put(True)

        def resign(self):
            pass

    engine = FakeEngine()
    handle = DispatcherHandle(Rounds(), engine, 3600.0)
    try:
        for _ in range(3):
            engine.tell()
            assert rounds.get(timeout=30)
    finally:
        handle.stop()
    assert rounds.empty(), "nothing ended, and an hour has not passed"


def test_a_job_with_nothing_to_measure_starts_by_itself(theatre):
    job_id = theatre.add(add_job, shards=0)
    theatre.tick(3)
    assert theatre.get(Job, job_id).stage is Stage.SOLVE


def test_the_engine_is_never_given_more_than_it_can_run(theatre):
    theatre.engine.room = 2
    job_id = theatre.add(add_job, shards=5)
    theatre.tick(3)
    assert len(theatre.engine.submitted) == 2
    first = theatre.tasks()[0]
    theatre.set(Task, first.id, state=TaskState.DONE)
    theatre.tick(3)
    assert len(theatre.engine.submitted) == 3
    assert theatre.get(Job, job_id).state is JobState.RUNNING


def test_a_job_waits_in_the_queue_until_its_turn(theatre):
    theatre.engine.room = 1
    first = theatre.add(add_job, created_at=at(0))
    second = theatre.add(add_job, created_at=at(1))
    urgent = theatre.add(add_job, created_at=at(2), priority=1)
    theatre.tick(2)
    states = {i: theatre.get(Job, i).state for i in (first, second, urgent)}
    assert states == {first: JobState.QUEUED, second: JobState.QUEUED, urgent: JobState.RUNNING}


def test_owners_share(theatre):
    theatre.engine.room = 4
    theatre.add(add_job, shards=8, owner="alice", created_at=at(0))
    bobs = theatre.add(add_job, shards=2, owner="bob", created_at=at(1))
    theatre.tick()
    assert sum(t.state is TaskState.RUNNING for t in theatre.tasks(bobs)) == 2


def test_without_an_engine_tasks_wait(theatre):
    theatre.engine.down = True
    job_id = theatre.add(add_job)
    theatre.tick(5)
    assert theatre.get(Job, job_id).state is JobState.QUEUED
    assert theatre.engine.submitted == []
    theatre.engine.down = False
    theatre.tick()
    assert len(theatre.engine.submitted) == 2


def test_an_engine_that_goes_away_between_row_and_submission_costs_an_attempt(theatre):
    theatre.add(add_job, shards=1)
    theatre.engine.submit = refuse_once(theatre.engine)
    theatre.tick()
    assert theatre.tasks()[0].state is TaskState.RUNNING
    theatre.tick()
    theatre.tick()
    task = theatre.tasks()[0]
    assert (task.attempt, task.failures) == (1, 0)
    assert theatre.engine.submitted == [f"{task.id}/1"]


def refuse_once(engine):
    def refuse(*_arguments, **_values):
        del engine.submit
        raise EngineUnavailable("gone in the last moment")

    return refuse


@pytest.mark.parametrize(("phase", "failures"), [(Phase.LOST, 1), (Phase.UNKNOWN, 0), (Phase.FINISHED, 0)])
def test_a_lost_task_runs_again_under_a_new_key(theatre, phase, failures):
    theatre.add(add_job, shards=1)
    theatre.tick()
    theatre.engine.move(theatre.engine.submitted[0], phase)
    theatre.tick(2)
    task = theatre.tasks()[0]
    assert (task.state, task.attempt, task.failures) == (TaskState.RUNNING, 1, failures)
    assert theatre.engine.submitted == [f"{task.id}/0", f"{task.id}/1"]


def test_a_task_that_ended_while_the_engine_was_asked_stays_ended(theatre):
    """The row is written before the engine lets go of the key: seen as gone, it is done."""
    job_id = theatre.add(add_job, shards=1)
    theatre.tick()
    honest = theatre.engine.status

    def finish_meanwhile(key):
        theatre.work(job_id, TaskKind.MEASURE)
        return honest(key)

    theatre.engine.status = finish_meanwhile
    theatre.tick()
    task = theatre.tasks()[0]
    assert (task.state, task.attempt) == (TaskState.DONE, 0)


def test_errors_are_counted_and_in_the_end_fail_the_job(theatre):
    job_id = theatre.add(add_job, shards=2)
    theatre.tick()
    for attempt in range(3):
        task = theatre.tasks()[0]
        assert (task.attempt, task.failures) == (attempt, attempt)
        theatre.engine.move(f"{task.id}/{attempt}", Phase.ERROR, "KilledWorker: too often")
        theatre.tick(2)
    failed, other = theatre.tasks()
    assert (failed.state, failed.failures) == (TaskState.FAILED, 3)
    assert other.state is TaskState.CANCELLED
    job = theatre.get(Job, job_id)
    assert job.state is JobState.FAILED
    assert job.finished_at is not None
    assert job.problem["type"] == "urn:bitwright:problem:measurement-failed"
    assert "KilledWorker: too often" in job.problem["detail"]
    assert job.problem["instance"] == f"/v1/jobs/{job_id}"


def test_a_task_that_always_takes_its_process_along_is_given_up(theatre):
    job_id = theatre.add(add_job, shards=1)
    for attempt in range(3):
        theatre.tick()
        theatre.engine.move(f"{theatre.tasks()[0].id}/{attempt}", Phase.LOST)
        theatre.tick()
    theatre.tick()
    assert theatre.get(Job, job_id).state is JobState.FAILED
    assert "want of memory" in theatre.get(Job, job_id).problem["detail"]


def test_a_task_that_ends_for_ever_without_a_result_is_given_up(theatre):
    job_id = theatre.add(add_job, shards=1)
    theatre.tick()
    theatre.set(Task, theatre.tasks()[0].id, attempt=MAX_LOSSES)
    theatre.tick(2)
    assert theatre.get(Job, job_id).state is JobState.FAILED
    assert "again and again" in theatre.get(Job, job_id).problem["detail"]


def test_an_inspection_given_up_refuses_the_model(theatre):
    model_id = theatre.add(add_model)
    task_id = theatre.add(add_task, TaskKind.INSPECT, model_id=model_id)
    theatre.tick()
    assert theatre.engine.submitted == [f"{task_id}/0"]
    theatre.set(Task, task_id, failures=2)
    theatre.engine.move(f"{task_id}/0", Phase.ERROR, "Segfault")
    theatre.tick()
    model = theatre.get(Model, model_id)
    assert model.state is ModelState.REFUSED
    assert "Segfault" in model.problem["detail"]


def test_a_cancelled_job_stops_where_it_is(theatre):
    theatre.engine.room = 1
    job_id = theatre.add(add_job, shards=2)
    theatre.tick()
    theatre.set(Job, job_id, state=JobState.CANCELLED)
    theatre.tick()
    running, waiting = theatre.tasks()
    assert (running.state, waiting.state) == (TaskState.CANCELLED, TaskState.CANCELLED)
    assert running.finished_at is None, "its worker has not stopped yet"
    assert waiting.finished_at is not None

    other = theatre.add(add_job, shards=1)
    theatre.tick(2)
    assert theatre.get(Job, other).state is JobState.QUEUED, "the worker is not free yet"
    theatre.engine.move(f"{running.id}/0", Phase.FINISHED)
    theatre.tick(2)
    assert theatre.tasks()[0].finished_at is not None
    assert theatre.get(Job, other).state is JobState.RUNNING
    assert theatre.engine.cancelled == []


def test_a_worker_that_does_not_stop_is_killed_once_after_the_grace(served):
    theatre = Theatre(served, cancel_grace_s=0.0)
    job_id = theatre.add(add_job, shards=1)
    theatre.tick()
    key = theatre.engine.submitted[0]
    theatre.engine.cancel = theatre.engine.cancelled.append  # one that takes its time to die
    theatre.set(Job, job_id, state=JobState.CANCELLED)
    theatre.tick(4)
    assert theatre.engine.cancelled == [key]
    theatre.engine.move(key, Phase.LOST)
    theatre.tick()
    assert theatre.tasks()[0].finished_at is not None


def test_a_cancelled_worker_has_the_grace_to_finish_its_entry(theatre):
    job_id = theatre.add(add_job, shards=1)
    theatre.tick()
    theatre.set(Job, job_id, state=JobState.CANCELLED)
    theatre.tick(5)
    assert theatre.engine.cancelled == []


def test_a_plan_asked_for_later_does_not_touch_its_job(theatre):
    job_id = theatre.add(add_job, shards=0, state=JobState.DONE, stage=Stage.VERIFY)
    plan_id = theatre.add(lambda s: add_plan(s, s.get_one(Job, job_id), PlanRole.ADHOC))
    task_id = theatre.add(add_task, TaskKind.VERIFY, job_id=job_id, plan_id=plan_id)
    theatre.tick(2)
    assert theatre.get(Task, task_id).state is TaskState.RUNNING
    theatre.set(Task, task_id, failures=2)
    theatre.engine.move(f"{task_id}/0", Phase.ERROR, "boom")
    theatre.tick(2)
    assert theatre.get(Task, task_id).state is TaskState.FAILED
    assert theatre.get(Job, job_id).state is JobState.DONE


def test_a_conclusion_that_fails_fails_its_job_alone(served):
    theatre = Theatre(served)
    bad = theatre.add(add_job, shards=0, state=JobState.RUNNING, stage=Stage.VERIFY, created_at=at(0))
    good = theatre.add(add_job, shards=0, state=JobState.RUNNING, stage=Stage.VERIFY, created_at=at(1))

    def conclude(_session, job_id):
        if job_id == bad:
            raise ZeroDivisionError("a defect")

    dispatcher = Dispatcher(served, theatre.engine, conclude=conclude)
    dispatcher.tick()
    assert theatre.get(Job, bad).state is JobState.FAILED
    assert theatre.get(Job, bad).problem["type"] == "urn:bitwright:problem:internal-error"
    assert theatre.get(Job, good).state is JobState.DONE


def test_a_cancelled_job_leaves_its_later_plans_alone(theatre):
    job_id = theatre.add(add_job, shards=1, state=JobState.CANCELLED)
    plan_id = theatre.add(lambda s: add_plan(s, s.get_one(Job, job_id), PlanRole.ADHOC))
    task_id = theatre.add(add_task, TaskKind.VERIFY, job_id=job_id, plan_id=plan_id)
    theatre.tick(2)
    assert {t.kind: t.state for t in theatre.tasks(job_id)} == {
        TaskKind.MEASURE: TaskState.CANCELLED,
        TaskKind.VERIFY: TaskState.RUNNING,
    }
    assert theatre.engine.submitted == [f"{task_id}/0"]
