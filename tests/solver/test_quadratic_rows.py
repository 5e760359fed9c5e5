"""Plans under interactions and several rows, against complete enumeration."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver import (
    Interactions,
    OptionError,
    Problem,
    Proof,
    Row,
    SolveStatus,
    WidthCount,
    evaluate,
    solve_quadratic,
)
from solver.api import constraints
from solver.knapsack import solve_knapsack
from solver.oracle import LinearOracle
from solver.outcome import Outcome

from .pairwise import cost_of, made

WIDTHS = (2, 4, 8)


def limited(seed):
    """A small problem with one to three further rows, often pins, ties and a width count, and its factors."""
    rng = np.random.default_rng(seed)
    units = int(rng.integers(2, 7))
    costs, sizes, factors = made(seed, units, 3, int(rng.choice([3, 12, 30])), float(rng.choice([0, 1])))
    rows = []
    for number in range(int(rng.integers(1, 4))):
        values = rng.integers(0, 60, (units, 3)) - (20 if number == 1 else 0)
        low, high = values.min(axis=1).sum(), values.max(axis=1).sum()
        limit = int(low + rng.uniform(0.1, 1.0) * (high - low))
        rows.append(Row(name=f"row{number}", values=values, limit=limit))
    count = WidthCount(width=4, minimum=1, maximum=max(1, units // 2))
    problem = Problem.from_arrays(
        costs,
        sizes,
        budget=None if rng.random() < 0.2 else int(np.median(sizes, axis=1).sum()),
        labels=WIDTHS,
        limits=rows,
        pins={"0": "8"} if rng.random() < 0.4 else {},
        ties=[("0", "1")] if units > 3 and rng.random() < 0.4 else [],
        width_counts=[count] if rng.random() < 0.4 else [],
    )
    return problem, factors


def best_of(problem, factors):
    """Least cost over all plans that break no rule, as `evaluate` says; ``None`` when there is none."""
    plans = itertools.product(range(3), repeat=len(problem.costs))
    fitting = (plan for plan in plans if not evaluate(problem, np.array(plan)).violations)
    return min((cost_of(problem.costs, factors, plan) for plan in fitting), default=None)


def solved(problem, factors, **options):
    units, candidates = problem.costs.shape
    interactions = Interactions.from_factors(factors, units=units, candidates=candidates)
    return solve_quadratic(problem, interactions, **options)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_equals_enumeration_under_several_rows(seed):
    problem, factors = limited(seed)
    best, solution = best_of(problem, factors), solved(problem, factors, restarts=3)
    if best is None:
        assert solution.status is SolveStatus.INFEASIBLE
        assert solution.proof in {Proof.MINIMUM, Proof.SOLVER}
        assert solution.choice_indices is None
        assert solution.smallest_feasible_bits == problem.reduced.smallest
        return
    scale = float(np.abs(factors).sum() ** 2 + np.abs(problem.costs).sum())
    assert evaluate(problem, solution.choice_indices).violations == ()
    assert solution.status is SolveStatus.OPTIMAL
    assert solution.objective == pytest.approx(best, abs=1e-7 * scale)
    assert solution.lower_bound <= best + 1e-12 * scale


def test_what_is_not_proven_keeps_every_row_and_the_bound_is_valid():
    above = []
    for seed in range(120):
        problem, factors = limited(seed)
        best = best_of(problem, factors)
        solution = solved(problem, factors, certify=False)
        if best is None:
            assert solution.status is SolveStatus.INFEASIBLE
            continue
        scale = abs(best) + float(np.abs(problem.costs).sum())
        assert evaluate(problem, solution.choice_indices).violations == ()
        assert solution.lower_bound <= best + 1e-9 * scale
        assert solution.objective == pytest.approx(
            cost_of(problem.costs, factors, solution.choice_indices.tolist()), abs=1e-9 * scale
        )
        if solution.status is SolveStatus.OPTIMAL:
            assert solution.objective == pytest.approx(best, abs=1e-8 * scale)
        above.append((solution.objective - best) / scale)
    assert len(above) > 40
    assert np.mean(np.array(above) > 1e-9) <= 0.05, "exchange finds the best small plan nearly always"


def test_a_known_plan_is_started_from_and_never_lost(monkeypatch):
    """With nothing else to search from but the additive plan, and no exchange: a plan that is hard to come by is kept."""
    monkeypatch.setattr("solver.quadratic.Descent.down", lambda _self, slots, **_: slots)
    monkeypatch.setattr("solver.quadratic._DESCENTS", 0)
    kept = 0
    for seed in range(120):
        problem, factors = limited(seed)
        plans = [np.array(plan) for plan in itertools.product(range(3), repeat=len(problem.costs))]
        fitting = [plan for plan in plans if not evaluate(problem, plan).violations]
        if not fitting:
            continue
        best = min(fitting, key=lambda plan: cost_of(problem.costs, factors, plan))
        alone = solved(problem, factors, restarts=0, certify=False)
        found = solved(problem, factors, start=best, restarts=0, certify=False)
        assert found.objective == pytest.approx(cost_of(problem.costs, factors, best))
        assert found.lower_bound <= found.objective
        kept += found.objective < alone.objective - 1e-9
    assert kept > 10, "found without it as well"


def test_a_start_that_is_no_plan_is_refused():
    problem, factors = limited(0)
    units = len(problem.costs)
    tight = replace(problem, budget_bits=int(problem.sizes.min(axis=1).sum()))
    largest = problem.sizes.argmax(axis=1)
    for start in (np.zeros(units + 1, np.int64), np.full(units, 3), np.zeros(units), np.full(units, -1)):
        with pytest.raises(OptionError, match="the start breaks"):
            solved(problem, factors, start=start)
    with pytest.raises(OptionError, match=r"the start breaks .*size"):
        solved(tight, factors, start=largest)


@pytest.mark.parametrize("several", [False, True])
def test_the_bound_is_valid_whatever_plans_are_found(several, monkeypatch):
    """With no exchange at all, so that poor plans do not hide a bound that is too high."""
    monkeypatch.setattr("solver.quadratic.Descent.down", lambda _self, slots, **_: slots)
    gaps = []
    for seed in range(120):
        problem, factors = limited(seed)
        problem = problem if several else replace(problem, rows=(), width_counts=())
        best = best_of(problem, factors)
        if best is None:
            continue
        solution = solved(problem, factors, restarts=0, certify=False)
        scale = abs(best) + float(np.abs(problem.costs).sum())
        assert solution.lower_bound <= best + 1e-9 * scale
        gaps.append((solution.objective - best) / scale)
    assert np.sum(np.array(gaps) > 1e-3) >= 4, "the plans are too good to tell anything of the bound"


def fitting(rows, width):
    """All plans that keep some rows, int64 [n, G]."""
    groups = len(rows[0].table)
    plans = np.array(list(itertools.product(range(width), repeat=groups)))
    kept = [row.table[np.arange(groups), plans].sum(axis=1) <= row.limit for row in rows]
    return plans[np.logical_and.reduce(kept)]


def test_linear_costs_are_bounded_for_every_plan_and_no_worse_than_by_the_dual(monkeypatch):
    """At other costs than those of the prices as well; one row is solved exactly."""

    def knapsack(reduced, sizes, budget, **options):
        assert int(sizes.min()) >= 0, "what a knapsack asks of its row"
        return solve_knapsack(reduced, sizes, budget, **options)

    monkeypatch.setattr("solver.oracle.solve_knapsack", knapsack)
    closer = 0
    for seed in range(120):
        problem, _ = limited(seed)
        reduced = problem.reduced
        rows = constraints(reduced, problem.budget_bits)
        groups, width = reduced.costs.shape
        plans, rng = fitting(rows, width), np.random.default_rng(seed)
        if not len(plans):
            continue
        oracle = LinearOracle(reduced, rows, time.monotonic() + 30)
        priced, other = rng.normal(size=(2, groups, width))
        dual = oracle.reprice(priced)
        for costs in (priced, other):
            slots, bound = oracle.least(costs)
            least = costs[np.arange(groups), plans].sum(axis=1).min()
            assert bound <= least + 1e-9
            assert bound <= costs[np.arange(groups), slots].sum() + 1e-9
        bound = oracle.least(priced)[1]
        assert bound >= dual.bound - 1e-9
        closer += bound > dual.bound + 1e-6
        (alone, exact) = LinearOracle(reduced, rows[-1:], time.monotonic() + 30).least(priced)
        single = fitting(rows[-1:], width)
        assert priced[np.arange(groups), alone].sum() == pytest.approx(exact, abs=1e-9)
        assert exact == pytest.approx(priced[np.arange(groups), single].sum(axis=1).min(), abs=1e-9)
    assert closer > 20


def test_rows_that_do_not_bind_change_nothing():
    costs, sizes, factors = made(8, 20, 4, dimension=30)
    budget = int(sizes[:, 1].sum())
    loose = [Row(name="loose", values=np.ones(sizes.shape), limit=20)]
    alone = solved(Problem.from_arrays(costs, sizes, budget=budget), factors, certify=False)
    beside = solved(Problem.from_arrays(costs, sizes, budget=budget, limits=loose), factors, certify=False)
    assert beside.objective == pytest.approx(alone.objective, rel=0.02)
    assert beside.lower_bound == pytest.approx(alone.lower_bound, rel=0.02)
    # A row in place of the budget is the budget.
    row = [Row(name="bits", values=sizes, limit=budget)]
    renamed = solved(Problem.from_arrays(costs, sizes, budget=None, limits=row), factors, certify=False)
    assert renamed.choice_indices.tolist() == alone.choice_indices.tolist()
    assert renamed.lower_bound == alone.lower_bound


def of_two_limits(units, seed=10):
    """A problem whose budget and limit on operations bind in different places."""
    costs, sizes, factors = made(seed, units, 6, dimension=300)
    operations = np.random.default_rng(seed).integers(1, 1000, units)[:, None] * np.arange(2, 8)
    rows = [Row(name="operations", values=operations, limit=int(operations[:, 2].sum()))]
    return Problem.from_arrays(costs, sizes, budget=int(sizes[:, 2].sum()), limits=rows), factors


def test_large_problems_with_several_rows_in_time():
    problem, factors = of_two_limits(200)
    start = time.monotonic()
    solution = solved(problem, factors)
    assert time.monotonic() - start < 20  # little more than with the budget alone
    assert evaluate(problem, solution.choice_indices).violations == ()
    assert solution.objective < 0.9 * solution.additive_optimum
    assert solution.relative_gap < 0.8
    free = solved(problem.only(rows=["size"], pins=(), bounds=()), factors)
    assert solution.lower_bound > 0.9 * free.lower_bound, "the row does not loosen the bound"


def test_the_same_seed_gives_the_same_plan_under_several_rows():
    problem, factors = of_two_limits(50)
    plans = [solved(problem, factors, seed=7, restarts=5).choice_indices.tolist() for _ in range(2)]
    assert plans[0] == plans[1]


def test_rows_that_conflict_only_together_are_infeasible():
    """Either row is kept by some plan, both by none."""
    _, sizes, factors = made(4, 6, 3)
    count = np.tile([0, 1, 2], (6, 1))
    rows = [Row(name="few", values=count, limit=5), Row(name="many", values=-count, limit=-6)]
    problem = Problem.from_arrays(np.zeros((6, 3)), sizes, budget=None, limits=rows)
    solution = solved(problem, factors)
    assert (solution.status, solution.proof) == (SolveStatus.INFEASIBLE, Proof.SOLVER)
    alone = solved(problem.only(rows=["many"], pins=(), bounds=()), factors)
    assert evaluate(problem, alone.choice_indices).violations == ("few",)


def test_a_plan_that_nobody_finds_in_time_is_not_called_infeasible(monkeypatch):
    problem, factors = of_two_limits(50)
    monkeypatch.setattr("solver.quadratic.Exchange.repair", lambda *_, **__: None)
    found = solved(problem, factors, restarts=3)
    assert evaluate(problem, found.choice_indices).violations == (), "from any plan that keeps the rows"
    monkeypatch.setattr("solver.quadratic.any_plan", lambda given, _: unknown(given))
    known = solved(problem, factors, start=found.choice_indices, restarts=0)
    assert evaluate(problem, known.choice_indices).violations == (), "from the one that is known"
    assert known.objective <= found.objective
    nothing = solved(problem, factors)
    assert (nothing.status, nothing.proof) == (SolveStatus.NO_SOLUTION, Proof.NONE)
    assert nothing.choice_indices is None
    assert nothing.relative_gap is None


def unknown(problem):
    """What the search for any plan says when its time is over."""
    return Outcome(
        slots=None,
        lower_bound=-np.inf,
        proven=False,
        proof=Proof.LAGRANGIAN,
        prices=(0.0,) * (len(problem.rows) + 1),
        backend="exact",
        backend_version="",
    )
