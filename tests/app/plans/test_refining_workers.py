"""Measuring again around a plan: what workers do with its parts, whatever happens to them meanwhile."""

import numpy as np
import pytest
from sqlalchemy import select

from app.dispatch import store
from app.dispatch.shard import DONE, STOPPED
from app.jobs.progress import progress_of
from app.models import (
    Job,
    JobState,
    PartKind,
    ProbeResult,
    Stage,
    Task,
    TaskState,
    TrialPart,
)
from app.plans import repository
from app.plans.refining import refinement_of

from .played import (
    Killed,
    allow,
    at_once,
    backwards,
    in_turn,
    parts,
    refined,
    run,
    run_one,
    told,
    trials,
    waiting,
)


def progress(world, job):
    with world.database.read() as session:
        return progress_of(session, session.get_one(Job, job.id)).detail


def test_progress_tells_the_step_and_how_many_of_its_parts_are_done(world, refining, nature):
    job = refining(budgets=["3 bits", "4 bits"])
    assert progress(world, job) is None
    starts = waiting(world, job)
    run_one(world, starts[1])
    assert progress(world, job) == "step 1 around the plan of 4 bits, 0 of 5 parts"
    run_one(world, starts[0])
    first, *others = (p.task_id for p in parts(world, job, 1))
    run_one(world, first)
    assert progress(world, job) == "step 1 around the plans of 3 bits and 4 bits, 1 of 10 parts"
    in_turn(world, [task for task in others if task not in starts])
    assert progress(world, job) == "step 1 around the plans of 3 bits and 4 bits, 5 of 15 parts"
    run(world, job)
    assert progress(world, job) is None, "steps that are over are no news"


def test_steps_of_different_numbers_are_told_apart(world, refining, nature):
    job = refining(budgets=["3 bits", "4 bits", "5 bits"])
    in_turn(world, waiting(world, job))  # the steps' first parts
    while all(part.number == 0 for part in parts(world, job, 1)):
        in_turn(world, [p.task_id for p in parts(world, job, 1) if p.task_id in waiting(world, job)])
    assert progress(world, job) == (
        "step 1 around the plans of 3 bits and 5 bits, 0 of 10 parts; step 2 around the plan of 4 bits, 0 of 5 parts"
    )


def test_steps_are_counted_with_their_passes(world, refining, nature):
    job = refining()
    run_one(world, *waiting(world, job))
    run_one(world, *[p.task_id for p in parts(world, job, 0) if p.kind is PartKind.BASE])
    with world.database.read() as session:
        (counts,) = repository.steps(session, [job.id])[job.id]
    assert (counts.done, counts.total, counts.done_work) == (1, 5, 1.0)
    assert counts.total_work == pytest.approx(12.0), "the plan itself, and probes at 11 passes"


@pytest.mark.parametrize("workers", [backwards, at_once])
def test_any_number_of_workers_in_any_order_take_the_same_steps(world, refining, nature, look, workers):
    one, many = refining(), refining()
    run(world, one)
    run(world, many, workers)
    assert [t.outcome for t in trials(look, many)] == [t.outcome for t in trials(look, one)]
    assert [p.choices for p in refined(look, many)] == [p.choices for p in refined(look, one)]
    assert told(look, many) == told(look, one)
    assert len(nature.probed) % 2 == len(nature.measured) % 2 == 0, "each did as much"


def test_budgets_are_looked_around_beside_each_other(world, refining, nature, look):
    job = refining(budgets=["3 bits", "4 bits"])
    run(world, job, at_once)
    alone = refining(budgets=["4 bits"])
    run(world, alone)
    by_budget = [[t.outcome for t in trials(look, job) if t.ordinal == i] for i in (0, 1)]
    assert all(by_budget)
    assert by_budget[1] == [t.outcome for t in trials(look, alone)]
    kinds = [(p.ordinal, p.number, p.kind, p.place) for p in look(TrialPart, job)]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("call", [0, 3, 4, 5, 7, 9])
def test_what_a_killed_process_had_finished_is_not_done_again(world, refining, nature, look, call):
    """Killed at one of its calls to a worker, and gone on with by another process: the same steps, no part twice."""
    expected = refining(refine_rounds=1)
    run(world, expected)
    measured, probed = len(nature.measured), len(nature.probed)
    nature.measured.clear()
    nature.probed.clear()
    job, left = refining(refine_rounds=1), [call]

    def may_be_killed():
        left[0] -= 1
        if left[0] == -1:
            raise Killed

    nature.before_probe = nature.before_measuring = may_be_killed
    if call < measured + probed:
        with pytest.raises(Killed):
            run(world, job)
        (lost,) = [t.id for t in look(Task, job) if t.state is TaskState.RUNNING]
        assert run_one(world, lost, again=True) == DONE
    run(world, job)
    assert [t.outcome for t in trials(look, job)] == [t.outcome for t in trials(look, expected)]
    assert [p.choices for p in refined(look, job)] == [p.choices for p in refined(look, expected)]
    assert (len(nature.measured), len(nature.probed)) == (measured, probed)


def test_an_attempt_that_was_replaced_writes_nothing(world, refining, nature, look):
    """A worker that was thought dead, and still runs: another one has its part meanwhile."""
    job = refining()
    run_one(world, *waiting(world, job))
    (task, *_) = [p.task_id for p in look(TrialPart, job) if p.kind is PartKind.BASE]
    ended = []

    def meanwhile():
        nature.before_measuring = lambda: None
        ended.append(run_one(world, task, again=True))
        nature.factors["head.weight"] = 1e6  # what the first one measures now would be told apart

    nature.before_measuring = meanwhile
    assert run_one(world, task) == STOPPED
    assert ended == [DONE]
    (base,) = [p for p in look(TrialPart, job) if p.kind is PartKind.BASE]
    assert np.frombuffer(base.costs).mean() < 1e3


def test_a_task_that_is_not_wanted_any_more_writes_nothing(world, refining, nature, look):
    job = refining()

    def cancel():
        with world.database.write() as session:
            session.get_one(Job, job.id).state = JobState.CANCELLED

    run_one(world, *waiting(world, job))
    (task,) = [p.task_id for p in look(TrialPart, job) if p.kind is PartKind.BASE]
    nature.before_measuring = cancel
    assert run_one(world, task) == STOPPED
    assert all(p.costs is None for p in look(TrialPart, job))
    assert trials(look, job) == refined(look, job) == []


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
        made = session.scalars(select(TrialPart).where(TrialPart.job_id == job.id)).all()
        assert sorted((p.ordinal, p.kind) for p in made) == [(0, PartKind.START), (1, PartKind.START)]


@pytest.mark.parametrize("other", [{"compute_dtype": "model"}, {"seed": 1}], ids=str)
def test_what_was_found_around_a_plan_serves_no_job_that_would_find_something_else(
    world, refining, nature, look, other
):
    job = refining()
    run(world, job)
    base = trials(look, job)[0].base

    def keys():
        with world.database.read() as session:
            return {part.key for part in refinement_of(session, job.id, 0).probes(base)}

    before = keys()
    assert len(before) == 4
    assert {row.key for row in look(ProbeResult, job)} >= before
    allow(world, job, **other)
    assert not keys() & before
