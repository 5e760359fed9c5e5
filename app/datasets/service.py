"""Datasets: checked when they arrive, registered once by content."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.arrivals import Arrived, place
from app.artifacts import ArtifactStore
from app.datasets import repository
from app.datasets.contents import read_contents
from app.db import Database
from app.errors import ModelNotReady, NotFound
from app.kit.ids import is_id, new_id
from app.kit.pages import Cursor
from app.modelfiles.service import get_model
from app.models import Dataset, ModelState
from workers.contracts import ModelDescription


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A dataset's id, and whether this request brought it."""

    id: str
    new: bool


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some datasets, and where the next ones begin."""

    datasets: Sequence[Dataset]
    next_cursor: str | None


def register(
    database: Database, store: ArtifactStore, arrived: Arrived, name: str, model_id: str | None = None
) -> Registered:
    """Check a data file and store it with its row; a content that is known is not stored again.

    Args:
        database: Where the row goes.
        store: Where the file goes.
        arrived: The file.
        name: For people.
        model_id: A model whose inputs the data must fit.

    Raises:
        NotFound: No such model.
        ModelNotReady: The model is not inspected, or was refused.
        DatasetRefused: The file breaks a rule of the format, or does not fit the model.
        StorageFull: There is no room for the file.
    """
    description = None if model_id is None else _description(database, model_id)
    contents = read_contents(arrived.path, description)
    with place(database, store, arrived) as session:
        dataset = repository.by_sha256(session, arrived.sha256)
        new = dataset is None
        if dataset is None:
            dataset = Dataset(
                id=new_id("dat"),
                sha256=arrived.sha256,
                size_bytes=arrived.size_bytes,
                name=name or arrived.sha256[:12],
                location=arrived.location,
                samples=contents.samples,
                tensors=contents.tensors,
            )
            session.add(dataset)
        elif arrived.incoming is not None:
            dataset.location = (
                None  # the store has it now, whatever becomes of the file it was registered from
            )
        return Registered(id=dataset.id, new=new)


def get_dataset(session: Session, dataset_id: str) -> Dataset:
    """A dataset by its id.

    Raises:
        NotFound: There is none.
    """
    dataset = repository.get(session, dataset_id) if is_id("dat", dataset_id) else None
    if dataset is None:
        raise NotFound(f"there is no dataset {dataset_id!r}", "dataset", dataset_id)
    return dataset


def list_datasets(session: Session, *, limit: int, cursor: str | None = None) -> Page:
    """A page of datasets, newest first.

    Raises:
        InvalidRequest: The cursor is not one of ours.
    """
    after = None if cursor is None else Cursor.decode(cursor)
    datasets = repository.page(session, limit=limit + 1, cursor=after)
    shown = datasets[:limit]
    more = len(datasets) > limit
    last = Cursor(created_at=shown[-1].created_at, id=shown[-1].id).encode() if more else None
    return Page(datasets=shown, next_cursor=last)


def _description(database: Database, model_id: str) -> ModelDescription:
    with database.read() as session:
        model = get_model(session, model_id)
        if model.state is not ModelState.READY or model.description is None:
            raise ModelNotReady(
                f"model {model.id} is {model.state.value}",
                "model",
                model.id,
                "a model whose state is ready",
                {"state": model.state.value, "problem": model.problem},
            )
        return ModelDescription.from_json(model.description)
