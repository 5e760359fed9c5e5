"""How far a job is and how long it still takes: derived from rows, never stored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import median
from typing import Any

from sqlalchemy.orm import Session

from app.jobs import repository
from app.jobs.detail import details_of
from app.jobs.repository import EntryCounts, PlanCounts, ProbeCounts, TaskTimes
from app.models import Job, JobState, Stage, TaskKind, TaskState, utc_now

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
    detail: str | None = None

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
            "detail": self.detail,
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
    running = [job.id for job in jobs if job.state is JobState.RUNNING]
    times = repository.task_times(session, running) if running else {}

    def progress(job: Job) -> Progress:
        own = times.get(job.id, ())
        if stages[job.id] is Stage.VERIFY:
            return verifying(job, plans.get(job.id, _NO_PLANS), now, own)
        if stages[job.id] is Stage.PROBE:
            return probing(job, probes.get(job.id, _NO_PROBES), now, own)
        return measuring(job, entries.get(job.id, _NO_ENTRIES), now, own)

    details = details_of(session, [job for job in jobs if job.id in running])
    return {job.id: replace(progress(job), detail=details.get(job.id)) for job in jobs}


def _shown_stage(job: Job) -> Stage:
    """What a job's progress is about: its stage, the first one before it has begun, the last one when it is done."""
    if job.state is JobState.DONE:
        return Stage.VERIFY
    return job.stage or (Stage.PROBE if "probes" in job.request else Stage.MEASURE)


def probing(job: Job, probes: ProbeCounts, now: datetime, times: Sequence[TaskTimes] = ()) -> Progress:
    """Progress while candidates are estimated; every part of every probe takes about as long as any other."""
    eta: float | None = None
    if job.state is JobState.RUNNING and probes.done:
        eta = _tasks_left(times, TaskKind.PROBE, now)
    return Progress(
        stage=job.stage or (None if job.state.final else Stage.PROBE),
        done=probes.done,
        total=probes.total,
        unit="parts",
        fraction=probes.done / probes.total if probes.total else 0.0,
        eta_seconds=None if job.state.final else eta,
        elapsed_seconds=_elapsed(job, now),
    )


def measuring(job: Job, entries: EntryCounts, now: datetime, times: Sequence[TaskTimes] = ()) -> Progress:
    """Progress while entries are measured, or while plans are made of them."""
    fraction = entries.done_work / entries.total_work if entries.total_work > 0 else 0.0
    eta: float | None = None
    # A search may need no entries at all: estimates come before it.
    if entries.done == entries.total and (entries.total or job.stage is Stage.SOLVE):
        fraction, eta = 1.0, 0.0
    elif job.state is JobState.RUNNING:
        workers = sum(task.kind is TaskKind.MEASURE and task.state is TaskState.RUNNING for task in times)
        eta = _work_left(entries, _since(job.stage_started_at or job.started_at, now), workers or 1, now)
    return Progress(
        stage=job.stage or (None if job.state.final else Stage.MEASURE),
        done=entries.done,
        total=entries.total,
        unit="entries",
        fraction=min(max(fraction, 0.0), 1.0),
        eta_seconds=None if job.state.final else eta,
        elapsed_seconds=_elapsed(job, now),
    )


def verifying(job: Job, plans: PlanCounts, now: datetime, times: Sequence[TaskTimes] = ()) -> Progress:
    """Progress while plans are measured jointly; every plan takes about as long as any other.

    How long plans are then looked around is not known.
    """
    eta: float | None = None
    if job.state is JobState.DONE:
        eta = 0.0
    elif not job.state.final and 0 < plans.done < plans.total:
        eta = _tasks_left(times, TaskKind.VERIFY, now)
    return Progress(
        stage=job.stage if not job.state.final else None,
        done=plans.done,
        total=plans.total,
        unit="plans",
        fraction=plans.done / plans.total if plans.total else 1.0,
        eta_seconds=eta,
        elapsed_seconds=_elapsed(job, now),
    )


def _work_left(entries: EntryCounts, elapsed: float, workers: int, now: datetime) -> float | None:
    """Seconds that the entries still take: at the speed since the first ones, or else since the stage began.

    What was measured before costs nothing and says nothing about the speed. Nor does what comes before a worker's first
    entry: reading the model and running it in float happens once.
    """
    left = max(entries.total_work - entries.done_work, 0.0)
    if entries.fresh_work <= 0.0 or elapsed <= 0.0:
        return None
    first, last = entries.first_at, entries.last_at
    if first is not None and last is not None and last > first and entries.fresh > 2 * workers:
        timed = entries.fresh_work * (entries.fresh - workers) / entries.fresh
        return max(left * (last - first).total_seconds() / timed - _since(last, now), 0.0)
    return left * elapsed / entries.fresh_work


def _tasks_left(times: Sequence[TaskTimes], kind: TaskKind, now: datetime) -> float | None:
    """Seconds that tasks of one kind still take, each as long as those that are done, on the workers that have one now."""
    of_kind = [task for task in times if task.kind is kind]
    lengths = [
        (task.finished_at - task.started_at).total_seconds()
        for task in of_kind
        if task.state is TaskState.DONE and task.started_at and task.finished_at
    ]
    if not lengths:
        return None
    length = median(lengths)
    running = [_since(task.started_at, now) for task in of_kind if task.state is TaskState.RUNNING]
    waiting = sum(task.state is TaskState.PENDING for task in of_kind)
    rest = math.fsum(max(length - age, 0.0) for age in running) + waiting * length
    return rest / max(len(running), 1)


def _elapsed(job: Job, now: datetime) -> float:
    if job.started_at is None:
        return 0.0
    return max(((job.finished_at or now) - job.started_at).total_seconds(), 0.0)


def _since(start: datetime | None, now: datetime) -> float:
    return 0.0 if start is None else max((now - start).total_seconds(), 0.0)
