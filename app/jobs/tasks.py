"""The tasks and entries by which a job gets to know what its candidates cost."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.jobs import repository
from app.jobs.blocks import FEWEST
from app.jobs.entries import PlannedEntry, Source, plan_entries
from app.jobs.keys import SampleChoice, probe_key
from app.jobs.offer import Offer, offer_of
from app.kit.ids import content_sha256, new_id
from app.models import Dataset, Job, JobEntry, Model, Task, TaskKind, TaskState
from app.settings import Settings
from workers.contracts import Candidate, ComputeDtype, Estimator, Metric, ModelDescription

SHARDS_PER_WORKER = 4
"""More shards than workers: a slow or lost one then holds up little."""
PROBE_BLOCKS = 4
"""Estimates are cut into so many parts at most, by samples: all probes of a sample share its forward pass."""

Block = tuple[int, int]
Wanted = Mapping[Block, Sequence[tuple[str, Candidate]]]


@dataclass(frozen=True, kw_only=True)
class ProbePart:
    """All probes on one block of the samples."""

    block: Block
    key: str


def source_of(session: Session, job: Job) -> Source:
    """What a job measures on what."""
    dataset = session.get_one(Dataset, job.dataset_id)
    request = job.request
    return Source(
        model_sha256=session.get_one(Model, job.model_id).sha256,
        dataset_sha256=dataset.sha256,
        metric=Metric(request["compare"]),
        choice=SampleChoice(
            available=dataset.samples,
            samples=request["samples"],
            holdout=request["holdout"],
            seed=request["seed"],
        ),
        output=request.get("output"),
        compute_dtype=ComputeDtype(request.get("compute_dtype", ComputeDtype.FLOAT32)),
    )


def whole_block(source: Source) -> Block:
    """All samples."""
    return 0, source.choice.used


def is_exact(request: Mapping[str, Any]) -> bool:
    """Whether every candidate is measured, none estimated."""
    return bool(request["metric"] == request["compare"])


def is_raced(request: Mapping[str, Any]) -> bool:
    """Whether every candidate is measured, but only on as many samples as plans need."""
    return is_exact(request) and request.get("regret") is not None


def measure_blocks(source: Source, request: Mapping[str, Any]) -> tuple[Block, ...]:
    """What entries are measured on, one block a round, where samples are chosen by what plans need; else all samples."""
    if request.get("regret") is None:
        return (whole_block(source),)
    # Jobs from before there was a choice have the fewest.
    return cut(source.choice.used, request.get("blocks", FEWEST))


def cut(samples: int, parts: int) -> tuple[Block, ...]:
    """At most so many contiguous blocks of about equal size."""
    parts = min(parts, samples)
    ends = [samples * (i + 1) // parts for i in range(parts)]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def offer_sha256(offer: Offer) -> str:
    """Hash of all units and candidates, in order."""
    return content_sha256([[unit, str(candidate)] for unit, candidate in offer])


def probe_parts(source: Source, request: Mapping[str, Any], offer: Offer) -> tuple[ProbePart, ...]:
    """All parts of a job's probes, in the order of their tasks."""
    sha256 = offer_sha256(offer)
    estimator = request["estimator"]
    # Other scores than probes' do not add up over samples.
    blocks = cut(source.choice.used, PROBE_BLOCKS if estimator == Estimator.PROBE else 1)
    return tuple(
        probe_part(source, offer_sha256=sha256, estimator=estimator, probes=request["probes"], block=block)
        for block in blocks
    )


def probe_part(source: Source, *, offer_sha256: str, estimator: str, probes: int, block: Block) -> ProbePart:
    """A part of probes, with the key that its values are known by."""
    key = probe_key(
        model_sha256=source.model_sha256,
        dataset_sha256=source.dataset_sha256,
        offer_sha256=offer_sha256,
        metric=source.metric,
        estimator=estimator,
        choice=source.choice,
        probes=probes,
        block=block,
        output=source.output,
        compute_dtype=source.compute_dtype,
    )
    return ProbePart(block=block, key=key)


def queue_first(session: Session, job: Job, description: ModelDescription, settings: Settings) -> None:
    """Queue what a new job begins with: all its entries, or its probes."""
    source, offer = source_of(session, job), offer_of(description, job.request)
    if is_exact(job.request):
        queue_entries(session, job, description, {measure_blocks(source, job.request)[0]: offer}, settings)
        return
    # No more tasks than workers: neighbouring parts that one worker has anyway may share a batch.
    for ordinal in range(min(len(probe_parts(source, job.request, offer)), _worker_count(settings))):
        session.add(Task(id=new_id("tsk"), kind=TaskKind.PROBE, job_id=job.id, ordinal=ordinal))
    session.flush()


def dealt_parts(parts: Sequence[ProbePart], tasks: int, ordinal: int) -> Sequence[ProbePart]:
    """The parts of the probes that one of a job's PROBE tasks is to find: neighbours."""
    start, stop = cut(len(parts), tasks)[ordinal]
    return parts[start:stop]


def queue_entries(
    session: Session, job: Job, description: ModelDescription, wanted: Wanted, settings: Settings
) -> None:
    """Queue entries: one task for each shard, one row for each entry.

    Args:
        session: For writing.
        job: Whose.
        description: Of its model.
        wanted: Block of samples -> units and candidates to measure on it.
        settings: Of the service.
    """
    source = source_of(session, job)
    shards = [
        shard
        for block, entries in sorted(wanted.items())
        for shard in plan_entries(
            description, entries, block=block, source=source, shards=_shard_count(settings)
        )
    ]
    first_task = task_count(session, job.id, TaskKind.MEASURE)
    first_entry = _count(session, select(func.count()).where(JobEntry.job_id == job.id))
    _store(session, job.id, shards, first_task, first_entry)


def _store(
    session: Session, job_id: str, shards: Iterable[Sequence[PlannedEntry]], first_task: int, first_entry: int
) -> None:
    rows: list[dict[str, object]] = []
    for number, shard in enumerate(shards, start=first_task):
        task = Task(
            id=new_id("tsk"), kind=TaskKind.MEASURE, job_id=job_id, ordinal=number, state=TaskState.PENDING
        )
        session.add(task)
        rows += [
            {"job_id": job_id, "task_id": task.id, "ordinal": ordinal, **vars(entry)}
            for ordinal, entry in enumerate(shard, start=first_entry + len(rows))
        ]
    session.flush()
    repository.add_entries(session, rows)


def task_count(session: Session, job_id: str, kind: TaskKind) -> int:
    """How many tasks of a kind a job has, in whatever state."""
    return _count(session, select(func.count()).where(Task.job_id == job_id, Task.kind == kind))


def _count(session: Session, query: Any) -> int:
    return int(session.execute(query).scalar_one())


def _worker_count(settings: Settings) -> int:
    return settings.workers or min(os.cpu_count() or 1, 8)


def _shard_count(settings: Settings) -> int:
    return SHARDS_PER_WORKER * _worker_count(settings)
