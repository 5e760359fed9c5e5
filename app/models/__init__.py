"""Tables (SQLAlchemy). No queries here: those are the repositories'."""

from app.models.base import Base, utc_now
from app.models.tables import (
    Dataset,
    IdempotencyKey,
    Job,
    JobEntry,
    JobState,
    Lease,
    Measurement,
    Model,
    ModelState,
    Plan,
    PlanRole,
    PlanTrial,
    ProbeResult,
    Stage,
    Task,
    TaskKind,
    TaskState,
)

__all__ = [
    "Base",
    "Dataset",
    "IdempotencyKey",
    "Job",
    "JobEntry",
    "JobState",
    "Lease",
    "Measurement",
    "Model",
    "ModelState",
    "Plan",
    "PlanRole",
    "PlanTrial",
    "ProbeResult",
    "Stage",
    "Task",
    "TaskKind",
    "TaskState",
    "utc_now",
]
