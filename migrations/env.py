"""Alembic's environment: always inside a connection and a transaction that `app.migrate` hands over."""

from typing import Any, Literal

from alembic import context

from app.models import Base
from app.models.base import UtcDateTime


def _render_item(kind: str, item: Any, _autogen: object) -> str | Literal[False]:
    """Write our own column types in terms of plain SQLAlchemy, so that migrations import nothing of the app."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    render_as_batch=True,  # SQLite cannot alter most things in place
    render_item=_render_item,
    transactional_ddl=True,  # the caller's transaction holds everything, on SQLite too
)
context.run_migrations()
