"""How far a job is and how long it still takes: derived from rows, never stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from app.jobs import repository
from app.jobs.repository import EntryCounts, PlanCounts, ProbeCounts
from app.models import Job, JobState, Stage, utc_now

_NO_PLANS = PlanCounts(done=0, total=0)
_NO_PROBES = ProbeCounts(done=0, total=0)
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
    stages = {job.id: _shown_stage(job) for job in jobs}
    wanted = {stage: [i for i, s in stages.items() if s is stage] for stage in Stage}
    measured = [*wanted[Stage.MEASURE], *wanted[Stage.SOLVE]]
    probes = repository.probe_counts(session, wanted[Stage.PROBE]) if wanted[Stage.PROBE] else {}
    entries = repository.entry_counts(session, measured) if measured else {}
    plans = repository.plan_counts(session, wanted[Stage.VERIFY]) if wanted[Stage.VERIFY] else {}

    def progress(job: Job) -> Progress:
        if stages[job.id] is Stage.VERIFY:
            return verifying(job, plans.get(job.id, _NO_PLANS), now)
        if stages[job.id] is Stage.PROBE:
            return probing(job, probes.get(job.id, _NO_PROBES), now)
        return measuring(job, entries.get(job.id, _NO_ENTRIES), now)

    return {job.id: progress(job) for job in jobs}


def _shown_stage(job: Job) -> Stage:
    """What a job's progress is about: its stage, the first one before it has begun, the last one when it is done."""
    if job.state is JobState.DONE:
        return Stage.VERIFY
    return job.stage or (Stage.PROBE if "probes" in job.request else Stage.MEASURE)


def probing(job: Job, probes: ProbeCounts, now: datetime) -> Progress:
    """Progress while candidates are estimated; every part of every probe takes about as long as any other."""
    eta: float | None = None
    if job.state is JobState.RUNNING and probes.done:
        eta = _since(job.stage_started_at, now) / probes.done * (probes.total - probes.done)
    return Progress(
        stage=job.stage or (None if job.state.final else Stage.PROBE),
        done=probes.done,
        total=probes.total,
        unit="parts",
        fraction=probes.done / probes.total if probes.total else 0.0,
        eta_seconds=None if job.state.final else eta,
        elapsed_seconds=_elapsed(job, now),
    )


def measuring(job: Job, entries: EntryCounts, now: datetime) -> Progress:
    """Progress while entries are measured, or while plans are made of them.

    The speed is the work finished since the stage began over the time since then: what was measured before costs
    nothing and says nothing about the speed.
    """
    elapsed = _since(job.stage_started_at or job.started_at, now)
    fraction = entries.done_work / entries.total_work if entries.total_work > 0 else 0.0
    left = max(entries.total_work - entries.done_work, 0.0)
    eta: float | None = None
    # A search may need no entries at all: estimates come before it.
    if entries.done == entries.total and (entries.total or job.stage is Stage.SOLVE):
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
        elapsed_seconds=_elapsed(job, now),
    )


def verifying(job: Job, plans: PlanCounts, now: datetime) -> Progress:
    """Progress while plans are measured jointly; every plan takes about as long as any other.

    What looking around them will find, and how long that takes, is not known before.
    """
    eta: float | None = None
    if job.state is JobState.DONE:
        eta = 0.0
    elif not job.state.final and 0 < plans.done < plans.total and job.solved_at is not None:
        eta = _since(job.solved_at, now) / plans.done * (plans.total - plans.done)
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


def _since(start: datetime | None, now: datetime) -> float:
    return 0.0 if start is None else max((now - start).total_seconds(), 0.0)
