"""Measuring again around a plan: what a worker does with a REFINE task, whatever happens to it meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import select

import app.plans.allowance
import app.plans.refining
import solver.quadratic
import workers.sensitivity.estimators.run
import workers.verify.parts
from app.dispatch import requests, store
from app.dispatch.shard import DONE, STOPPED, run_task
from app.jobs.progress import progress_of
from app.models import (
    Job,
    JobEntry,
    JobState,
    PartKind,
    Plan,
    PlanRole,
    PlanTrial,
    ProbeResult,
    Stage,
    Task,
    TaskKind,
    TaskState,
    TrialPart,
)
from app.plans import repository
from app.plans.refinement import TRUSTS, End, partitions, rest
from app.plans.refining import around_of, refinement_of
from workers.errors import MeasurementFailed
from workers.sensitivity.blocks import positions_of

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


def real(nature, choices):
    return nature.plan_costs({u: SimpleNamespace(bits=c["bits"]) for u, c in choices.items()}).mean()


def told(look, job):
    """What the requested plan tells of its refinement."""
    (plan,) = [p for p in look(Plan, job) if p.role is PlanRole.REQUESTED]
    return plan.solver.get("refinement")


def test_steps_are_taken_while_the_measured_cost_falls(world, refining, nature, look):
    job = refining()
    run(world, job)
    tried = trials(look, job)
    taken = [t for t in tried if t.outcome["accepted"]]
    assert taken
    (plan,) = refined(look, job)
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
    assert told(look, job)["ended"] == End.NO_GAIN
    verify = [t for t in look(Task, job) if t.plan_id == plan.id]
    assert [(t.kind, t.state) for t in verify] == [(TaskKind.VERIFY, TaskState.PENDING)]
    assert len(nature.probed) == 4 * (1 + len(taken)), "four blocks, of each plan once"
    request = nature.probed[0]
    assert {u: c.bits for u, c in request.around.items()} == {u: c["bits"] for u, c in tried[0].base.items()}
    assert {(u, c.bits) for u, c in request.wanted} == {(u, b) for u in WEIGHTS for b in (2, 3, 4, 6)}


def test_every_fold_is_measured_with_a_plan_of_the_others(world, refining, nature, look):
    job = refining(refine_rounds=1)
    run(world, job)
    whole, crossed = nature.measured[:2], nature.measured[2:6]
    assert [[len(p.positions) for p in parts] for parts in whole] == [[40], [40]], "the plan, and the step"
    for way in (crossed[:2], crossed[2:]):
        assert sorted(i for parts in way for part in parts for i in part.positions) == list(range(40))
    assert crossed[0][0].positions == tuple(range(10))
    assert crossed[2][0].positions == tuple(range(0, 40, 4))
    assert len([t for t in trials(look, job) if t.outcome["accepted"]]) == 1
    assert told(look, job)["ended"] == End.ROUNDS


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
    told = "step 1 around the plan of 3 bits, 0 of 5 parts; step 1 around the plan of 4 bits, 1 of 5 parts"
    assert progress(world, job) == told
    in_turn(world, [task for task in others if task not in starts])
    assert progress(world, job).endswith("step 1 around the plan of 4 bits, 5 of 10 parts")
    run(world, job)
    assert progress(world, job) is None, "steps that are over are no news"


def parts(world, job, ordinal):
    with world.database.read() as session:
        query = select(TrialPart).where(TrialPart.job_id == job.id, TrialPart.ordinal == ordinal)
        return session.scalars(query.where(TrialPart.kind != PartKind.START)).all()


def test_steps_are_counted_with_their_passes(world, refining, nature):
    job = refining()
    run_one(world, *waiting(world, job))
    run_one(world, *[p.task_id for p in parts(world, job, 0) if p.kind is PartKind.BASE])
    with world.database.read() as session:
        (counts,) = repository.steps(session, [job.id])[job.id]
    assert (counts.done, counts.total, counts.done_work, counts.total_work) == (1, 5, 1.0, 21.0)


class Leaning(Nature):
    """Each quarter of the samples has its own truth: whoever sees it follows it, and is judged by the others."""

    def unit_costs(self, unit, bits, samples):
        costs = super().unit_costs(unit, bits, samples)
        best = sorted(WEIGHTS)[::1]
        for fold in range(4):
            costs[10 * fold : 10 * fold + 10] *= 30.0 if best[fold] == unit else 0.1
        return costs


def test_what_a_sample_is_judged_by_has_not_seen_it(world, refining, nature, look, monkeypatch):
    """The crossed change of every sample is that of the step made without its part, as a plain loop works it out."""
    leaning = Leaning()
    monkeypatch.setattr(nature, "unit_costs", leaning.unit_costs)
    job = refining(refine_rounds=1)
    run(world, job)
    (first, *_) = trials(look, job)
    with world.database.read() as session:
        at = refinement_of(session, job.id, 0)
        around = around_of(session, at, first.base)
    before = real_costs(nature, first.base)
    for way, mean in zip(partitions(40), first.outcome["crossed"], strict=True):
        changes = np.zeros(40)
        for fold in way:
            step = at.step(first.base, around, rest(fold, 40), TRUSTS[0]) or first.base
            changes[fold] = (real_costs(nature, step) - before)[fold]
        assert mean == pytest.approx(changes.mean())
    assert len(set(first.outcome["crossed"])) == 2


def real_costs(nature, choices):
    return nature.plan_costs({u: SimpleNamespace(bits=c["bits"]) for u, c in choices.items()})


def test_probes_are_put_together_in_the_order_of_the_samples(world, refining, nature, look):
    """Blocks are of samples in a random order; steps are judged by samples in their own."""
    job = refining(refine_rounds=1, seed=3)
    run(world, job)
    base = trials(look, job)[0].base
    with world.database.read() as session:
        at = refinement_of(session, job.id, 0)
        found = around_of(session, at, base).gradients
    for row, (unit, candidate) in zip(found, at.offer, strict=True):
        expected = nature.unit_costs(unit, candidate.bits, 40) - nature.unit_costs(
            unit, base[unit]["bits"], 40
        )
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)


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


def test_steps_are_not_proven(world, refining, nature, look, monkeypatch):
    """A proof takes as long as it may, and judges nothing: steps are judged by what they measure."""

    def prove(*_, **__):
        raise AssertionError("nobody asks for it")

    job = refining(refine_rounds=1)
    monkeypatch.setattr(solver.quadratic, "prove", prove)
    run(world, job)
    assert told(look, job)["ended"] == End.ROUNDS


def test_noise_is_not_followed(world, refining, nature, look):
    nature.factors = dict.fromkeys(WEIGHTS, 1.0)
    nature.noise = 20.0
    job = refining()
    run(world, job)
    assert trials(look, job)
    assert not any(t.outcome["accepted"] for t in trials(look, job))
    assert refined(look, job) == []


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


def allow(world, job, **values):
    with world.database.write() as session:
        row = session.get_one(Job, job.id)
        row.request = row.request | values
    return row


def entries(world, job):
    with world.database.read() as session:
        return sum(session.scalars(select(JobEntry.work).where(JobEntry.job_id == job.id)))


def test_passes_that_the_job_may_not_spend_are_not_spent(world, refining, nature, look):
    job = refining()
    allow(world, job, max_passes=1e-6)
    run(world, job)
    assert nature.probed == nature.measured == []
    assert told(look, job)["ended"] == End.MAX_PASSES


@pytest.mark.parametrize(("more", "steps"), [(3.9, 0), (4.1, 1), (6.9, 1), (7.1, 2)])
def test_the_first_step_measures_four_passes_and_the_next_three(world, refining, nature, look, more, steps):
    nature.noise = 5.0  # no step helps: two are tried, if they may be
    job = refining()
    allow(world, job, max_passes=entries(world, job) + more)
    run(world, job)
    assert len(trials(look, job)) == steps
    assert told(look, job)["ended"] == (End.NO_GAIN if steps == 2 else End.MAX_PASSES)


@pytest.mark.parametrize("share", [0, 23, 25, 26, 28, 60])
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
        fresh = not trials(look, job) or trials(look, job)[-1].outcome["accepted"]
        next_step = (20 if fresh else 0) + (3 if trials(look, job) else 4)
        assert spent + next_step > share
    else:
        assert share == 60
    probed = sum(r.block.stop - r.block.start for r in nature.probed) / 40
    measured = sum(len(p.positions) for parts in nature.measured for p in parts) / 40
    assert 5 * 4.0 * probed + measured <= spent + 1e-6, "what was done is no more than what was reckoned"


def test_short_passes_are_not_counted(world, refining, nature, look, monkeypatch):
    """A small model may take as many operations as nobody has to wait for, whatever its costs took."""
    operations = 40 * (9000 + 512 + 256 + 640)
    monkeypatch.setattr(app.plans.allowance, "SHARE", 0.0)
    monkeypatch.setattr(app.plans.allowance, "LEAST_OPERATIONS", 24.5 * operations)
    job = refining()
    run(world, job)
    assert len(trials(look, job)) == 1
    assert told(look, job)["allowed_passes"] == pytest.approx(24.5)


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
