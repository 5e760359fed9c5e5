"""The addresses of the pages. Each reads in one session and renders one template."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from markupsafe import Markup

from app.dashboard import assets, views
from app.dashboard.rendering import PageRoute, page
from app.dependencies import Ctx
from app.figures import bits_per_unit, figures_json, job_figures
from app.jobs import service as jobs
from app.models import JobState
from app.report.page import render_report
from app.results import job_result

router = APIRouter(include_in_schema=False, route_class=PageRoute)
router.include_router(assets.router)

_UNSAFE_IN_A_FILE_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@router.get("/")
def show_jobs(
    context: Ctx,
    request: Request,
    state: Annotated[str, Query(max_length=16)] = "",
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> HTMLResponse:
    """The list of jobs, newest first."""
    chosen = JobState(state) if state in {s.value for s in JobState} else None
    with context.database.read() as session:
        return page(
            "jobs.html",
            view=views.jobs_view(session, chosen, cursor),
            states=list(JobState),
            chosen=chosen,
            first=cursor is None,
            origin=str(request.base_url).rstrip("/"),
        )


@router.get("/jobs")
def redirect_to_jobs() -> RedirectResponse:
    """The list is the front page."""
    return RedirectResponse("/", status_code=308)


@router.get("/jobs/{job_id}")
def show_job(
    context: Ctx, job_id: str, plan: Annotated[str | None, Query(max_length=64)] = None
) -> HTMLResponse:
    """A job: live progress, then its result."""
    with context.database.read() as session:
        view = views.job_view(session, job_id, plan)
    figures = job_figures(view.result, view.plan, view.tried)
    return page(
        "job.html",
        view=view,
        result=view.result,
        plan=view.plan,
        figures=figures,
        figure_data=Markup(figures_json(figures)),  # noqa: S704 - escaped by figures_json
        file_name=_file_name(view.result),
    )


@router.get("/jobs/{job_id}/report")
def download_report(context: Ctx, job_id: str) -> Response:
    """The result as one HTML file, to keep and to pass on."""
    with context.database.read() as session:
        result = job_result(session, jobs.get_job(session, job_id))
    headers = {
        "Content-Disposition": f'attachment; filename="{_file_name(result)}.html"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(render_report(result), headers=headers)


@router.get("/plans/{plan_id}")
def show_plan(context: Ctx, plan_id: str) -> HTMLResponse:
    """A plan: certificate in words, bits of each weight tensor."""
    with context.database.read() as session:
        view = views.plan_view(session, plan_id)
    figures = {"bits": bits_per_unit(view.result, view.plan)} if view.plan["choices"] else {}
    return page(
        "plan.html",
        result=view.result,
        plan=view.plan,
        figures=figures,
        figure_data=Markup(figures_json(figures)),  # noqa: S704 - escaped by figures_json
    )


@router.get("/models")
def show_models(context: Ctx, cursor: Annotated[str | None, Query(max_length=200)] = None) -> HTMLResponse:
    """The list of models, newest first."""
    with context.database.read() as session:
        return page("models.html", view=views.models_view(session, cursor), first=cursor is None)


@router.get("/models/{model_id}")
def show_model(context: Ctx, model_id: str) -> HTMLResponse:
    """A model: what can be quantized, what cannot, and why."""
    with context.database.read() as session:
        return page("model.html", view=views.model_view(session, model_id))


def _file_name(result: dict[str, Any]) -> str:
    """A file name from the model's name and the job's id that no file system and no header stumbles over."""
    name = _UNSAFE_IN_A_FILE_NAME.sub("-", result["model"]["name"]).strip("-.")[:60]
    return f"bitwright-{name or 'model'}-{result['job']}"
