"""Measuring again around a plan: what a worker does with a REFINE task, whatever happens to it meanwhile."""

from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import select

import app.plans.refining
import workers.sensitivity.estimators.run
import workers.verify.parts
from app.dispatch import requests, store
from app.dispatch.shard import DONE, STOPPED, run_task
from app.models import (
    Job,
    JobEntry,
    JobState,
    Plan,
    PlanRole,
    PlanTrial,
    ProbeResult,
    Stage,
    Task,
    TaskKind,
    TaskState,
)
from app.plans.refining import refinement_of
from workers.errors import MeasurementFailed

WEIGHTS = {"stem.weight": 216, "q.weight": 512, "k.weight": 256, "head.weight": 640}


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

    def estimate(self, request):
        self.before_probe()
        self.probed.append(request)
        rows = []
        for unit, candidate in request.wanted:
            own = self.unit_costs(unit, request.around[unit].bits, 40)
            rows.append(self.unit_costs(unit, candidate.bits, 40) - own)
        values = np.zeros((request.probes, len(rows), 40))
        return workers.sensitivity.estimators.run.Estimated(
            values=values, storage_bits=(1,) * len(rows), gradients=np.array(rows)
        )

    def measure_parts(self, request, parts):
        self.before_measuring()
        self.measured.append(parts)
        return [self.plan_costs(part.choices)[list(part.positions)] for part in parts]


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
            task = session.scalars(
                select(Task).where(Task.job_id == job.id, Task.kind == TaskKind.REFINE)
            ).one()
            task.state = TaskState.RUNNING
        return SimpleNamespace(job=job, task=task.id, attempt=0)

    return make


@pytest.fixture
def look(world):
    def rows(kind, job):
        with world.database.read() as session:
            query = select(kind)
            return session.scalars(query if kind is ProbeResult else query.where(kind.job_id == job.id)).all()

    return rows


def run(world, at):
    return run_task(world.settings.model_dump(mode="json"), at.task, at.attempt)


def again(world, at):
    """The engine lost the task; the next attempt runs."""
    at.attempt += 1
    with world.database.write() as session:
        session.get_one(Task, at.task).attempt = at.attempt


def refined(look, job):
    return [p for p in look(Plan, job) if p.role is PlanRole.ALTERNATIVE and p.spec.get("remeasured")]


def trials(look, job):
    return sorted(look(PlanTrial, job), key=lambda t: t.number)


def real(nature, choices):
    return nature.plan_costs({u: SimpleNamespace(bits=c["bits"]) for u, c in choices.items()}).mean()


def test_steps_are_taken_while_the_measured_cost_falls(world, refining, nature, look):
    at = refining()
    assert run(world, at) == DONE
    tried = trials(look, at.job)
    taken = [t for t in tried if t.outcome["accepted"]]
    assert taken
    (plan,) = refined(look, at.job)
    assert plan.choices == taken[-1].choices
    assert plan.size_bits <= plan.budget_bits
    assert plan.solver["remeasured"] == {"rounds": len(taken), "steps": [t.outcome for t in taken]}
    base = tried[0].base
    for trial in tried:
        assert trial.base == base, "from where the last step led"
        assert trial.outcome["before"] == pytest.approx(real(nature, trial.base))
        assert trial.outcome["after"] == pytest.approx(real(nature, trial.choices))
        base = trial.choices if trial.outcome["accepted"] else base
    assert not any(t.outcome["accepted"] for t in tried[-2:]), "two that do not help end it"
    verify = [t for t in look(Task, at.job) if t.plan_id == plan.id]
    assert [(t.kind, t.state) for t in verify] == [(TaskKind.VERIFY, TaskState.PENDING)]
    assert len(nature.probed) == 1 + len(taken)
    request = nature.probed[0]
    assert {u: c.bits for u, c in request.around.items()} == {u: c["bits"] for u, c in tried[0].base.items()}
    assert {(u, c.bits) for u, c in request.wanted} == {(u, b) for u in WEIGHTS for b in (2, 3, 4, 6)}


def test_every_fold_is_measured_with_a_plan_of_the_others(world, refining, nature, look):
    at = refining(refine_rounds=1)
    run(world, at)
    whole, *parts = nature.measured[:3]
    assert [len(p.positions) for p in whole] == [40, 40]
    for folds in parts:
        assert sorted(i for part in folds for i in part.positions) == list(range(40))
    assert parts[0][0].positions == tuple(range(10))
    assert parts[1][0].positions == tuple(range(0, 40, 4))
    assert len([t for t in trials(look, at.job) if t.outcome["accepted"]]) == 1


def test_noise_is_not_followed(world, refining, nature, look):
    nature.factors = dict.fromkeys(WEIGHTS, 1.0)
    nature.noise = 20.0
    at = refining()
    assert run(world, at) == DONE
    assert trials(look, at.job)
    assert not any(t.outcome["accepted"] for t in trials(look, at.job))
    assert refined(look, at.job) == []


@pytest.mark.parametrize("call", range(6))
def test_what_a_killed_process_had_finished_is_not_done_again(world, refining, nature, look, call):
    """Killed at one of its calls to a worker, and gone on with by another process: the same steps, none twice."""
    expected = refining()
    run(world, expected)
    calls, probed = nature.measured[:], len(nature.probed)
    nature.measured.clear()
    nature.probed.clear()
    at, left = refining(), [call]

    def may_be_killed():
        left[0] -= 1
        if left[0] == -1:
            raise Killed

    nature.before_probe = nature.before_measuring = may_be_killed
    with pytest.raises(Killed):
        run(world, at)
    done = len(trials(look, at.job))
    again(world, at)
    assert run(world, at) == DONE
    assert [t.outcome for t in trials(look, at.job)] == [t.outcome for t in trials(look, expected.job)]
    assert [p.choices for p in refined(look, at.job)] == [p.choices for p in refined(look, expected.job)]
    assert len(nature.probed) == probed
    assert len(nature.measured) <= len(calls) + 2, "at most one trial was begun twice"
    assert done <= len(trials(look, at.job))


def test_a_task_that_is_not_wanted_any_more_writes_nothing(world, refining, nature, look):
    at = refining()

    def cancel():
        with world.database.write() as session:
            session.get_one(Job, at.job.id).state = JobState.CANCELLED

    nature.before_measuring = cancel
    assert run(world, at) == STOPPED
    assert trials(look, at.job) == []
    assert refined(look, at.job) == []


def test_a_model_that_cannot_be_differentiated_keeps_the_plans_it_has(world, refining, nature, look):
    at = refining()

    def fail():
        raise MeasurementFailed(
            "no derivative of operator floor", "floor", "floor", "operators with a derivative"
        )

    nature.before_probe = fail
    assert run(world, at) == DONE
    assert refined(look, at.job) == []
    with world.database.read() as session:
        assert session.get_one(Task, at.task).state is TaskState.DONE


def test_passes_that_the_job_may_not_spend_are_not_spent(world, refining, nature, look):
    at = refining()
    with world.database.write() as session:
        job = session.get_one(Job, at.job.id)
        job.request = job.request | {"max_passes": 1e-6}
    assert run(world, at) == DONE
    assert nature.probed == nature.measured == []


@pytest.mark.parametrize(("more", "steps"), [(3.9, 0), (4.1, 1), (7.9, 1), (8.1, 2)])
def test_a_step_costs_four_passes(world, refining, nature, look, more, steps):
    nature.noise = 5.0  # no step helps: two are tried, if they may be
    at = refining()
    with world.database.write() as session:
        job = session.get_one(Job, at.job.id)
        spent = sum(session.scalars(select(JobEntry.work).where(JobEntry.job_id == job.id)))
        job.request = job.request | {"max_passes": spent + more}
    assert run(world, at) == DONE
    assert len(trials(look, at.job)) == steps


def test_more_candidates_than_can_be_solved_with_interactions_are_left_alone(
    world, refining, nature, look, monkeypatch
):
    at = refining()
    monkeypatch.setattr(app.plans.refining, "MOST_CELLS", 15)  # four units have sixteen
    assert run(world, at) == DONE
    assert nature.probed == nature.measured == []


def test_a_budget_without_a_plan_has_nothing_to_look_around(world, refining, nature, look):
    at = refining()
    with world.database.write() as session:
        query = select(Plan).where(Plan.job_id == at.job.id, Plan.role == PlanRole.REQUESTED)
        session.scalars(query).one().choices = {}
    assert run(world, at) == DONE
    assert nature.probed == nature.measured == []
    assert not refined(look, at.job)


def test_few_samples_tell_nothing(world, refining, nature, look):
    at = refining(samples=7)
    assert run(world, at) == DONE
    assert nature.probed == []


@pytest.mark.parametrize(
    "values",
    [
        {"refine_rounds": 0},
        {"limits": {"bit_operations": "100M"}},
        {"activation_candidates": [8]},
        {"metric": "fisher"},
    ],
    ids=str,
)
def test_jobs_that_cannot_be_refined_do_not_ask_for_it(world, values):
    assert "refine_rounds" not in world.job(**values).request
    assert world.job(metric="auto").request["refine_rounds"] == 3


def test_tasks_are_made_once_and_only_when_all_plans_are_verified(world):
    job = world.job(budgets=["3 bits", "4 bits"])
    world.start(job)
    world.measure(job)
    world.solve(job)
    with world.database.write() as session:
        assert not store.refine_plans(session, job.id), "not yet in the stage"
    world.start(job, Stage.VERIFY)
    with world.database.write() as session:
        assert not store.refine_plans(session, job.id), "plans are still being verified"
        for task in session.scalars(select(Task).where(Task.job_id == job.id)):
            task.state = TaskState.DONE
        session.flush()
        view = next(v for v in store.active_jobs(session) if v.id == job.id)
        assert view.refines
        assert store.refine_plans(session, job.id)
        assert not store.refine_plans(session, job.id)
        made = session.scalars(select(Task).where(Task.job_id == job.id, Task.kind == TaskKind.REFINE)).all()
        assert sorted(t.ordinal for t in made) == [0, 1]


@pytest.mark.parametrize("other", [{"compute_dtype": "model"}, {"seed": 1}], ids=str)
def test_what_was_found_around_a_plan_serves_no_job_that_would_find_something_else(
    world, refining, nature, look, other
):
    at = refining()
    assert run(world, at) == DONE
    with world.database.read() as session:
        part = refinement_of(session, at.job.id, 0).part
    with world.database.write() as session:
        job = session.get_one(Job, at.job.id)
        job.request = job.request | other
    with world.database.read() as session:
        assert refinement_of(session, at.job.id, 0).part.key != part.key
