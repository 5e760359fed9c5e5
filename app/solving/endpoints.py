"""`/v1/solve`: stateless; nothing is stored."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from app.errors import InvalidRequest, UnsupportedMedia
from app.kit.http import problem_responses
from app.solving import service
from app.solving.schemas import (
    ERRORS,
    MAX_TIME_LIMIT_S,
    PRICES,
    RISK,
    TARGET,
    SolveCreate,
    SolveRead,
    TableRow,
    WidthCountCreate,
)
from app.solving.table import from_csv, from_records
from solver import WidthCount

router = APIRouter(tags=["solve"])


def _json_schema() -> dict[str, Any]:
    """The body's schema in one piece: the framework does not collect the parts of a schema given by hand."""
    schema = SolveCreate.model_json_schema()
    parts = schema.pop("$defs")
    schema["properties"]["rows"]["items"] = parts[TableRow.__name__]
    schema["properties"]["width_counts"]["items"] = parts[WidthCountCreate.__name__]
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


class CsvQuery(BaseModel):
    """What a CSV body cannot say. With a JSON body these are members of it, and not looked at here."""

    model_config = ConfigDict(extra="forbid")

    budget: list[str] = Field(default=[], max_length=256, description="May be repeated.")
    limit: list[str] = Field(default=[], max_length=64, description="`column=value`; may be repeated.")
    pin: list[str] = Field(default=[], max_length=10_000, description="`unit=candidate`; may be repeated.")
    weights: int | None = Field(default=None, ge=1, lt=1 << 53)
    float_bits: int | None = Field(default=None, ge=1, lt=1 << 60)
    frontier: bool = Field(default=False, description="Also answer the plans of every size.")
    prices: bool = Field(default=False, description=PRICES)
    target_cost: float | None = Field(default=None, allow_inf_nan=False, description=TARGET)
    standard_errors: str | None = Field(default=None, description=ERRORS)
    risk: float = Field(default=0.0, ge=0, allow_inf_nan=False, description=RISK)
    max_widths: int | None = Field(default=None, ge=1, description="Most different bit-widths in a plan.")
    time_limit_s: float = Field(
        default=10.0, gt=0, le=MAX_TIME_LIMIT_S, description="For each budget, in seconds."
    )


@router.post(
    "/solve",
    summary="Solve a table measured elsewhere",
    openapi_extra=_BODY,
    response_model_exclude_none=False,
    responses=problem_responses(400, 413, 415),
)
async def solve(request: Request, query: Annotated[CsvQuery, Query()]) -> SolveRead:
    """A table of unit, candidate, cost and size (and any further rows) with budgets: plans with their certificates.

    The body is JSON, or CSV with the columns `unit,candidate,cost,size_bits` and any further numeric column.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "text/csv":
        asked = await run_in_threadpool(_from_csv, await request.body(), query)
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


def _from_csv(body: bytes, query: CsvQuery) -> service.SolveRequest:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the table is not UTF-8: {error}", "body", None, "UTF-8 text") from None
    return service.SolveRequest(
        table=from_csv(text.splitlines()),
        budgets=query.budget,
        limits={name: _number(value) for name, value in _pairs("limit", query.limit)},
        pins=dict(_pairs("pin", query.pin)),
        weights=query.weights,
        float_bits=query.float_bits,
        max_widths=query.max_widths,
        with_frontier=query.frontier,
        with_prices=query.prices,
        target_cost=query.target_cost,
        errors=query.standard_errors,
        risk=query.risk,
        time_limit_s=query.time_limit_s,
    )


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
        bounds=create.bounds,
        width_counts=[WidthCount(**rule.model_dump()) for rule in create.width_counts],
        max_widths=create.max_widths,
        weights=create.weights,
        float_bits=create.float_bits,
        with_frontier=create.frontier,
        with_prices=create.prices,
        target_cost=create.target_cost,
        errors=create.standard_errors,
        risk=create.risk,
        time_limit_s=create.time_limit_s,
    )


def _pairs(name: str, texts: list[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
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
