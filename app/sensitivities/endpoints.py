"""`/v1/jobs/{id}/sensitivities` and `/v1/jobs/{id}/frontier`."""

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from app.dependencies import Ctx
from app.kit.http import problem_responses
from app.sensitivities import service
from app.sensitivities.schemas import Frontier, SensitivityList

router = APIRouter(prefix="/jobs", tags=["sensitivities"])


class TableFormat(StrEnum):
    """How a table is written."""

    JSON = "json"
    """With the number of entries that are still missing."""
    CSV = "csv"
    """RFC 4180, one header row."""


@router.get(
    "/{job_id}/sensitivities",
    summary="Read what candidates cost",
    response_model=SensitivityList,
    responses=problem_responses(404)
    | {200: {"content": {"text/csv": {"schema": {"type": "string"}, "example": "unit,bits,scheme,…"}}}},
)
def read_sensitivities(
    ctx: Ctx,
    job_id: str,
    response: Response,
    table_format: Annotated[
        TableFormat | None, Query(alias="format", description="Wins over `Accept`.")
    ] = None,
    accept: Annotated[str, Header()] = "*/*",
) -> Response | SensitivityList:
    """Each (unit, candidate) measured or estimated so far: mean, standard error, samples, seconds; as JSON or CSV."""
    wants_csv = "text/csv" in accept and "application/json" not in accept
    with ctx.database.read() as session:
        if table_format is TableFormat.CSV or (table_format is None and wants_csv):
            headers = {
                "Content-Disposition": f'attachment; filename="{job_id}-sensitivities.csv"',
                "Vary": "Accept",
            }
            text = service.read_csv(session, job_id)
            return Response(text, media_type="text/csv; charset=utf-8; header=present", headers=headers)
        response.headers["Vary"] = "Accept"
        return service.read(session, job_id)


@router.get("/{job_id}/frontier", summary="Read the frontier", responses=problem_responses(404, 409))
def read_frontier(ctx: Ctx, job_id: str) -> Frontier:
    """The best predicted cost at every size, under the job's pins and ties; when all that the job asks for is known."""
    with ctx.database.read() as session:
        return service.read_frontier(session, job_id)
