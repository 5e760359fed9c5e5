"""A database with files behind it, for what runs on a worker."""

import hashlib

from sqlalchemy import select

from app.artifacts import ArtifactStore
from app.db import get_database
from app.dispatch.shard import run_task
from app.models import (
    Dataset,
    Job,
    JobEntry,
    JobState,
    Measurement,
    Model,
    Stage,
    Task,
    TaskState,
)
from workers.contracts import ModelDescription

from .rows import add_job

DESCRIPTION = ModelDescription(
    inputs=(),
    batch_size=None,
    outputs=(),
    units=(),
    unsupported=(),
    weights=0,
    float_bits=0,
    unit_float_bits=0,
)


class Bench:
    """A database with files behind it, and plain words for looking at it."""

    def __init__(self, settings):
        self.settings = settings
        self.database = get_database(settings.resolved_database_url)
        self.files = {name: self.store(name.encode()) for name in ("model", "calibration", "evaluation")}

    def store(self, content):
        digest = hashlib.sha256(content).hexdigest()
        path = ArtifactStore(self.settings.artifacts_dir).path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return digest

    def path(self, name):
        return ArtifactStore(self.settings.artifacts_dir).path(self.files[name])

    def job(self, *, evaluation=False, **values):
        """A running job with one running shard of three entries."""
        with self.database.write() as session:
            job = add_job(
                session, shards=1, entries=3, **{"state": JobState.RUNNING, "stage": Stage.MEASURE} | values
            )
            session.get_one(Model, job.model_id).sha256 = self.files["model"]
            session.get_one(Dataset, job.dataset_id).sha256 = self.files["calibration"]
            if evaluation:
                data = Dataset(
                    id="dat_evaluation",
                    sha256=self.files["evaluation"],
                    size_bytes=1,
                    name="e",
                    samples=4,
                    tensors={},
                )
                session.add(data)
                session.flush()
                job.evaluation_dataset_id = data.id
            task = session.scalars(select(Task).where(Task.job_id == job.id)).one()
            task.state = TaskState.RUNNING
            return job.id, task.id

    def add(self, make, *arguments, **values):
        with self.database.write() as session:
            return make(session, *arguments, **values).id

    def add_for(self, job_id, make, *arguments, **values):
        with self.database.write() as session:
            return make(session, session.get_one(Job, job_id), *arguments, **values).id

    def get(self, kind, row_id):
        with self.database.read() as session:
            return session.get_one(kind, row_id)

    def set(self, kind, row_id, **values):
        with self.database.write() as session:
            row = session.get_one(kind, row_id)
            for name, value in values.items():
                setattr(row, name, value)

    def measured(self):
        with self.database.read() as session:
            return set(session.scalars(select(Measurement.key)))

    def keys(self, job_id):
        with self.database.read() as session:
            rows = session.scalars(
                select(JobEntry.key).where(JobEntry.job_id == job_id).order_by(JobEntry.ordinal)
            )
            return list(rows)

    def run(self, task_id, attempt=0):
        return run_task(self.settings.model_dump(mode="json"), task_id, attempt)
