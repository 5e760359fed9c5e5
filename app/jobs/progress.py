"""How far a job is and how long it still takes: derived from rows, never stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from app.jobs import repository
from app.jobs.repository import EntryCounts, PlanCounts
from app.models import Job, JobState, Stage, utc_now

_NO_PLANS = PlanCounts(done=0, total=0)
_NO_ENTRIES = EntryCounts(done=0, total=0, done_work=0.0, total_work=0.0, fresh_work=0.0)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a job stands; see `app.jobs.schemas.ProgressRead`."""

    stage: Stage | None
    done: int
    total: int
    unit: str
    fraction: float
    eta_seconds: float | None
    elapsed_seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "stage": self.stage.value if self.stage else None,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "fraction": self.fraction,
            "eta_seconds": self.eta_seconds,
            "elapsed_seconds": self.elapsed_seconds,
        }


def progress_of(session: Session, job: Job, now: datetime | None = None) -> Progress:
    """A job's progress now."""
    return progress_of_all(session, [job], now)[job.id]


def progress_of_all(
    session: Session, jobs: Sequence[Job], now: datetime | None = None
) -> dict[str, Progress]:
    """The progress of jobs now, by id; as many queries for many jobs as for one."""
    now = now or utc_now()
    ended = [job.id for job in jobs if _is_verifying(job)]
    entries = repository.entry_counts(session, [job.id for job in jobs if not _is_verifying(job)])
    plans = repository.plan_counts(session, ended)
    return {
        job.id: (
            verifying(job, plans.get(job.id, _NO_PLANS), now)
            if _is_verifying(job)
            else measuring(job, entries.get(job.id, _NO_ENTRIES), now)
        )
        for job in jobs
    }


def _is_verifying(job: Job) -> bool:
    return job.stage is Stage.VERIFY or job.state is JobState.DONE


def measuring(job: Job, entries: EntryCounts, now: datetime) -> Progress:
    """Progress while entries are measured, or while plans are made of them.

    The speed is the work finished since the job began over the time since then: what was measured before costs
    nothing and says nothing about the speed.
    """
    elapsed = _elapsed(job, now)
    fraction = entries.done_work / entries.total_work if entries.total_work > 0 else 0.0
    left = max(entries.total_work - entries.done_work, 0.0)
    eta: float | None = None
    if entries.total and entries.done == entries.total:
        fraction, eta = 1.0, 0.0
    elif job.state is JobState.RUNNING and entries.fresh_work > 0 and elapsed > 0:
        eta = left * elapsed / entries.fresh_work
    return Progress(
        stage=job.stage or (None if job.state.final else Stage.MEASURE),
        done=entries.done,
        total=entries.total,
        unit="entries",
        fraction=min(max(fraction, 0.0), 1.0),
        eta_seconds=None if job.state.final else eta,
        elapsed_seconds=elapsed,
    )


def verifying(job: Job, plans: PlanCounts, now: datetime) -> Progress:
    """Progress while plans are measured jointly; every plan takes about as long as any other."""
    eta: float | None = None
    if job.state is JobState.DONE:
        eta = 0.0
    elif not job.state.final and plans.done and job.solved_at is not None:
        spent = max((now - job.solved_at).total_seconds(), 0.0)
        eta = spent / plans.done * (plans.total - plans.done)
    return Progress(
        stage=job.stage if not job.state.final else None,
        done=plans.done,
        total=plans.total,
        unit="plans",
        fraction=plans.done / plans.total if plans.total else 1.0,
        eta_seconds=eta,
        elapsed_seconds=_elapsed(job, now),
    )


def _elapsed(job: Job, now: datetime) -> float:
    if job.started_at is None:
        return 0.0
    return max(((job.finished_at or now) - job.started_at).total_seconds(), 0.0)
