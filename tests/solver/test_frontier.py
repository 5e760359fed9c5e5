"""Frontiers, the inverse question and shadow prices, against complete enumeration."""

import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver import (
    BudgetError,
    OptionError,
    Problem,
    ProblemError,
    Row,
    SolveStatus,
    acceleration,
    evaluate,
    frontier,
    shadow_prices,
    smallest_size,
    solve,
)
from solver.hull import build_hull
from solver.pareto import add_choices


def all_plans(costs, sizes):
    """Size and exact cost of every plan."""
    for plan in itertools.product(*(range(len(row)) for row in costs)):
        cost = sum(Fraction(float(costs[i, k])) for i, k in enumerate(plan))
        yield sum(int(sizes[i, k]) for i, k in enumerate(plan)), cost


def nondominated(costs, sizes):
    """The complete frontier by enumeration."""
    kept, least = [], None
    for size, cost in sorted(all_plans(costs, sizes)):
        if least is None or cost < least:
            least = cost
            kept.append((size, cost))
    return kept


@st.composite
def tables(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 4)))
    sizes = rng.integers(0, draw(st.sampled_from([4, 50, 2**55])), shape)
    costs = (
        rng.integers(-4, 9, shape) / draw(st.sampled_from([1, 8]))
        if draw(st.booleans())
        else rng.normal(size=shape)
    )
    return costs.astype(float), sizes


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tables())
def test_complete_frontier_equals_enumeration(table):
    costs, sizes = table
    line = frontier(Problem.from_arrays(costs, sizes, budget=None), complete=True)
    expected = nondominated(costs, sizes)
    assert line.complete
    # Sums that differ by rounding only may leave one point more.
    assert {size for size, _ in expected} <= set(line.size_bits.tolist())
    for i, point in enumerate(line):
        checked = evaluate(line.problem, line.choice_indices(i))
        assert checked.size_bits == point.size_bits
        assert checked.objective == pytest.approx(point.objective, rel=1e-13, abs=1e-13)
        best = min(cost for size, cost in expected if size <= point.size_bits)
        assert point.objective == pytest.approx(float(best), rel=1e-13, abs=1e-13)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tables())
def test_hull_points_are_optimal_at_their_size(table):
    costs, sizes = table
    line = frontier(Problem.from_arrays(costs, sizes, budget=None))
    expected = nondominated(costs, sizes)
    assert (np.diff(line.size_bits) > 0).all()
    assert line.exact.all()
    for i, point in enumerate(line):
        assert evaluate(line.problem, line.choice_indices(i)).size_bits == point.size_bits
        best = min(cost for size, cost in expected if size <= point.size_bits)
        assert point.objective == pytest.approx(float(best), rel=1e-12, abs=1e-12)
    assert line[0].size_bits == expected[0][0]
    assert line[-1].objective == pytest.approx(float(expected[-1][1]), rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tables(), st.floats(0, 1.2))
def test_smallest_size_equals_enumeration(table, fraction):
    costs, sizes = table
    expected = nondominated(costs, sizes)
    dear, cheap = float(expected[0][1]), float(expected[-1][1])
    limit = cheap + fraction * (dear - cheap) if fraction <= 1 else cheap - 1.0
    answer = smallest_size(Problem.from_arrays(costs, sizes, budget=None), limit)
    keeping = [size for size, cost in expected if cost <= Fraction(limit)]
    if not keeping:
        # The limit may lie a rounding below the least cost.
        assert answer.status is SolveStatus.INFEASIBLE or answer.solution.objective <= limit
        return
    assert answer.status is SolveStatus.OPTIMAL
    assert answer.solution.objective <= limit
    near = [
        size for size, cost in expected if float(cost) <= limit + 1e-12 * max(map(abs, (dear, cheap, 1.0)))
    ]
    assert near[0] <= answer.size_bits <= keeping[0]
    assert answer.size_lower_bound == answer.size_bits


def test_budgets_off_the_hull_are_added_and_proven(instances):
    costs, sizes = instances.transformer(50, 6, 2)
    problem = Problem.from_arrays(costs, sizes, budget=None)
    hull = frontier(problem)
    budgets = [instances.budget_at(sizes, f) for f in np.linspace(0.02, 0.98, 40)]
    line = frontier(problem, budgets=budgets)
    whole = frontier(problem, complete=True)
    assert len(hull) < len(line) <= len(hull) + 40
    assert line.exact.all()
    assert whole.complete
    assert not line.complete
    for budget in budgets:
        best = whole[whole.at(budget)]
        assert line[line.at(budget)].objective == pytest.approx(best.objective, rel=1e-12)
        assert line[line.at(budget)].objective <= hull[hull.at(budget)].objective
    at = line.at(budgets[7])
    choices = line.choice_indices(at)
    assert evaluate(problem, choices).objective == pytest.approx(line[at].objective)
    assert line.named_choices(at) == {str(i): str(k) for i, k in enumerate(choices)}


def test_more_points_than_the_cap_fall_back_to_the_hull(instances):
    costs, sizes = instances.shapes(40, 6, 2)
    problem = Problem.from_arrays(costs, sizes, budget=None)
    line = frontier(problem, complete=True, max_points=1000)
    assert not line.complete
    assert len(line) == len(frontier(problem))


def test_pins_and_ties_hold_on_the_frontier():
    rng = np.random.default_rng(4)
    costs, sizes = rng.random((4, 3)), rng.integers(1, 9, (4, 3))
    problem = Problem.from_arrays(costs, sizes, budget=None, pins={"0": "1"}, ties=[("1", "3")])
    for line in (
        frontier(problem, complete=True),
        frontier(problem, budgets=[int(sizes.mean(axis=1).sum())]),
    ):
        for i in range(len(line)):
            choices = line.choice_indices(i)
            assert choices[0] == 1
            assert choices[1] == choices[3]
            assert evaluate(problem, choices).violations == ()


def test_thinned_keeps_both_ends(instances):
    costs, sizes = instances.transformer(50, 6, 2)
    line = frontier(Problem.from_arrays(costs, sizes, budget=None))
    few = line.thinned(10)
    assert len(few) <= 10
    assert few[0] == line[0]
    assert few[-1] == line[-1]
    at = line.size_bits.tolist().index(few[3].size_bits)
    assert (few.choice_indices(3) == line.choice_indices(at)).all()
    with pytest.raises(OptionError):
        line.thinned(1)


def test_large_frontier_in_time(instances):
    costs, sizes = instances.experts(100_000, 6, 1)
    start = time.monotonic()
    line = frontier(Problem.from_arrays(costs, sizes, budget=None))
    assert time.monotonic() - start < 5
    assert len(line) > 100_000
    at = len(line) // 3
    assert evaluate(line.problem, line.choice_indices(at)).size_bits == line[at].size_bits


def test_implementations_build_the_same_hull_and_lists(engine, instances):
    for family in ("transformer", "noisy", "tied", "all_equal", "subset_sum"):
        costs, sizes = instances.FAMILIES[family](60, 6, 2)
        ours, reference = engine.build_hull(costs, sizes), build_hull(costs, sizes)
        assert (ours.sizes == reference.sizes).all()
        assert (ours.plan(len(ours.slope) // 2) == reference.plan(len(ours.slope) // 2)).all()
        assert np.allclose(ours.costs, reference.costs, rtol=1e-12)
    size, cost = np.array([0, 3, 7]), np.array([5.0, 2.0, 1.0])
    steps, changes = np.array([3, 4]), np.array([-4.0, -4.5])
    for ours, theirs in zip(
        engine.add_choices(size, cost, steps, changes), add_choices(size, cost, steps, changes), strict=True
    ):
        assert ours.tolist() == theirs.tolist()


def test_further_rows_have_no_frontier():
    problem = Problem.from_arrays(
        np.ones((2, 2)),
        np.ones((2, 2), int),
        budget=4,
        limits=[Row(name="t", values=np.ones((2, 2)), limit=9)],
    )
    for ask in (frontier, shadow_prices, lambda p: smallest_size(p, 1.0)):
        with pytest.raises(ProblemError):
            ask(problem)


def test_refused_options():
    problem = Problem.from_arrays(np.ones((2, 2)), np.ones((2, 2), int), budget=1)
    for call in (
        lambda: frontier(problem, max_points=1),
        lambda: frontier(problem, time_limit_s=-1.0),
        lambda: smallest_size(problem, math.nan),
    ):
        with pytest.raises(OptionError):
            call()
    with pytest.raises(BudgetError) as caught:
        shadow_prices(problem)
    assert caught.value.extra["minimum_bits"] == 2


def test_shadow_prices_bound_what_more_bits_buy(instances):
    costs, sizes = instances.transformer(50, 6, 2)
    budget = instances.budget_at(sizes, 0.4)
    problem = Problem.from_arrays(costs, sizes, budget=budget)
    prices = shadow_prices(problem)
    assert prices.per_bit == solve(problem).multiplier
    assert prices.buys(8000) == 8000 * prices.per_bit
    # From a plan of the hull the price is the best rate at which any further bits can be used.
    line = frontier(problem)
    at = line.at(budget)
    assert prices.next_budget_bits == line[at + 1].size_bits
    assert prices.next_saving == pytest.approx(line[at].objective - line[at + 1].objective)
    for extra in (10**6, 10**8, 10**10):
        more = solve(problem.with_budget(line[at].size_bits + extra)).objective
        assert line[at].objective - more <= prices.buys(extra) * (1 + 1e-9)


def test_switching_budgets_are_where_hull_plans_change(instances):
    costs, sizes = instances.transformer(50, 6, 2)
    problem = Problem.from_arrays(costs, sizes, budget=instances.budget_at(sizes, 0.4), ties=[("3", "4")])
    prices, line = shadow_prices(problem), frontier(problem)
    for unit in (0, 3, 4, 49):
        switches = prices.switches(unit)
        for switch in switches:
            assert line.choice_indices(line.at(switch.budget_bits))[unit] == switch.candidate
        for switch in switches[1:]:
            assert line.choice_indices(line.at(switch.budget_bits - 1))[unit] != switch.candidate
        coming = prices.next_switch(unit)
        assert coming is None or coming.budget_bits > problem.budget_bits
    assert prices.switches(3) == prices.switches(4)


def test_nothing_waits_for_the_kernel():
    assert acceleration.engine().name
    assert acceleration.reference_engine().name.startswith("numpy")
