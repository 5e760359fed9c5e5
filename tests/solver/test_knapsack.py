"""The exact solver for one budget: both implementations, against enumeration, each other, and foreign solvers."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model

from solver import Problem, Proof, SolveStatus, Stopped, WidthCount, solve
from solver.certificate import evaluate, lagrangian_bound
from solver.core import assemble, scan
from solver.knapsack import cost_step, solve_knapsack
from solver.relaxation import Relaxation, relax
from solver.tablewise import exact_sum

NEVER = math.inf


def run(engine, costs, sizes, budget, *, gap=0.0, seconds=NEVER):
    problem = Problem.from_arrays(costs, sizes, budget=None)
    found = solve_knapsack(
        problem.reduced,
        problem.sizes,
        budget,
        relative_gap=gap,
        deadline=time.monotonic() + seconds,
        engine=engine,
    )
    at = np.arange(len(found.slots)), found.slots
    assert int(problem.sizes[at].sum()) <= budget
    return found, math.fsum(problem.costs[at])


@st.composite
def tables(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 4)))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, draw(st.sampled_from([3, 20, 10**9, 2**55])), shape) * draw(
        st.sampled_from([1, 7])
    )
    costs = draw(
        st.sampled_from(
            [
                lambda: rng.integers(-3, 6, shape).astype(float),  # many ties
                lambda: rng.random(shape) * 10.0 ** rng.integers(-16, 12),  # any scale
                lambda: (sizes.max() - sizes).astype(float),  # subset sum: the bound says nothing
                lambda: (
                    rng.normal(size=shape) * 10.0 ** rng.integers(-9, 9, (shape[0], 1))
                ),  # mixed scales, signs
                lambda: np.round(rng.random(shape), 2),  # decimals
            ]
        )
    )()
    low, high = int(sizes.min(axis=1).sum()), int(sizes.max(axis=1).sum())
    return costs, sizes, low + int(draw(st.floats(0, 1)) * (high - low))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tables())
def test_equals_enumeration(engine, brute_force, table):
    costs, sizes, budget = table
    found, objective = run(engine, costs, sizes, budget)
    best = brute_force(costs, sizes, budget)
    assert found.proven
    assert Fraction(found.lower_bound) <= best
    assert objective - float(best) <= 1e-14 * float(np.abs(costs).max(axis=1).sum())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tables())
def test_a_truncated_search_claims_nothing_it_cannot_show(engine, brute_force, table):
    costs, sizes, budget = table
    relaxation = engine.relax(costs, sizes, budget)
    if relaxation.multiplier == 0.0 or relaxation.slack == 0:
        return
    found = engine.scan(costs, sizes, relaxation, 0.0)
    core = engine.assemble(costs, sizes, found)
    result = engine.search(core, target=0.0, step=0.0, deadline=NEVER, caps=(2, 3))
    base = math.fsum(costs[np.arange(len(costs)), relaxation.slots])
    best = float(brute_force(costs, sizes, budget))
    slots = relaxation.slots.copy()
    for group, slot in result.moves:
        slots[group] = slot
    at = np.arange(len(slots)), slots
    assert sizes[at].sum() <= budget
    assert math.fsum(costs[at]) == pytest.approx(
        base + result.best, rel=1e-12, abs=1e-12 * np.abs(costs).max()
    )
    bound = base + min(result.best, result.open_bound) - core.rounding
    assert bound <= best + 1e-15 * float(np.abs(costs).sum())


FAMILIES = [
    ("transformer", 50, 6),
    ("transformer", 300, 20),
    ("shapes", 300, 6),
    ("noisy", 300, 8),
    ("tied", 300, 6),
    ("all_equal", 100, 6),
    ("strong_real", 100, 6),
    ("experts", 3000, 8),
    ("shapes", 3000, 8),
]


@pytest.mark.parametrize(("family", "units", "candidates"), FAMILIES)
def test_the_order_of_units_does_not_change_the_objective(engine, instances, family, units, candidates):
    costs, sizes = instances.FAMILIES[family](units, candidates, 3)
    budget = instances.budget_at(sizes, 0.3)
    order = np.random.default_rng(1).permutation(units)
    straight, objective = run(engine, costs, sizes, budget)
    shuffled, again = run(engine, costs[order], sizes[order], budget)
    assert straight.proven
    assert shuffled.proven
    assert objective == again


@pytest.mark.parametrize(("family", "units", "candidates"), FAMILIES)
@pytest.mark.parametrize("fraction", [0.1, 0.6])
def test_numpy_and_compiled_agree(engine, instances, family, units, candidates, fraction):
    costs, sizes = instances.FAMILIES[family](units, candidates, 5)
    budget = instances.budget_at(sizes, fraction)
    found, objective = run(engine, costs, sizes, budget)
    reference = solve(Problem.from_arrays(costs, sizes, budget=budget), backend="numpy")
    assert found.proven
    assert reference.status is SolveStatus.OPTIMAL
    assert reference.backend_version.startswith("numpy")
    assert objective == pytest.approx(reference.objective, rel=1e-14)


@pytest.mark.parametrize(
    ("family", "units"), [("transformer", 200), ("shapes", 100), ("noisy", 300), ("tied", 100)]
)
@pytest.mark.parametrize("fraction", [0.05, 0.4])
def test_equals_highs_through_pulp(instances, family, units, fraction):
    costs, sizes = instances.FAMILIES[family](units, 6, 7)
    problem = Problem.from_arrays(costs, sizes, budget=instances.budget_at(sizes, fraction))
    ours, theirs = solve(problem), solve(problem, backend="pulp", time_limit_s=60)
    assert ours.status is SolveStatus.OPTIMAL
    assert theirs.status is SolveStatus.OPTIMAL
    assert theirs.backend == "pulp-highs"
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-9)
    assert ours.objective <= theirs.objective * (1 + 1e-12)


@pytest.mark.parametrize(("family", "units", "fraction"), [("transformer", 60, 0.3), ("shapes", 40, 0.5)])
def test_equals_cp_sat(instances, family, units, fraction):
    costs, sizes = instances.FAMILIES[family](units, 6, 11)
    whole = np.rint(costs / costs.max() * 1e9)  # constraint programming wants whole numbers
    budget = instances.budget_at(sizes, fraction)
    model = cp_model.CpModel()
    taken = [[model.new_bool_var("") for _ in row] for row in whole]
    for row in taken:
        model.add_exactly_one(row)
    cells = [(i, k) for i in range(units) for k in range(6)]
    model.add(sum(int(sizes[i, k]) * taken[i][k] for i, k in cells) <= budget)
    model.minimize(sum(int(whole[i, k]) * taken[i][k] for i, k in cells))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = 60
    assert solver.solve(model) == cp_model.OPTIMAL
    assert solve(Problem.from_arrays(whole, sizes, budget=budget)).objective == solver.objective_value


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_a_larger_budget_never_costs_more(instances, seed, fractions):
    costs, sizes = instances.noisy(30, 6, seed)
    budgets = sorted(instances.budget_at(sizes, fraction) for fraction in fractions)
    problem = Problem.from_arrays(costs, sizes, budget=None)
    solutions = [solve(problem.with_budget(budget)) for budget in budgets]
    assert all(s.status is SolveStatus.OPTIMAL for s in solutions)
    objectives = [s.objective for s in solutions]
    assert objectives == sorted(objectives, reverse=True)


def test_hard_instance_ends_at_the_time_limit_with_an_honest_gap(engine, instances):
    costs, sizes = instances.strongly_correlated(300, 6, 1)
    budget = instances.budget_at(sizes, 0.35)
    start = time.thread_time()  # the neighbours' share of the processor is not ours to answer for
    found, objective = run(engine, costs, sizes, budget, seconds=0.4)
    assert time.thread_time() - start < 1.0  # one stage of states may be under way when the time is over
    assert not found.proven
    assert found.proof is Proof.SEARCH
    assert found.lower_bound < objective
    assert (objective - found.lower_bound) / objective < 1e-7


def test_what_stopped_the_search_is_told(instances):
    costs, sizes = instances.strongly_correlated(300, 6, 1)
    problem = Problem.from_arrays(costs, sizes, budget=instances.budget_at(sizes, 0.35))
    solution = solve(problem, time_limit_s=0.2)
    assert solution.status is SolveStatus.FEASIBLE
    assert solution.stopped is Stopped.TIME_LIMIT
    assert solution.to_json()["stopped"] == "time_limit"


def test_subset_sums_are_hit_to_the_bit(engine, instances):
    costs, sizes = instances.subset_sum(300, 6, 1)
    budget = instances.budget_at(sizes, 0.35)
    found, objective = run(engine, costs, sizes, budget, seconds=30)
    assert found.proven
    assert objective == 300 * 10**9 - budget  # cost is a constant less the size: the budget is used up


def test_a_requested_gap_stops_early_and_is_not_called_optimal(instances):
    costs, sizes = instances.shapes(1000, 8, 1)
    problem = Problem.from_arrays(costs, sizes, budget=instances.budget_at(sizes, 0.1))
    exact, rough = solve(problem), solve(problem, relative_gap=1e-2)
    assert rough.status is SolveStatus.FEASIBLE
    assert rough.relative_gap <= 1e-2
    assert rough.objective <= exact.objective * 1.01
    assert rough.lower_bound <= exact.objective
    assert rough.stopped is Stopped.GAP
    fine = solve(problem, relative_gap=1e-9)
    assert fine.status is SolveStatus.OPTIMAL
    assert fine.stopped is exact.stopped is Stopped.PROVEN
    assert fine.objective <= exact.objective * (1 + 1e-9)


def test_a_relaxation_that_is_no_minimiser_is_found_out(engine, instances):
    # The bug this guards against claimed optimality on wrong plans: reduced costs below zero must be noticed.
    costs, sizes = instances.transformer(50, 6, 1)
    right = relax(costs, sizes, instances.budget_at(sizes, 0.4))
    wrong = Relaxation(
        multiplier=right.multiplier, slots=np.zeros(50, np.int64), slack=instances.budget_at(sizes, 0.4)
    )
    found = engine.scan(costs, sizes, wrong, 0.0)
    assert not found.sound


def test_large_tables_are_bracketed_to_the_same_relaxation(engine, instances):
    costs, sizes = instances.shapes(40_000, 6, 2)
    for fraction in (0.0, 0.02, 0.5, 0.99, 1.0):
        budget = instances.budget_at(sizes, fraction)
        found = engine.relax(costs, sizes, budget)
        at = np.arange(len(costs)), found.slots
        assert int(sizes[at].sum()) == budget - found.slack
        assert found.slack >= 0
        priced = costs + found.multiplier * sizes
        assert np.allclose(priced[at], priced.min(axis=1), rtol=1e-13, atol=0)
        if found.multiplier > 0.0:  # one step more would not fit
            assert found.slack < sizes.max()


@pytest.mark.parametrize("where", ["dear giants", "cheap giants"])
def test_a_sample_that_misleads_is_mended(engine, where):
    # A few units hold nearly all of the size; no sample sees them, whichever way they pull the price.
    rng = np.random.default_rng(8)
    sizes = np.cumsum(rng.integers(1, 1000, (40_000, 4)), axis=1)
    costs = np.sort(rng.random((40_000, 4)), axis=1)[:, ::-1] * sizes[:, :1]
    giants = rng.choice(40_000, 5, replace=False)
    sizes[giants] *= 10**6
    costs[giants] *= 1e12 if where == "dear giants" else 1e-12
    low, high = int(sizes.min(axis=1).sum()), int(sizes.max(axis=1).sum())
    small = int(np.delete(sizes, giants, axis=0).max(axis=1).sum())
    largest = int(sizes[giants].max(axis=1).sum())
    budget = largest + small // 2 if where == "dear giants" else low + small // 3
    assert low < budget < high
    found = engine.relax(costs, sizes, budget)
    at = np.arange(len(costs)), found.slots
    assert int(sizes[at].sum()) == budget - found.slack
    priced = costs + found.multiplier * sizes
    assert np.allclose(priced[at], priced.min(axis=1), rtol=1e-13, atol=0)
    assert found.near is not None  # bracketed nevertheless, not sorted outright
    assert len(found.near) < 10_000


@pytest.mark.parametrize(("factor", "step"), [(1.0, 1.0), (5.0, 5.0), (0.25, 0.25), (np.pi, 0.0)])
def test_costs_on_a_lattice_need_no_proof_finer_than_its_step(factor, step):
    sizes = np.cumsum(np.random.default_rng(3).integers(1, 1000, (40, 4)), axis=1)
    costs = np.rint((sizes.max() - sizes) / 100) * factor  # nearly on one line: the core is large
    relaxation = relax(costs, sizes, int(sizes.mean(axis=1).sum()))
    core = assemble(costs, sizes, scan(costs, sizes, relaxation, 0.0))
    assert len(core) > 5
    assert cost_step(core) == pytest.approx(step)


@pytest.mark.parametrize("length", [10, 50_000])
def test_exact_sum_is_correctly_rounded(length):
    rng = np.random.default_rng(2)
    values = rng.normal(size=length) * 10.0 ** rng.uniform(-16, 12, length)
    values[: length // 2] = -values[length // 2 :]  # nearly everything cancels
    values[0] += 1e-9
    assert exact_sum(values) == math.fsum(values.tolist())
    assert exact_sum(np.zeros(length)) == 0.0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tables(), st.floats(0, 1e3), st.booleans())
def test_the_bound_is_the_exact_one_less_its_rounding(engine, table, price, negative):
    costs, sizes, budget = table
    rows = -sizes if negative else sizes
    exact = (
        sum(
            min(Fraction(c) + Fraction(price) * w for c, w in zip(cost_row, row, strict=True))
            for cost_row, row in zip(costs.tolist(), rows.tolist(), strict=True)
        )
        - Fraction(price) * budget
    )
    reduced = Problem.from_arrays(costs, sizes, budget=None).reduced
    bound = lagrangian_bound(reduced, [(rows, budget)], [price], engine.sum_of_minima)
    magnitude = np.abs(costs).sum() + price * (float(sizes.sum()) + budget)
    assert bound <= exact
    assert exact - Fraction(bound) <= 1e-14 * magnitude


@pytest.mark.parametrize("length", [10, 50_000])
def test_a_plan_is_priced_to_the_last_place(engine, length):
    rng = np.random.default_rng(3)
    costs = rng.normal(size=(length, 3)) * 10.0 ** rng.uniform(-16, 12, (length, 1))
    costs[: length // 2] = -costs[length // 2 :]
    slots = rng.integers(0, 3, length)
    exact = math.fsum(costs[np.arange(length), slots])
    assert engine.cost_of(costs, slots) == pytest.approx(exact, rel=2.0**-52)
    assert engine.smallest_total(slots[:, None] * np.array([2, 1, 5])) == int(slots.sum())


@pytest.mark.parametrize("choice", [-1, 3])
def test_a_choice_that_does_not_exist_is_found_out(choice):
    problem = Problem.from_arrays(np.ones((2, 3)), np.ones((2, 3), int), budget=9)
    assert evaluate(problem, np.array([0, choice])).violations == ("a candidate that does not exist",)


def test_widths_may_be_laid_out_in_any_order(engine):
    """One row of widths for all units is broadcast; the compiled kernels want tables row after row."""
    rng = np.random.default_rng(0)
    problem = Problem.from_arrays(
        rng.random((6, 3)),
        rng.integers(1, 50, (6, 3)),
        budget=None,
        widths=np.broadcast_to([2, 4, 8], (6, 3)),
        width_counts=[WidthCount(width=8, maximum=2)],
    )
    (row,) = problem.reduced.rows
    found = solve_knapsack(
        problem.reduced, row.table, row.limit, relative_gap=0.0, deadline=time.monotonic() + 10, engine=engine
    )
    assert int((problem.reduced.widths[np.arange(6), found.slots] == 8).sum()) <= 2
