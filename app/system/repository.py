"""Queries for health and metrics."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import Database
from app.models import Job, JobState, Lease, Measurement, Task, TaskKind, TaskState


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the tables hold."""

    jobs: dict[str, int]
    tasks: dict[tuple[str, str], int]
    measurements: int


def counts(session: Session) -> Counts:
    """Jobs by state, tasks by kind and state (those that are none included), measurements."""
    jobs = {state.value: 0 for state in JobState}
    for state, number in session.execute(select(Job.state, func.count()).group_by(Job.state)):
        jobs[state.value] = number
    tasks = {(kind.value, state.value): 0 for kind in TaskKind for state in TaskState}
    query = select(Task.kind, Task.state, func.count()).group_by(Task.kind, Task.state)
    for kind, task_state, number in session.execute(query):
        tasks[kind.value, task_state.value] = number
    measured = session.scalar(select(func.count()).select_from(Measurement)) or 0
    return Counts(jobs=jobs, tasks=tasks, measurements=measured)


def lease_left_s(session: Session, database: Database) -> float | None:
    """Seconds that the newest lease of a dispatcher still holds, by the database's clock; ``None`` without one."""
    until = session.scalar(select(func.max(Lease.until)))
    if until is None:
        return None
    now = session.scalar(select(database.now()))
    return float(until) - float(now or 0.0)
