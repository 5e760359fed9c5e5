"""Queries for datasets."""

from collections.abc import Sequence

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from app.kit.pages import Cursor
from app.models import Dataset


def get(session: Session, dataset_id: str) -> Dataset | None:
    """A dataset by its id."""
    return session.get(Dataset, dataset_id)


def by_sha256(session: Session, sha256: str) -> Dataset | None:
    """The dataset with this content."""
    return session.scalars(select(Dataset).where(Dataset.sha256 == sha256)).one_or_none()


def page(session: Session, *, limit: int, cursor: Cursor | None = None) -> Sequence[Dataset]:
    """Datasets, newest first, after the cursor."""
    query = select(Dataset).order_by(Dataset.created_at.desc(), Dataset.id.desc()).limit(limit)
    if cursor is not None:
        same_time = and_(Dataset.created_at == cursor.created_at, Dataset.id < cursor.id)
        query = query.where(or_(Dataset.created_at < cursor.created_at, same_time))
    return session.scalars(query).all()
