"""What several of the dispatch queries share."""

from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, Executable, exists, or_
from sqlalchemy.orm import Session

from app.models import Job, JobState, Plan, PlanRole, Task


def changed(session: Session, statement: Executable) -> int:
    """Execute an UPDATE or DELETE; how many rows it touched."""
    result = session.execute(statement, execution_options={"synchronize_session": False})
    return cast("CursorResult[Any]", result).rowcount


def of_later_plan() -> ColumnElement[bool]:
    """Whether a task measures a plan that was asked for later: it does not belong to its job's life."""
    return exists().where(Plan.id == Task.plan_id, Plan.role == PlanRole.ADHOC)


def job_wants_task() -> ColumnElement[bool]:
    """Whether a task may run as far as its job is concerned. Inspections and later plans do not depend on one."""
    running = exists().where(Job.id == Task.job_id, Job.state == JobState.RUNNING)
    return or_(Task.job_id.is_(None), of_later_plan(), running)
