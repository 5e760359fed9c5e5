"""Progress and time left: from finished work, not from counts."""

from datetime import UTC, datetime, timedelta

import pytest

from app.jobs.progress import measuring, probing, progress_of, progress_of_all, verifying
from app.jobs.repository import EntryCounts, PlanCounts, ProbeCounts, TaskTimes
from app.models import Job, JobState, Stage, TaskKind, TaskState, utc_now

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def job(state=JobState.RUNNING, stage=Stage.MEASURE, **times):
    return Job(state=state, stage=stage, **{"started_at": NOW - timedelta(seconds=60)} | times)


def counts(done=3, total=10, done_work=30.0, total_work=90.0, fresh_work=30.0, **fresh):
    return EntryCounts(
        done=done, total=total, done_work=done_work, total_work=total_work, fresh_work=fresh_work, **fresh
    )


def ago(seconds):
    return NOW - timedelta(seconds=seconds)


def task(kind, state, started, finished=None):
    """A task that began and ended so many seconds ago."""
    return TaskTimes(
        kind=kind,
        state=state,
        started_at=None if started is None else ago(started),
        finished_at=None if finished is None else ago(finished),
    )


def test_time_left_follows_from_work_not_from_the_number_of_entries():
    # A third of the work in 60 s, although it is less than a third of the entries.
    progress = measuring(job(), counts(), NOW)
    assert progress.fraction == pytest.approx(1 / 3)
    assert progress.eta_seconds == pytest.approx(120)
    assert progress.elapsed_seconds == 60
    assert (progress.stage, progress.done, progress.total, progress.unit) == (Stage.MEASURE, 3, 10, "entries")


def test_what_was_measured_before_the_job_says_nothing_about_its_speed():
    # 60 of 90 are done, but only 10 of them since the job began 60 s ago: the other 30 take 180 s.
    progress = measuring(job(), counts(done=6, done_work=60.0, fresh_work=10.0), NOW)
    assert progress.fraction == pytest.approx(2 / 3)
    assert progress.eta_seconds == pytest.approx(180)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_comes_before_the_first_entries_does_not_slow_the_rest(workers):
    # 40 s of reading, then 30 entries of work 1 in 15 rounds of 1 s (or 30) until 5 s ago; 60 are left.
    rounds = 30 // workers
    times = {"fresh": 30, "first_at": ago(5 + rounds - 1), "last_at": ago(5)}
    running = [task(TaskKind.MEASURE, TaskState.RUNNING, 60)] * workers
    progress = measuring(job(), counts(fresh_work=30.0, **times), NOW, running)
    assert progress.eta_seconds == pytest.approx(60 / workers - 5)


def test_a_job_whose_last_entry_is_late_has_no_less_than_no_time_left():
    times = {"fresh": 30, "first_at": ago(500), "last_at": ago(490)}
    assert measuring(job(), counts(done_work=89.0, fresh_work=30.0, **times), NOW).eta_seconds == 0.0


def test_nothing_is_known_before_the_first_entry():
    assert measuring(job(), counts(done=6, done_work=60.0, fresh_work=0.0), NOW).eta_seconds is None


def test_a_queued_job_has_no_time_left_to_tell():
    progress = measuring(job(JobState.QUEUED, None, started_at=None), counts(fresh_work=0.0), NOW)
    assert (progress.eta_seconds, progress.elapsed_seconds, progress.stage) == (None, 0.0, Stage.MEASURE)


def test_everything_measured_leaves_no_time_whatever_the_sums_round_to():
    progress = measuring(
        job(stage=Stage.SOLVE), counts(done=10, done_work=89.99999999999999, fresh_work=89.9), NOW
    )
    assert (progress.fraction, progress.eta_seconds, progress.stage) == (1.0, 0.0, Stage.SOLVE)


def test_a_job_that_ended_while_it_was_verified_has_no_time_left():
    ended = job(JobState.CANCELLED, Stage.VERIFY, solved_at=NOW - timedelta(seconds=30), finished_at=NOW)
    progress = verifying(ended, PlanCounts(done=2, total=8), NOW)
    assert (progress.eta_seconds, progress.stage, progress.done) == (None, None, 2)


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_a_job_that_ended_early_tells_how_far_it_came(state):
    progress = measuring(job(state, stage=None, finished_at=NOW - timedelta(seconds=20)), counts(), NOW)
    assert (progress.stage, progress.eta_seconds) == (None, None)
    assert progress.done == 3
    assert progress.elapsed_seconds == 40


def test_verification_counts_plans():
    solved = NOW - timedelta(seconds=30)
    done = [task(TaskKind.VERIFY, TaskState.DONE, 30, 18), task(TaskKind.VERIFY, TaskState.DONE, 18, 10)]
    others = [task(TaskKind.VERIFY, TaskState.RUNNING, 4), task(TaskKind.VERIFY, TaskState.RUNNING, 40)]
    waiting = [task(TaskKind.VERIFY, TaskState.PENDING, None)] * 4
    other_kind = [task(TaskKind.MEASURE, TaskState.DONE, 500, 100)]
    progress = verifying(
        job(stage=Stage.VERIFY, solved_at=solved),
        PlanCounts(done=2, total=8),
        NOW,
        [*done, *others, *waiting, *other_kind],
    )
    assert (progress.done, progress.total, progress.unit, progress.fraction) == (2, 8, "plans", 0.25)
    # 10 s each on two workers; one has 6 s left, the other is late.
    assert progress.eta_seconds == pytest.approx((4 * 10 + 6) / 2)


def test_verification_knows_nothing_before_the_first_plan():
    assert (
        verifying(job(stage=Stage.VERIFY, solved_at=NOW), PlanCounts(done=0, total=8), NOW).eta_seconds
        is None
    )


def test_how_long_plans_are_looked_around_is_not_known():
    solved = NOW - timedelta(seconds=30)
    progress = verifying(job(stage=Stage.VERIFY, solved_at=solved), PlanCounts(done=8, total=8), NOW)
    assert (progress.fraction, progress.eta_seconds) == (1.0, None)


def test_a_finished_job_is_done():
    progress = verifying(job(JobState.DONE, Stage.VERIFY, finished_at=NOW), PlanCounts(done=8, total=8), NOW)
    assert (progress.stage, progress.fraction, progress.eta_seconds) == (None, 1.0, 0.0)


def test_rows_give_work_done_before_and_since_the_job_began(world):
    model, dataset = world.model(), world.dataset()
    before = world.job(model=model.id, dataset=dataset.id)
    world.measure(before, 6, at=utc_now() - timedelta(hours=1))
    started = utc_now() - timedelta(seconds=10)
    job_ = world.job(model=model.id, dataset=dataset.id)
    world.start(job_, at=started)
    world.measure(job_, 6, at=started + timedelta(seconds=5))

    def look():
        with world.database.read() as session:
            row = session.get_one(Job, job_.id)
            return progress_of(session, row, started + timedelta(seconds=20))

    progress = look()

    from sqlalchemy import select

    from app.models import JobEntry

    with world.database.read() as session:
        query = select(JobEntry.work).where(JobEntry.job_id == job_.id).order_by(JobEntry.ordinal)
        work = session.scalars(query).all()
    assert progress.done == 12
    assert progress.fraction == pytest.approx(sum(work[:12]) / sum(work))
    assert progress.eta_seconds == pytest.approx(20 * sum(work[12:]) / sum(work[6:12]))
    world.measure(job_, 6, at=started + timedelta(seconds=15))
    pace = 10 / (sum(work[6:18]) * 11 / 12)
    assert look().eta_seconds == pytest.approx(max(sum(work[18:]) * pace - 5, 0))


def test_plans_asked_for_later_do_not_count(world):
    from app.plans.service import PlanChange, create_plan

    job_ = world.done_job()
    create_plan(world.database, job_.id, PlanChange(budget="5 bits", measure=True))
    with world.database.read() as session:
        progress = progress_of(session, session.get_one(Job, job_.id))
    assert (progress.done, progress.total, progress.fraction) == (7, 7, 1.0)


def test_a_list_asks_as_often_for_many_jobs_as_for_one(world):
    from sqlalchemy import event

    jobs = [world.job() for _ in range(3)]
    done = world.done_job()
    statements = []

    @event.listens_for(world.database.engine, "before_cursor_execute")
    def count(_connection, _cursor, statement, *_):
        statements.append(statement)

    with world.database.read() as session:
        rows = [session.get_one(Job, j.id) for j in [*jobs, done]]
        statements.clear()
        progress = progress_of_all(session, rows)
    assert len(statements) == 2  # none of them runs: else one more, for all
    assert [progress[j.id].total for j in jobs] == [24] * 3
    assert (progress[done.id].unit, progress[done.id].done) == ("plans", 7)


def test_probes_are_counted_in_tasks_and_take_equally_long():
    stage = NOW - timedelta(seconds=30)
    parts = [task(TaskKind.PROBE, TaskState.DONE, 33 - 11 * n, 22 - 11 * n) for n in range(3)]
    parts.append(task(TaskKind.PROBE, TaskState.RUNNING, 1))
    progress = probing(
        job(stage=Stage.PROBE, stage_started_at=stage), ProbeCounts(done=3, total=4), NOW, parts
    )
    assert (progress.stage, progress.done, progress.total, progress.unit) == (Stage.PROBE, 3, 4, "parts")
    assert (progress.fraction, progress.eta_seconds, progress.elapsed_seconds) == (
        0.75,
        pytest.approx(10),
        60,
    )


@pytest.mark.parametrize(
    ("row", "done"),
    [
        (job(stage=Stage.PROBE, stage_started_at=NOW - timedelta(seconds=9)), 0),
        (job(JobState.QUEUED, None, started_at=None), 0),
        (job(JobState.CANCELLED, Stage.PROBE, stage_started_at=NOW, finished_at=NOW), 3),
    ],
    ids=["nothing done", "not begun", "cancelled"],
)
def test_how_long_probing_takes_is_not_always_known(row, done):
    progress = probing(row, ProbeCounts(done=done, total=4), NOW)
    assert (progress.eta_seconds, progress.stage) == (None, Stage.PROBE)


def test_a_job_that_estimates_shows_its_probes_first_and_then_the_entries_it_asked_for(world):
    from sqlalchemy import select

    from app.models import JobEntry, Task, TaskKind, TaskState
    from app.plans.rounds import measure_further
    from workers.contracts import Candidate

    def look(after=0.0):
        with world.database.read() as session:
            row = session.get_one(Job, job_.id)
            return progress_of(session, row, (row.stage_started_at or utc_now()) + timedelta(seconds=after))

    def ask(block, *units):
        wanted = {block: [(unit, Candidate.parse("4:channel-asymmetric")) for unit in units]}
        with world.database.write() as session:
            session.get_one(Job, job_.id).stage = Stage.SOLVE
            measure_further(session, job_.id, wanted, world.settings)

    job_ = world.job(metric="auto")
    assert (look().stage, look().done, look().total, look().unit) == (Stage.PROBE, 0, 4, "parts")
    world.start(job_, Stage.PROBE)
    with world.database.write() as session:
        query = select(Task).where(Task.job_id == job_.id, Task.kind == TaskKind.PROBE, Task.ordinal < 2)
        for task in session.scalars(query):
            task.state, task.started_at = TaskState.DONE, utc_now()
            task.finished_at = task.started_at + timedelta(seconds=7)
    assert (look(20).fraction, look(20).eta_seconds) == (0.5, pytest.approx(14))

    world.estimate(job_)
    world.start(job_, Stage.SOLVE)
    assert (look().stage, look().total, look().fraction) == (Stage.SOLVE, 0, 1.0)

    started = utc_now() - timedelta(hours=1)
    ask((0, 10), "stem.weight", "q.weight")
    assert (look().stage, look().done, look().total) == (Stage.MEASURE, 0, 2)
    world.measure(job_, at=started)
    assert (look().done, look().fraction, look().eta_seconds) == (2, 1.0, 0.0)

    # In the second round the first one's entries say nothing about the speed.
    ask((10, 20), "stem.weight", "q.weight")
    assert (look(50).done, look(50).total, look(50).eta_seconds) == (2, 4, None)
    world.measure(job_, 1)
    with world.database.read() as session:
        query = select(JobEntry.work).where(JobEntry.job_id == job_.id).order_by(JobEntry.ordinal)
        work = session.scalars(query).all()
    found = look(50)
    assert (found.stage, found.done, found.total, found.unit) == (Stage.MEASURE, 3, 4, "entries")
    assert found.fraction == pytest.approx(sum(work[:3]) / sum(work))
    assert found.eta_seconds == pytest.approx(50 * work[3] / work[2])
