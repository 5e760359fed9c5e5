"""A worker's queries: what a task is about, whether it is still wanted, and what came of it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, and_, case, exists, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from app.db import Database
from app.dispatch.equal_plans import measured_of_equal
from app.dispatch.rows import changed, job_wants_task
from app.jobs import tasks
from app.jobs.offer import Offer, offer_of
from app.jobs.tasks import Block
from app.models import (
    Dataset,
    Job,
    JobEntry,
    Measurement,
    Model,
    ModelState,
    Plan,
    ProbeResult,
    Task,
    TaskKind,
    TaskState,
    utc_now,
)
from workers.contracts import Candidate, Entry, ModelDescription, Scheme

DATABASE_PATIENCE_S = 60.0
"""How long a worker with a result in hand waits for a database that is away."""

_T = TypeVar("_T")
_MEASURED = (
    "unit", "bits", "scheme", "metric", "size_bits", "storage_bits", "mean", "standard_error", "samples", "seconds", "runs",
    "sketch",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One attempt at a task by one worker. All that is written later is written under this claim."""

    task_id: str
    attempt: int
    worker: str
    kind: TaskKind
    failures: int
    job_id: str | None
    model_id: str | None
    plan_id: str | None


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """A stored file. ``location``: where it lies when it was registered by reference."""

    sha256: str
    size_bytes: int
    location: str | None
    samples: int = 0


@dataclass(frozen=True, kw_only=True)
class JobFiles:
    """What a job measures on, and its request."""

    model: FileRef
    calibration: FileRef
    evaluation: FileRef | None
    request: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class WantedEntry:
    """An entry that is not measured yet."""

    key: str
    unit: str
    bits: int
    scheme: str
    activation_bits: int | None
    block: Block

    @property
    def candidate(self) -> Candidate:
        """What is measured."""
        scheme = Scheme.parse(self.scheme)
        return Candidate(bits=self.bits, scheme=scheme, activation_bits=self.activation_bits)


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """Parts of a job's probes, and the entries they are about."""

    parts: tuple[tasks.ProbePart, ...]
    offer: Offer


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeValues:
    """What probes found on a block of samples.

    Args:
        values: ``[probes, entries, samples]``, see `app.models.ProbeResult`.
        storage_bits: Of each entry.
        seconds: Wall-clock time it took.
    """

    values: NDArray[np.float64]
    storage_bits: tuple[int, ...]
    seconds: float

    def of(self, samples: NDArray[np.int64]) -> Self:
        """Those on some of the samples, with their part of the time."""
        seconds = self.seconds * len(samples) / self.values.shape[2]
        return replace(self, values=self.values[:, :, samples], seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """What verifying a plan needs of it: its choices, what is measured of it, and of an equal plan if nothing is."""

    choices: dict[str, Any]
    measured: dict[str, Any] | None
    equal: dict[str, Any] | None


def patiently(database: Database, work: Callable[[Session], _T]) -> _T:
    """Do something in one writing transaction, again and again while the database is away.

    Args:
        database: Where.
        work: Changes rows under conditions, so that doing it twice is harmless: a commit may be lost on its way back.

    Raises:
        sqlalchemy.exc.DBAPIError: The database stayed away for `DATABASE_PATIENCE_S`.
    """
    deadline = time.monotonic() + DATABASE_PATIENCE_S
    while True:
        try:
            with database.write() as session:
                return work(session)
        except (OperationalError, InterfaceError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def claim(session: Session, task_id: str, attempt: int, worker: str) -> Claim | None:
    """Fencing: take a task for this worker, or ``None`` if this attempt is not wanted (any more).

    A worker that was thought dead and still runs loses its claim by this.
    """
    wanted = and_(
        Task.id == task_id, Task.state == TaskState.RUNNING, Task.attempt == attempt, job_wants_task()
    )
    values = {
        "worker": worker,
        "pace_seconds": None,
        "expected_at": None,
    }  # another's speed is not this one's
    if changed(session, update(Task).where(wanted).values(values)) != 1:
        return None
    task = session.get_one(Task, task_id)
    return Claim(
        task_id=task.id,
        attempt=attempt,
        worker=worker,
        kind=task.kind,
        failures=task.failures,
        job_id=task.job_id,
        model_id=task.model_id,
        plan_id=task.plan_id,
    )


def holds(session: Session, held: Claim) -> bool:
    """Whether the claim is still good and the work still wanted."""
    return session.scalar(select(exists().where(_held(held), job_wants_task()))) or False


def finish(session: Session, held: Claim) -> bool:
    """RUNNING -> DONE, under the claim."""
    values = {"state": TaskState.DONE, "finished_at": utc_now()}
    return changed(session, update(Task).where(_held(held)).values(values)) == 1


def report(session: Session, held: Claim, fraction: float, pace_seconds: float | None) -> bool:
    """Write how far a task is, under the claim; ``False`` if the work is not wanted any more.

    Args:
        session: For writing.
        held: The claim.
        fraction: Share of the task that this attempt has done. What another one had done stays until it is passed.
        pace_seconds: What all of it takes at the speed so far; ``None`` while that is not known.
    """
    values: dict[str, Any] = {"fraction": case((Task.fraction > fraction, Task.fraction), else_=fraction)}
    if pace_seconds is not None:
        left = timedelta(seconds=max(1.0 - fraction, 0.0) * pace_seconds)
        values |= {"pace_seconds": pace_seconds, "expected_at": utc_now() + left}
    return changed(session, update(Task).where(_held(held), job_wants_task()).values(values)) == 1


def _held(held: Claim) -> ColumnElement[bool]:
    return and_(
        Task.id == held.task_id,
        Task.state == TaskState.RUNNING,
        Task.attempt == held.attempt,
        Task.worker == held.worker,
    )


def model_file(session: Session, model_id: str) -> FileRef:
    """The file of a model."""
    return _ref(session.get_one(Model, model_id))


def job_files(session: Session, job_id: str) -> JobFiles:
    """The files of a job."""
    job = session.get_one(Job, job_id)
    evaluation = job.evaluation_dataset_id
    return JobFiles(
        model=model_file(session, job.model_id),
        calibration=_ref(session.get_one(Dataset, job.dataset_id)),
        evaluation=_ref(session.get_one(Dataset, evaluation)) if evaluation else None,
        request=job.request,
    )


def _ref(row: Model | Dataset) -> FileRef:
    samples = row.samples if isinstance(row, Dataset) else 0
    return FileRef(sha256=row.sha256, size_bytes=row.size_bytes, location=row.location, samples=samples)


def missing_entries(session: Session, task_id: str) -> list[WantedEntry]:
    """The task's entries that nobody has measured yet, in execution order."""
    rows = session.scalars(
        select(JobEntry)
        .where(JobEntry.task_id == task_id, ~exists().where(Measurement.key == JobEntry.key))
        .order_by(JobEntry.ordinal)
    )
    return [
        WantedEntry(
            key=r.key,
            unit=r.unit,
            bits=r.bits,
            scheme=r.scheme,
            activation_bits=r.activation_bits,
            block=(r.block_start, r.block_stop),
        )
        for r in rows
    ]


def store_measurement(session: Session, wanted: WantedEntry, model_sha256: str, entry: Entry) -> bool:
    """Write a finished entry; ``False`` if it was there already."""
    start, stop = wanted.block
    values = {name: getattr(entry, name) for name in _MEASURED} | {
        "key": wanted.key,
        "model_sha256": model_sha256,
        "activation_bits": wanted.activation_bits,
        "block_start": start,
        "block_stop": stop,
        "created_at": utc_now(),
    }
    return _insert_once(session, Measurement, values)


def probe_task(session: Session, held: Claim) -> ProbeTask:
    """What a PROBE task is to estimate, as far as that is not known already."""
    job = session.get_one(Job, held.job_id)
    model = session.get_one(Model, job.model_id)
    assert model.description is not None
    description = ModelDescription.from_json(model.description)
    offer = offer_of(description, job.request)
    ordinal = session.get_one(Task, held.task_id).ordinal
    parts = tasks.probe_parts(tasks.source_of(session, job), job.request, offer)
    own = tasks.dealt_parts(parts, tasks.task_count(session, job.id, TaskKind.PROBE), ordinal)
    return ProbeTask(
        parts=tuple(part for part in own if session.get(ProbeResult, part.key) is None), offer=offer
    )


def candidate_of(choice: Mapping[str, Any]) -> Candidate:
    """A choice of a plan."""
    return Candidate(
        bits=choice["bits"],
        scheme=Scheme.parse(choice["scheme"]),
        activation_bits=choice.get("activation_bits"),
    )


def store_probe(session: Session, part: tasks.ProbePart, model_sha256: str, found: ProbeValues) -> bool:
    """Write what a probe found; ``False`` if it was there already."""
    probes, entries, samples = found.values.shape
    values = {
        "key": part.key,
        "model_sha256": model_sha256,
        "probes": probes,
        "entries": entries,
        "samples": samples,
        "values": found.values.astype("<f4").tobytes(),
        "storage_bits": list(found.storage_bits),
        "seconds": found.seconds,
        "created_at": utc_now(),
    }
    return _insert_once(session, ProbeResult, values)


def _insert_once(session: Session, table: type[Measurement | ProbeResult], values: dict[str, Any]) -> bool:
    on_sqlite = session.get_bind().dialect.name == "sqlite"
    insert = sqlite_insert if on_sqlite else postgres_insert
    new = insert(table).values(values).on_conflict_do_nothing().returning(table.key)
    return session.scalar(new) is not None


def store_description(
    session: Session,
    held: Claim,
    description: dict[str, Any] | None,
    problem: dict[str, Any] | None,
) -> bool:
    """End an inspection: the model is READY with its description, or REFUSED with a problem."""
    if not finish(session, held):
        return False
    state = ModelState.READY if problem is None else ModelState.REFUSED
    inspected = update(Model).where(Model.id == held.model_id, Model.state == ModelState.INSPECTING)
    changed(session, inspected.values(state=state, description=description, problem=problem))
    return True


def plan_view(session: Session, plan_id: str) -> PlanView:
    """A plan's choices, and what is measured of it or of an equal one so far."""
    plan = session.get_one(Plan, plan_id)
    equal = measured_of_equal(session, plan) if plan.measured is None else None
    return PlanView(choices=plan.choices, measured=plan.measured, equal=equal)


def store_measured(session: Session, held: Claim, measured: dict[str, Any]) -> bool:
    """Write what is measured of a plan so far; ``False`` if the work is not wanted any more."""
    if not holds(session, held):
        return False
    changed(session, update(Plan).where(Plan.id == held.plan_id).values(measured=measured))
    return True
