"""What a job still has to measure: from its rows to the next block of samples, and nothing twice."""

import numpy as np
import pytest
from sqlalchemy import func, select

from app.dispatch import work
from app.dispatch.lifecycle import Requeue
from app.dispatch.shard import DONE, STOPPED, run_task
from app.dispatch.store import enter_stage, requeue
from app.jobs.blocks import FEWEST, MOST
from app.jobs.tasks import cut
from app.models import Job, JobEntry, JobState, Plan, Stage, Task, TaskKind, TaskState
from app.plans.rounds import further_entries, measure_further

FINE = 1e-6
"""So little is tolerated that everything in doubt is asked for."""


def further(world, job):
    with world.database.read() as session:
        return further_entries(session, job.id)


def solving(world, job):
    """The job has estimated, or measured, what it asked for, and its SOLVE task runs; the task's id."""
    with world.database.write() as session:
        assert enter_stage(session, job.id, Stage.SOLVE)
        task = session.scalars(
            select(Task).where(
                Task.job_id == job.id, Task.kind == TaskKind.SOLVE, Task.state == TaskState.PENDING
            )
        ).one()
        task.state = TaskState.RUNNING
        return task.id


def solve(world, task_id, attempt=0):
    return run_task(world.settings.model_dump(mode="json"), task_id, attempt)


def entries(world, job):
    with world.database.read() as session:
        query = select(JobEntry).where(JobEntry.job_id == job.id).order_by(JobEntry.ordinal)
        return session.scalars(query).all()


def tasks_of(world, job, kind):
    with world.database.read() as session:
        query = (
            select(Task)
            .where(Task.job_id == job.id, Task.kind == kind)
            .order_by(Task.ordinal, Task.created_at)
        )
        return session.scalars(query).all()


def get(world, job):
    with world.database.read() as session:
        return session.get_one(Job, job.id)


def noisy(unit, candidate, probe, sample):
    """Costs that differ by unit and sample."""
    return (1 + 0.5 * (hash_of(unit) + sample) % 3) * 2.0**-candidate.bits


def hash_of(text):
    return sum(text.encode())


@pytest.fixture
def estimated(world):
    """A job whose probes are done."""

    def make(**values):
        job = world.job(metric="auto", **{"regret": FINE} | values)
        world.start(job, Stage.PROBE)
        world.estimate(job, noisy)
        return job

    return make


def finish_measuring(world, job, cost):
    world.measure(job, cost=cost)
    with world.database.write() as session:
        for task in session.scalars(select(Task).where(Task.job_id == job.id, Task.kind == TaskKind.MEASURE)):
            task.state = TaskState.DONE


def test_the_first_round_asks_for_the_first_block(world, estimated):
    job = estimated()
    wanted = further(world, job)
    assert list(wanted) == [(0, 10)]
    assert wanted[0, 10]
    offered = {
        (u, b) for u in ("stem.weight", "q.weight", "k.weight", "head.weight") for b in (2, 3, 4, 5, 6, 8)
    }
    assert {(unit, c.bits) for unit, c in wanted[0, 10]} <= offered


def test_a_generous_tolerance_asks_for_nothing_and_so_do_jobs_that_refine_nothing(world, estimated):
    assert further(world, estimated(regret=1.0, budgets=["8 bits"])) == {}
    measured = world.job()
    world.measure(measured)
    assert further(world, measured) == {}
    scored = world.job(metric="fisher")
    world.estimate(scored)
    assert further(world, scored) == {}


def test_rounds_go_on_block_by_block_to_the_end_and_never_ask_twice(world, estimated):
    job = estimated(candidates=[2, 4, 8])
    rng, numbers, rounds_made = np.random.default_rng(0), [0], 0
    while True:
        task_id = solving(world, job)
        assert solve(world, task_id) == DONE
        row = get(world, job)
        if row.stage is Stage.SOLVE:
            break
        assert row.stage is Stage.MEASURE
        rounds_made += 1
        assert rounds_made < 50, "it does not end"
        finish_measuring(world, job, lambda unit, bits: hash_of(unit) * 4.0**-bits * rng.uniform(0.3, 3))
        numbers.append(len(entries(world, job)))
    assert rounds_made >= 2
    assert numbers == sorted(set(numbers)), "a round asked for nothing"
    found = entries(world, job)
    asked = [(e.unit, e.bits, e.block_start) for e in found]
    assert len(set(asked)) == len(asked)
    assert len({e.key for e in found}) == len(found)
    blocks = cut(40, FEWEST)
    for cell in {(e.unit, e.bits) for e in found}:
        mine = [(e.block_start, e.block_stop) for e in found if (e.unit, e.bits) == cell]
        assert tuple(mine) == blocks[: len(mine)], "blocks come in order"
    assert [e.ordinal for e in found] == list(range(len(found)))
    assert [t.ordinal for t in tasks_of(world, job, TaskKind.MEASURE)] == list(range(len(tasks_of(world, job, TaskKind.MEASURE))))  # fmt: skip
    with world.database.read() as session:
        assert session.scalars(select(Plan).where(Plan.job_id == job.id)).all()


def test_what_is_measured_on_all_samples_is_settled(world, estimated):
    job = estimated(candidates=[2, 4])
    with world.database.read() as session:
        offer = [(u, c) for wanted in further_entries(session, job.id).values() for u, c in wanted]
    for block in cut(40, FEWEST):
        with world.database.write() as session:
            measure_further(session, job.id, {block: offer}, world.settings)
    world.measure(job)
    asked = {(u, str(c)) for u, c in offer}
    assert not asked & {(u, str(c)) for wanted in further(world, job).values() for u, c in wanted}


def test_one_sample_alone_is_not_taken_as_exact(world):
    job = world.job(metric="auto", regret=FINE, candidates=[2, 4], dataset=world.dataset(samples=4).id)
    world.start(job, Stage.PROBE)
    world.estimate(job, noisy)
    with world.database.write() as session:
        measure_further(session, job.id, {(0, 1): further(world, job)[0, 1]}, world.settings)
    world.measure(job, cost=lambda _unit, bits: 4.0**-bits)
    assert further(world, job)[1, 2]


def test_solving_sends_the_job_back_in_one_transaction(world, estimated, monkeypatch):
    job = estimated()
    task_id = solving(world, job)
    finish = work.finish

    def broken(_session, _claim):
        raise ZeroDivisionError("after all was written")

    monkeypatch.setattr(work, "finish", broken)
    solve(world, task_id)
    assert entries(world, job) == []
    assert get(world, job).stage is Stage.SOLVE
    monkeypatch.setattr(work, "finish", finish)
    with world.database.write() as session:
        session.get_one(Task, task_id).state = TaskState.RUNNING
    assert solve(world, task_id, 1) == DONE
    row = get(world, job)
    assert (row.stage, row.solved_at) == (Stage.MEASURE, None)
    assert row.stage_started_at >= row.measured_at
    assert {t.state for t in tasks_of(world, job, TaskKind.MEASURE)} == {TaskState.PENDING}
    assert sum(1 for _ in entries(world, job)) > 0


def test_a_lost_claim_asks_for_nothing(world, estimated, monkeypatch):
    job = estimated()
    task_id = solving(world, job)

    def meanwhile(session, job_id):
        found = further_entries(session, job_id)
        with world.database.write() as other:
            assert requeue(other, Requeue(task_id=task_id, attempt=0, failed=False))
        return found

    from app.dispatch import shard

    monkeypatch.setattr(shard, "further_entries", meanwhile)
    assert solve(world, task_id) == STOPPED
    assert entries(world, job) == []
    assert get(world, job).stage is Stage.SOLVE
    monkeypatch.undo()
    with world.database.write() as session:
        session.get_one(Task, task_id).state = TaskState.RUNNING
    assert solve(world, task_id, 1) == DONE
    once = [e.key for e in entries(world, job)]
    assert solve(world, task_id, 1) == STOPPED, "the same attempt again finds its work done"
    assert [e.key for e in entries(world, job)] == once


def test_a_cancelled_job_asks_for_nothing(world, estimated):
    job = estimated()
    task_id = solving(world, job)
    with world.database.write() as session:
        session.get_one(Job, job.id).state = JobState.CANCELLED
    assert solve(world, task_id) == STOPPED
    assert entries(world, job) == []


def test_errors_shrink_with_what_is_measured_and_end_with_it(world, estimated, monkeypatch):
    from app.plans import rounds
    from app.sensitivities.rounds import Round
    from workers.contracts import Candidate

    job, seen = estimated(candidates=[2, 4]), []
    for index, block in enumerate(cut(40, FEWEST)):
        units = ["q.weight"] + ["stem.weight"] * (index == 0)
        wanted = {block: [(unit, Candidate.parse("4:channel-asymmetric")) for unit in units]}
        with world.database.write() as session:
            measure_further(session, job.id, wanted, world.settings)
    # About as estimated, with a standard error of a tenth on each block.
    world.measure(job, cost=lambda unit, bits: np.mean([noisy(unit, Candidate.parse(f"{bits}:channel-asymmetric"), 0, s) ** 2 for s in range(40)]))  # fmt: skip

    def look(table, budgets, *, regret):
        seen.append((table, budgets, regret))
        return Round(cells=(), likely_regret=0.0)

    monkeypatch.setattr(rounds, "next_round", look)
    assert further(world, job) == {}
    ((table, budgets, regret),) = seen
    assert (budgets, regret) == ([4 * 1624], FINE)
    column = [table.problem.label(0, k) for k in range(2)].index("4:channel-asymmetric")
    unit = list(table.problem.units).index
    assert table.errors[unit("q.weight"), column] == 0.0
    stem = unit("stem.weight"), column  # a quarter of the samples, and an estimate
    assert 0 < table.errors[stem] < 0.15 * table.problem.costs[stem]
    assert np.sqrt(np.diagonal(table.covariances, axis1=1, axis2=2)) == pytest.approx(table.errors)
    assert table.errors[unit("k.weight"), column] == pytest.approx(
        0.15 * table.problem.costs[unit("k.weight"), column]
    )
    assert not table.open[unit("q.weight"), column]
    assert table.open.sum() == 7


def measure_work(world, job, wanted):
    """What entries would add to the work of a job; nothing is kept."""
    with world.database.read() as session:
        before = session.scalar(select(func.sum(JobEntry.work)).where(JobEntry.job_id == job.id))
        measure_further(session, job.id, wanted, world.settings)
        return session.scalar(select(func.sum(JobEntry.work)).where(JobEntry.job_id == job.id)) - before


def test_no_more_is_asked_for_than_the_passes_pay_for(world, estimated):
    job = estimated()
    free = further(world, job)[0, 10]
    assert solve(world, solving(world, job)) == DONE
    free_work = sum(entry.work for entry in entries(world, job))
    bounded = estimated(max_passes=0.5 * free_work)
    wanted = further(world, bounded)[0, 10]
    assert 0 < len(wanted) < len(free)
    assert wanted == free[: len(wanted)], "the most useful ones first"
    task_id = solving(world, bounded)
    assert solve(world, task_id) == DONE
    assert sum(entry.work for entry in entries(world, bounded)) <= 0.5 * free_work
    finish_measuring(world, bounded, lambda _unit, bits: 4.0**-bits)
    left = 0.5 * free_work - sum(entry.work for entry in entries(world, bounded))
    asked = measure_work(world, bounded, further(world, bounded))
    assert asked <= left
    assert further(world, estimated(max_passes=1e-6)) == {}


# Racing ---------------------------------------------------------------------------------------------------------------


def test_without_a_regret_everything_is_measured_on_all_samples(world):
    job = world.job(metric="kl")
    assert {(e.block_start, e.block_stop) for e in entries(world, job)} == {(0, 40)}
    assert "regret" not in job.request
    world.measure(job)
    assert further(world, job) == {}


@pytest.mark.parametrize(("metric", "count"), [("kl", FEWEST), ("mse", MOST)])
def test_racing_begins_with_all_on_the_first_block_and_goes_on_where_plans_may_change(world, metric, count):
    job, numbers = world.job(metric=metric, regret=FINE, candidates=[2, 4, 8], budgets=["4 bits"]), []
    blocks = cut(40, count)
    assert (job.request["regret"], job.request["max_passes"]) == (FINE, None)
    assert "probes" not in job.request
    assert {(e.block_start, e.block_stop) for e in entries(world, job)} == {blocks[0]}
    assert len(entries(world, job)) == 4 * 3
    world.start(job)
    rng = np.random.default_rng(1)
    while True:
        finish_measuring(world, job, lambda unit, bits: hash_of(unit) * 4.0**-bits * rng.uniform(0.8, 1.25))
        numbers.append(len(entries(world, job)))
        assert solve(world, solving(world, job)) == DONE
        if get(world, job).stage is Stage.SOLVE:
            break
        assert len(numbers) < 20, "it does not end"
    assert len(numbers) > 1, "no round was made"
    assert numbers == sorted(set(numbers))
    assert numbers[-1] < count * 4 * 3, "what no plan takes was measured to the end"
    found = entries(world, job)
    for cell in {(e.unit, e.bits) for e in found}:
        mine = [(e.block_start, e.block_stop) for e in found if (e.unit, e.bits) == cell]
        assert tuple(mine) == blocks[: len(mine)]
    with world.database.read() as session:
        (plan,) = session.scalars(select(Plan).where(Plan.job_id == job.id, Plan.role == "requested"))
        chosen = {(unit, choice["bits"]) for unit, choice in plan.choices.items()}
    seen = {(e.unit, e.bits) for e in found if e.block_start > 0}
    assert {cell for cell in chosen if cell[1] == 2} <= seen, "what makes up the cost is looked at again"


def test_racing_keeps_to_the_passes(world):
    job = world.job(metric="kl", regret=FINE, max_passes=1e-6)
    world.measure(job)
    assert len(entries(world, job)) == 4 * 6
    assert further(world, job) == {}
