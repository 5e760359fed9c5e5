"""`/v1/solve`: stateless; nothing is stored."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from app.errors import InvalidRequest, UnsupportedMedia
from app.kit.http import problem_responses
from app.solving import service
from app.solving.schemas import MAX_TIME_LIMIT_S, SolveCreate, SolveRead, TableRow
from app.solving.table import from_csv, from_records

router = APIRouter(tags=["solve"])


def _json_schema() -> dict[str, Any]:
    """The body's schema in one piece: the framework does not collect the parts of a schema given by hand."""
    schema = SolveCreate.model_json_schema()
    schema["properties"]["rows"]["items"] = schema.pop("$defs")[TableRow.__name__]
    return schema


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _json_schema()},
            "text/csv": {
                "schema": {"type": "string"},
                "example": "unit,candidate,cost,size_bits\nconv1,4,0.5,400\n",
            },
        },
    }
}


@router.post(
    "/solve",
    summary="Solve a table measured elsewhere",
    openapi_extra=_BODY,
    response_model_exclude_none=False,
    responses=problem_responses(400, 413, 415),
)
async def solve(  # noqa: PLR0913, PLR0917 - one parameter for each thing that a CSV body cannot say
    request: Request,
    budget: Annotated[
        list[str] | None, Query(max_length=256, description="CSV only; may be repeated.")
    ] = None,
    limit: Annotated[list[str] | None, Query(max_length=64, description="CSV only: `column=value`.")] = None,
    pin: Annotated[
        list[str] | None, Query(max_length=10_000, description="CSV only: `unit=candidate`.")
    ] = None,
    weights: Annotated[int | None, Query(ge=1, lt=1 << 53)] = None,
    float_bits: Annotated[int | None, Query(ge=1, lt=1 << 60)] = None,
    frontier: Annotated[bool, Query(description="CSV only: also answer the plans of every size.")] = False,  # noqa: FBT002
    time_limit_s: Annotated[
        float, Query(gt=0, le=MAX_TIME_LIMIT_S, description="CSV only, in seconds.")
    ] = 10.0,
) -> SolveRead:
    """A table of unit, candidate, cost and size (and any further rows) with budgets: plans with their certificates.

    The body is JSON, or CSV with the columns `unit,candidate,cost,size_bits` and any further numeric column.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "text/csv":
        options = {
            "budgets": budget or [],
            "limits": {name: _number(value) for name, value in _pairs("limit", limit)},
            "pins": dict(_pairs("pin", pin)),
            "weights": weights,
            "float_bits": float_bits,
            "with_frontier": frontier,
            "time_limit_s": time_limit_s,
        }
        asked = await run_in_threadpool(_from_csv, await request.body(), options)
    elif media_type == "application/json":
        asked = await run_in_threadpool(_from_json, await request.body())
    else:  # before the body is read: bodies of unknown type are not limited in size
        raise UnsupportedMedia(
            f"a body of type {media_type or 'unknown'!r} cannot be read",
            "Content-Type",
            media_type,
            ["application/json", "text/csv"],
        )
    return SolveRead.model_validate(await run_in_threadpool(service.solve_table, asked))


def _from_csv(body: bytes, options: dict[str, Any]) -> service.SolveRequest:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the table is not UTF-8: {error}", "body", None, "UTF-8 text") from None
    return service.SolveRequest(table=from_csv(text.splitlines()), **options)


def _from_json(body: bytes) -> service.SolveRequest:
    try:
        create = SolveCreate.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        shown = str(first.get("input"))[:200]
        raise InvalidRequest(f"{where}: {first['msg']}", where, shown, first["msg"]) from None
    return service.SolveRequest(
        table=from_records([row.model_dump() for row in create.rows]),
        budgets=create.budgets,
        limits=create.limits,
        pins={unit: str(candidate) for unit, candidate in create.pins.items()},
        ties=create.ties,
        weights=create.weights,
        float_bits=create.float_bits,
        with_frontier=create.frontier,
        time_limit_s=create.time_limit_s,
    )


def _pairs(name: str, texts: list[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for text in texts or []:
        key, equals, value = text.rpartition("=")
        if not equals or not key or not value:
            raise InvalidRequest(f"{name} {text!r} is not NAME=VALUE", name, text, "NAME=VALUE")
        pairs.append((key, value))
    return pairs


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"the limit {text!r} is no number", "limit", text, "COLUMN=NUMBER") from None
