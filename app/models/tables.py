"""The tables. Rows, not objects, are the truth: whatever runs may die at any moment and go on from here.

A job's progress is not stored: it is the number (and the work) of its entries whose measurement exists, and what workers
last told of the tasks they have.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Enum,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Json, UtcDateTime, utc_now


class ModelState(StrEnum):
    """Where a registered model stands."""

    INSPECTING = "inspecting"
    """Stored; a worker is to read it."""
    READY = "ready"
    """Read; its units are known."""
    REFUSED = "refused"
    """Not acceptable; ``problem`` says why."""


class JobState(StrEnum):
    """Where a job stands. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Nothing happens to the job any more."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Stage(StrEnum):
    """What a running job does."""

    PROBE = "probe"
    MEASURE = "measure"
    SOLVE = "solve"
    VERIFY = "verify"


class TaskKind(StrEnum):
    """What a worker is asked to do."""

    INSPECT = "inspect"
    """Read a model file, describe its units."""
    PROBE = "probe"
    """Estimate all entries at once, on a part of the samples."""
    MEASURE = "measure"
    """Measure a shard: some of a job's entries."""
    SOLVE = "solve"
    """Make the job's plans from what is known, or ask for the entries that still matter to them."""
    VERIFY = "verify"
    """Apply one plan jointly and measure it."""
    REFINE = "refine"
    """A part of measuring again around the plan of one budget, once all plans are verified."""


class TaskState(StrEnum):
    """Where a task stands. The last three are final."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PlanRole(StrEnum):
    """Why a plan exists."""

    REQUESTED = "requested"
    """One of the job's budgets."""
    ALTERNATIVE = "alternative"
    """Another plan for one of the job's budgets, made with interactions or around a plan; the better one, as measured, is
    handed over."""
    UNIFORM = "uniform"
    """A baseline: the same bit-width everywhere."""
    ADHOC = "adhoc"
    """Asked for later, on stored measurements."""


class PartKind(StrEnum):
    """What a part of a step around a plan is."""

    START = "start"
    """To see what there is to do."""
    PROBE = "probe"
    """Probes around the plan, on a block of the samples."""
    BASE = "base"
    """To measure the plan that steps are tried from."""
    STEP = "step"
    """To make a step, and to measure where it leads."""
    CROSSED = "crossed"
    """To make it again without some of the samples, and to measure those."""


def _enum(kind: type[StrEnum]) -> Enum:
    return Enum(
        kind,
        values_callable=lambda k: [m.value for m in k],
        native_enum=False,
        length=16,
        create_constraint=True,
        name=kind.__name__.lower(),
    )


class Model(Base):
    """A model file, stored once by content."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str] = mapped_column(String(255))
    location: Mapped[str | None] = mapped_column(Text, default=None)
    state: Mapped[ModelState] = mapped_column(_enum(ModelState), default=ModelState.INSPECTING)
    description: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    problem: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Dataset(Base):
    """A data file (safetensors), stored once by content. ``tensors``: name -> {dtype, shape}."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str] = mapped_column(String(255))
    location: Mapped[str | None] = mapped_column(Text, default=None)
    samples: Mapped[int] = mapped_column(Integer)
    tensors: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Job(Base):
    """Measure (what is not yet measured), solve, verify. ``request`` is the validated request, defaults filled in."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_state_created_at", "state", "created_at"),
        Index("ix_jobs_created_at_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), index=True)
    evaluation_dataset_id: Mapped[str | None] = mapped_column(
        ForeignKey("datasets.id"), default=None, index=True
    )
    request: Mapped[dict[str, Any]] = mapped_column(Json)
    name: Mapped[str] = mapped_column(String(255), default="")
    owner: Mapped[str] = mapped_column(String(255), default="")
    priority: Mapped[int] = mapped_column(Integer, default=0)
    state: Mapped[JobState] = mapped_column(_enum(JobState), default=JobState.QUEUED)
    stage: Mapped[Stage | None] = mapped_column(_enum(Stage), default=None)
    problem: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    stage_started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    measured_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    solved_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class Task(Base):
    """A piece of work for one worker. The engine's key is ``id/attempt``, never used again after an error.

    ``failures`` counts attempts that raised; ``attempt`` also rises when the engine lost the task. The worker that has it
    tells how far it is: the ``fraction`` that is done (of the best attempt: it never falls), ``pace_seconds`` that all of it
    takes at the speed since that worker's first report, and the moment ``expected_at`` when it will then be done.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        Index("ix_tasks_state_kind", "state", "kind"),
        Index("ix_tasks_job_id_kind", "job_id", "kind"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    kind: Mapped[TaskKind] = mapped_column(_enum(TaskKind))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), default=None)
    model_id: Mapped[str | None] = mapped_column(
        ForeignKey("models.id", ondelete="CASCADE"), default=None, index=True
    )
    plan_id: Mapped[str | None] = mapped_column(
        ForeignKey("plans.id", ondelete="CASCADE"), default=None, index=True
    )
    ordinal: Mapped[int] = mapped_column(Integer, default=0)
    state: Mapped[TaskState] = mapped_column(_enum(TaskState), default=TaskState.PENDING)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    worker: Mapped[str | None] = mapped_column(String(255), default=None)
    problem: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    fraction: Mapped[float] = mapped_column(Float(53), default=0.0)
    pace_seconds: Mapped[float | None] = mapped_column(Float(53), default=None)
    expected_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class Measurement(Base):
    """One finished entry, shared by all jobs. ``key`` hashes everything the value depends on.

    An entry is one candidate in one unit, on the block ``[block_start, block_stop)`` of the samples in the order the seed
    gives them. ``runs``: float64, mean costs of runs of them. ``sketch``: float32 numbers whose inner products estimate how entries interact, if there are any.
    """

    __tablename__ = "measurements"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_sha256: Mapped[str] = mapped_column(String(64), index=True)
    unit: Mapped[str] = mapped_column(Text)
    bits: Mapped[int] = mapped_column(Integer)
    scheme: Mapped[str] = mapped_column(String(64))
    activation_bits: Mapped[int | None] = mapped_column(Integer, default=None)
    metric: Mapped[str] = mapped_column(String(16))
    block_start: Mapped[int] = mapped_column(Integer, default=0)
    block_stop: Mapped[int] = mapped_column(Integer)
    size_bits: Mapped[int] = mapped_column(BigInteger)
    storage_bits: Mapped[int] = mapped_column(BigInteger)
    mean: Mapped[float] = mapped_column(Float(53))
    standard_error: Mapped[float | None] = mapped_column(Float(53), default=None)
    samples: Mapped[int] = mapped_column(Integer)
    seconds: Mapped[float] = mapped_column(Float(53))
    runs: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    sketch: Mapped[bytes | None] = mapped_column(LargeBinary, default=None)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class ProbeResult(Base):
    """Estimates of all entries on a block of samples, shared by all jobs. ``key`` hashes everything the values depend on.

    ``values``: float32 ``[probes, entries, samples]``, the entries in the order of the job's units and candidates.
    ``storage_bits``: of each entry, scales and zero points included.
    """

    __tablename__ = "probe_results"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_sha256: Mapped[str] = mapped_column(String(64), index=True)
    probes: Mapped[int] = mapped_column(Integer)
    entries: Mapped[int] = mapped_column(Integer)
    samples: Mapped[int] = mapped_column(Integer)
    values: Mapped[bytes] = mapped_column(LargeBinary)
    storage_bits: Mapped[list[int]] = mapped_column(Json)
    seconds: Mapped[float] = mapped_column(Float(53))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class JobEntry(Base):
    """What a job needs measured: one row for each entry, in execution order within a round, with its share of the work."""

    __tablename__ = "job_entries"
    __table_args__ = (Index("ix_job_entries_task_id", "task_id"), Index("ix_job_entries_key", "key"))

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(Integer, primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(String(64))
    unit: Mapped[str] = mapped_column(Text)
    bits: Mapped[int] = mapped_column(Integer)
    scheme: Mapped[str] = mapped_column(String(64))
    activation_bits: Mapped[int | None] = mapped_column(Integer, default=None)
    block_start: Mapped[int] = mapped_column(Integer, default=0)
    block_stop: Mapped[int] = mapped_column(Integer)
    work: Mapped[float] = mapped_column(Float(53))


class Plan(Base):
    """One candidate for each unit, with certificate, prediction and measurement.

    ``choices``: unit -> {bits, scheme}; ``predicted``: metric -> cost; ``measured``: metric -> {calibration, evaluation};
    ``solver``: backend, version, proof, multiplier, seconds; ``spec``: the request it answers.
    """

    __tablename__ = "plans"
    __table_args__ = (
        UniqueConstraint("job_id", "spec_sha256"),
        CheckConstraint("relative_gap IS NULL OR relative_gap >= 0", name="gap_not_negative"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    role: Mapped[PlanRole] = mapped_column(_enum(PlanRole))
    ordinal: Mapped[int] = mapped_column(Integer, default=0)
    name: Mapped[str] = mapped_column(String(255))
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    spec_sha256: Mapped[str] = mapped_column(String(64))
    budget: Mapped[str | None] = mapped_column(String(64), default=None)
    budget_bits: Mapped[int | None] = mapped_column(BigInteger, default=None)
    status: Mapped[str] = mapped_column(String(16))
    objective: Mapped[float | None] = mapped_column(Float(53), default=None)
    lower_bound: Mapped[float | None] = mapped_column(Float(53), default=None)
    relative_gap: Mapped[float | None] = mapped_column(Float(53), default=None)
    size_bits: Mapped[int | None] = mapped_column(BigInteger, default=None)
    file_size_bits: Mapped[int | None] = mapped_column(BigInteger, default=None)
    choices: Mapped[dict[str, Any]] = mapped_column(Json)
    predicted: Mapped[dict[str, Any]] = mapped_column(Json)
    measured: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    solver: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class PlanTrial(Base):
    """One step that was tried around the plan of a budget, in the order of ``number``.

    ``base``: choices of the plan it was tried from; ``choices``: where it leads; ``outcome``: see `app.plans.refinement.Outcome`.
    """

    __tablename__ = "plan_trials"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(Integer, primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    base: Mapped[dict[str, Any]] = mapped_column(Json)
    choices: Mapped[dict[str, Any]] = mapped_column(Json)
    outcome: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class TrialPart(Base):
    """A part of the work on a step, for one task. It is done when its task is.

    ``place``: which of its kind; ``work``: in float passes over the samples, as reckoned; ``choices``: where the step leads;
    ``costs``: float64, of the samples it was to measure, not-a-number where a step leads nowhere. What probes find is theirs to keep.
    """

    __tablename__ = "trial_parts"
    __table_args__ = (Index("ix_trial_parts_task_id", "task_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(Integer, primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[PartKind] = mapped_column(_enum(PartKind), primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    work: Mapped[float] = mapped_column(Float(53), default=0.0)
    choices: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    costs: Mapped[bytes | None] = mapped_column(LargeBinary, default=None)


class IdempotencyKey(Base):
    """A submission that was already answered, so that asking again gives the same job."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Lease(Base):
    """Who may dispatch, until when (seconds since the epoch, by the database's clock)."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(255))
    until: Mapped[float] = mapped_column(Float(53))
