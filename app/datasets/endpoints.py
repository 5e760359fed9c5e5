"""`/v1/datasets`."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.datasets import service
from app.datasets.schemas import DatasetFilter, DatasetList, DatasetRead, TensorRead
from app.dependencies import Ctx
from app.jobs.schemas import Name
from app.kit.http import problem_responses
from app.models import Dataset
from app.uploads import ARRIVAL_BODY, Announced, announced, arriving

router = APIRouter(prefix="/datasets", tags=["datasets"])

_LOCATION = {"Location": {"schema": {"type": "string"}, "description": "Where the dataset is."}}


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What the query says of a new dataset."""

    name: Annotated[Name, Query(description="For people; the hash when empty.")] = ""
    model: Annotated[
        str | None, Query(max_length=64, description="Id of a model whose inputs the data must fit.")
    ] = None


@router.post(
    "",
    status_code=201,
    summary="Register a dataset",
    responses=problem_responses(400, 404, 409, 413, 415, 507)
    | {
        200: {
            "model": DatasetRead,
            "description": "The same content was registered before.",
            "headers": _LOCATION,
        },
        201: {"headers": _LOCATION},
    },
    openapi_extra={"requestBody": ARRIVAL_BODY},
)
async def create_dataset(
    ctx: Ctx,
    request: Request,
    response: Response,
    say: Annotated[Announced, Depends(announced)],
    label: Annotated[Labelling, Depends()],
) -> DatasetRead:
    """Upload a safetensors file as the body (any size, streamed), or name one in an allowed location.

    Its keys are the model's input names, the first axis of each is the samples'; `labels` may come with them.
    """
    async with arriving(request, say, ctx.store, ctx.settings) as arrived:
        registered = await run_in_threadpool(
            service.register, ctx.database, ctx.store, arrived, label.name, label.model
        )
    response.status_code = 201 if registered.new else 200
    response.headers["Location"] = request.url_for("read_dataset", dataset_id=registered.id).path
    return await run_in_threadpool(read_dataset, ctx, registered.id)


@router.get("", summary="List datasets", responses=problem_responses())
def list_datasets(ctx: Ctx, wanted: Annotated[DatasetFilter, Query()]) -> DatasetList:
    """Datasets, newest first."""
    with ctx.database.read() as session:
        page = service.list_datasets(session, limit=wanted.limit, cursor=wanted.cursor)
        return DatasetList(items=[_read(d) for d in page.datasets], next_cursor=page.next_cursor)


@router.get("/{dataset_id}", summary="Read a dataset", responses=problem_responses(404))
def read_dataset(ctx: Ctx, dataset_id: str) -> DatasetRead:
    """A dataset: its tensors with type and shape, and the number of samples."""
    with ctx.database.read() as session:
        return _read(service.get_dataset(session, dataset_id))


def _read(dataset: Dataset) -> DatasetRead:
    return DatasetRead(
        id=dataset.id,
        name=dataset.name,
        sha256=dataset.sha256,
        size_bytes=dataset.size_bytes,
        location=dataset.location,
        samples=dataset.samples,
        tensors={name: TensorRead.model_validate(tensor) for name, tensor in dataset.tensors.items()},
        created_at=dataset.created_at,
    )
