"""Queries that only pages need."""

from collections.abc import Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from app.kit.pages import Cursor
from app.models import Model


def models(session: Session, *, limit: int, cursor: Cursor | None) -> Sequence[Model]:
    """Models, newest first, after the cursor."""
    query = select(Model).order_by(Model.created_at.desc(), Model.id.desc()).limit(limit)
    if cursor is not None:
        query = query.where(tuple_(Model.created_at, Model.id) < tuple_(cursor.created_at, cursor.id))
    return session.scalars(query).all()


def model(session: Session, model_id: str) -> Model | None:
    """A model by its id."""
    return session.get(Model, model_id)
