"""`solve` against complete enumeration, on every kind of problem small enough for it."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver import Problem, Proof, SolveStatus, evaluate, solve

COSTS = st.one_of(
    st.integers(-5, 5).map(float),  # ties and negatives
    st.floats(-1e12, 1e12, allow_nan=False, allow_subnormal=False),
    st.floats(1e-16, 1e-6),
)
SIZES = st.one_of(st.integers(0, 8), st.integers(0, 2**55))


@st.composite
def tables(draw, max_units=5, max_candidates=4):
    units = draw(st.integers(1, max_units))
    rows = []
    for i in range(units):
        count = draw(st.integers(1, max_candidates))
        rows += [(f"u{i}", f"c{k}", draw(COSTS), draw(SIZES)) for k in range(count)]
    return rows


def ragged(rows):
    costs, sizes = {}, {}
    for unit, _, cost, size in rows:
        costs.setdefault(unit, []).append(cost)
        sizes.setdefault(unit, []).append(size)
    return list(costs.values()), list(sizes.values())


def check_against_enumeration(brute_force, problem, costs, sizes, budget, solution, accept=lambda plan: True):
    best = brute_force(costs, sizes, budget, accept)
    if best is None:
        assert solution.status is SolveStatus.INFEASIBLE
        return
    assert solution.status is SolveStatus.OPTIMAL
    scale = sum(max(abs(c) for c in row) for row in costs)
    assert Fraction(solution.lower_bound) <= best
    assert abs(solution.objective - float(best)) <= 1e-9 * scale
    checked = evaluate(problem, solution.choice_indices)
    assert checked.violations == ()
    assert (checked.objective, checked.size_bits) == (solution.objective, solution.size_bits)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tables(), st.floats(0, 1))
def test_equals_enumeration(brute_force, rows, fraction):
    costs, sizes = ragged(rows)
    low, high = sum(map(min, sizes)), sum(map(max, sizes))
    budget = low + int(fraction * (high - low))
    problem = Problem.from_rows(rows, budget=budget)
    check_against_enumeration(brute_force, problem, costs, sizes, budget, solve(problem))


def test_budget_exactly_at_a_threshold_and_one_bit_below():
    rows = [("a", 4, 1.0, 40), ("a", 8, 0.0, 80), ("b", 4, 3.0, 400), ("b", 8, 0.5, 800)]
    assert solve(Problem.from_rows(rows, budget=880)).objective == 0.5
    assert solve(Problem.from_rows(rows, budget=879)).objective == 1.5
    assert solve(Problem.from_rows(rows, budget=440)).objective == 4.0


@pytest.mark.parametrize("units", [3, 5000])
def test_a_budget_beyond_every_sum_is_no_limit(units):
    rng = np.random.default_rng(0)
    costs, sizes = rng.random((units, 3)), rng.integers(1, 9, (units, 3))
    free = solve(Problem.from_arrays(costs, sizes, budget=None))
    assert solve(Problem.from_arrays(costs, sizes, budget=2**80)).choices == free.choices


def test_infeasible_budget_names_the_smallest():
    solution = solve(Problem.from_rows([("a", 4, 1.0, 40), ("b", 4, 3.0, 400)], budget=439))
    assert solution.status is SolveStatus.INFEASIBLE
    assert solution.smallest_feasible_bits == 440
    assert solution.proof is Proof.MINIMUM
    assert solution.choices is None
    assert solution.named_choices == {}
    assert solution.relative_gap is None


def test_sums_beyond_float_precision():
    # The budget is met to the bit although the total needs 60 bits.
    big = 2**58
    rows = [("a", "x", 1.0, big), ("a", "y", 0.0, big + 1), ("b", "x", 1.0, big), ("b", "y", 0.0, big + 1)]
    assert solve(Problem.from_rows(rows, budget=2 * big + 1)).objective == 1.0
    assert solve(Problem.from_rows(rows, budget=2 * big)).objective == 2.0


@pytest.mark.parametrize("factor", [1e-16, 1e-9, 1e-6, 1.0, 1e6, 1e12])
def test_any_scale_of_costs_gives_the_same_plan(factor):
    rng = np.random.default_rng(5)
    costs, sizes = rng.random((20, 4)), rng.integers(1, 10**7, (20, 4))
    budget = int(sizes.mean(axis=1).sum())
    plan = solve(Problem.from_arrays(costs, sizes, budget=budget)).choices
    assert solve(Problem.from_arrays(costs * factor, sizes, budget=budget)).choices == plan


def test_pins_bounds_and_ties_hold(brute_force):
    rng = np.random.default_rng(1)
    rows = [
        (f"u{i}", bits, float(rng.normal()), int(rng.integers(1, 99))) for i in range(5) for bits in (2, 4, 8)
    ]
    costs, sizes = ragged(rows)
    problem = Problem.from_rows(
        rows, budget=180, pins={"u0": 4}, bounds={"u1": (4, None), "u2": (None, 4)}, ties=[("u3", "u4")]
    )

    def accept(plan):
        return plan[0] == 1 and plan[1] >= 1 and plan[2] <= 1 and plan[3] == plan[4]

    check_against_enumeration(brute_force, problem, costs, sizes, 180, solve(problem), accept)


def test_tied_units_match_candidates_by_name():
    rows = [("a", 8, 0.0, 8), ("a", 4, 5.0, 4), ("b", 2, 9.0, 2), ("b", 4, 1.0, 4), ("b", 8, 0.0, 8)]
    solution = solve(Problem.from_rows(rows, budget=15, ties=[("a", "b")]))
    assert solution.named_choices == {"a": "4", "b": "4"}
