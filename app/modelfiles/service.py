"""Models: registered once by content, inspected by a worker, dropped when refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.arrivals import Arrived, place
from app.artifacts import ArtifactStore
from app.db import Database
from app.errors import NotFound
from app.kit.ids import is_id, new_id
from app.kit.locks import lock_name
from app.kit.pages import Cursor
from app.modelfiles import repository
from app.models import Model, ModelState, Task, TaskKind, TaskState


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A model's id, and whether this request brought it."""

    id: str
    new: bool


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some models, and where the next ones begin."""

    models: Sequence[Model]
    next_cursor: str | None


def register(database: Database, store: ArtifactStore, arrived: Arrived, name: str) -> Registered:
    """Store a model file with its row and the task to inspect it; a content that is known is not stored again.

    A refused model that comes again is inspected again: the rules may have changed.

    Raises:
        StorageFull: There is no room for the file.
    """
    with place(database, store, arrived) as session:
        model = repository.by_sha256(session, arrived.sha256)
        new = model is None
        if model is None:
            model = Model(
                id=new_id("mdl"),
                sha256=arrived.sha256,
                size_bytes=arrived.size_bytes,
                name=name or arrived.sha256[:12],
                location=arrived.location,
                state=ModelState.INSPECTING,
            )
            session.add(model)
            session.flush()
        elif arrived.incoming is not None:
            model.location = None  # the store has it now, whatever becomes of the file it was registered from
        if new or model.state is ModelState.REFUSED:
            model.state = ModelState.INSPECTING
            model.problem = None
            session.add(
                Task(id=new_id("tsk"), kind=TaskKind.INSPECT, model_id=model.id, state=TaskState.PENDING)
            )
        return Registered(id=model.id, new=new)


def drop_refused(database: Database, store: ArtifactStore, model_id: str) -> dict[str, Any] | None:
    """Remove a model that was refused, row and file.

    Returns:
        Why it was refused; ``None`` if it is not (any more) a refused model.
    """
    with database.read() as session:
        model = repository.get(session, model_id)
    if model is None:
        return None
    with database.write() as session:
        lock_name(session, f"content:{model.sha256}")
        found = repository.get(session, model_id)
        if found is None or found.state is not ModelState.REFUSED:
            return None
        problem = found.problem
        session.delete(found)
        session.flush()
        if not repository.is_dataset(session, found.sha256):
            # Within the transaction: should the commit fail, a row without a file stays, which an upload mends.
            store.delete(found.sha256)
        return problem


def find_model(session: Session, model_id: str) -> Model | None:
    """A model by its id, if it is (still) there."""
    return repository.get(session, model_id)


def get_model(session: Session, model_id: str) -> Model:
    """A model by its id.

    Raises:
        NotFound: There is none.
    """
    model = repository.get(session, model_id) if is_id("mdl", model_id) else None
    if model is None:
        raise NotFound(f"there is no model {model_id!r}", "model", model_id)
    return model


def list_models(
    session: Session, *, limit: int, cursor: str | None = None, state: ModelState | None = None
) -> Page:
    """A page of models, newest first.

    Raises:
        InvalidRequest: The cursor is not one of ours.
    """
    after = None if cursor is None else Cursor.decode(cursor)
    models = repository.page(session, limit=limit + 1, cursor=after, state=state)
    shown = models[:limit]
    more = len(models) > limit
    last = Cursor(created_at=shown[-1].created_at, id=shown[-1].id).encode() if more else None
    return Page(models=shown, next_cursor=last)
