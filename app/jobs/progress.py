"""How far a job is and how long it still takes: derived from rows, never stored."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy.orm import Session

from app.jobs import evidence, repository
from app.jobs.detail import details_of
from app.jobs.forecast import Part, seconds_left
from app.jobs.repository import PlanCounts, ProbeCounts, ShardCounts, TaskTimes
from app.models import Job, JobState, Stage, TaskKind, TaskState, utc_now

_NO_PLANS = PlanCounts(done=0, total=0)
_NO_PROBES = ProbeCounts(done=0, total=0)


class ShownStage(StrEnum):
    """What a job does, as it is shown."""

    PROBE = "probe"
    MEASURE = "measure"
    SOLVE = "solve"
    VERIFY = "verify"
    REFINE = "refine"
    """The part of `app.models.Stage.VERIFY` in which verified plans are looked around."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a job stands; see `app.jobs.schemas.ProgressRead`."""

    stage: ShownStage | None
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
    shards = repository.shard_counts(session, measured) if measured else {}
    plans = repository.plan_counts(session, wanted[Stage.VERIFY]) if wanted[Stage.VERIFY] else {}
    running = [job.id for job in jobs if job.state is JobState.RUNNING]
    times = repository.task_times(session, running) if running else {}
    refined = [job_id for job_id, own in times.items() if _refines(own)]
    ahead = repository.passes_ahead(session, refined) if refined else {}

    def progress(job: Job) -> Progress:
        own = times.get(job.id, ())
        if stages[job.id] is Stage.VERIFY:
            if _refines(own):
                return refining(job, now, own, ahead.get(job.id, ()))
            return verifying(job, plans.get(job.id, _NO_PLANS), now, own)
        if stages[job.id] is Stage.PROBE:
            return probing(job, probes.get(job.id, _NO_PROBES), now, own)
        return measuring(job, shards.get(job.id, {}), now, own)

    details = details_of(session, [job for job in jobs if job.id in running], times)
    return {job.id: replace(progress(job), detail=details.get(job.id)) for job in jobs}


def _shown_stage(job: Job) -> Stage:
    """What a job's progress is about: its stage, the first one before it has begun, the last one when it is done."""
    if job.state is JobState.DONE:
        return Stage.VERIFY
    return job.stage or (Stage.PROBE if "probes" in job.request else Stage.MEASURE)


def probing(job: Job, probes: ProbeCounts, now: datetime, times: Sequence[TaskTimes] = ()) -> Progress:
    """Progress while candidates are estimated."""
    stage = job.stage or (None if job.state.final else Stage.PROBE)
    return _told(
        job, now, stage, done=probes.done, total=probes.total, unit="parts", kind=TaskKind.PROBE, times=times
    )


def verifying(job: Job, plans: PlanCounts, now: datetime, times: Sequence[TaskTimes] = ()) -> Progress:
    """Progress while plans are measured jointly."""
    stage = None if job.state.final else job.stage
    return _told(
        job, now, stage, done=plans.done, total=plans.total, unit="plans", kind=TaskKind.VERIFY, times=times
    )


def refining(job: Job, now: datetime, times: Sequence[TaskTimes], ahead: Sequence[float] = ()) -> Progress:
    """Progress while verified plans are looked around; ``ahead``: passes likely to follow what is queued, of each."""
    states = [task.state for task in times if task.kind is TaskKind.REFINE]
    done = sum(state is TaskState.DONE for state in states)
    return _told(
        job,
        now,
        ShownStage.REFINE,
        done=done,
        total=len(states),
        unit="parts",
        kind=TaskKind.REFINE,
        times=times,
        ahead=ahead,
    )


def measuring(
    job: Job, shards: Mapping[str, ShardCounts], now: datetime, times: Sequence[TaskTimes] = ()
) -> Progress:
    """Progress while entries are measured, or while plans are made of them."""
    done, total = sum(s.done for s in shards.values()), sum(s.total for s in shards.values())
    done_work = math.fsum(s.done_work for s in shards.values())
    total_work = math.fsum(s.total_work for s in shards.values())
    fraction = done_work / total_work if total_work > 0.0 else 0.0
    eta: float | None = None
    # A search may need no entries at all: estimates come before it.
    if done == total and (total or job.stage is Stage.SOLVE):
        fraction, eta = 1.0, 0.0
    elif job.state is JobState.RUNNING:
        eta = seconds_left(evidence.of_entries(times, shards, now), evidence.workers(times, now))
    stage = job.stage or (None if job.state.final else Stage.MEASURE)
    return Progress(
        stage=None if stage is None else ShownStage(stage),
        done=done,
        total=total,
        unit="entries",
        fraction=min(max(fraction, 0.0), 1.0),
        eta_seconds=None if job.state.final else eta,
        elapsed_seconds=_elapsed(job, now),
    )


def _refines(times: Sequence[TaskTimes]) -> bool:
    """Whether plans are being looked around: what was found there is verified afterwards."""
    return any(task.kind is TaskKind.REFINE and task.state in evidence.OPEN for task in times)


def _told(  # noqa: PLR0913 - what is shown of a stage
    job: Job,
    now: datetime,
    stage: Stage | ShownStage | None,
    *,
    done: int,
    total: int,
    unit: str,
    kind: TaskKind,
    times: Sequence[TaskTimes],
    ahead: Sequence[float] = (),
) -> Progress:
    """Progress of a stage whose tasks are alike, and tell how far they are while they run; ``ahead``: work not yet queued."""
    eta: float | None = None
    fraction = done / total if total else 0.0
    if job.state is JobState.DONE:
        fraction, eta = 1.0, 0.0
    elif job.state is JobState.RUNNING and (of_kind := [task for task in times if task.kind is kind]):
        work = math.fsum([*(task.work for task in of_kind), *ahead])
        over = (task.work * (1.0 if task.state is TaskState.DONE else task.fraction) for task in of_kind)
        fraction = min(math.fsum(over) / work, 1.0) if work > 0.0 else 1.0
        parts = [*evidence.of_tasks(of_kind, now), *(Part(work=passes, left=passes) for passes in ahead)]
        eta = seconds_left(parts, evidence.workers(times, now))
    return Progress(
        stage=None if stage is None else ShownStage(stage),
        done=done,
        total=total,
        unit=unit,
        fraction=fraction,
        eta_seconds=eta,
        elapsed_seconds=_elapsed(job, now),
    )


def _elapsed(job: Job, now: datetime) -> float:
    if job.started_at is None:
        return 0.0
    return max(((job.finished_at or now) - job.started_at).total_seconds(), 0.0)
