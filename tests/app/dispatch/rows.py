"""Rows as the API makes them, cut to what the dispatcher looks at."""

from datetime import UTC, datetime, timedelta

from app.kit.ids import new_id
from app.models import Dataset, Job, JobEntry, Measurement, Model, ModelState, Plan, PlanRole, Task, TaskKind

START = datetime(2026, 1, 1, tzinfo=UTC)
REQUEST = {
    "candidates": [2, 4], "scheme": "channel-asymmetric", "schemes": ["channel-asymmetric"], "activation_candidates": [], "limits": {}, "metric": "kl", "compare": "kl", "predicts": "kl", "budgets": ["4 bits"],
    "budget_counts": "weights", "pins": {}, "ties": [], "exclude": [], "seed": 0, "samples": None,
    "holdout": 0.0, "batch_size": 8, "memory_bytes": 1 << 30,
}  # fmt: skip


def add_model(session, **values):
    model = Model(**{"id": new_id("mdl"), "sha256": new_id("x"), "size_bytes": 1, "name": "m"} | values)
    session.add(model)
    session.flush()
    return model


def add_job(session, shards=2, entries=2, **values):
    """A queued job with so many shards of so many entries."""
    model = add_model(session, state=ModelState.READY)
    dataset = Dataset(id=new_id("dat"), sha256=new_id("x"), size_bytes=1, name="d", samples=8, tensors={})
    session.add(dataset)
    session.flush()
    job = Job(
        **{"id": new_id("job"), "model_id": model.id, "dataset_id": dataset.id, "request": REQUEST} | values
    )
    session.add(job)
    session.flush()
    for shard in range(shards):
        task = add_task(session, TaskKind.MEASURE, job_id=job.id, ordinal=shard)
        for number in range(entries):
            session.add(
                JobEntry(
                    job_id=job.id, ordinal=shard * entries + number, task_id=task.id, key=f"{job.id}/{shard}/{number}",
                    unit=f"unit{shard}", bits=2 + number, scheme="channel-asymmetric", block_stop=8, work=1.0,
                )
            )  # fmt: skip
    session.flush()
    return job


def add_task(session, kind, **values):
    task = Task(id=new_id("tsk"), kind=kind, **values)
    session.add(task)
    session.flush()
    return task


def add_plan(session, job, role=PlanRole.REQUESTED, **values):
    plan = Plan(
        id=new_id("pln"), job_id=job.id, role=role, name="p", spec={}, spec_sha256=new_id("x"), status="optimal",
        choices={}, predicted={}, solver={}, **values,
    )  # fmt: skip
    session.add(plan)
    session.flush()
    return plan


def add_measurement(session, key):
    session.add(
        Measurement(
            key=key, model_sha256="m", unit="u", bits=2, scheme="channel-asymmetric", metric="kl", size_bits=1,
            storage_bits=1, mean=0.0, block_stop=8, samples=1, seconds=0.0,
        )
    )  # fmt: skip


def at(seconds):
    return START + timedelta(seconds=seconds)
