"""Rows to begin with, as the service and the workers would make them."""

import random
from hashlib import sha256

import numpy as np
from sqlalchemy import func, select, update

from app.jobs import tasks
from app.jobs.offer import offer_of
from app.jobs.schemas import JobCreate
from app.jobs.service import create_job
from app.kit.ids import new_id
from app.models import (
    Base,
    Dataset,
    Job,
    JobEntry,
    JobState,
    Measurement,
    Model,
    ModelState,
    Plan,
    ProbeResult,
    Stage,
    Task,
    TaskKind,
    TaskState,
    utc_now,
)
from app.plans.conclusion import conclude_job
from app.plans.service import job_description, solve_job


def unit(name, shape=(10, 20), operator="linear", *, output_axis=0, group_axis=1, macs=200):
    weights = 1
    for size in shape:
        weights *= size
    return {
        "name": name,
        "operator": operator,
        "shape": list(shape),
        "weights": weights,
        "output_channel_axis": output_axis,
        "group_axis": group_axis,
        "macs": macs,
        "tied": [],
        "derived": False,
    }


UNITS = (
    unit("stem.weight", (8, 3, 3, 3), "conv2d", macs=9000),
    unit("q.weight", (16, 32), macs=512),
    unit("k.weight", (8, 32), macs=256),
    unit("head.weight", (10, 64), macs=640),
)


def description(units=UNITS, *, classes=10, extra_float_bits=3200):
    weights = sum(u["weights"] for u in units)
    return {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 3, 4, 4]}],
        "batch_size": None,
        "outputs": [{"name": "y", "dtype": "float32", "shape": [None, classes]}],
        "units": list(units),
        "unsupported": [
            {
                "name": "norm.weight",
                "operator": "layer_norm",
                "shape": [8],
                "weights": 8,
                "reason": "not a weight of a product",
            }
        ],
        "weights": weights,
        "float_bits": 32 * weights + extra_float_bits,
        "unit_float_bits": 32 * weights,
    }


def costs_of(entry, mean, samples):
    """Costs of samples, a tenth of their mean as its standard error; of no entry like those of another."""
    seed = [*f"{entry.unit} {entry.bits} {entry.scheme} {entry.block_start}".encode()]
    costs = np.random.default_rng(seed).standard_normal(samples)
    if samples < 2:
        return np.full(samples, mean)
    costs -= costs.mean()
    return mean * (1 + 0.1 * samples**0.5 * costs / costs.std(ddof=1))


class World:
    """Makes rows as the service and the workers would."""

    unit = staticmethod(unit)

    def __init__(self, database, settings):
        self.database = database
        self.settings = settings

    def model(self, units=UNITS, *, state=ModelState.READY, name="net", **about):
        row = Model(
            id=new_id("mdl"),
            sha256=sha256(random.randbytes(8)).hexdigest(),
            size_bytes=100,
            name=name,
            state=state,
        )
        if state is ModelState.READY:
            row.description = description(units, **about)
        with self.database.write() as session:
            session.add(row)
        return row

    def dataset(self, samples=40, *, labels=None, name="data"):
        tensors = {"x": {"dtype": "float32", "shape": [samples, 3, 4, 4]}}
        if labels is not None:
            tensors["labels"] = {"dtype": "int64", "shape": [samples], "minimum": 0, "maximum": labels - 1}
        row = Dataset(
            id=new_id("dat"),
            sha256=sha256(random.randbytes(8)).hexdigest(),
            size_bytes=100,
            name=name,
            samples=samples,
            tensors=tensors,
        )
        with self.database.write() as session:
            session.add(row)
        return row

    def body(self, **request):
        """The body of a job's request, with a model and a dataset of its own unless they are given."""
        if "model" not in request:
            request["model"] = self.model().id
        if "dataset" not in request:
            request["dataset"] = self.dataset().id
        return {"budgets": ["4 bits"], "metric": "kl", **request}

    def job(self, key=None, **request):
        with self.database.write() as session:
            return create_job(session, JobCreate(**self.body(**request)), self.settings, key)

    def start(self, job, stage=Stage.MEASURE, at=None):
        with self.database.write() as session:
            row = session.get_one(Job, job.id)
            row.state, row.stage = JobState.RUNNING, stage
            row.started_at = row.stage_started_at = at or utc_now()
            if stage is Stage.VERIFY:
                row.measured_at = row.solved_at = utc_now()

    def finish(self, job, state=JobState.DONE):
        with self.database.write() as session:
            row = session.get_one(Job, job.id)
            row.state, row.stage, row.finished_at = state, row.stage, utc_now()

    def measure(self, job, count=None, *, cost=None, at=None):
        """Write measurements for the first `count` entries that have none."""
        with self.database.write() as session:
            weights = {
                u["name"]: u["weights"]
                for u in session.get_one(Model, session.get_one(Job, job.id).model_id).description["units"]
            }
            query = (
                select(JobEntry)
                .outerjoin(Measurement, Measurement.key == JobEntry.key)
                .where(JobEntry.job_id == job.id, Measurement.key.is_(None))
                .order_by(JobEntry.ordinal)
            )
            for entry in session.scalars(query).all()[:count]:
                size = weights[entry.unit] * entry.bits
                mean = cost(entry.unit, entry.bits) if cost else weights[entry.unit] * 4.0**-entry.bits
                samples = entry.block_stop - entry.block_start
                session.add(
                    Measurement(
                        key=entry.key,
                        model_sha256="0" * 64,
                        unit=entry.unit,
                        bits=entry.bits,
                        scheme=entry.scheme,
                        metric=job.request["compare"],
                        block_start=entry.block_start,
                        block_stop=entry.block_stop,
                        size_bits=size,
                        storage_bits=size + 100,
                        mean=mean,
                        standard_error=mean / 10 if samples > 1 else None,
                        runs=costs_of(entry, mean, samples).astype("<f8").tobytes(),
                        activation_bits=entry.activation_bits,
                        samples=samples,
                        seconds=0.5,
                        created_at=at or utc_now(),
                    )
                )

    def estimate(self, job, values=None):
        """Write what probes find: `values(unit, candidate, probe, sample)` squared is a cost."""
        with self.database.write() as session:
            row = session.get_one(Job, job.id)
            offer = offer_of(job_description(session, row), row.request)
            values = values or (lambda unit, candidate, _p, _s: 2.0**-candidate.bits)
            for part in tasks.probe_parts(tasks.source_of(session, row), row.request, offer):
                probes, block = range(row.request["probes"]), range(*part.block)
                found = [[[values(*entry, p, s) for s in block] for entry in offer] for p in probes]
                result = ProbeResult(
                    key=part.key,
                    model_sha256="0" * 64,
                    probes=len(probes),
                    entries=len(offer),
                    samples=len(block),
                    values=np.array(found, "<f4").tobytes(),
                    storage_bits=list(range(len(offer))),
                    seconds=0.1,
                )
                session.merge(result)
            probing = update(Task).where(Task.job_id == job.id, Task.kind == TaskKind.PROBE)
            session.execute(probing.values(state=TaskState.DONE))

    def solve(self, job):
        with self.database.write() as session:
            solve_job(session, job.id)

    def verify(self, job, cost):
        """Write what plans measure; `cost(plan)` is the cost on the evaluation data."""
        with self.database.write() as session:
            metric = job.request["compare"]
            for plan in session.scalars(select(Plan).where(Plan.job_id == job.id)):
                if plan.choices:
                    values = {metric: {"calibration": 2 * cost(plan), "evaluation": cost(plan)}}
                    errors = {metric: {"calibration": 0.1, "evaluation": 0.2}}
                    plan.measured = {"values": values, "standard_error": errors}

    def conclude(self, job):
        with self.database.write() as session:
            conclude_job(session, job.id)

    def done_job(self, **request):
        """A job with everything measured, solved, verified and concluded."""
        job = self.job(**request)
        self.start(job)
        self.measure(job)
        self.solve(job)
        self.start(job, Stage.VERIFY)
        self.verify(job, lambda plan: plan.objective)
        self.conclude(job)
        self.finish(job)
        return job

    def rows(self):
        """Number of rows of every table."""
        with self.database.read() as session:
            return {
                table.name: session.scalar(select(func.count()).select_from(table))
                for table in Base.metadata.sorted_tables
            }

    def files(self):
        """Names of all stored files, half-written ones included."""
        root = self.settings.artifacts_dir
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
