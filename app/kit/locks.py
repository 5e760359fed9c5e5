"""Mutual exclusion by name, for the length of a transaction."""

import hashlib

from sqlalchemy import text
from sqlalchemy.orm import Session


def lock_name(session: Session, name: str) -> None:
    """Wait until no other transaction holds this name; released at the end of the transaction.

    Writers on SQLite exclude each other anyway (BEGIN IMMEDIATE), so only PostgreSQL needs telling.
    """
    if session.get_bind().dialect.name != "postgresql":
        return
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
