"""`/v1/jobs/{id}/sensitivities` and `/v1/jobs/{id}/frontier` over HTTP."""

import csv
import io
import itertools

import pytest


def test_what_is_measured_is_told_in_execution_order_then_by_width(api, world):
    job = world.job(candidates=[8, 2, 4])
    world.measure(job, 4)

    answer = api.get(f"/v1/jobs/{job.id}/sensitivities").json()

    assert (answer["done"], answer["total"], answer["complete"]) == (4, 12, False)
    assert [(s["unit"], s["bits"]) for s in answer["items"]] == [
        ("stem.weight", 2),
        ("stem.weight", 4),
        ("stem.weight", 8),
        ("q.weight", 2),
    ]
    assert answer["items"][1] == {
        "unit": "stem.weight",
        "bits": 4,
        "scheme": "channel-asymmetric",
        "metric": "kl",
        "size_bits": 864,
        "storage_bits": 964,
        "mean": 216 * 4.0**-4,
        "standard_error": 216 * 4.0**-4 / 10,
        "samples": 40,
        "seconds": 0.5,
        "source": "measured",
        "activation_bits": None,
    }
    world.measure(job)
    assert api.get(f"/v1/jobs/{job.id}/sensitivities").json()["complete"] is True


@pytest.mark.parametrize(
    ("request_", "is_csv"),
    [
        ({"params": {"format": "csv"}}, True),
        ({"headers": {"Accept": "text/csv"}}, True),
        ({"headers": {"Accept": "text/csv"}, "params": {"format": "json"}}, False),
        ({"headers": {"Accept": "application/json, text/csv"}}, False),
        ({}, False),
    ],
)
def test_the_format_follows_the_query_then_the_accept_header(api, world, request_, is_csv):
    job = world.job()
    response = api.get(f"/v1/jobs/{job.id}/sensitivities", **request_)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/csv" if is_csv else "application/json")
    assert response.headers["vary"] == "Accept"


def test_the_table_holds_the_same_numbers(api, world):
    job = world.job()
    world.measure(job)
    items = api.get(f"/v1/jobs/{job.id}/sensitivities").json()["items"]
    text = api.get(f"/v1/jobs/{job.id}/sensitivities?format=csv").text

    rows = list(csv.DictReader(io.StringIO(text, newline="")))

    assert len(rows) == 24
    for row, item in zip(rows, items, strict=True):
        assert list(row) == list(item)
        assert {k: None if item[k] is None else type(item[k])(v) for k, v in row.items()} == item
    assert "\r\n" in text


def test_other_jobs_measurements_stay_out(api, world):
    job, other = world.job(), world.job()
    world.measure(other)
    assert api.get(f"/v1/jobs/{job.id}/sensitivities").json()["items"] == []


def test_an_unknown_format_is_refused(api, world, problem):
    job = world.job()
    problem(api.get(f"/v1/jobs/{job.id}/sensitivities?format=xml"), 422, "invalid-request", "format")


def test_the_frontier_is_the_convex_hull_of_all_plans(api, world):
    units = [world.unit(f"u{i}.weight", (4 + i, 8)) for i in range(3)]
    job = world.job(model=world.model(units).id, candidates=[2, 3, 4, 8], budgets=["4 bits"])
    world.measure(job)
    sensitivities = api.get(f"/v1/jobs/{job.id}/sensitivities").json()["items"]
    table = {(s["unit"], s["bits"]): s for s in sensitivities}

    answer = api.get(f"/v1/jobs/{job.id}/frontier").json()

    points = [(p["size_bits"], p["objective"]) for p in answer["items"]]
    plans = {}
    for bits in itertools.product([2, 3, 4, 8], repeat=3):
        taken = [table[u["name"], b] for u, b in zip(units, bits, strict=True)]
        size, cost = sum(t["size_bits"] for t in taken), sum(t["mean"] for t in taken)
        plans[size] = min(cost, plans.get(size, cost))
    assert points == sorted(points)
    for size, cost in points:
        assert cost == pytest.approx(plans[size])
        assert cost == pytest.approx(min(c for s, c in plans.items() if s <= size)), "best at its size"
    assert points[0][0] == min(plans)
    assert points[-1][1] == pytest.approx(min(plans.values()))
    for (s0, c0), (s1, c1), (s2, c2) in zip(points, points[1:], points[2:], strict=False):
        assert (c1 - c0) / (s1 - s0) <= (c2 - c1) / (s2 - s1) + 1e-12, "convex"
    weights = sum(u["weights"] for u in units)
    assert [p["average_bits"] for p in answer["items"]] == [s / weights for s, _ in points]
    assert (answer["metric"], answer["budget_counts"]) == ("kl", "weights")


def test_the_frontier_keeps_to_pins_ties_and_what_budgets_bind(api, world):
    job = world.job(
        pins={"stem.weight": 8},
        ties=[["q.weight", "k.weight"]],
        exclude=["head.weight"],
        budget_counts="file",
        budgets=["60000 bits total"],
    )
    world.measure(job)
    points = api.get(f"/v1/jobs/{job.id}/frontier").json()["items"]
    fixed = 3200 + 32 * 640
    sizes = {8 * 216 + 768 * b + 300 + fixed for b in (2, 3, 4, 5, 6, 8)}
    assert {p["size_bits"] for p in points} <= sizes
    assert {min(sizes), max(sizes)} <= {p["size_bits"] for p in points}


def test_the_frontier_needs_every_measurement(api, world, problem):
    job = world.job()
    world.measure(job, 23)
    refused = problem(api.get(f"/v1/jobs/{job.id}/frontier"), 409, "result-not-ready", "job")
    assert (refused["done"], refused["total"]) == (23, 24)
