"""Queries for what a job has measured."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import JobEntry, Measurement


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Cost of one candidate of one unit, everything else float. ``seconds`` of wall-clock time were spent on it."""

    unit: str
    bits: int
    scheme: str
    metric: str
    size_bits: int
    storage_bits: int
    mean: float
    standard_error: float | None
    samples: int
    seconds: float


def of_job(session: Session, job_id: str) -> list[Sensitivity]:
    """What is measured so far, units in execution order, bit-widths ascending."""
    first = func.min(JobEntry.ordinal).over(partition_by=JobEntry.unit)
    query = (
        select(
            Measurement.unit,
            Measurement.bits,
            Measurement.scheme,
            Measurement.metric,
            Measurement.size_bits,
            Measurement.storage_bits,
            Measurement.mean,
            Measurement.standard_error,
            Measurement.samples,
            Measurement.seconds,
        )
        .join(JobEntry, JobEntry.key == Measurement.key)
        .where(JobEntry.job_id == job_id)
        .order_by(first, Measurement.bits)
    )
    return [Sensitivity(**row._mapping) for row in session.execute(query)]  # noqa: SLF001 - SQLAlchemy's public name


def total(session: Session, job_id: str) -> int:
    """How many entries the job needs."""
    query = select(func.count()).select_from(JobEntry).where(JobEntry.job_id == job_id)
    return session.execute(query).scalar_one()
