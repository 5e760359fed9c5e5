"""`/v1/jobs/{id}/plans` and `/v1/plans/{id}`."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.dependencies import Ctx
from app.jobs.rules import check_budget_counts
from app.jobs.service import get_job
from app.kit.http import problem_responses
from app.models import PlanRole
from app.plans import service
from app.plans.schemas import PlanCreate, PlanList, PlanRead
from app.results import plan_json

router = APIRouter(tags=["plans"])

_LOCATION = {"Location": {"schema": {"type": "string"}, "description": "Where the plan is."}}


@router.post(
    "/jobs/{job_id}/plans",
    status_code=201,
    summary="Solve for another budget",
    responses=problem_responses(404, 409, 413)
    | {
        200: {"model": PlanRead, "description": "The same was asked for before.", "headers": _LOCATION},
        201: {"headers": _LOCATION},
    },
)
def create_plan(ctx: Ctx, job_id: str, create: PlanCreate, request: Request, response: Response) -> PlanRead:
    """A new budget, pin, tie or limit on the costs that are known: solved while the client waits, in milliseconds."""
    counts = None if create.budget_counts is None else check_budget_counts(create.budget_counts)
    change = service.PlanChange(**create.model_dump(exclude={"budget_counts"}), budget_counts=counts)
    created = service.create_plan(ctx.database, job_id, change)
    response.status_code = 201 if created.new else 200
    response.headers["Location"] = request.url_for("read_plan", plan_id=created.plan.id).path
    return read_plan(ctx, created.plan.id)


@router.get("/jobs/{job_id}/plans", summary="List a job's plans", responses=problem_responses(404))
def list_plans(
    ctx: Ctx,
    job_id: str,
    role: Annotated[PlanRole | None, Query(description="Only plans of this role.")] = None,
) -> PlanList:
    """The plans of the job's budgets, those made with interactions, the uniform baselines, and those asked for later."""
    with ctx.database.read() as session:
        job = get_job(session, job_id)
        description = service.job_description(session, job)
        roles = tuple(PlanRole) if role is None else (role,)
        found = service.list_plans(session, job, roles)
        return PlanList(items=[PlanRead.model_validate(plan_json(p, description)) for p in found])


@router.get("/plans/{plan_id}", summary="Read a plan", responses=problem_responses(404))
def read_plan(ctx: Ctx, plan_id: str) -> PlanRead:
    """A plan with its certificate, its prediction and, once measured, what it costs."""
    with ctx.database.read() as session:
        plan = service.get_plan(session, plan_id)
        description = service.job_description(session, get_job(session, plan.job_id))
        return PlanRead.model_validate(plan_json(plan, description))
