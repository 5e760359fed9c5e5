"""What tests of refinement start from."""

import pytest
from sqlalchemy import select

import workers.sensitivity.estimators.run
import workers.verify.parts
from app.dispatch import requests, store
from app.models import (
    ProbeResult,
    Stage,
    Task,
    TaskState,
)

from .played import Nature


@pytest.fixture
def nature(monkeypatch):
    played = Nature()
    monkeypatch.setattr(workers.sensitivity.estimators.run, "estimate", played.estimate)
    monkeypatch.setattr(workers.verify.parts, "measure_parts", played.measure_parts)
    monkeypatch.setattr(requests, "verified_path", lambda _settings, ref: f"/files/{ref.sha256}")
    return played


@pytest.fixture
def refining(world):
    """A job whose plans are verified, and the id of its running REFINE task."""

    def make(verified=lambda plan: plan.objective, **values):
        job = world.job(**{"candidates": [2, 3, 4, 6]} | values)
        world.start(job)
        world.measure(job)
        world.solve(job)
        world.start(job, Stage.VERIFY)
        world.verify(job, verified)
        with world.database.write() as session:
            for task in session.scalars(select(Task).where(Task.job_id == job.id)):
                task.state = TaskState.DONE
            session.flush()
            assert store.refine_plans(session, job.id)
        return job

    return make


@pytest.fixture
def look(world):
    def rows(kind, job):
        with world.database.read() as session:
            query = select(kind)
            return session.scalars(query if kind is ProbeResult else query.where(kind.job_id == job.id)).all()

    return rows
