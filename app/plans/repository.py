"""Queries for plans."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from app.models import PartKind, Plan, PlanRole, PlanTrial, Task, TaskState, TrialPart


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """How far a step around the plan of a budget is.

    Args:
        ordinal: Of the budget.
        number: Of the step, from 0.
        done: Parts that are done.
        total: Parts queued so far; those after the probes are queued when these are done.
        done_work: Of these, in float passes over the samples, as reckoned.
        total_work: Likewise.
    """

    ordinal: int
    number: int
    done: int
    total: int
    done_work: float
    total_work: float


def get(session: Session, plan_id: str) -> Plan | None:
    """A plan by its id."""
    return session.get(Plan, plan_id)


def of_job(session: Session, job_id: str, *roles: PlanRole) -> Sequence[Plan]:
    """A job's plans: requested ones in the order of their budgets, then baselines by size, then later ones by age."""
    order = case({role: i for i, role in enumerate(PlanRole)}, value=Plan.role)
    query = select(Plan).where(Plan.job_id == job_id).order_by(order, Plan.ordinal, Plan.created_at, Plan.id)
    if roles:
        query = query.where(Plan.role.in_(roles))
    return session.scalars(query).all()


def by_spec(session: Session, job_id: str, spec_sha256: str) -> Plan | None:
    """The job's plan for a specification, if there is one."""
    query = select(Plan).where(Plan.job_id == job_id, Plan.spec_sha256 == spec_sha256)
    return session.scalars(query).one_or_none()


def trials(session: Session, job_id: str, ordinal: int) -> Sequence[PlanTrial]:
    """The steps tried around the plan of a budget, in order."""
    query = select(PlanTrial).where(PlanTrial.job_id == job_id, PlanTrial.ordinal == ordinal)
    return session.scalars(query.order_by(PlanTrial.number)).all()


def tasks(session: Session, plan_id: str) -> Sequence[Task]:
    """The tasks that measure a plan."""
    return session.scalars(select(Task).where(Task.plan_id == plan_id)).all()


def steps(session: Session, job_ids: Sequence[str]) -> dict[str, list[StepCounts]]:
    """How far the last step around the plan of each budget is, of jobs that try any, by job."""
    done = Task.state == TaskState.DONE
    query = (
        select(
            TrialPart.job_id,
            TrialPart.ordinal,
            TrialPart.number,
            func.count().label("total"),
            func.count(case((done, 1))).label("done"),
            func.sum(case((done, TrialPart.work), else_=0.0)).label("done_work"),
            func.sum(TrialPart.work).label("total_work"),
        )
        .join(Task, Task.id == TrialPart.task_id)
        .where(TrialPart.job_id.in_(job_ids), TrialPart.kind != PartKind.START)
        .group_by(TrialPart.job_id, TrialPart.ordinal, TrialPart.number)
        .order_by(TrialPart.number)
    )
    last: dict[str, dict[int, StepCounts]] = defaultdict(dict)
    for job_id, *values in session.execute(query):
        ordinal, number, total, finished, done_work, total_work = values
        last[job_id][ordinal] = StepCounts(
            ordinal=ordinal,
            number=number,
            done=finished,
            total=total,
            done_work=done_work,
            total_work=total_work,
        )
    return {job_id: [by_budget[i] for i in sorted(by_budget)] for job_id, by_budget in last.items()}
