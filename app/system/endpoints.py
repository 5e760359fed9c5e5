"""`/healthz`, `/readyz` and `/metrics`, at the root, where probes look, and under `/v1`."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from app.dependencies import Ctx
from app.system import service

router = APIRouter(tags=["system"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class CheckRead(BaseModel):
    """One thing that has to work."""

    ok: bool
    required: bool
    detail: str


class Readiness(BaseModel):
    """Whether requests can be answered. ``checks``: database, store, dispatcher."""

    status: Literal["ready", "not ready"]
    checks: dict[str, CheckRead]


# Many probes ask by HEAD; the server leaves the body out.
@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive?")
async def read_health() -> Health:
    """Answers as long as the process runs; looks at nothing else."""
    return Health()


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="Can requests be answered?",
    responses={503: {"model": Readiness, "description": "Not just now."}},
)
async def read_readiness(ctx: Ctx, response: Response) -> Readiness:
    """Database reachable and migrated, store writable; whether a dispatcher is at work is told, but not required."""
    checks = await run_in_threadpool(service.check, ctx.database, ctx.store)
    ready = all(check.ok for check in checks if check.required)
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return Readiness(
        status="ready" if ready else "not ready",
        checks={c.name: CheckRead(ok=c.ok, required=c.required, detail=c.detail) for c in checks},
    )


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def read_metrics(ctx: Ctx) -> Response:
    """Jobs by state, tasks by kind and state, queue depth, measurements, time to answer by route."""
    return Response(ctx.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
