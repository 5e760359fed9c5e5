"""`/v1/models`."""

import asyncio
import time
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from app import problems
from app.dependencies import Context, Ctx
from app.jobs.schemas import Name
from app.kit.http import ProblemResponse, problem_responses
from app.modelfiles import service
from app.modelfiles.schemas import ModelFilter, ModelList, ModelRead, ModelSummary
from app.modelfiles.service import Registered
from app.models import Model, ModelState
from app.uploads import ARRIVAL_BODY, Announced, announced, arriving

router = APIRouter(prefix="/models", tags=["models"])

_LOCATION = {"Location": {"schema": {"type": "string"}, "description": "Where the model is."}}
_FIRST_LOOK_S, _LAST_LOOK_S = 0.02, 0.5


@router.post(
    "",
    status_code=201,
    summary="Register a model",
    response_model=ModelRead,
    responses=problem_responses(400, 413, 415, 500, 507)
    | {
        200: {
            "model": ModelRead,
            "description": "The same content was registered before.",
            "headers": _LOCATION,
        },
        201: {"headers": _LOCATION},
        202: {"model": ModelRead, "description": "Stored, still being inspected.", "headers": _LOCATION},
    },
    openapi_extra={"requestBody": ARRIVAL_BODY},
)
async def create_model(
    ctx: Ctx,
    request: Request,
    say: Annotated[Announced, Depends(announced)],
    name: Annotated[Name, Query(description="For people; the hash when empty.")] = "",
) -> Response:
    """Upload a `.pt2` file or a packed Hugging Face folder as the body (any size, streamed), or name one in an allowed location.

    A worker reads the file before the answer, if it does so in time; a file that it refuses is not kept.
    """
    async with arriving(request, say, ctx.store, ctx.settings) as arrived:
        registered = await run_in_threadpool(service.register, ctx.database, ctx.store, arrived, name)
    return await _inspected(ctx, request, registered)


@router.get("", summary="List models", responses=problem_responses())
def list_models(ctx: Ctx, wanted: Annotated[ModelFilter, Query()]) -> ModelList:
    """Models, newest first."""
    with ctx.database.read() as session:
        page = service.list_models(session, limit=wanted.limit, cursor=wanted.cursor, state=wanted.state)
        return ModelList(items=[_summary(m) for m in page.models], next_cursor=page.next_cursor)


@router.get("/{model_id}", summary="Read a model", responses=problem_responses(404))
def read_model(ctx: Ctx, model_id: str) -> ModelRead:
    """A model: its units with shape, weights, operator and MACs, and what cannot be quantized and why."""
    with ctx.database.read() as session:
        return _read(service.get_model(session, model_id))


async def _inspected(ctx: Context, request: Request, registered: Registered) -> Response:
    """Wait for the inspection, and answer with what came of it."""
    deadline = time.monotonic() + ctx.settings.inspect_wait_s
    pause_s = _FIRST_LOOK_S
    while True:
        model = await run_in_threadpool(_look, ctx, registered.id)
        if model is None or model.state is ModelState.REFUSED:
            return await run_in_threadpool(_refuse, ctx, request, registered.id)
        if model.state is not ModelState.INSPECTING or time.monotonic() >= deadline:
            break
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_LOOK_S)
    status = HTTPStatus.ACCEPTED
    if model.state is ModelState.READY:
        status = HTTPStatus.CREATED if registered.new else HTTPStatus.OK
    location = request.url_for("read_model", model_id=model.id).path
    return JSONResponse(
        _read(model).model_dump(mode="json"), status_code=status, headers={"Location": location}
    )


def _look(ctx: Context, model_id: str) -> Model | None:
    with ctx.database.read() as session:
        return service.find_model(session, model_id)


def _refuse(ctx: Context, request: Request, model_id: str) -> Response:
    """Take a refused model out again and answer with the reason, as the worker told it."""
    problem = service.drop_refused(ctx.database, ctx.store, model_id) or problems.make(
        "model-refused",
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "the same file, sent by another request at this moment, was refused; that request was told why",
    )
    problem = {**problem, "instance": request.url.path}
    return ProblemResponse(problem, status_code=problem["status"])


def _summary(model: Model) -> ModelSummary:
    description: dict[str, Any] = model.description or {}
    return ModelSummary(
        id=model.id,
        name=model.name,
        sha256=model.sha256,
        size_bytes=model.size_bytes,
        location=model.location,
        state=model.state,
        created_at=model.created_at,
        units=len(description["units"]) if description else None,
        weights=description.get("weights"),
    )


def _read(model: Model) -> ModelRead:
    empty: dict[str, Any] = {
        "inputs": [],
        "outputs": [],
        "batch_size": None,
        "units": [],
        "unsupported": [],
        "weights": None,
        "float_bits": None,
        "unit_float_bits": None,
    }
    return ModelRead(
        id=model.id,
        name=model.name,
        sha256=model.sha256,
        size_bytes=model.size_bytes,
        location=model.location,
        state=model.state,
        created_at=model.created_at,
        problem=model.problem,
        **(model.description or empty),
    )
