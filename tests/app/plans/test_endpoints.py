"""`/v1/jobs/{id}/plans` and `/v1/plans/{id}` over HTTP."""

import statistics
import time


def test_a_plan_for_another_budget_is_answered_at_once(api, world):
    job = world.done_job()

    response = api.post(f"/v1/jobs/{job.id}/plans", json={"budget": "3 bits", "pins": {"k.weight": 5}})

    assert response.status_code == 201
    plan = response.json()
    assert response.headers["location"] == f"/v1/plans/{plan['id']}"
    assert api.get(response.headers["location"]).json() == plan
    assert (plan["role"], plan["status"], plan["budget"], plan["budget_bits"]) == (
        "adhoc",
        "optimal",
        "3 bits",
        3 * 1624,
    )
    assert plan["choices"]["k.weight"] == {"bits": 5, "scheme": "channel-asymmetric", "activation_bits": None}
    assert plan["measured"] == {}
    assert plan["average_bits"] <= 3
    assert plan["lower_bound"] <= plan["objective"]
    assert {"backend", "version", "proof", "seconds"} <= set(plan["solver"])

    again = api.post(f"/v1/jobs/{job.id}/plans", json={"budget": "3 bits", "pins": {"k.weight": 5}})
    assert again.status_code == 200
    assert again.json() == plan
    assert again.headers["location"] == response.headers["location"]


def test_plans_take_milliseconds(api, world):
    units = [world.unit(f"layer{i}.weight", (16 + i, 32)) for i in range(50)]
    job = world.done_job(model=world.model(units).id)
    seconds = []
    for tenth in range(30, 40):
        start = time.perf_counter()
        response = api.post(f"/v1/jobs/{job.id}/plans", json={"budget": f"{tenth / 10} bits"})
        seconds.append(time.perf_counter() - start)
        assert response.status_code == 201
    # 20 ms on an idle machine; a bound for what is not milliseconds any more.
    assert statistics.median(seconds) < 0.5


def test_a_jobs_plans_are_listed_by_role(api, world):
    job = world.done_job(budgets=["4 bits", "3 bits"], candidates=[2, 4, 8])
    api.post(f"/v1/jobs/{job.id}/plans", json={"budget": "5 bits", "name": "roomy"})

    def names(**params):
        return [p["name"] for p in api.get(f"/v1/jobs/{job.id}/plans", params=params).json()["items"]]

    assert names() == [
        "4 bits",
        "3 bits",
        "uniform 2 bits",
        "uniform 4 bits",
        "uniform 8 bits",
        "roomy",
    ]
    assert names(role="adhoc") == ["roomy"]
    assert names(role="uniform") == ["uniform 2 bits", "uniform 4 bits", "uniform 8 bits"]


def test_plans_show_what_was_measured(api, world):
    job = world.done_job()
    plan = api.get(f"/v1/jobs/{job.id}/plans", params={"role": "requested"}).json()["items"][0]
    assert plan["measured"] == {"kl": {"calibration": 2 * plan["objective"], "evaluation": plan["objective"]}}
    assert plan["measured_standard_error"] == {"kl": {"calibration": 0.1, "evaluation": 0.2}}
    assert plan["origin"] == "search"


def test_bad_plans_are_refused(api, world, problem):
    job = world.done_job()
    url = f"/v1/jobs/{job.id}/plans"
    before = world.rows()

    minimum = problem(api.post(url, json={"budget": "1 bits"}), 409, "budget-below-minimum", "budget")
    assert minimum["minimum_bits"] == 3248
    problem(api.post(url, json={"budget": "4"}), 422, "budget-error", "budget")
    problem(api.post(url, json={"budget": "-4 bits"}), 422, "budget-error", "budget")
    problem(api.post(url, json={}), 422, "invalid-request", "budget")
    problem(api.post(url, json={"budget": "4 bits", "pin": {}}), 422, "invalid-request", "pin")
    problem(
        api.post(url, json={"budget": "4 bits", "pins": {"nope": 4}}), 422, "invalid-request", "pins.nope"
    )
    problem(
        api.post(url, json={"budget": "4 bits", "budget_counts": "ram"}),
        422,
        "invalid-request",
        "budget_counts",
    )

    assert world.rows() == before


def test_a_job_that_has_not_measured_everything_has_no_plans_yet(api, world, problem):
    job = world.job()
    world.measure(job, 3)
    refused = problem(
        api.post(f"/v1/jobs/{job.id}/plans", json={"budget": "4 bits"}), 409, "result-not-ready", "job"
    )
    assert (refused["done"], refused["total"]) == (3, 24)


def test_an_unknown_plan_is_not_found(api, problem):
    for plan_id in ("pln_00000000000000000000000000", "pln_%00", "job_0"):
        assert problem(api.get(f"/v1/plans/{plan_id}"), 404, "not-found")["field"] == "plan"
