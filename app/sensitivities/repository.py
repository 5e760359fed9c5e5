"""Queries for what is measured and estimated."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session, defer, undefer

from app.models import JobEntry, Measurement, ProbeResult


def measurements(session: Session, job_id: str, *, sketches: bool = False) -> Sequence[Measurement]:
    """What is measured so far for a job, in the order of its entries; sketches are left out unless asked for."""
    query = (
        select(Measurement)
        .join(JobEntry, JobEntry.key == Measurement.key)
        .where(JobEntry.job_id == job_id)
        .order_by(JobEntry.ordinal)
        .options(undefer(Measurement.sketch) if sketches else defer(Measurement.sketch))
    )
    return session.scalars(query).all()


@dataclass(frozen=True, kw_only=True)
class EntryCount:
    """How many entries a job has asked for, and how many of them are measured."""

    done: int
    total: int


def count(session: Session, job_id: str) -> EntryCount:
    """Entries of a job."""
    query = (
        select(func.count().label("total"), func.count(Measurement.key).label("done"))
        .select_from(JobEntry)
        .join(Measurement, Measurement.key == JobEntry.key, isouter=True)
        .where(JobEntry.job_id == job_id)
    )
    row = session.execute(query).one()
    return EntryCount(done=row.done, total=row.total)


def probe_results(session: Session, keys: Collection[str]) -> dict[str, ProbeResult]:
    """Results of probes by their keys, as far as they are there."""
    found = session.scalars(select(ProbeResult).where(ProbeResult.key.in_(keys)))
    return {result.key: result for result in found}


def probes_done(session: Session, keys: Collection[str]) -> int:
    """How many of these probes' results are there."""
    query = select(func.count()).select_from(ProbeResult).where(ProbeResult.key.in_(keys))
    return session.execute(query).scalar_one()
