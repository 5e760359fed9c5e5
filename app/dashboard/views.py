"""What each page shows, read from the services in one session. No queries and no markup here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.dashboard import repository
from app.errors import NotFound
from app.jobs import service as jobs
from app.jobs.progress import Progress, progress_of
from app.kit.ids import is_id
from app.kit.pages import Cursor
from app.models import Job, JobState, Model, ModelState, Plan, PlanRole
from app.plans import repository as plans
from app.plans import service as plan_service
from app.plans.conclusion import measured_cost
from app.report import summary
from app.results import job_result, plan_json
from workers.contracts import ModelDescription

JOBS_PER_PAGE = 25
MODELS_PER_PAGE = 50


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """A job in the list. ``plan`` is that of its first budget, when there is one."""

    job: Job
    model: str
    progress: Progress
    plan: Plan | None
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class JobsView:
    """A page of the list of jobs."""

    rows: list[JobRow]
    next_cursor: str | None
    live: bool


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job's page.

    Args:
        job: The row.
        result: The result document, as far as it has come.
        progress: Of the current stage.
        plan: The plan that is looked at.
        tried: Plans for budgets tried later, newest first.
        averages: Smallest and largest average bits that the candidates allow.
        weights: Number of searched weights.
    """

    job: Job
    result: dict[str, Any]
    progress: Progress
    plan: dict[str, Any] | None
    tried: list[dict[str, Any]]
    averages: tuple[float, float]
    weights: int


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """A plan's page."""

    result: dict[str, Any]
    plan: dict[str, Any]


def jobs_view(
    session: Session, state: JobState | None, cursor: str | None, model_id: str | None = None
) -> JobsView:
    """Jobs, newest first."""
    page = jobs.list_jobs(session, limit=JOBS_PER_PAGE, cursor=cursor, state=state, model_id=model_id)
    rows = [_job_row(session, job) for job in page.jobs]
    return JobsView(
        rows=rows, next_cursor=page.next_cursor, live=any(not row.job.state.final for row in rows)
    )


def _job_row(session: Session, job: Job) -> JobRow:
    requested = plans.of_job(session, job.id, PlanRole.REQUESTED)
    plan = requested[0] if requested else None
    return JobRow(
        job=job,
        model=session.get_one(Model, job.model_id).name,
        progress=progress_of(session, job),
        plan=plan,
        cost=None if plan is None else measured_cost(plan, job.request["compare"]),
    )


def job_view(session: Session, job_id: str, plan_id: str | None) -> JobView:
    """A job, with the plan that is looked at.

    Raises:
        NotFound: There is no such job.
    """
    job = jobs.get_job(session, job_id)
    result = job_result(session, job)
    searched = [u for u in result["units"] if u["name"] not in set(job.request["exclude"])]
    candidates = job.request["candidates"]
    return JobView(
        job=job,
        result=result,
        progress=progress_of(session, job),
        plan=summary.featured(result, plan_id) or summary.featured(result),
        tried=_tried(session, job),
        averages=(min(candidates), max(candidates)),
        weights=sum(u["weights"] for u in searched),
    )


def plan_view(session: Session, plan_id: str) -> PlanView:
    """A plan and the job it belongs to.

    Raises:
        NotFound: There is no such plan.
    """
    plan = plan_service.get_plan(session, plan_id)
    job = jobs.get_job(session, plan.job_id)
    description = plan_service.job_description(session, job)
    return PlanView(result=job_result(session, job), plan=plan_json(plan, description))


def _tried(session: Session, job: Job) -> list[dict[str, Any]]:
    description = plan_service.job_description(session, job)
    found = plan_service.list_plans(session, job, (PlanRole.ADHOC,))
    return [plan_json(plan, description) for plan in found][::-1]


@dataclass(frozen=True, kw_only=True)
class ModelsView:
    """A page of the list of models."""

    rows: Sequence[Model]
    next_cursor: str | None
    live: bool


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """A model's page, with its newest jobs."""

    model: Model
    description: ModelDescription | None
    jobs: JobsView


def models_view(session: Session, cursor: str | None) -> ModelsView:
    """Models, newest first.

    Raises:
        InvalidRequest: The cursor is not one of ours.
    """
    after = None if cursor is None else Cursor.decode(cursor)
    found = repository.models(session, limit=MODELS_PER_PAGE + 1, cursor=after)
    rows = found[:MODELS_PER_PAGE]
    more = len(found) > MODELS_PER_PAGE
    return ModelsView(
        rows=rows,
        next_cursor=Cursor(created_at=rows[-1].created_at, id=rows[-1].id).encode() if more else None,
        live=any(model.state is ModelState.INSPECTING for model in rows),
    )


def model_view(session: Session, model_id: str) -> ModelView:
    """A model with what intake found in it.

    Raises:
        NotFound: There is no such model.
    """
    model = repository.model(session, model_id) if is_id("mdl", model_id) else None
    if model is None:
        raise NotFound(f"there is no model {model_id!r}", "model", model_id)
    return ModelView(
        model=model,
        description=None if model.description is None else ModelDescription.from_json(model.description),
        jobs=jobs_view(session, None, None, model_id=model.id),
    )
