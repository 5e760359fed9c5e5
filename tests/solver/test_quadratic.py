"""Plans under interactions, against complete enumeration."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver import (
    Interactions,
    OptionError,
    Problem,
    ProblemError,
    Proof,
    SolveStatus,
    TableError,
    evaluate,
    solve,
    solve_quadratic,
)

from .pairwise import cost_of, made


def enumerate_plans(costs, sizes, factors, budget, accept=lambda plan: True):
    plans = itertools.product(range(costs.shape[1]), repeat=len(costs))
    fitting = (p for p in plans if sum(sizes[i, k] for i, k in enumerate(p)) <= budget and accept(p))
    return min((cost_of(costs, factors, p) for p in fitting), default=None)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from([1, 3, 30]),
    st.sampled_from([0, 1]),
)
def test_equals_enumeration(seed, units, candidates, dimension, linear):
    costs, sizes, factors = made(seed, units, candidates, dimension, linear)
    budget = int(np.median(sizes, axis=1).sum())
    problem = Problem.from_arrays(costs, sizes, budget=budget)
    solution = solve_quadratic(
        problem, Interactions.from_factors(factors, units=units, candidates=candidates), restarts=3
    )
    best = enumerate_plans(costs, sizes, factors, budget)
    if best is None:
        assert solution.status is SolveStatus.INFEASIBLE
        return
    scale = float(np.abs(factors).sum() ** 2 + np.abs(costs).sum())
    assert solution.status is SolveStatus.OPTIMAL
    assert solution.word == "proven optimal"
    assert solution.objective == pytest.approx(best, abs=1e-7 * scale)
    assert solution.lower_bound <= best + 1e-12 * scale
    assert solution.objective == pytest.approx(cost_of(costs, factors, solution.choice_indices), rel=1e-9)
    assert solution.size_bits <= budget


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 40]))
def test_the_convex_bound_is_valid_by_itself(seed, dimension):
    costs, sizes, factors = made(seed, 6, 3, dimension, linear=0.5)
    budget = int(sizes[:, 1].sum())
    interactions = Interactions.from_factors(factors, units=6, candidates=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("solver.quadratic.PROVABLE_CELLS", 0)  # without the integer program
        solution = solve_quadratic(Problem.from_arrays(costs, sizes, budget=budget), interactions, restarts=0)
    best = enumerate_plans(costs, sizes, factors, budget)
    assert solution.lower_bound <= best + 1e-12 * abs(best)
    assert solution.objective >= best - 1e-12 * abs(best)
    if solution.status is SolveStatus.FEASIBLE:
        assert solution.word == "heuristic"
        assert solution.proof is Proof.LAGRANGIAN


def test_what_need_not_be_proven_is_not(monkeypatch):
    costs, sizes, factors = made(3, 8, 4, 30)
    problem = Problem.from_arrays(costs, sizes, budget=int(np.median(sizes, axis=1).sum()))
    interactions = Interactions.from_factors(factors, units=8, candidates=4)
    proven = solve_quadratic(problem, interactions)
    monkeypatch.setattr("solver.quadratic.prove", lambda *_, **__: pytest.fail("tried to prove it"))
    found = solve_quadratic(problem, interactions, certify=False)
    assert proven.proof is Proof.SOLVER
    assert found.proof is Proof.LAGRANGIAN
    assert found.status is SolveStatus.FEASIBLE
    assert found.lower_bound <= proven.objective <= found.objective


def test_factors_and_matrix_mean_the_same():
    costs, sizes, factors = made(3, 5, 3)
    problem = Problem.from_arrays(costs, sizes, budget=int(sizes[:, 1].sum()))
    whole = Interactions.from_gram((factors @ factors.T).reshape(5, 3, 5, 3), units=5, candidates=3)
    parts = Interactions.from_factors(factors.reshape(5, 3, -1), units=5, candidates=3)
    plan = np.array([0, 1, 2, 1, 0])
    assert whole.value(plan) == pytest.approx(parts.value(plan))
    assert np.allclose(whole.within, parts.within)
    assert np.allclose(whole.times(np.arange(15.0)), parts.times(np.arange(15.0)))
    assert (
        solve_quadratic(problem, whole).choice_indices.tolist()
        == solve_quadratic(problem, parts).choice_indices.tolist()
    )


def test_large_factors_are_not_multiplied_out(monkeypatch):
    monkeypatch.setattr("solver.interactions._DENSE", 10)
    costs, sizes, factors = made(3, 8, 3, dimension=4)
    budget = int(sizes[:, 1].sum())
    solution = solve_quadratic(
        Problem.from_arrays(costs, sizes, budget=budget),
        Interactions.from_factors(factors, units=8, candidates=3),
    )
    assert solution.objective == pytest.approx(enumerate_plans(costs, sizes, factors, budget), rel=1e-7)


def test_pins_and_ties_hold_with_interactions():
    costs, sizes, factors = made(5, 6, 3)
    budget = int(sizes[:, 1].sum())
    problem = Problem.from_arrays(costs, sizes, budget=budget, pins={"0": "2"}, ties=[("1", "4")])
    solution = solve_quadratic(problem, Interactions.from_factors(factors, units=6, candidates=3))

    def accept(plan):
        return plan[0] == 2 and plan[1] == plan[4]

    assert evaluate(problem, solution.choice_indices).violations == ()
    assert solution.status is SolveStatus.OPTIMAL
    assert solution.objective == pytest.approx(
        enumerate_plans(costs, sizes, factors, budget, accept), rel=1e-7
    )
    gram = Interactions.from_gram(factors @ factors.T, units=6, candidates=3)
    assert solve_quadratic(problem, gram).objective == pytest.approx(solution.objective)


def test_without_interactions_it_is_the_knapsack():
    costs, sizes, _ = made(6, 30, 4, linear=1.0)
    problem = Problem.from_arrays(costs, sizes, budget=int(sizes[:, 1].sum()))
    nothing = Interactions.from_gram(np.zeros((120, 120)), units=30, candidates=4)
    solution = solve_quadratic(problem, nothing)
    assert solution.objective == pytest.approx(solve(problem).objective)
    assert solution.additive == pytest.approx(solution.objective)
    assert solution.status is SolveStatus.OPTIMAL


def test_interactions_change_the_plan_for_the_better():
    costs, sizes, factors = made(8, 40, 4, dimension=60)
    problem = Problem.from_arrays(costs, sizes, budget=int(sizes[:, 1].sum()))
    interactions = Interactions.from_factors(factors, units=40, candidates=4)
    solution = solve_quadratic(problem, interactions)
    assert solution.status is SolveStatus.FEASIBLE
    assert solution.word == "heuristic"
    assert solution.objective < solution.additive_optimum * 0.99
    assert 0 < solution.lower_bound <= solution.objective
    additive = costs + (factors**2).sum(axis=1).reshape(costs.shape)
    at = np.arange(40), solution.choice_indices
    assert solution.additive == pytest.approx(float(additive[at].sum()))
    best = solve(Problem.from_arrays(additive, sizes, budget=problem.budget_bits))
    assert solution.additive >= best.objective
    assert solution.additive_optimum == pytest.approx(problem_cost(costs, factors, best.choice_indices))


def problem_cost(costs, factors, choices):
    return cost_of(costs, factors, choices.tolist())


def test_the_same_seed_gives_the_same_plan():
    costs, sizes, factors = made(9, 60, 4, dimension=80)
    problem = Problem.from_arrays(costs, sizes, budget=int(sizes[:, 1].sum()))
    interactions = Interactions.from_factors(factors, units=60, candidates=4)
    plans = [
        solve_quadratic(problem, interactions, seed=7, restarts=5).choice_indices.tolist() for _ in range(2)
    ]
    assert plans[0] == plans[1]


def test_two_hundred_units_in_time():
    costs, sizes, factors = made(10, 200, 6, dimension=300)
    problem = Problem.from_arrays(costs, sizes, budget=int(sizes[:, 2].sum()))
    start = time.monotonic()
    solution = solve_quadratic(problem, Interactions.from_factors(factors, units=200, candidates=6))
    assert time.monotonic() - start < 20  # about 1 s of computing; shared machines are slower
    assert solution.objective <= solution.additive_optimum
    assert solution.relative_gap < 0.8


def test_infeasible_and_unlimited():
    costs, sizes, factors = made(11, 4, 3)
    interactions = Interactions.from_factors(factors, units=4, candidates=3)
    low = int(sizes.min(axis=1).sum())
    none = solve_quadratic(Problem.from_arrays(costs, sizes, budget=low - 1), interactions)
    assert (none.status, none.smallest_feasible_bits) == (SolveStatus.INFEASIBLE, low)
    assert none.relative_gap is None
    free = solve_quadratic(Problem.from_arrays(costs, sizes, budget=None), interactions)
    assert free.objective == pytest.approx(enumerate_plans(costs, sizes, factors, 10**9), rel=1e-7)


NOT_POSITIVE = np.diag([1.0, 1.0, -0.5, 1.0])


@pytest.mark.parametrize(
    "gram",
    [
        NOT_POSITIVE,
        np.full((4, 4), np.nan),
        np.arange(16.0).reshape(4, 4),  # not symmetric
        np.eye(5),
    ],
)
def test_refused_matrices(gram):
    with pytest.raises(TableError, match="interaction matrix"):
        Interactions.from_gram(gram, units=2, candidates=2)


def test_refusals():
    costs, sizes, factors = made(12, 4, 3)
    interactions = Interactions.from_factors(factors, units=4, candidates=3)
    problem = Problem.from_arrays(costs, sizes, budget=100)
    with pytest.raises(TableError):
        Interactions.from_factors(factors[:-1], units=4, candidates=3)
    with pytest.raises(TableError):
        Interactions.from_factors(factors * np.inf, units=4, candidates=3)
    with pytest.raises(TableError):
        solve_quadratic(Problem.from_arrays(costs[:3], sizes[:3], budget=100), interactions)
    with pytest.raises(OptionError):
        solve_quadratic(problem, interactions, restarts=-1)
    few = Problem.from_arrays(costs, sizes, budget=100, labels=[2, 4, 8], max_widths=1)
    with pytest.raises(ProblemError, match="different widths"):
        solve_quadratic(few, interactions)
