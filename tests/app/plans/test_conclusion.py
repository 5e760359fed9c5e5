"""Which plan is handed over: alternatives by both data sets, then uniform plans by what judges."""

import pytest
from sqlalchemy import select

from app.kit.ids import content_sha256, new_id
from app.models import Plan, PlanRole

UNITS = ("stem.weight", "q.weight", "k.weight", "head.weight")
FOUR = {"bits": 4, "scheme": "channel-asymmetric"}


@pytest.fixture
def conclude(world):
    """Give a job's plans their measured values, conclude it, and look at the plan handed over.

    ``plan``, ``other`` and ``uniform`` are pairs of calibration and evaluation costs; without ``other`` there is no
    alternative. ``uniform`` is the 4-bit plan's; the other baselines are bad.
    """

    def run(
        plan,
        uniform,
        other=None,
        *,
        again=None,
        spec=None,
        limited=None,
        other_ordinal=0,
        twice=False,
        **request,
    ):
        job = world.job(candidates=[2, 4, 8], **request)
        world.start(job)
        world.measure(job)
        world.solve(job)
        with world.database.write() as session:
            plans = session.scalars(select(Plan).where(Plan.job_id == job.id).order_by(Plan.ordinal)).all()
            mine = next(p for p in plans if p.role is PlanRole.REQUESTED)
            for p in plans:
                pair = (
                    plan
                    if p.role is PlanRole.REQUESTED
                    else uniform
                    if p.spec.get("uniform") == 4
                    else (9.0, 9.0)
                )
                p.measured = measured(*pair)
                if p.role is PlanRole.UNIFORM:
                    p.solver = p.solver | ({"limited": limited} if limited else {})
            mine.spec = mine.spec | (spec or {})
            if other:
                session.add(alternative(mine, other, other_ordinal))
            if again:
                session.add(remeasured(mine, again))
        for _ in range(1 + twice):
            world.conclude(job)
        with world.database.read() as session:
            return session.get_one(Plan, mine.id)

    return run


def measured(calibration, evaluation):
    return {"values": {"kl": {"calibration": calibration, "evaluation": evaluation}}, "standard_error": {}}


def alternative(plan, values, ordinal):
    spec = plan.spec | {"interactions": True}
    return Plan(
        id=new_id("pln"), job_id=plan.job_id, role=PlanRole.ALTERNATIVE, ordinal=ordinal, name="other", spec=spec,
        spec_sha256=content_sha256(spec), budget=plan.budget, budget_bits=plan.budget_bits, status="optimal",
        objective=7.0, size_bits=123, file_size_bits=456, choices=dict.fromkeys(UNITS, FOUR | {"bits": 2}),
        predicted={"kl": 6.5}, solver={"interactions": {"objective": 6.5}}, measured=measured(*values),
    )  # fmt: skip


def remeasured(plan, values):
    found = alternative(plan, values, 0)
    found.spec = plan.spec | {"remeasured": True}
    found.spec_sha256 = content_sha256(found.spec)
    found.choices = dict.fromkeys(UNITS, FOUR | {"bits": 8})
    found.solver = {"remeasured": {"rounds": 1, "steps": []}}
    return found


BAD = (9.0, 9.0)


def test_an_alternative_is_handed_over_when_it_is_lower_on_the_calibration_data(conclude):
    plan = conclude((2.0, 1.0), BAD, (1.9, 1.0))
    assert plan.solver["origin"] == "interactions"
    assert {c["bits"] for c in plan.choices.values()} == {2}
    assert (plan.objective, plan.size_bits, plan.file_size_bits, plan.predicted) == (
        7.0,
        123,
        456,
        {"kl": 6.5},
    )
    assert plan.solver["interactions"] == {"objective": 6.5}
    assert plan.solver["search"]["measured"] == measured(2.0, 1.0)
    assert plan.solver["search"]["objective"] == pytest.approx(plan.lower_bound)
    assert plan.status == "feasible"
    assert plan.relative_gap == pytest.approx((7.0 - plan.lower_bound) / 7.0)


@pytest.mark.parametrize(
    ("other", "values"),
    [
        ((2.1, 0.1), {}),
        ((1.9, 1.1), {}),
        ((2.0, 0.1), {}),
        ((None, 0.1), {}),
        ((1.0, 0.1), {"other_ordinal": 1}),
        ((1.0, None), {}),
    ],
    ids=[
        "better on the evaluation data only",
        "worse on the evaluation data",
        "equal",
        "not measured",
        "of another budget",
        "measured on nothing but what it was made from",
    ],
)
def test_an_alternative_is_left_alone(conclude, other, values):
    plan = conclude((2.0, 1.0), BAD, other, **values)
    assert plan.solver["origin"] == "search"
    assert plan.status == "optimal"
    assert "interactions" not in plan.solver


def test_a_uniform_plan_is_judged_by_the_evaluation_data(conclude):
    assert conclude((2.0, 1.0), (1.0, 1.1)).solver["origin"] == "search"
    assert conclude((2.0, 1.0), (3.0, 0.9)).solver["origin"] == "uniform"
    assert conclude((2.0, None), (1.9, None)).solver["origin"] == "uniform"


def test_a_uniform_plan_may_take_the_place_of_an_alternative(conclude):
    plan = conclude((2.0, 1.0), (1.5, 0.8), (1.9, 0.9))
    assert plan.solver["origin"] == "uniform"
    assert set(map(str, plan.choices.values())) == {str(FOUR)}
    assert plan.solver["search"]["measured"] == measured(2.0, 1.0), "what the search found stays on record"
    assert "interactions" not in plan.solver, "the alternative's figures are not this plan's"
    assert plan.measured == measured(1.5, 0.8)


LOWER = (1.0, 0.5)


@pytest.mark.parametrize(
    ("values", "origin"),
    [
        ({"spec": {"limits": {"bit_operations": "1K"}}, "limited": {"bit_operations": 1000}}, "uniform"),
        ({"spec": {"limits": {"bit_operations": "1K"}}, "limited": {"bit_operations": 1001}}, "search"),
        ({"pins": {"q.weight": 4}}, "uniform"),
        ({"pins": {"q.weight": 2}}, "search"),
        ({"ties": [["q.weight", "k.weight"]]}, "uniform"),
        ({"budgets": ["3.9 bits"]}, "search"),
        ({"budgets": ["4 bits"], "budget_counts": "file"}, "search"),
    ],
    ids=str,
)
def test_a_uniform_plan_keeps_to_the_plans_rules(conclude, values, origin):
    if values.get("budget_counts") == "file":
        values = values | {
            "budgets": ["9000 bits total"]
        }  # 4 bits everywhere and what is stored with it take more
    assert conclude((2.0, 1.0), LOWER, **values).solver["origin"] == origin


def test_a_uniform_plan_that_breaks_a_tie_between_schemes_is_not_handed_over(world):
    """Baselines keep to a job's ties themselves; a plan's own ties are looked at all the same."""
    from app.plans.conclusion import _fits

    plan = Plan(budget_bits=100, spec={"pins": {}, "ties": [["a", "b"]]})
    apart = {"a": FOUR, "b": FOUR | {"scheme": "channel-symmetric"}, "c": FOUR}
    together = {"a": FOUR, "b": dict(FOUR), "c": FOUR | {"scheme": "channel-symmetric"}}
    assert not _fits(Plan(size_bits=90, choices=apart, solver={}), plan)
    assert _fits(Plan(size_bits=90, choices=together, solver={}), plan)


def test_concluding_twice_changes_nothing(conclude):
    once = conclude((2.0, 1.0), (1.5, 0.8), (1.9, 0.9))
    twice = conclude((2.0, 1.0), (1.5, 0.8), (1.9, 0.9), twice=True)
    assert (once.solver["search"], once.choices, once.measured) == (
        twice.solver["search"],
        twice.choices,
        twice.measured,
    )


@pytest.mark.parametrize(
    ("other", "again", "origin"),
    [
        (None, (1.8, 1.0), "remeasured"),
        ((1.9, 1.0), (1.8, 1.0), "remeasured"),
        ((1.7, 1.0), (1.8, 1.0), "interactions"),
        ((1.9, 0.9), (1.8, 1.0), "interactions"),
        ((1.9, 1.1), (1.8, 0.9), "remeasured"),
        ((1.9, 1.1), (1.8, 1.1), "search"),
        (None, (2.0, 0.5), "search"),
        ((1.7, None), (1.8, None), "remeasured"),
        ((1.7, None), (2.0, None), "search"),
    ],
    ids=str,
)
def test_the_best_measured_plan_is_handed_over(conclude, other, again, origin):
    plan = conclude((2.0, 1.0), BAD, other, again=again)
    assert plan.solver["origin"] == origin
    assert ("remeasured" in plan.solver) == (origin == "remeasured")
    assert {c["bits"] for c in plan.choices.values()} == (
        {8} if origin == "remeasured" else {2}
    ) or origin == "search"


def test_a_uniform_plan_may_take_the_place_of_one_measured_again_around(conclude):
    assert conclude((2.0, 1.0), (1.5, 0.7), again=(1.8, 0.8)).solver["origin"] == "uniform"
