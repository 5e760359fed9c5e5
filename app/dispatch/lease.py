"""One dispatcher at a time: a row that says who leads until when, by the database's clock."""

from sqlalchemy import or_, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session

from app.db import Database
from app.dispatch.rows import changed
from app.models import Lease

NAME = "dispatcher"


def acquire(session: Session, database: Database, *, holder: str, ttl_s: float) -> bool:
    """Take the lease, or keep it, if nobody else holds it.

    Args:
        session: A writing session.
        database: Its clock decides, not the host's.
        holder: Who asks; unique for each dispatcher.
        ttl_s: Life of the lease in seconds.

    Returns:
        Whether ``holder`` leads now.
    """
    kind = sqlite_insert if database.is_sqlite else postgres_insert
    session.execute(kind(Lease).values(name=NAME, holder="", until=0.0).on_conflict_do_nothing())
    now = database.now()
    mine = or_(Lease.holder == holder, Lease.until < now)
    return (
        changed(
            session, update(Lease).where(Lease.name == NAME, mine).values(holder=holder, until=now + ttl_s)
        )
        == 1
    )


def release(session: Session, *, holder: str) -> None:
    """Let others lead at once."""
    session.execute(update(Lease).where(Lease.name == NAME, Lease.holder == holder).values(until=0.0))
