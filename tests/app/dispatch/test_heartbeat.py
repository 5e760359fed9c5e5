"""What workers tell while they work: seldom, under their claim, and to no harm."""

from datetime import timedelta

import pytest
from sqlalchemy.exc import OperationalError

import workers.sensitivity.estimators.run
import workers.verify.plan
from app.dispatch import heartbeat, store, work
from app.dispatch.heartbeat import Heartbeat, NotWanted
from app.dispatch.lifecycle import Requeue
from app.dispatch.shard import DONE, STOPPED
from app.models import (
    Dataset,
    Job,
    JobState,
    Model,
    Plan,
    PlanRole,
    Stage,
    Task,
    TaskKind,
    TaskState,
    utc_now,
)
from workers.contracts import Measured

from .rows import REQUEST, add_plan, add_task
from .test_shard_probe import DESCRIPTION, PROBING, results


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def claimed(bench):
    """A running task of a running job, and a claim to it."""
    _, task_id = bench.job()

    def claim(worker="host:1:a", attempt=0):
        with bench.database.write() as session:
            return work.claim(session, task_id, attempt, worker)

    return task_id, claim


def told(bench, task_id):
    task = bench.get(Task, task_id)
    left = None if task.expected_at is None else (task.expected_at - utc_now()).total_seconds()
    return task.fraction, task.pace_seconds, left


def test_what_is_told_is_written_at_once_then_every_second_and_at_the_end(bench, claimed, clock, monkeypatch):
    task_id, claim = claimed
    written = []
    report = work.report
    monkeypatch.setattr(work, "report", lambda *a: written.append((clock.now, a[2])) or report(*a))
    tell = Heartbeat(bench.database, claim(), clock).part()
    for step in range(41):
        clock.now = 100.0 + step / 10
        tell(step, 40)
    assert [moment for moment, _ in written] == pytest.approx([100.0, 101.0, 102.0, 103.0, 104.0])
    assert [fraction for _, fraction in written] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    clock.now += 0.1
    tell(40, 40)
    assert told(bench, task_id)[0] == 1.0


def test_what_comes_before_the_first_report_of_a_part_is_no_speed(bench, claimed, clock):
    task_id, claim = claimed
    heart = Heartbeat(bench.database, claim(), clock)
    clock.now += 50.0  # the model is read
    first = heart.part(0.0, 0.25)
    first(0, 4)
    assert told(bench, task_id) == (0.0, None, None)
    for batch in range(1, 5):
        clock.now += 2.0
        first(batch, 4)
    assert told(bench, task_id) == (0.25, pytest.approx(32.0), pytest.approx(24.0, abs=1.0))
    clock.now += 70.0  # the float model is run on other data
    second = heart.part(0.25, 0.75)
    second(0, 12)
    clock.now += 2.0
    second(1, 12)
    pace = (8.0 + 2.0) / (0.25 + 0.75 / 12)
    left = pace * (0.75 - 0.75 / 12)
    assert told(bench, task_id) == (0.3125, pytest.approx(pace), pytest.approx(left, abs=1.0))


def test_the_speed_of_a_moment_is_not_told(bench, claimed, clock):
    task_id, claim = claimed
    tell = Heartbeat(bench.database, claim(), clock).part()
    for done in (0, 1, 2, 3):
        tell(done, 50)
        clock.now += 1.0
        assert told(bench, task_id)[:2] == (done / 50, None if done < 3 else pytest.approx(50.0))


@pytest.mark.parametrize("slow", [0, 7, 60, 119])
def test_what_is_slow_once_is_not_expected_of_what_is_left(bench, claimed, clock, slow):
    task_id, claim = claimed
    tell = Heartbeat(bench.database, claim(), clock).part()
    tell(0, 400)
    for step in range(120):  # shares far below those that are told apart
        clock.now += 20.0 if step == slow else 0.1
        tell(step + 1, 400)
    clock.now += 1.0
    tell(121, 400)
    fraction, pace, left = told(bench, task_id)
    assert fraction == pytest.approx(121 / 400)
    assert pace == pytest.approx(40.0, rel=0.1)
    assert left == pytest.approx(28.0, rel=0.1)


def test_steps_of_two_kinds_are_timed_together(bench, claimed, clock):
    """Each third one takes ten times as long: what a unit takes beside the norms around it, in any order."""
    task_id, claim = claimed
    tell = Heartbeat(bench.database, claim(), clock).part()
    tell(0, 900)
    for step in range(300):
        clock.now += 1.0 if step % 3 == 0 else 0.1
        tell(step + 1, 900)
    clock.now += 1.0
    tell(301, 900)
    assert told(bench, task_id)[1] == pytest.approx(900 * (1.0 + 0.1 + 0.1) / 3, rel=0.1)


def test_another_attempt_begins_with_its_own_speed_and_what_was_done_does_not_fall(bench, claimed, clock):
    task_id, claim = claimed
    tell = Heartbeat(bench.database, claim(), clock).part()
    tell(0, 10)
    clock.now += 6.0
    tell(6, 10)
    assert told(bench, task_id)[:2] == (0.6, pytest.approx(10.0))
    with bench.database.write() as session:  # its worker is killed
        assert store.requeue(session, Requeue(task_id=task_id, attempt=0, failed=False))
    bench.set(Task, task_id, state=TaskState.RUNNING)
    again = Heartbeat(bench.database, claim("host:2:b", attempt=1), clock).part()
    assert told(bench, task_id) == (0.6, None, None)
    again(0, 10)
    clock.now += 8.0
    again(4, 10)
    assert told(bench, task_id) == (0.6, pytest.approx(20.0), pytest.approx(12.0, abs=1.0))
    clock.now += 8.0
    again(8, 10)
    assert told(bench, task_id)[0] == 0.8
    with pytest.raises(NotWanted):  # the first worker was only thought to be dead
        tell(10, 10)
    assert told(bench, task_id)[0] == 0.8


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
def test_who_tells_hears_that_the_job_has_ended(bench, claimed, clock, state):
    task_id, claim = claimed
    tell = Heartbeat(bench.database, claim(), clock).part()
    tell(0, 10)
    bench.set(Job, bench.get(Task, task_id).job_id, state=state)
    tell(1, 10)  # not asked again so soon
    clock.now += heartbeat.EVERY_S
    with pytest.raises(NotWanted):
        tell(2, 10)


def test_a_database_that_is_away_is_not_waited_for(bench, claimed, clock, monkeypatch):
    task_id, claim = claimed
    tell = Heartbeat(bench.database, claim(), clock).part()
    report = work.report

    def away(*_):
        raise OperationalError("UPDATE", {}, Exception("away"))

    monkeypatch.setattr(work, "report", away)
    tell(0, 10)
    clock.now += 5.0
    tell(5, 10)
    monkeypatch.setattr(work, "report", report)
    clock.now += 1.0
    tell(6, 10)
    assert told(bench, task_id)[:2] == (0.6, pytest.approx(10.0))


def test_a_probe_tells_how_far_it_is_and_stops_when_nobody_wants_it(bench, monkeypatch):
    job_id, measure_id = bench.job(stage=Stage.PROBE, request=PROBING)
    bench.set(Task, measure_id, state=TaskState.CANCELLED)
    bench.set(Model, bench.get(Job, job_id).model_id, description=DESCRIPTION.to_json())
    task_id = bench.add(add_task, TaskKind.PROBE, job_id=job_id, state=TaskState.RUNNING)
    seen = []

    def estimate(_request, progress):
        progress(1.0, 4)
        seen.append(bench.get(Task, task_id).fraction)
        bench.set(Job, job_id, state=JobState.CANCELLED)
        progress(4, 4)
        raise AssertionError("goes on")

    monkeypatch.setattr(workers.sensitivity.estimators.run, "estimate", estimate)
    monkeypatch.setattr(workers.sensitivity.estimators.run, "batch_size_of", lambda _request: 8)
    assert bench.run(task_id) == STOPPED
    assert seen == [0.25]
    assert results(bench) == []
    assert bench.get(Task, task_id).problem is None, "that is no failure"


def test_a_plan_s_parts_weigh_as_much_as_their_samples(bench, monkeypatch):
    job_id, _ = bench.job(evaluation=True, stage=Stage.VERIFY, request=REQUEST | {"samples": 6})
    bench.set(Dataset, "dat_evaluation", samples=18)
    plan_id = bench.add_for(job_id, add_plan, PlanRole.REQUESTED)
    bench.set(Plan, plan_id, choices={"unit0": {"bits": 4, "scheme": "channel-asymmetric"}})
    task_id = bench.add(add_task, TaskKind.VERIFY, job_id=job_id, plan_id=plan_id, state=TaskState.RUNNING)
    seen = []

    def measure_plan(_request, progress):
        for batch in (0, 1):
            progress(batch, 1)
            seen.append(bench.get(Task, task_id).fraction)
        return {"kl": Measured(mean=1.0, standard_error=0.1, samples=8)}

    monkeypatch.setattr(workers.verify.plan, "measure_plan", measure_plan)
    before = utc_now()
    assert bench.run(task_id) == DONE
    assert seen == [0.0, 0.25, 0.25, 1.0]
    task = bench.get(Task, task_id)
    assert task.pace_seconds is not None
    assert before <= task.expected_at <= utc_now() + timedelta(seconds=1)
