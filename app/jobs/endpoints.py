"""`/v1/jobs`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.dependencies import Ctx
from app.jobs import service
from app.jobs.events import already_done, job_events
from app.jobs.progress import progress_of, progress_of_all
from app.jobs.schemas import JobCreate, JobFilter, JobList, JobRead
from app.jobs.watch import Snapshot, job_read, snapshot
from app.kit.http import etag_matches, preferred_wait, problem_responses
from app.results import job_result

router = APIRouter(prefix="/jobs", tags=["jobs"])


async def _wait_s(
    request: Request,
    prefer: Annotated[  # noqa: ARG001 - read from the request: there may be several
        str | None,
        Header(
            description="`wait=N`: answer when something differs from `If-None-Match` (without it: when the job is "
            "final), at the latest after N seconds (60 at most).",
            examples=["wait=30"],
        ),
    ] = None,
) -> float | None:
    """Seconds that the client is willing to wait."""
    return preferred_wait(request.headers.getlist("Prefer"))


Key = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="The same key with the same body gives the same job; with another body it is refused.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]
_ETAG = {
    "ETag": {
        "schema": {"type": "string"},
        "description": "Changes with state and progress; for `If-None-Match`.",
    }
}
_LOCATION = {"Location": {"schema": {"type": "string"}, "description": "Where the job is."}}


@router.post(
    "",
    status_code=202,
    summary="Submit a job",
    responses=problem_responses(404, 409, 413) | {202: {"headers": _LOCATION | _ETAG}},
)
def create_job(
    ctx: Ctx, create: JobCreate, request: Request, response: Response, idempotency_key: Key = None
) -> JobRead:
    """Queue a search: estimate and measure what is not known yet, solve for each budget, measure the plans.

    Everything is checked against the model and the data before anything is stored. With an `Idempotency-Key` the request
    may be repeated: the same body gets the same job.
    """
    with ctx.database.write() as session:
        job = service.create_job(session, create, ctx.settings, idempotency_key)
    seen = snapshot(ctx.database, job.id)
    response.headers["Location"] = request.url_for("read_job", job_id=job.id).path
    response.headers["ETag"] = seen.etag
    return seen.job


@router.get("", summary="List jobs", responses=problem_responses())
def list_jobs(
    ctx: Ctx,
    wanted: Annotated[JobFilter, Query()],
) -> JobList:
    """Jobs, newest first. Pages stay in place while jobs are added."""
    with ctx.database.read() as session:
        page = service.list_jobs(
            session,
            limit=wanted.limit,
            cursor=wanted.cursor,
            state=wanted.state,
            model_id=wanted.model,
            owner=wanted.owner,
        )
        progress = progress_of_all(session, page.jobs)
        items = [job_read(job, progress[job.id].to_json()) for job in page.jobs]
    return JobList(items=items, next_cursor=page.next_cursor)


@router.get(
    "/{job_id}",
    summary="Read a job, or wait for it",
    response_model=JobRead,
    responses=problem_responses(404)
    | {200: {"headers": _ETAG}, 304: {"description": "Nothing has changed since `If-None-Match`."}},
)
async def read_job(
    ctx: Ctx,
    job_id: str,
    response: Response,
    wait_s: Annotated[float | None, Depends(_wait_s)],
    if_none_match: Annotated[str | None, Header(description="ETag of what is known.")] = None,
) -> Response | JobRead:
    """The job as it stands, with progress and time left."""
    if wait_s is None:
        seen = await run_in_threadpool(snapshot, ctx.database, job_id)
    else:
        seen = await _wait(ctx, job_id, if_none_match, wait_s)
    headers = {"ETag": seen.etag, "Vary": "Prefer", "Cache-Control": "no-cache"}
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    if etag_matches(if_none_match, seen.etag):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return seen.job


async def _wait(ctx: Ctx, job_id: str, if_none_match: str | None, wait_s: float) -> Snapshot:
    """Wait for a change from what the client knows; at once if it knows something else."""
    seen = await ctx.watcher.look(job_id)
    if if_none_match is not None and not etag_matches(if_none_match, seen.etag):
        return seen
    known = None if if_none_match is None else seen.etag
    return await ctx.watcher.wait(job_id, known, wait_s)


@router.post("/{job_id}/cancel", summary="Cancel a job", responses=problem_responses(404, 409))
def cancel_job(ctx: Ctx, job_id: str) -> JobRead:
    """End a job that has not ended. What it has measured is kept and used by later jobs."""
    with ctx.database.write() as session:
        job = service.cancel_job(session, job_id)
        return job_read(job, progress_of(session, job).to_json())


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=StreamingResponse,
    responses=problem_responses(404)
    | {
        200: {
            "description": "Server-sent events `progress`, `state` and, at last, `done`.",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": 'event: progress\nid: 3f2a\ndata: {"stage": "measure", "done": 120, "total": 300, '
                    '"unit": "entries", "fraction": 0.41, "eta_seconds": 73.0, "elapsed_seconds": 51.2}\n\n',
                }
            },
        },
        204: {"description": "The client knows the end already (`Last-Event-ID`)."},
    },
)
async def follow_job(
    ctx: Ctx,
    job_id: str,
    last_event_id: Annotated[str | None, Header(description="Id of the last event received.")] = None,
) -> Response:
    """Server-sent events until the job is final; a client that reconnects goes on where it was."""
    first = await run_in_threadpool(snapshot, ctx.database, job_id)
    if already_done(first, last_event_id):
        return Response(status_code=204)
    return StreamingResponse(
        job_events(ctx.watcher, first, last_event_id),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/{job_id}/result", summary="Read a job's result", responses=problem_responses(404))
def read_result(ctx: Ctx, job_id: str) -> dict[str, object]:
    """The result document; while the job runs, with what is there so far."""
    with ctx.database.read() as session:
        return job_result(session, service.get_job(session, job_id))
