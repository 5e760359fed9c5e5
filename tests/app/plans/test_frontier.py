"""The frontier that is handed out: best at each of its sizes, never above a plan, small, and quick."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.plans import frontier as frontiers
from app.plans import service
from app.plans.frontier import MOST_POINTS, best_costs, together
from app.plans.planner import Cell, FrontierPoint, prepare
from app.plans.spec import BudgetCounts, PlanSpec
from tests.app.world import description, unit
from workers.contracts import ModelDescription

WIDTHS = (2, 3, 4, 8)


def search(costs, sizes, spec=None, storage=7):
    """``costs``: [units, widths], of units with these numbers of weights."""
    units = [unit(f"u{i}", (1, size)) for i, size in enumerate(sizes)]
    cells = [
        Cell(
            unit=f"u{i}",
            bits=b,
            scheme="s",
            cost=costs[i][k],
            size_bits=size * b,
            storage_bits=size * b + storage,
        )
        for i, size in enumerate(sizes)
        for k, b in enumerate(WIDTHS)
    ]
    return prepare(
        ModelDescription.from_json(description(units)), cells, spec or PlanSpec(budget=""), metric="kl"
    )


def brute_force(costs, sizes, overhead=0):
    """Least cost within each size that some plan has, falling."""
    plans = sorted(
        (
            sum(s * WIDTHS[k] for s, k in zip(sizes, ks, strict=True)) + overhead,
            sum(costs[i][k] for i, k in enumerate(ks)),
        )
        for ks in itertools.product(range(len(WIDTHS)), repeat=len(sizes))
    )
    line = []
    for size, cost in plans:
        if not line or cost < line[-1][1] - 1e-12:
            line.append((size, cost))
    return line


TABLES = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.floats(0.001, 10), min_size=4, max_size=4), min_size=n, max_size=n),
        st.lists(st.integers(1, 30), min_size=n, max_size=n),
    )
)


@settings(deadline=None, max_examples=40)
@given(TABLES)
def test_of_a_small_model_every_best_plan_is_there(table):
    costs, sizes = table
    found = best_costs(search(costs, sizes), [])
    expected = brute_force(costs, sizes)
    at = [p.size_bits for p in found]
    assert at == sorted(set(at))
    for size, cost in expected:  # at every size: the last point within it
        point = [p for p in found if p.size_bits <= size][-1]
        assert point.objective == pytest.approx(cost, rel=1e-9, abs=1e-11)


def test_sizes_are_those_that_budgets_bind():
    costs, sizes = [[4, 3, 2, 1], [8, 5, 2, 1]], [5, 9]
    whole = search(costs, sizes, PlanSpec(budget="", budget_counts=BudgetCounts.FILE))
    found = [(p.size_bits, p.objective) for p in best_costs(whole, [])]
    assert found == brute_force(costs, sizes, overhead=whole.fixed_bits + 14)


@pytest.fixture
def large():
    """300 units of odd sizes: far more plans on the frontier than are handed out."""
    random = np.random.default_rng(3)
    sizes = random.integers(1000, 900_000, 300).tolist()
    costs = (
        np.exp(random.normal(0, 1, (300, 1)))
        * 4.0 ** -np.array(WIDTHS)
        * np.exp(random.normal(0, 0.3, (300, 4)))
    ).tolist()
    return search(costs, sizes)


@pytest.mark.parametrize("complete", [True, False])
def test_of_a_large_model_budgets_and_slider_positions_are_exact(large, complete, monkeypatch):
    monkeypatch.setattr(frontiers, "COMPLETE_POINTS", 10**7 if complete else 2000)
    weights = large.sizes.weights
    budgets = [int(weights * average) for average in (2.11, 3.333, 5.77)]
    found = best_costs(large, budgets, time_limit_s=60)
    assert 100 < len(found) <= MOST_POINTS
    objectives = [p.objective for p in found]
    assert objectives == sorted(objectives, reverse=True)
    for budget in (*budgets, weights * 61 // 20, weights * 100 // 20):
        plan = large.plan(f"{budget} bits total", time_limit_s=20)
        point = [p for p in found if p.size_bits <= budget][-1]
        assert point.objective == pytest.approx(plan.objective, rel=1e-9)


def test_the_time_limit_holds(large):
    started = time.process_time()
    best_costs(large, [], time_limit_s=0.1)
    assert time.process_time() - started < 2


POINTS = st.lists(
    st.builds(FrontierPoint, size_bits=st.integers(1, 9), objective=st.integers(1, 9).map(float)), max_size=9
)


@given(POINTS, POINTS)
def test_no_plan_lies_below_the_line(points, plans):
    line = together(points, plans)
    assert all(a.size_bits < b.size_bits and a.objective > b.objective for a, b in itertools.pairwise(line))
    for plan in (*points, *plans):
        assert min(p.objective for p in line if p.size_bits <= plan.size_bits) <= plan.objective
    assert set(line) <= {*points, *plans}


def test_over_http_no_plan_of_a_job_lies_below_its_frontier(api, world):
    job = world.done_job(budgets=["4 bits", "2.9 bits"])
    api.post(f"/v1/jobs/{job.id}/plans", json={"budget": "3.37 bits"})
    api.post(f"/v1/jobs/{job.id}/plans", json={"budget": "3.37 bits", "pins": {"head.weight": 8}})
    points = api.get(f"/v1/jobs/{job.id}/frontier").json()["items"]
    assert points == api.get(f"/v1/jobs/{job.id}/result").json()["frontier"]
    assert len(points) <= 2000
    for plan in api.get(f"/v1/jobs/{job.id}/plans").json()["items"]:
        within = [p["objective"] for p in points if p["size_bits"] <= plan["size_bits"]]
        assert within[-1] <= plan["objective"] + 1e-12
        if plan["role"] in ("requested", "adhoc") and not plan["spec"]["pins"]:
            assert within[-1] == pytest.approx(plan["objective"])


@pytest.mark.parametrize("counts", BudgetCounts)
def test_plans_are_on_the_line_even_where_time_did_not_suffice_for_it(api, world, monkeypatch, counts):
    monkeypatch.setattr(
        service, "best_costs", lambda search, budgets: (search.frontier[0], search.frontier[-1])
    )
    job = world.done_job(budgets=["9500 bits total", "12000 bits total"], budget_counts=counts)
    size = "file_size_bits" if counts is BudgetCounts.FILE else "size_bits"
    url = f"/v1/jobs/{job.id}"
    for change in ({}, {"exclude": ["q.weight"]}, {"pins": {"q.weight": 2}}):
        api.post(f"{url}/plans", json={"budget": "11000 bits total"} | change)
    points = {(p["size_bits"], p["objective"]) for p in api.get(f"{url}/frontier").json()["items"]}
    plans = api.get(f"{url}/plans").json()["items"]
    rules = plans[0]["spec"] | {"budget": ""}
    for plan in plans:
        if plan["role"] in ("requested", "adhoc"):
            same = plan["spec"] | {"budget": ""} == rules
            assert ((plan[size], plan["objective"]) in points) is same
