"""Refinement without models: what plans really cost is made up, and workers are functions."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
from sqlalchemy import select

import workers.sensitivity.estimators.run
import workers.verify.parts
from app.dispatch.shard import DONE, run_task
from app.models import (
    Job,
    JobEntry,
    PartKind,
    Plan,
    PlanRole,
    PlanTrial,
    Task,
    TaskKind,
    TaskState,
    TrialPart,
)
from workers.sensitivity.blocks import positions_of

WEIGHTS = {"stem.weight": 216, "q.weight": 512, "k.weight": 256, "head.weight": 640}
MACS = {"stem.weight": 9000, "q.weight": 512, "k.weight": 256, "head.weight": 640}
"""Multiply-accumulates of a sample."""


class Killed(BaseException):
    """The process is gone."""


class Nature:
    """What plans really cost, sample by sample: not what their units cost alone. The head matters far more."""

    def __init__(self):
        self.factors = {"stem.weight": 1.0, "q.weight": 0.3, "k.weight": 0.3, "head.weight": 40.0}
        self.noise = 0.0
        self.probed, self.measured = [], []
        self.before_probe = self.before_measuring = lambda: None

    def unit_costs(self, unit, bits, samples):
        wave = 1 + 0.1 * np.sin(np.arange(samples) * (3 + len(unit)))
        noise = self.noise * np.random.default_rng([len(unit), bits]).normal(size=samples)
        return WEIGHTS[unit] * 4.0**-bits * (self.factors[unit] * wave + noise)

    def plan_costs(self, choices, samples=40):
        return sum(self.unit_costs(unit, c.bits, samples) for unit, c in choices.items())

    def estimate(self, request, progress):
        self.before_probe()
        progress(1.0, 2)
        self.probed.append(request)
        samples = positions_of(request.block, 40, request.seed)
        rows = []
        for unit, candidate in request.wanted:
            own = self.unit_costs(unit, request.around[unit].bits, 40)
            rows.append((self.unit_costs(unit, candidate.bits, 40) - own)[samples])
        values = np.zeros((request.probes, len(rows), len(samples)))
        return workers.sensitivity.estimators.run.Estimated(
            values=values, storage_bits=(1,) * len(rows), gradients=np.array(rows)
        )

    def measure_parts(self, request, parts, progress):
        self.before_measuring()
        progress(1, 2)
        self.measured.append(parts)
        return [self.plan_costs(part.choices)[list(part.positions)] for part in parts]


def waiting(world, job):
    """The ids of the REFINE tasks that wait, as they were made."""
    with world.database.write() as session:
        query = select(Task).where(
            Task.job_id == job.id, Task.kind == TaskKind.REFINE, Task.state == TaskState.PENDING
        )
        return [task.id for task in session.scalars(query.order_by(Task.ordinal))]


def start(world, task_id, *, again=False):
    """A task runs; `again`: the engine lost it, and the next attempt runs."""
    with world.database.write() as session:
        task = session.get_one(Task, task_id)
        task.state = TaskState.RUNNING
        task.attempt += again
        return task.attempt


def run_one(world, task_id, *, again=False):
    attempt = start(world, task_id, again=again)
    return run_task(world.settings.model_dump(mode="json"), task_id, attempt)


def in_turn(world, tasks):
    return [run_one(world, task) for task in tasks]


def backwards(world, tasks):
    return in_turn(world, tasks[::-1])


def at_once(world, tasks):
    """As many workers as tasks."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(lambda task: run_one(world, task), tasks))


def run(world, job, workers=in_turn):
    """Run REFINE tasks until none is left; how the last ones ended."""
    ended = []
    while tasks := waiting(world, job):
        ended = workers(world, tasks)
        assert set(ended) == {DONE}
    return ended


def refined(look, job):
    return [p for p in look(Plan, job) if p.role is PlanRole.ALTERNATIVE and p.spec.get("remeasured")]


def trials(look, job):
    return sorted(look(PlanTrial, job), key=lambda t: t.number)


def real_costs(nature, choices):
    return nature.plan_costs({u: SimpleNamespace(bits=c["bits"]) for u, c in choices.items()})


def real(nature, choices):
    return real_costs(nature, choices).mean()


def told(look, job):
    """What the requested plan tells of its refinement."""
    (plan,) = [p for p in look(Plan, job) if p.role is PlanRole.REQUESTED]
    return plan.solver.get("refinement")


def parts(world, job, ordinal):
    with world.database.read() as session:
        query = select(TrialPart).where(TrialPart.job_id == job.id, TrialPart.ordinal == ordinal)
        return session.scalars(query.where(TrialPart.kind != PartKind.START)).all()


def allow(world, job, **values):
    with world.database.write() as session:
        row = session.get_one(Job, job.id)
        row.request = row.request | values
    return row


def entries(world, job):
    with world.database.read() as session:
        return sum(session.scalars(select(JobEntry.work).where(JobEntry.job_id == job.id)))
