"""Plans from measurements: against brute force, and the sizes they tell."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.plans.planner import Cell, prepare
from app.plans.spec import BudgetCounts, PlanSpec, joined, minimum_bits, sizes_of
from solver import BoundError, BudgetError, TieError
from workers.contracts import ModelDescription, UnitInfo

BITS = (2, 3, 4, 8)
FIXED = 640


def model(weights):
    units = tuple(
        UnitInfo(
            name=f"u{i}",
            operator="linear",
            shape=(n, 1),
            weights=n,
            output_channel_axis=0,
            group_axis=1,
            macs=n,
        )
        for i, n in enumerate(weights)
    )
    total = sum(weights)
    return ModelDescription(
        inputs=(),
        batch_size=None,
        outputs=(),
        units=units,
        unsupported=(),
        weights=total,
        float_bits=32 * total + FIXED,
        unit_float_bits=32 * total,
    )


def cells_for(description, seed=0, overhead=10):
    rng = random.Random(seed)
    return [
        Cell(
            unit=u.name,
            bits=b,
            scheme="channel-symmetric",
            cost=rng.choice([-0.01, 1.0, 2.0]) * rng.random() * 4.0**-b,
            size_bits=u.weights * b,
            storage_bits=u.weights * b + overhead,
        )
        for u in description.units
        for b in BITS
    ]


def brute_force(description, cells, spec, budget_bits):
    """Least cost over all plans within the limits; `None` if there is none."""
    table = {(c.unit, c.bits): c for c in cells}
    names = [u.name for u in description.units if u.name not in spec.exclude]
    fixed = 0
    if spec.budget_counts is BudgetCounts.FILE:
        fixed = FIXED + 32 * sum(u.weights for u in description.units if u.name in spec.exclude)
    best = None
    for bits in itertools.product(BITS, repeat=len(names)):
        chosen = dict(zip(names, bits, strict=True))
        if any(chosen[u] != b for u, b in spec.pins.items()):
            continue
        if any(len({chosen[u] for u in group}) > 1 for group in spec.ties):
            continue
        taken = [table[item] for item in chosen.items()]
        whole = spec.budget_counts is BudgetCounts.FILE
        size = fixed + sum(c.storage_bits if whole else c.size_bits for c in taken)
        cost = math.fsum(c.cost for c in taken)
        if size <= budget_bits and (best is None or cost < best):
            best = cost
    return best


def solve(description, cells, spec):
    return prepare(description, cells, spec, metric="kl").plan(spec.budget, time_limit_s=10)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(1, 60), min_size=3, max_size=4),
    seed=st.integers(0, 1000),
    budget=st.integers(1, 2500),
    counts=st.sampled_from(BudgetCounts),
    rules=st.sampled_from(
        [
            {},
            {"pins": {"u0": 8}},
            {"ties": [["u0", "u1"]]},
            {"ties": [["u0", "u1"], ["u1", "u2"]], "pins": {"u2": 3}},
            {"exclude": ["u1"], "pins": {"u0": 4}},
        ]
    ),
)
def test_plans_are_the_best_there_are(weights, seed, budget, counts, rules):
    description = model(weights)
    cells = cells_for(description, seed)
    spec = PlanSpec(budget=f"{budget} bits total", budget_counts=counts, **rules)

    draft = solve(description, cells, spec)
    best = brute_force(description, cells, spec, budget)

    if best is None:
        assert draft.status == "infeasible"
        assert draft.choices == {}
        assert (draft.objective, draft.size_bits, draft.file_size_bits) == (None, None, None)
        minimum = draft.solver["minimum_bits"]
        assert minimum > budget
        assert brute_force(description, cells, spec, minimum) is not None
        assert brute_force(description, cells, spec, minimum - 1) is None
        return
    assert draft.status == "optimal"
    assert draft.objective == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert draft.lower_bound <= draft.objective
    assert set(draft.choices) == {f"u{i}" for i in range(len(weights))} - set(rules.get("exclude", ()))
    table = {(c.unit, c.bits): c for c in cells}
    taken = [table[u, choice["bits"]] for u, choice in draft.choices.items()]
    excluded = 32 * sum(u.weights for u in description.units if u.name in spec.exclude)
    assert draft.size_bits == sum(c.size_bits for c in taken)
    assert draft.file_size_bits == sum(c.storage_bits for c in taken) + FIXED + excluded
    assert (draft.file_size_bits if counts is BudgetCounts.FILE else draft.size_bits) <= budget


def test_averages_and_ratios_are_over_the_searched_weights():
    description = model([100, 50, 50])
    sizes = sizes_of(description, ["u0"])
    assert sizes.weights == 100
    assert sizes.float_bits == 3200
    assert sizes.fixed_bits == 3200 + FIXED
    assert sizes.budget_bits("4 bits", BudgetCounts.WEIGHTS) == 400
    assert sizes.budget_bits("4x", BudgetCounts.WEIGHTS) == 800
    assert sizes.budget_bits("4x", BudgetCounts.FILE) == (6400 + FIXED) // 4


def test_a_file_budget_counts_what_is_not_searched():
    description = model([100, 50])
    cells = cells_for(description)
    just = 150 * 2 + 2 * 10 + FIXED

    fits = solve(description, cells, PlanSpec(budget=f"{just} bits total", budget_counts=BudgetCounts.FILE))
    below = solve(
        description, cells, PlanSpec(budget=f"{just - 1} bits total", budget_counts=BudgetCounts.FILE)
    )

    assert (fits.file_size_bits, fits.size_bits) == (just, 300)
    assert (below.status, below.solver["minimum_bits"]) == ("infeasible", just)


def test_a_file_budget_below_what_is_fixed_is_infeasible_and_no_error():
    description = model([100])
    draft = solve(
        description,
        cells_for(description),
        PlanSpec(budget=f"{FIXED - 1} bits total", budget_counts=BudgetCounts.FILE),
    )
    assert (draft.status, draft.solver["minimum_bits"]) == ("infeasible", 200 + 10 + FIXED)


def test_uniform_plans_take_one_width_wherever_they_search():
    description = model([100, 50, 50])
    cells = cells_for(description)
    draft = prepare(description, cells, PlanSpec(budget="", exclude=["u1"]), metric="kl").uniform(4)
    assert draft.choices == {u: {"bits": 4, "scheme": "channel-symmetric"} for u in ("u0", "u2")}
    assert draft.size_bits == 600
    assert draft.file_size_bits == 600 + 20 + FIXED + 32 * 50
    assert draft.objective == draft.predicted["kl"]
    assert draft.objective == math.fsum(c.cost for c in cells if c.bits == 4 and c.unit != "u1")
    assert draft.relative_gap is None


def test_equal_specifications_are_one_whatever_their_order():
    first = PlanSpec(
        budget="4 bits", pins={"a": 2, "b": 3}, ties=[["c", "d"], ["e", "f"]], exclude=["x", "y"]
    )
    same = PlanSpec(budget="4 bits", pins={"b": 3, "a": 2}, ties=[["f", "e"], ["d", "c"]], exclude=["y", "x"])
    other = PlanSpec(
        budget="4 bits", pins={"b": 3, "a": 2}, ties=[["f", "d"], ["e", "c"]], exclude=["y", "x"]
    )
    assert first.sha256 == same.sha256 != other.sha256
    assert first.sha256 != PlanSpec(budget="4 bits").sha256


@pytest.mark.parametrize(
    ("ties", "groups"),
    [
        ([], []),
        ([["a", "b"]], [{"a", "b"}]),
        ([["a", "b"], ["c", "d"]], [{"a", "b"}, {"c", "d"}]),
        ([["a", "b"], ["c", "d"], ["b", "c"]], [{"a", "b", "c", "d"}]),
    ],
)
def test_overlapping_ties_are_one(ties, groups):
    assert joined(ties) == groups


def test_the_minimum_follows_pins_through_chains_of_ties():
    sizes = sizes_of(model([10, 20, 30, 40]), [])
    assert minimum_bits(sizes, BITS, {}, []) == 200
    assert minimum_bits(sizes, BITS, {"u3": 8}, [["u0", "u1"], ["u1", "u3"]]) == 2 * 30 + 8 * 70


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (PlanSpec(budget="4 apples"), BudgetError),
        (PlanSpec(budget="4 bits", pins={"u9": 4}), BoundError),
        (PlanSpec(budget="4 bits", pins={"u0": 5}), BoundError),
        (PlanSpec(budget="4 bits", ties=[["u0", "u9"]]), TieError),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value.to_json()),
)
def test_contradictions_are_the_solvers_to_refuse(spec, error):
    description = model([10, 20])
    with pytest.raises(error):
        solve(description, cells_for(description), spec)


def test_one_search_answers_every_budget():
    description = model([30, 20, 10])
    cells = cells_for(description, seed=3)
    search = prepare(description, cells, PlanSpec(budget="", pins={"u1": 4}), metric="kl")
    for total in range(140, 500, 30):
        spec = PlanSpec(budget=f"{total} bits total", pins={"u1": 4})
        again = search.plan(spec.budget, time_limit_s=10)
        fresh = solve(description, cells, spec)
        assert (again.status, again.objective, again.choices) == (
            fresh.status,
            fresh.objective,
            fresh.choices,
        )


def test_the_frontier_counts_what_the_budget_counts():
    description = model([30, 20])
    cells = cells_for(description, seed=1)
    of_weights = prepare(description, cells, PlanSpec(budget=""), metric="kl").frontier
    whole = PlanSpec(budget="", budget_counts=BudgetCounts.FILE)
    of_files = prepare(description, cells, whole, metric="kl").frontier
    assert of_weights[0].size_bits == 100
    assert of_files[0].size_bits == 100 + 20 + FIXED
    assert [p.objective for p in of_weights] == [p.objective for p in of_files]


def test_specifications_that_differ_in_the_budget_share_their_rules():
    first, second = PlanSpec(budget="4 bits"), PlanSpec(budget="3 bits")
    assert first.rules_sha256 == second.rules_sha256 != PlanSpec(budget="4 bits", exclude=["a"]).rules_sha256
