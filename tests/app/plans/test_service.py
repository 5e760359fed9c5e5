"""A job's plans in the database: made once, and never worse than uniform as measured."""

import pytest
from sqlalchemy import select, update

from app.errors import BudgetBelowMinimum, InvalidRequest, NotFound, ResultNotReady
from app.models import Plan, PlanRole, Stage, Task, TaskKind, TaskState
from app.plans import service
from app.plans.conclusion import measured_cost
from app.plans.service import PlanChange, create_plan


def plans_of(world, job, role=None):
    with world.database.read() as session:
        query = select(Plan).where(Plan.job_id == job.id).order_by(Plan.role, Plan.ordinal)
        found = session.scalars(query).all()
    return [p for p in found if role in (None, p.role)]


def measured_job(world, **request):
    job = world.job(**request)
    world.start(job)
    world.measure(job)
    world.solve(job)
    return job


def verify(world, job, requested, uniform):
    """`uniform`: bit-width -> measured cost."""
    world.verify(
        job,
        lambda plan: (
            requested
            if plan.role is PlanRole.REQUESTED
            else uniform[next(iter(plan.choices.values()))["bits"]]
        ),
    )
    world.conclude(job)


BAD = dict.fromkeys((2, 3, 4, 5, 6, 8), 9.0)


def test_each_budget_and_each_width_gets_a_plan_with_a_task_to_measure_it(world):
    job = measured_job(world, budgets=["4 bits", "3 bits"], candidates=[2, 4, 8])
    requested = plans_of(world, job, PlanRole.REQUESTED)
    uniform = plans_of(world, job, PlanRole.UNIFORM)
    with world.database.read() as session:
        tasks = session.scalars(select(Task).where(Task.kind == TaskKind.VERIFY)).all()

    assert [(p.name, p.budget, p.ordinal) for p in requested] == [
        ("4 bits", "4 bits", 0),
        ("3 bits", "3 bits", 1),
    ]
    assert [p.name for p in uniform] == ["uniform 2 bits", "uniform 4 bits", "uniform 8 bits"]
    assert {t.plan_id for t in tasks} == {p.id for p in requested + uniform}
    assert {(t.job_id, t.state) for t in tasks} == {(job.id, TaskState.PENDING)}
    for plan in requested:
        assert plan.status == "optimal"
        assert plan.size_bits <= plan.budget_bits
        assert plan.solver["backend"]
        assert plan.solver["version"]
        assert plan.relative_gap is not None


def test_solving_twice_makes_nothing_twice(world):
    job = measured_job(world)
    before = world.rows()
    world.solve(job)
    assert world.rows() == before


def test_plans_need_every_measurement(world):
    job = world.job()
    world.measure(job, 23)
    with pytest.raises(ResultNotReady) as caught, world.database.write() as session:
        service.solve_job(session, job.id)
    assert caught.value.extra == {"state": "queued", "done": 23, "total": 24}


def test_a_budget_that_turns_out_infeasible_is_an_outcome(world):
    # Scales are not counted before they are measured: 100 bits for each of four units.
    job = measured_job(world, budget_counts="file", budgets=[f"{2 * 1624 + 3200 + 399} bits total"])
    (plan,) = plans_of(world, job, PlanRole.REQUESTED)
    assert plan.status == "infeasible"
    assert plan.choices == {}
    assert plan.solver["minimum_bits"] == 2 * 1624 + 3200 + 400
    with world.database.read() as session:
        assert session.scalars(select(Task).where(Task.plan_id == plan.id)).all() == []
    world.conclude(job)


def test_the_search_stays_when_it_measures_best(world):
    job = measured_job(world)
    verify(world, job, requested=0.1, uniform=BAD | {8: 0.01})  # 8 bits is better, but does not fit
    (plan,) = plans_of(world, job, PlanRole.REQUESTED)
    assert plan.solver["origin"] == "search"
    assert plan.status == "optimal"


def test_a_uniform_plan_that_fits_and_measures_better_takes_over(world):
    # The stem costs a thousand times what its size tells: the search gives it more than the others.
    job = world.job()
    world.start(job)
    world.measure(job, cost=lambda unit, bits: (1000.0 if unit == "stem.weight" else 1.0) * 4.0**-bits)
    world.solve(job)
    (before,) = plans_of(world, job, PlanRole.REQUESTED)
    verify(world, job, requested=0.5, uniform=BAD | {3: 0.4, 4: 0.2})
    (plan,) = plans_of(world, job, PlanRole.REQUESTED)
    uniform = next(p for p in plans_of(world, job, PlanRole.UNIFORM) if p.name == "uniform 4 bits")

    assert plan.solver["origin"] == "uniform"
    for member in ("choices", "objective", "predicted", "measured", "size_bits", "file_size_bits"):
        assert getattr(plan, member) == getattr(uniform, member)
    assert plan.status == "feasible"
    assert plan.lower_bound == before.lower_bound
    assert plan.relative_gap == pytest.approx((uniform.objective - plan.lower_bound) / uniform.objective)
    assert plan.solver["search"]["objective"] == before.objective
    assert plan.solver["search"]["size_bits"] == before.size_bits
    assert plan.solver["search"]["measured"]["values"]["kl"]["evaluation"] == 0.5
    assert plan.solver["backend"] == before.solver["backend"]
    assert plan.relative_gap > before.relative_gap


def test_concluding_twice_changes_nothing(world):
    job = measured_job(world)
    verify(world, job, requested=0.5, uniform=BAD | {4: 0.2})
    (once,) = plans_of(world, job, PlanRole.REQUESTED)
    world.conclude(job)
    (twice,) = plans_of(world, job, PlanRole.REQUESTED)
    assert twice.solver == once.solver
    assert twice.choices == once.choices


def test_equal_measurements_leave_the_search_its_place(world):
    job = measured_job(world)
    verify(world, job, requested=0.2, uniform=BAD | {4: 0.2})
    assert plans_of(world, job, PlanRole.REQUESTED)[0].solver["origin"] == "search"


def test_pins_hold_whatever_uniform_plans_measure(world):
    job = measured_job(world, pins={"stem.weight": 8})
    verify(world, job, requested=0.5, uniform=dict.fromkeys(BAD, 0.01))
    (plan,) = plans_of(world, job, PlanRole.REQUESTED)
    assert plan.solver["origin"] == "search"
    assert plan.choices["stem.weight"]["bits"] == 8


def test_a_file_budget_binds_the_file_of_a_uniform_plan_too(world):
    total = 4 * 1624 + 3200 + 400
    for bits, origin in ((total, "uniform"), (total - 1, "search")):
        job = measured_job(world, budget_counts="file", budgets=[f"{bits} bits total"])
        verify(world, job, requested=0.5, uniform=BAD | {4: 0.2})
        assert plans_of(world, job, PlanRole.REQUESTED)[0].solver["origin"] == origin


def test_without_evaluation_data_the_calibration_decides(world):
    job = measured_job(world)
    verify(world, job, requested=0.5, uniform=BAD | {4: 0.2})
    assert (
        measured_cost(Plan(measured={"values": {"kl": {"calibration": 0.3, "evaluation": None}}}), "kl")
        == 0.3
    )
    assert (
        measured_cost(Plan(measured={"values": {"kl": {"calibration": 0.3, "evaluation": 0.0}}}), "kl") == 0.0
    )
    assert measured_cost(Plan(measured=None), "kl") is None


def test_another_budget_is_solved_on_what_is_measured(world):
    job = world.done_job()
    before = world.rows()
    created = create_plan(world.database, job.id, PlanChange(budget=" 3 bits"))
    assert created.new
    assert created.plan.role is PlanRole.ADHOC
    assert created.plan.name == created.plan.budget == "3 bits"
    assert created.plan.size_bits <= 3 * 1624
    assert world.rows() == before | {"plans": before["plans"] + 1}, "no task: it was not to be measured"


def test_asking_again_gives_the_same_plan_and_may_have_it_measured(world):
    job = world.done_job()
    first = create_plan(world.database, job.id, PlanChange(budget="3 bits"))
    again = create_plan(world.database, job.id, PlanChange(budget="3 bits", measure=True, name="again"))
    third = create_plan(world.database, job.id, PlanChange(budget="3 bits", measure=True))
    assert (again.plan.id, again.new, third.plan.id) == (first.plan.id, False, first.plan.id)
    with world.database.read() as session:
        (task,) = session.scalars(select(Task).where(Task.plan_id == first.plan.id)).all()
    assert (task.kind, task.job_id) == (TaskKind.VERIFY, job.id)

    with world.database.write() as session:
        session.execute(update(Task).where(Task.id == task.id).values(state=TaskState.FAILED))
    create_plan(world.database, job.id, PlanChange(budget="3 bits", measure=True))
    with world.database.read() as session:
        assert len(session.scalars(select(Task).where(Task.plan_id == first.plan.id)).all()) == 2


def test_a_budget_of_the_job_itself_gives_the_jobs_plan(world):
    job = world.done_job()
    (own,) = plans_of(world, job, PlanRole.REQUESTED)
    created = create_plan(world.database, job.id, PlanChange(budget="4 bits"))
    assert (created.plan.id, created.new) == (own.id, False)


def test_what_is_left_out_stays_as_in_the_job(world):
    job = world.done_job(
        pins={"stem.weight": 8}, ties=[["q.weight", "k.weight"]], exclude=["head.weight"], budgets=["5 bits"]
    )
    same = create_plan(world.database, job.id, PlanChange(budget="4.5 bits")).plan
    other = create_plan(
        world.database,
        job.id,
        PlanChange(budget="4.5 bits", pins={"stem.weight": 2}, ties=[], exclude=["k.weight"]),
    ).plan
    assert same.choices["stem.weight"]["bits"] == 8
    assert same.choices["q.weight"] == same.choices["k.weight"]
    assert set(same.choices) == {"stem.weight", "q.weight", "k.weight"}
    assert other.choices["stem.weight"]["bits"] == 2
    assert set(other.choices) == {"stem.weight", "q.weight"}, "what the job excludes is not measured"
    assert other.budget_bits == 4.5 * (216 + 512)
    assert other.spec["exclude"] == ["head.weight", "k.weight"]


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        ({"budget": "1 bits"}, BudgetBelowMinimum, "budget"),
        ({"budget": "4 bits", "pins": {"nope": 4}}, InvalidRequest, "pins.nope"),
        ({"budget": "4 bits", "pins": {"q.weight": 7}}, InvalidRequest, "pins.q.weight"),
        ({"budget": "4 bits", "ties": [["q.weight"]]}, InvalidRequest, "ties.0"),
        ({"budget": "4 bits", "exclude": ["nope"]}, InvalidRequest, "exclude.0"),
    ],
    ids=str,
)
def test_a_change_that_does_not_fit_is_refused(world, change, error, field):
    job = world.done_job()
    before = world.rows()
    with pytest.raises(error) as caught:
        create_plan(world.database, job.id, PlanChange(**change))
    assert caught.value.field == field
    assert world.rows() == before


def test_plans_wait_for_measurements(world):
    job = world.job()
    world.start(job, Stage.MEASURE)
    world.measure(job, 3)
    with pytest.raises(ResultNotReady):
        create_plan(world.database, job.id, PlanChange(budget="4 bits"))
    with pytest.raises(NotFound):
        create_plan(world.database, "job_0", PlanChange(budget="4 bits"))


def test_plans_asked_for_at_the_same_time_are_one(world):
    from concurrent.futures import ThreadPoolExecutor

    job = world.done_job()
    with ThreadPoolExecutor(6) as pool:
        created = list(
            pool.map(lambda _: create_plan(world.database, job.id, PlanChange(budget="3.3 bits")), range(6))
        )
    assert len({c.plan.id for c in created}) == 1
    assert sum(c.new for c in created) == 1
