"""Queries for plans."""

from collections.abc import Sequence

from sqlalchemy import case, select
from sqlalchemy.orm import Session

from app.models import Plan, PlanRole, PlanTrial, Task


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
