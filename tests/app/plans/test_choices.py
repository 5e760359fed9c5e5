"""Plans among several quantizers, activations, limits and interactions: against all plans there are."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.plans.planner import Cell, candidate_name, prepare
from app.plans.spec import PlanSpec
from solver import Interactions
from workers.contracts import Candidate, ModelDescription, UnitInfo

SCHEMES = ("channel-symmetric", "tensor-symmetric")
WEIGHTS = (40, 25, 10)
MACS = (100, 700, 30)
OFFERS = tuple(itertools.product((2, 4), SCHEMES, (4, 8)))
"""Bits, scheme, activation bits."""


def model():
    units = tuple(
        UnitInfo(
            name=f"u{i}", operator="linear", shape=(n, 1), weights=n, output_channel_axis=0, group_axis=1, macs=m, activations=1
        )
        for i, (n, m) in enumerate(zip(WEIGHTS, MACS, strict=True))
    )  # fmt: skip
    total = sum(WEIGHTS)
    return ModelDescription(
        inputs=(), batch_size=None, outputs=(), units=units, unsupported=(), weights=total,
        float_bits=32 * total, unit_float_bits=32 * total,
    )  # fmt: skip


def cells(seed):
    rng = random.Random(seed)
    return [
        Cell(
            unit=f"u{i}", bits=b, scheme=s, activation_bits=a, cost=rng.random() * 4.0**-b,
            size_bits=n * b, storage_bits=n * b + (10 if s == SCHEMES[0] else 1),
        )
        for i, n in enumerate(WEIGHTS)
        for b, s, a in OFFERS
    ]  # fmt: skip


def all_plans(table, *, budget, operations=math.inf, ties=(), pins=None):
    """Every plan that keeps to the rules: unit -> cell."""
    by_unit = {}
    for cell in table:
        by_unit.setdefault(cell.unit, []).append(cell)
    for taken in itertools.product(*by_unit.values()):
        plan = dict(zip(by_unit, taken, strict=True))
        if sum(c.size_bits for c in taken) > budget:
            continue
        if sum(m * c.bits * c.activation_bits for m, c in zip(MACS, taken, strict=True)) > operations:
            continue
        if any(len({plan[u].candidate for u in group}) > 1 for group in ties):
            continue
        if all(plan[u].bits == bits for u, bits in (pins or {}).items()):
            yield plan


def choices(plan):
    return {
        u: {"bits": c.bits, "scheme": c.scheme, "activation_bits": c.activation_bits} for u, c in plan.items()
    }


def cost(plan):
    return math.fsum(c.cost for c in plan.values())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    budget=st.integers(150, 300),
    operations=st.one_of(st.none(), st.integers(6640, 27000)),
    rules=st.sampled_from([{}, {"ties": [["u0", "u2"]]}, {"pins": {"u1": 4}}]),
)
def test_the_best_pairs_and_schemes_are_taken_within_all_limits(seed, budget, operations, rules):
    table = cells(seed)
    limits = {} if operations is None else {"bit_operations": str(operations)}
    draft = prepare(model(), table, PlanSpec(budget="", limits=limits, **rules), metric="kl").plan(
        f"{budget} bits total", time_limit_s=10
    )
    fitting = list(all_plans(table, budget=budget, operations=operations or math.inf, **rules))
    if not fitting:
        assert (draft.status, draft.choices) == ("infeasible", {})
        assert "limited" not in draft.solver
        return
    assert draft.status == "optimal"
    best = min(map(cost, fitting))
    assert draft.objective == pytest.approx(best, rel=1e-9)
    assert draft.choices in [choices(plan) for plan in fitting]
    taken = sum(
        m * c["bits"] * c["activation_bits"] for m, c in zip(MACS, draft.choices.values(), strict=True)
    )
    assert draft.solver.get("limited") == (None if operations is None else {"bit_operations": taken})


@pytest.mark.parametrize("seed", range(5))
def test_a_uniform_plan_takes_each_units_cheapest_candidate_of_the_width(seed):
    table = cells(seed)
    draft = prepare(model(), table, PlanSpec(budget=""), metric="kl").uniform(4)
    for unit in ("u0", "u1", "u2"):
        best = min((c for c in table if c.unit == unit and c.bits == 4), key=lambda c: c.cost)
        assert draft.choices[unit] == choices({unit: best})[unit]


@pytest.mark.parametrize("seed", range(5))
def test_tied_units_take_the_candidate_cheapest_for_them_together(seed):
    table, ties = cells(seed), [["u0", "u2"]]
    draft = prepare(model(), table, PlanSpec(budget="", ties=ties), metric="kl").uniform(4)
    fours = [c for c in table if c.bits == 4]
    best = min(all_plans(fours, budget=10**6, ties=ties), key=cost)
    assert draft.choices == choices(best)
    assert list(draft.choices) == ["u0", "u1", "u2"]


def test_of_equally_cheap_candidates_the_smaller_is_taken():
    table = [replace(c, cost=1.0) for c in cells(0)]
    draft = prepare(model(), table, PlanSpec(budget=""), metric="kl").uniform(2)
    assert {c["scheme"] for c in draft.choices.values()} == {SCHEMES[1]}


# With interactions ----------------------------------------------------------------------------------------------------


def with_interactions(table, rng, **rules):
    search = prepare(model(), table, PlanSpec(budget="", **rules), metric="kl")
    factors = rng.normal(size=(3 * len(OFFERS), 4)) * np.sqrt(search.problem.costs.reshape(-1, 1)) / 2
    return replace(
        search, interactions=Interactions.from_factors(factors, units=3, candidates=len(OFFERS))
    ), factors


def joint_cost(search, factors, plan):
    """The units' costs, and twice the products of their changes."""
    rows = []
    for i, cell in enumerate(plan.values()):
        k = next(k for k in range(len(OFFERS)) if search.problem.label(i, k) == cell.candidate)
        rows.append(factors[i * len(OFFERS) + k])
    products = sum(2 * rows[i] @ rows[j] for i in range(3) for j in range(i))
    return cost(plan) + products


@pytest.mark.parametrize("rules", [{}, {"ties": [["u0", "u2"]]}, {"pins": {"u1": 4}}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_alternative_is_the_best_plan_when_products_count(seed, rules):
    table = cells(seed)
    search, factors = with_interactions(table, np.random.default_rng(seed), **rules)
    found = search.alternative("240 bits total", time_limit_s=20)
    fitting = list(all_plans(table, budget=240, **rules))
    best = min(fitting, key=lambda plan: joint_cost(search, factors, plan))
    assert found.predicted["kl"] == pytest.approx(joint_cost(search, factors, best), rel=1e-6)
    assert found.choices == choices(best)
    assert found.objective == pytest.approx(cost(best))
    assert found.budget_bits == 240
    assert found.solver["interactions"]["objective"] == found.predicted["kl"]


@pytest.mark.parametrize("rules", [{}, {"ties": [["u0", "u2"]]}, {"pins": {"u1": 4}}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_alternative_keeps_limits(seed, rules):
    table, operations = cells(seed), 15_000
    limits = {"bit_operations": str(operations)}
    search, factors = with_interactions(table, np.random.default_rng(seed), limits=limits, **rules)
    found = search.alternative("240 bits total", time_limit_s=20)
    fitting = list(all_plans(table, budget=240, operations=operations, **rules))
    best = min(fitting, key=lambda plan: joint_cost(search, factors, plan))
    assert found.predicted["kl"] == pytest.approx(joint_cost(search, factors, best), rel=1e-6)
    assert found.choices == choices(best)
    taken = sum(
        m * c["bits"] * c["activation_bits"] for m, c in zip(MACS, found.choices.values(), strict=True)
    )
    assert taken <= operations
    assert found.solver["limited"] == {"bit_operations": taken}
    free, _ = with_interactions(table, np.random.default_rng(seed), **rules)
    unlimited = free.alternative("240 bits total", time_limit_s=20)
    assert unlimited.predicted["kl"] <= found.predicted["kl"]


def test_there_is_no_alternative_without_interactions_or_without_room():
    table, rng = cells(0), np.random.default_rng(0)
    plain = prepare(model(), table, PlanSpec(budget=""), metric="kl")
    assert plain.alternative("240 bits total", time_limit_s=5) is None
    search, _ = with_interactions(table, rng)
    assert search.alternative("1 bits total", time_limit_s=5) is None
    limited, _ = with_interactions(table, rng, limits={"bit_operations": "6639"})
    assert limited.alternative("240 bits total", time_limit_s=5) is None, "every unit's least takes more"


def test_a_candidates_name_is_what_the_contracts_parse():
    for bits, scheme, activation in [*OFFERS, (8, "group:32-symmetric", None)]:
        parsed = Candidate.parse(candidate_name(bits, scheme, activation))
        assert (parsed.bits, str(parsed.scheme), parsed.activation_bits) == (bits, scheme, activation)
        assert str(parsed) == candidate_name(bits, scheme, activation)
