"""Measuring again around a plan: what it may take, and why it ends."""

import pytest
from sqlalchemy import select

import app.plans.allowance
import app.plans.refining
from app.dispatch import store
from app.dispatch.lifecycle import GiveUp
from app.dispatch.shard import FAILED
from app.jobs.progress import progress_of
from app.jobs.repository import passes_ahead
from app.models import (
    Job,
    Model,
    Plan,
    PlanRole,
    Task,
    TaskKind,
    TaskState,
    TrialPart,
)
from app.plans.refinement import TRUSTS, End
from app.results import job_result
from workers.errors import MeasurementFailed

from .played import allow, at_once, entries, in_turn, refined, run, start, told, trials, waiting


@pytest.mark.parametrize("workers", [in_turn, at_once])
def test_a_model_that_cannot_be_differentiated_keeps_the_plans_it_has(world, refining, nature, look, workers):
    job = refining()

    def fail():
        raise MeasurementFailed(
            "no derivative of operator floor", "floor", "floor", "operators with a derivative"
        )

    nature.before_probe = fail
    run(world, job, workers)
    assert refined(look, job) == []
    assert {t.state for t in look(Task, job) if t.kind is TaskKind.REFINE} == {TaskState.DONE}
    assert told(look, job)["ended"] == End.FAILED
    assert "no derivative of operator floor" in told(look, job)["problem"]
    if workers is in_turn:
        assert nature.measured == [], "others stop when one has failed"


def test_an_error_later_on_keeps_the_steps_that_were_taken(world, refining, nature, look):
    job = refining()

    def fail_later():
        if trials(look, job):
            raise MeasurementFailed("not finite", "output", "nan", "finite outputs")

    nature.before_probe = fail_later
    run(world, job)
    (plan,) = refined(look, job)
    assert plan.choices == trials(look, job)[0].choices
    assert told(look, job)["ended"] == End.FAILED


def test_what_nobody_can_do_ends_the_steps_and_not_the_job(world, refining, nature, look):
    """Not an error that is expected: a defect, after as many attempts as a task has."""
    job = refining()

    def break_later():
        if trials(look, job):
            raise ZeroDivisionError

    nature.before_probe = break_later
    ended = []
    while tasks := waiting(world, job):
        ended += in_turn(world, tasks[:1])
    assert ended.count(FAILED) == world.settings.shard_attempts
    (plan,) = refined(look, job)
    assert plan.choices == trials(look, job)[0].choices
    assert told(look, job)["ended"] == End.FAILED
    assert "internal error" in told(look, job)["problem"]
    found = look(Task, job)
    assert TaskState.FAILED not in {task.state for task in found}
    assert [task.kind for task in found if task.problem is not None] == [TaskKind.REFINE]


def test_a_worker_that_dies_again_and_again_ends_the_steps_and_not_the_job(world, refining, look):
    job = refining()
    task_id = waiting(world, job)[0]
    attempt = start(world, task_id)
    lost = {"detail": "its process died"}
    with world.database.write() as session:
        assert not store.give_up(session, GiveUp(task_id=task_id, attempt=attempt + 1), lost)
    assert told(look, job) is None, "another attempt has it by now"
    with world.database.write() as session:
        assert store.give_up(session, GiveUp(task_id=task_id, attempt=attempt), lost)
    assert told(look, job)["ended"] == End.FAILED
    assert told(look, job)["problem"] == "its process died"
    run(world, job)
    assert refined(look, job) == []
    assert {task.state for task in look(Task, job)} == {TaskState.DONE}


def test_passes_that_the_job_may_not_spend_are_not_spent(world, refining, nature, look):
    job = refining()
    allow(world, job, max_passes=1e-6)
    run(world, job)
    assert nature.probed == nature.measured == []
    assert told(look, job)["ended"] == End.MAX_PASSES


@pytest.mark.parametrize(("more", "steps"), [(3.9, 0), (4.1, 1), (6.9, 1), (7.1, 2), (15.9, 4), (16.1, 5)])
def test_the_first_step_measures_four_passes_and_the_next_three(world, refining, nature, look, more, steps):
    nature.noise = 20.0  # no step helps: all are tried, if they may be
    job = refining()
    allow(world, job, max_passes=entries(world, job) + more)
    run(world, job)
    assert len(trials(look, job)) == steps
    assert told(look, job)["ended"] == (End.NO_GAIN if steps == len(TRUSTS) else End.MAX_PASSES)


def test_the_best_step_that_held_is_taken_when_passes_run_out(world, refining, nature, look):
    job = refining(refine_passes=15.1)
    run(world, job)
    (trial,) = trials(look, job)
    assert trial.outcome["accepted"]
    assert refined(look, job)[0].choices == trial.choices
    assert told(look, job)["ended"] == End.PASSES


def test_the_best_step_that_held_is_taken_when_another_one_fails(world, refining, nature, look, monkeypatch):
    job = refining()
    step = app.plans.refining.Refinement.step

    def fail_soon(self, base, around, samples, trust):
        if trust == TRUSTS[1]:
            raise MeasurementFailed("not finite", "output", "nan", "finite outputs")
        return step(self, base, around, samples, trust)

    monkeypatch.setattr(app.plans.refining.Refinement, "step", fail_soon)
    run(world, job)
    (trial,) = trials(look, job)
    assert trial.outcome["accepted"]
    assert refined(look, job)[0].choices == trial.choices
    assert told(look, job)["ended"] == End.FAILED


@pytest.mark.parametrize("share", [0, 14, 16, 17, 19, 60])
def test_refining_takes_no_more_than_its_share_of_what_costs_took(
    world, refining, nature, look, monkeypatch, share
):
    monkeypatch.setattr(app.plans.allowance, "LEAST_OPERATIONS", 0.0)
    job = refining()
    monkeypatch.setattr(app.plans.allowance, "SHARE", (share + 1e-9) / entries(world, job))
    run(world, job)
    parts = look(TrialPart, job)
    spent = sum(p.work for p in parts)
    assert spent <= share + 1e-6
    refinement = told(look, job)
    assert refinement["passes"] == pytest.approx(spent)
    assert refinement["allowed_passes"] == pytest.approx(share, abs=1e-6)
    if refinement["ended"] == End.PASSES:
        steps = [trial.outcome for trial in trials(look, job)]
        fresh = all(step["round"] < sum(s["accepted"] for s in steps) for step in steps)
        next_step = (11 if fresh else 0) + (3 if trials(look, job) else 4)
        assert spent + next_step > share
    else:
        assert share == 60
    probed = sum(r.block.stop - r.block.start for r in nature.probed) / 40
    measured = sum(len(p.positions) for parts in nature.measured for p in parts) / 40
    assert 5 * 2.2 * probed + measured <= spent + 1e-6, "what was done is no more than what was reckoned"


@pytest.mark.parametrize(("allowed", "first"), [(90.0, 21 + 0.75 * 32), (40.0, 40 - 12)])
def test_what_is_likely_to_follow_is_told_with_each_part_and_never_more_than_is_allowed(
    world, refining, nature, look, allowed, first
):
    job = refining(refine_passes=allowed)
    told_ahead = []
    while tasks := waiting(world, job):
        rows = look(TrialPart, job)
        if len(rows) > 1:  # the first one only sees what there is to do
            with world.database.read() as session:
                (found,) = passes_ahead(session, [job.id])[job.id]
                progress = progress_of(session, session.get_one(Job, job.id))
                assert (
                    "refining" not in job_result(session, session.get_one(Job, job.id))["plans"][0]["solver"]
                )
                done = [t for t in look(Task, job) if t.kind is TaskKind.REFINE and t.state is TaskState.DONE]
            spent = sum(part.work for part in rows)
            assert 0 <= found <= allowed - spent + 1e-6
            over = sum(part.work for part in rows if part.task_id in {task.id for task in done})
            assert progress.fraction == pytest.approx(over / (spent + found), abs=0.01)
            told_ahead.append(found)
        in_turn(world, tasks[:1])
    assert told_ahead[0] == pytest.approx(first, abs=1e-6), "the probes and the plan are queued: 12 passes"
    with world.database.read() as session:
        assert passes_ahead(session, [job.id])[job.id] == [0.0]
    (plan,) = [p for p in look(Plan, job) if p.role is PlanRole.REQUESTED]
    assert "refining" not in plan.solver


@pytest.mark.parametrize(("passes", "steps"), [(14.9, 0), (15.1, 1)])
def test_what_was_asked_for_bounds_it_whatever_costs_took(world, refining, nature, look, passes, steps):
    job = refining(refine_passes=passes)
    run(world, job)
    assert len(trials(look, job)) == steps
    assert told(look, job)["allowed_passes"] == passes


def test_short_passes_are_not_counted(world, refining, nature, look, monkeypatch):
    """A small model may take as many operations as nobody has to wait for, whatever its costs took."""
    operations = 40 * (9000 + 512 + 256 + 640)
    monkeypatch.setattr(app.plans.allowance, "SHARE", 0.0)
    monkeypatch.setattr(app.plans.allowance, "LEAST_OPERATIONS", 15.5 * operations)
    job = refining()
    run(world, job)
    assert len(trials(look, job)) == 1
    assert told(look, job)["allowed_passes"] == pytest.approx(15.5)


def test_operations_are_those_of_whole_samples(world, refining, nature, look, monkeypatch):
    """A model is described with one position along the axes that it leaves open; the data have three channels there."""
    monkeypatch.setattr(app.plans.allowance, "SHARE", 0.0)
    monkeypatch.setattr(app.plans.allowance, "LEAST_OPERATIONS", 60 * 40 * (9000 + 512 + 256 + 640))
    job = refining()
    with world.database.write() as session:
        model = session.get_one(Model, job.model_id)
        (inputs,) = model.description["inputs"]
        opened = inputs | {"shape": [None, None, *inputs["shape"][2:]]}
        model.description = model.description | {"inputs": [opened]}
    run(world, job)
    assert told(look, job)["allowed_passes"] == pytest.approx(60 / 3)


def test_more_candidates_than_can_be_solved_with_interactions_are_left_alone(
    world, refining, nature, look, monkeypatch
):
    job = refining()
    monkeypatch.setattr(app.plans.refining, "MOST_CELLS", 15)  # four units have sixteen
    run(world, job)
    assert nature.probed == nature.measured == []
    assert told(look, job)["ended"] == End.MANY_CANDIDATES


def test_a_budget_without_a_plan_has_nothing_to_look_around(world, refining, nature, look):
    job = refining()
    with world.database.write() as session:
        query = select(Plan).where(Plan.job_id == job.id, Plan.role == PlanRole.REQUESTED)
        session.scalars(query).one().choices = {}
    run(world, job)
    assert nature.probed == nature.measured == []
    assert not refined(look, job)
    assert told(look, job) is None


def test_few_samples_tell_nothing(world, refining, nature, look):
    job = refining(samples=7)
    run(world, job)
    assert nature.probed == []
    assert told(look, job)["ended"] == End.FEW_SAMPLES


@pytest.mark.parametrize(
    "values",
    [
        {"refine_rounds": 0},
        {"metric": "fisher"},
    ],
    ids=str,
)
def test_jobs_that_cannot_be_refined_do_not_ask_for_it(world, values):
    assert "refine_rounds" not in world.job(**values).request
    assert "refine_passes" not in world.job(refine_passes=50.0, **values).request
    assert world.job(metric="auto").request["refine_rounds"] == 3
    assert "refine_passes" not in world.job(metric="auto").request
    with_limit = {"activation_candidates": [8], "limits": {"bit_operations": "100M"}}
    assert world.job(**with_limit).request["refine_rounds"] == 3
