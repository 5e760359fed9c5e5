"""Progress from rows: what was measured before, what later plans do, and how many queries it takes."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, event, select

from app.jobs.progress import progress_of, progress_of_all
from app.jobs.repository import ShardCounts, shard_counts
from app.kit.ids import new_id
from app.models import Job, JobEntry, Measurement, Stage, Task, TaskKind, TaskState, utc_now
from app.plans.rounds import measure_further
from app.plans.service import PlanChange, create_plan
from workers.contracts import Candidate

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def begin(world, job_, *, at):
    """Workers take tasks that measure."""
    with world.database.write() as session:
        query = (
            select(Task).where(Task.job_id == job_.id, Task.kind == TaskKind.MEASURE).order_by(Task.ordinal)
        )
        for row in session.scalars(query):
            row.state, row.started_at, row.worker = TaskState.RUNNING, at, f"host:{row.ordinal}:x"


def test_rows_give_work_done_before_and_since_each_task_began(world):
    model, dataset = world.model(), world.dataset()
    before = world.job(model=model.id, dataset=dataset.id)
    world.measure(before, 6, at=utc_now() - timedelta(hours=1))
    started = utc_now() - timedelta(seconds=10)
    job_ = world.job(model=model.id, dataset=dataset.id)
    world.start(job_, at=started)
    begin(world, job_, at=started)
    world.measure(job_, 5, at=started + timedelta(seconds=5))
    world.measure(job_, 6, at=started + timedelta(seconds=8))

    with world.database.read() as session:
        rows = session.execute(
            select(JobEntry, Measurement)
            .outerjoin(Measurement, Measurement.key == JobEntry.key)
            .where(JobEntry.job_id == job_.id)
            .order_by(JobEntry.ordinal)
        ).all()
        counts = shard_counts(session, [job_.id])[job_.id]
        found = progress_of(session, session.get_one(Job, job_.id), started + timedelta(seconds=10))
    tasks = list(dict.fromkeys(entry.task_id for entry, _ in rows))
    assert set(counts) == set(tasks)
    for task_id in tasks:
        own = [(entry.work, measured) for entry, measured in rows if entry.task_id == task_id]
        done = [(work, m) for work, m in own if m is not None]
        fresh = [(work, m) for work, m in done if m.created_at >= started]
        assert counts[task_id] == ShardCounts(
            done=len(done),
            total=len(own),
            done_work=pytest.approx(sum(work for work, _ in done)),
            total_work=pytest.approx(sum(work for work, _ in own)),
            fresh=len(fresh),
            fresh_work=pytest.approx(sum(work for work, _ in fresh)),
            fresh_seconds=pytest.approx(sum(m.seconds for _, m in fresh)),
            first_at=min((m.created_at for _, m in fresh), default=None),
            last_at=max((m.created_at for _, m in fresh), default=None),
        )
    assert sum(c.fresh for c in counts.values()) == 11
    with world.database.read() as session:
        waits = shard_counts(session, [before.id])[before.id]
    assert sum(c.done for c in waits.values()) == 17
    assert [c.fresh for c in waits.values()] == [0] * len(waits), "nobody has begun it"
    work = [entry.work for entry, _ in rows]
    assert found.done == 17
    assert found.fraction == pytest.approx(sum(work[:17]) / sum(work))
    assert found.eta_seconds is not None


def test_plans_asked_for_later_do_not_count(world):
    job_ = world.done_job()
    create_plan(world.database, job_.id, PlanChange(budget="5 bits", measure=True))
    with world.database.read() as session:
        progress = progress_of(session, session.get_one(Job, job_.id))
    assert (progress.done, progress.total, progress.fraction) == (7, 7, 1.0)


def test_a_list_asks_as_often_for_many_jobs_as_for_one(world):
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


def test_a_job_that_estimates_shows_its_probes_first_and_then_the_entries_it_asked_for(world):
    def look(after=0.0):
        with world.database.read() as session:
            row = session.get_one(Job, job_.id)
            return progress_of(session, row, (row.stage_started_at or utc_now()) + timedelta(seconds=after))

    def ask(block, *units):
        wanted = {block: [(unit, Candidate.parse("4:channel-asymmetric")) for unit in units]}
        with world.database.write() as session:
            session.get_one(Job, job_.id).stage = Stage.SOLVE
            measure_further(session, job_.id, wanted, world.settings)

    world.settings = world.settings.model_copy(update={"workers": 4})
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

    # Nothing that a worker took time for was measured in the first round.
    ask((10, 20), "stem.weight", "q.weight")
    assert (look(50).done, look(50).total, look(50).eta_seconds) == (2, 4, None)
    with world.database.read() as session:
        begin(world, job_, at=session.get_one(Job, job_.id).stage_started_at)
    world.measure(job_, 1)
    with world.database.read() as session:
        query = select(JobEntry.work).where(JobEntry.job_id == job_.id).order_by(JobEntry.ordinal)
        work = session.scalars(query).all()
    found = look()
    assert (found.stage, found.done, found.total, found.unit) == (Stage.MEASURE, 3, 4, "entries")
    assert found.fraction == pytest.approx(sum(work[:3]) / sum(work))
    assert found.eta_seconds == pytest.approx(0.5 * work[3] / work[2])


@pytest.mark.parametrize(("request_", "before"), [({"metric": "auto"}, 1), ({"regret": 0.02}, 0)])
def test_rounds_of_measuring_are_numbered(world, request_, before):
    """What is measured as far as choices need it, after searches that asked for more: of estimates the first one did."""
    job_ = world.job(**request_)

    def told(stage, searched):
        world.start(job_, stage)
        with world.database.write() as session:
            session.execute(delete(Task).where(Task.job_id == job_.id, Task.kind == TaskKind.SOLVE))
            for number in range(searched + 1):  # the last one is under way, or is to come
                state = TaskState.DONE if number < searched else TaskState.PENDING
                session.add(Task(id=new_id("tsk"), kind=TaskKind.SOLVE, job_id=job_.id, state=state))
        with world.database.read() as session:
            return progress_of(session, session.get_one(Job, job_.id)).detail

    assert [told(Stage.MEASURE, before + i) for i in range(3)] == ["round 1", "round 2", "round 3"]
    assert told(Stage.SOLVE, before) is None
    assert told(Stage.VERIFY, before + 1) is None


def test_where_everything_is_measured_there_are_no_rounds(world):
    job_ = world.job()
    world.start(job_)
    with world.database.read() as session:
        assert progress_of(session, session.get_one(Job, job_.id)).detail is None
