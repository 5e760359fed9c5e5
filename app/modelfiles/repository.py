"""Queries for models."""

from collections.abc import Sequence

from sqlalchemy import and_, exists, or_, select
from sqlalchemy.orm import Session

from app.kit.pages import Cursor
from app.models import Dataset, Model, ModelState


def get(session: Session, model_id: str) -> Model | None:
    """A model by its id."""
    return session.get(Model, model_id)


def by_sha256(session: Session, sha256: str) -> Model | None:
    """The model with this content."""
    return session.scalars(select(Model).where(Model.sha256 == sha256)).one_or_none()


def page(
    session: Session, *, limit: int, cursor: Cursor | None = None, state: ModelState | None = None
) -> Sequence[Model]:
    """Models, newest first, after the cursor."""
    query = select(Model).order_by(Model.created_at.desc(), Model.id.desc()).limit(limit)
    if cursor is not None:
        same_time = and_(Model.created_at == cursor.created_at, Model.id < cursor.id)
        query = query.where(or_(Model.created_at < cursor.created_at, same_time))
    if state is not None:
        query = query.where(Model.state == state)
    return session.scalars(query).all()


def is_dataset(session: Session, sha256: str) -> bool:
    """Whether a dataset has the same content."""
    return session.scalar(select(exists().where(Dataset.sha256 == sha256))) or False
