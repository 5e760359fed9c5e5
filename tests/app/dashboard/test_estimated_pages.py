"""The pages of jobs that estimate first, and of plans that interactions led to."""

import re

from sqlalchemy import select

from app.models import Plan, PlanRole, Stage, Task, TaskKind, TaskState


def page(api, path):
    answer = api.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def steps(text):
    """The stages a page shows, and the one the job is in."""
    shown = re.search(r'<ol class="steps".*?</ol>', text, re.DOTALL)[0]
    return re.findall(r"<li[^>]*>([^<]+)</li>", shown), re.search(r'aria-current="step">([^<]+)<', shown)[1]


def test_a_job_that_estimates_shows_so_and_then_what_it_measures(api, world):
    stages = ["Estimate", "Measure", "Solve", "Verify", "Refine"]
    world.settings = world.settings.model_copy(update={"workers": 4})
    job = world.job(metric="auto")
    text = page(api, f"/jobs/{job.id}")
    assert steps(text) == (stages, "Estimate")
    assert "Waiting for a worker" in text
    world.start(job, Stage.PROBE)
    text = page(api, f"/jobs/{job.id}")
    assert steps(text) == (stages, "Estimate")
    assert "Estimating sensitivities" in text
    assert "0 of 4 parts" in text
    assert 'data-state="running probe"' in text
    assert "estimating, 0" in page(api, "/")
    world.estimate(job)
    world.start(job, Stage.SOLVE)
    assert steps(page(api, f"/jobs/{job.id}")) == (stages, "Solve")
    assert steps(page(api, f"/jobs/{started(world).id}")) == (stages[1:], "Measure")


def test_looking_around_plans_is_a_step_of_its_own_and_not_the_end_of_verifying(api, world):
    job = world.job()
    world.start(job)
    world.measure(job)
    world.solve(job)
    world.start(job, Stage.VERIFY)
    assert steps(page(api, f"/jobs/{job.id}")) == (["Measure", "Solve", "Verify", "Refine"], "Verify")
    with world.database.write() as session:
        session.add(Task(id="tsk_1", kind=TaskKind.REFINE, job_id=job.id))
        session.add(
            Task(id="tsk_2", kind=TaskKind.REFINE, job_id=job.id, fraction=0.5, state=TaskState.RUNNING)
        )
    text = page(api, f"/jobs/{job.id}")
    assert steps(text) == (["Measure", "Solve", "Verify", "Refine"], "Refine")
    for words in ("Looking around the plans", "0 of 2 parts", "25 %", 'data-state="running refine"'):
        assert words in text
    assert "refining, 25" in page(api, "/")
    progress = api.get(f"/v1/jobs/{job.id}").json()["progress"]
    assert (progress["stage"], progress["fraction"], progress["eta_seconds"]) == ("refine", 0.25, None)


def test_a_job_that_only_estimates_has_no_step_for_measuring(api, world):
    assert steps(page(api, f"/jobs/{world.job(metric='fit').id}")) == (
        ["Estimate", "Solve", "Verify"],
        "Estimate",
    )


def started(world):
    job = world.job()
    world.start(job)
    return job


def test_a_plan_with_interactions_says_why_it_was_handed_over(api, world):
    job = world.done_job()
    with world.database.write() as session:
        plan = session.scalars(
            select(Plan).where(Plan.job_id == job.id, Plan.role == PlanRole.REQUESTED)
        ).one()
        values = {"kl": {"calibration": 0.5, "evaluation": 0.9}}
        found = {
            "objective": plan.objective,
            "size_bits": plan.size_bits,
            "measured": {"values": {"kl": {"calibration": 0.75, "evaluation": 0.8}}},
        }
        plan.status, plan.measured = "feasible", plan.measured | {"values": values}
        plan.solver = plan.solver | {"origin": "interactions", "search": found}
        plan_id = plan.id
    for path in (f"/plans/{plan_id}", f"/jobs/{job.id}"):
        text = page(api, path)
        assert "Plan with interactions handed over: it measured better." in text
        assert "On the calibration data its KL divergence measured 0.5" in text
        assert "the plan of added costs 0.75" in text
        assert "Proven optimal" not in text
