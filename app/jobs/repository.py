"""Queries for jobs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, case, func, insert, or_, select
from sqlalchemy.orm import Session

from app.kit.pages import Cursor
from app.models import (
    Dataset,
    IdempotencyKey,
    Job,
    JobEntry,
    JobState,
    Measurement,
    Model,
    Plan,
    PlanRole,
    Task,
    TaskKind,
    TaskState,
    TrialPart,
)

LEAST_WORK = 0.01
"""Of a part of a step, in float passes: what is reckoned as nothing takes a moment, too."""


@dataclass(frozen=True, kw_only=True)
class ShardCounts:
    """How much of a task's entries is measured.

    Of what was done since the task was last started, by its worker or by others: ``fresh`` entries, their ``fresh_work``, the
    seconds that they took each, added up, and when the first and the last of them were finished.
    """

    done: int
    total: int
    done_work: float
    total_work: float
    fresh: int = 0
    fresh_work: float = 0.0
    fresh_seconds: float = 0.0
    first_at: datetime | None = None
    last_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeCounts:
    """How many parts of a job's probes are done."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class PlanCounts:
    """How many of a job's own plans are measured."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class TaskTimes:
    """When a task of a job's own began and ended, ``None`` where it has not, and what its worker tells of it (`app.models.Task`).

    ``work``: how much it is beside others of its kind; of parts of a step around a plan in float passes, as reckoned.
    """

    id: str
    kind: TaskKind
    state: TaskState
    started_at: datetime | None = None
    finished_at: datetime | None = None
    worker: str | None = None
    fraction: float = 0.0
    pace_seconds: float | None = None
    expected_at: datetime | None = None
    work: float = 1.0


def get(session: Session, job_id: str) -> Job | None:
    """A job by its id."""
    return session.get(Job, job_id)


def for_update(session: Session, job_id: str) -> Job | None:
    """A job by its id, kept from changing until the transaction ends."""
    return session.get(Job, job_id, with_for_update=True)


def model(session: Session, model_id: str) -> Model | None:
    """A model by its id."""
    return session.get(Model, model_id)


def dataset(session: Session, dataset_id: str) -> Dataset | None:
    """A dataset by its id."""
    return session.get(Dataset, dataset_id)


def idempotency(session: Session, key: str) -> IdempotencyKey | None:
    """What was answered for a key."""
    return session.get(IdempotencyKey, key)


def page(  # noqa: PLR0913 - one keyword for each filter
    session: Session,
    *,
    limit: int,
    cursor: Cursor | None = None,
    state: JobState | None = None,
    model_id: str | None = None,
    owner: str | None = None,
) -> Sequence[Job]:
    """Jobs, newest first, after the cursor."""
    query = select(Job).order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)
    if cursor is not None:
        same_time = and_(Job.created_at == cursor.created_at, Job.id < cursor.id)
        query = query.where(or_(Job.created_at < cursor.created_at, same_time))
    if state is not None:
        query = query.where(Job.state == state)
    if model_id is not None:
        query = query.where(Job.model_id == model_id)
    if owner is not None:
        query = query.where(Job.owner == owner)
    return session.scalars(query).all()


def shard_counts(session: Session, job_ids: Sequence[str]) -> dict[str, dict[str, ShardCounts]]:
    """Count the entries of jobs and weigh their work, by job and task."""
    measured = Measurement.key.is_not(None)
    fresh = Measurement.created_at >= Task.started_at  # unknown, so not fresh, of a task that has not begun
    query = (
        select(
            JobEntry.job_id,
            JobEntry.task_id,
            func.count().label("total"),
            func.count(Measurement.key).label("done"),
            func.sum(JobEntry.work).label("total_work"),
            func.sum(case((measured, JobEntry.work), else_=0.0)).label("done_work"),
            func.count(case((fresh, 1))).label("fresh"),
            func.sum(case((fresh, JobEntry.work), else_=0.0)).label("fresh_work"),
            func.sum(case((fresh, Measurement.seconds), else_=0.0)).label("fresh_seconds"),
            func.min(case((fresh, Measurement.created_at))).label("first_at"),
            func.max(case((fresh, Measurement.created_at))).label("last_at"),
        )
        .join(Task, Task.id == JobEntry.task_id)
        .join(Measurement, Measurement.key == JobEntry.key, isouter=True)
        .where(JobEntry.job_id.in_(job_ids))
        .group_by(JobEntry.job_id, JobEntry.task_id)
    )
    found: dict[str, dict[str, ShardCounts]] = defaultdict(dict)
    for row in session.execute(query):
        found[row.job_id][row.task_id] = ShardCounts(
            done=row.done,
            total=row.total,
            done_work=row.done_work,
            total_work=row.total_work,
            fresh=row.fresh,
            fresh_work=row.fresh_work,
            fresh_seconds=row.fresh_seconds,
            first_at=row.first_at,
            last_at=row.last_at,
        )
    return found


def task_times(session: Session, job_ids: Sequence[str]) -> dict[str, list[TaskTimes]]:
    """When the tasks of jobs began and ended, in their order; not those of plans that were asked for later."""
    columns = (
        Task.id, Task.kind, Task.state, Task.started_at, Task.finished_at, Task.worker, Task.fraction, Task.pace_seconds,
        Task.expected_at,
    )  # fmt: skip
    query = (
        select(Task.job_id, TrialPart.work, *columns)
        .join(Plan, Plan.id == Task.plan_id, isouter=True)
        .join(TrialPart, TrialPart.task_id == Task.id, isouter=True)
        .where(Task.job_id.in_(job_ids), or_(Plan.role.is_(None), Plan.role != PlanRole.ADHOC))
        .order_by(Task.created_at, Task.ordinal, Task.id)
    )
    found: dict[str, list[TaskTimes]] = defaultdict(list)
    for job_id, reckoned, *values in session.execute(query):
        assert job_id is not None
        work = 1.0 if reckoned is None else max(reckoned, LEAST_WORK)
        found[job_id].append(
            TaskTimes(work=work, **dict(zip((column.key for column in columns), values, strict=True)))
        )
    return found


def passes_ahead(session: Session, job_ids: Sequence[str]) -> dict[str, list[float]]:
    """Passes that are likely to follow what is queued to be done around the plans of jobs, plan by plan."""
    query = (
        select(Plan.job_id, Plan.solver)
        .where(Plan.job_id.in_(job_ids), Plan.role == PlanRole.REQUESTED)
        .order_by(Plan.job_id, Plan.ordinal)
    )
    found: dict[str, list[float]] = defaultdict(list)
    for job_id, solver in session.execute(query):
        found[job_id].append(float(solver.get("refining", {}).get("passes_ahead", 0.0)))
    return found


def probe_counts(session: Session, job_ids: Sequence[str]) -> dict[str, ProbeCounts]:
    """Count the tasks that estimate."""
    done = func.sum(case((Task.state == TaskState.DONE, 1), else_=0)).label("done")
    query = (
        select(Task.job_id, func.count().label("total"), done)
        .where(Task.job_id.in_(job_ids), Task.kind == TaskKind.PROBE)
        .group_by(Task.job_id)
    )
    return {row.job_id: ProbeCounts(done=row.done, total=row.total) for row in session.execute(query)}


def plan_counts(session: Session, job_ids: Sequence[str]) -> dict[str, PlanCounts]:
    """Count the plans that jobs themselves have to measure."""
    query = (
        select(Plan.job_id, func.count().label("total"), func.count(Plan.measured).label("done"))
        .where(
            Plan.job_id.in_(job_ids),
            Plan.role != PlanRole.ADHOC,
            Plan.size_bits.is_not(None),
        )
        .group_by(Plan.job_id)
    )
    return {row.job_id: PlanCounts(done=row.done, total=row.total) for row in session.execute(query)}


def add_entries(session: Session, entries: Sequence[dict[str, object]]) -> None:
    """Store a job's entries in one go."""
    session.execute(insert(JobEntry.metadata.tables[JobEntry.__tablename__]), list(entries))
