"""Several rows, width rules and infeasibility, against complete enumeration and the integer program."""

import itertools
import subprocess
import sys
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from solver import (
    BackendError,
    Problem,
    Proof,
    Row,
    SolveStatus,
    WidthCount,
    acceleration,
    evaluate,
    program,
    solve,
    widths,
)
from solver.certificate import lagrangian_bound
from solver.dual import solve_dual
from solver.reduction import ReducedRow
from solver.widths import by_width_sets, width_sets

WIDTHS = (2, 4, 8)


@st.composite
def problems(draw):
    """A small problem with any mixture of rules, its tables, and what its plans must satisfy."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    units = draw(st.integers(1, 5))
    costs = rng.normal(size=(units, 3)) * 10.0 ** draw(st.integers(-9, 6))
    if draw(st.booleans()):
        costs = rng.integers(-3, 9, (units, 3)).astype(float)
    tables = [
        rng.integers(0, 30, (units, 3)),
        rng.integers(-9, 20, (units, 3)),
        np.round(rng.random((units, 3)), 2),
    ]
    tables = tables[: draw(st.integers(1, 3))]
    limits = []
    for table in tables:
        low, high = table.min(axis=1).sum(), table.max(axis=1).sum()
        limits.append(round(float(low + draw(st.floats(0.0, 1.0)) * (high - low)), 2))
    limits[0] = int(limits[0])
    counts = [
        WidthCount(
            width=4, minimum=draw(st.sampled_from([None, 1])), maximum=draw(st.sampled_from([None, 2]))
        )
    ]
    counts = counts if draw(st.booleans()) else []
    max_widths = draw(st.sampled_from([None, None, 1, 2]))
    ties = [("0", "1")] if units > 2 and draw(st.booleans()) else []
    rows = [
        Row(name=f"row{r}", values=t, limit=x)
        for r, (t, x) in enumerate(zip(tables, limits, strict=True))
        if r
    ]
    problem = Problem.from_arrays(
        costs,
        tables[0],
        budget=limits[0],
        labels=WIDTHS,
        limits=rows,
        width_counts=counts,
        max_widths=max_widths,
        ties=ties,
    )

    def accept(plan):
        for table, limit in zip(tables[1:], limits[1:], strict=True):
            # Decimals as written: 0.1 + 0.2 is within 0.3.
            if sum(Fraction(str(table[i, k])) for i, k in enumerate(plan)) > Fraction(str(limit)):
                return False
        eights = sum(WIDTHS[k] == 4 for k in plan)
        for rule in counts:
            if eights < (rule.minimum or 0) or (rule.maximum is not None and eights > rule.maximum):
                return False
        return len(set(plan)) <= (max_widths or 3) and (not ties or plan[0] == plan[1])

    return problem, costs, tables[0], accept


def check(solution, best, costs):
    if best is None:
        assert solution.status is SolveStatus.INFEASIBLE
        return
    assert solution.status is SolveStatus.OPTIMAL
    scale = float(np.abs(costs).max(axis=1).sum())
    assert solution.objective - float(best) <= 1e-9 * scale
    assert solution.lower_bound <= float(best) + 1e-15 * scale


@settings(max_examples=120, deadline=None, derandomize=True)
@given(problems())
def test_equals_enumeration(brute_force, made):
    problem, costs, sizes, accept = made
    solution = solve(problem)
    check(solution, brute_force(costs, sizes, problem.budget_bits, accept), costs)
    if solution.choice_indices is not None:
        assert evaluate(problem, solution.choice_indices).violations == ()
        assert accept(solution.choices)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems())
def test_the_integer_program_alone_equals_enumeration(brute_force, made):
    problem, costs, sizes, accept = made
    solution = solve(problem, backend="pulp")
    check(solution, brute_force(costs, sizes, problem.budget_bits, accept), costs)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems())
def test_without_a_foreign_solver_nothing_wrong_is_claimed(brute_force, made):
    problem, costs, sizes, accept = made
    if problem.max_widths is not None:
        return
    solution = solve(problem, backend="numpy")
    best = brute_force(costs, sizes, problem.budget_bits, accept)
    scale = float(np.abs(costs).max(axis=1).sum())
    if solution.lower_bound is not None and best is not None:
        assert solution.lower_bound <= float(best) + 1e-15 * scale
    if solution.status is SolveStatus.OPTIMAL:
        assert solution.objective - float(best) <= 1e-9 * scale
    elif solution.status is SolveStatus.FEASIBLE:
        assert accept(solution.choices)
    assert solution.status is not SolveStatus.INFEASIBLE or best is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.data())
def test_a_conflict_is_minimal(brute_force, made, data):
    problem, costs, sizes, _ = made
    pins = {
        str(i): WIDTHS[data.draw(st.integers(0, 2))] for i in range(len(costs)) if data.draw(st.booleans())
    }
    if problem.ties and len({pins[u] for u in ("0", "1") if u in pins}) > 1:
        return
    pinned = Problem.from_arrays(
        costs,
        sizes,
        budget=problem.budget_bits,
        labels=WIDTHS,
        pins=pins,
        max_widths=problem.max_widths,
        width_counts=problem.width_counts,
        ties=[("0", "1")] if problem.ties else [],
    )
    solution = solve(pinned)
    if solution.status is not SolveStatus.INFEASIBLE:
        assert solution.conflict == ()
        return
    asked = {
        **{f"pin of {u!r} to '{w}'": (lambda p, u=u, w=w: WIDTHS[p[int(u)]] == w) for u, w in pins.items()},
        f"size <= {problem.budget_bits} bits": lambda p: (
            sum(int(sizes[i, k]) for i, k in enumerate(p)) <= problem.budget_bits
        ),
        f"at most {problem.max_widths} different widths": lambda p: len(set(p)) <= problem.max_widths,
        **{
            str(rule): (
                lambda p, rule=rule: (
                    (rule.minimum or 0)
                    <= sum(WIDTHS[k] == 4 for k in p)
                    <= (99 if rule.maximum is None else rule.maximum)
                )
            )
            for rule in problem.width_counts
        },
    }
    plans = [p for p in itertools.product(range(3), repeat=len(costs)) if not problem.ties or p[0] == p[1]]
    assert solution.conflict
    tests = [asked[words] for words in solution.conflict]
    assert not any(all(test(p) for test in tests) for p in plans)
    for left_out in range(len(tests)):
        rest = tests[:left_out] + tests[left_out + 1 :]
        assert any(all(test(p) for test in rest) for p in plans)


def multi(instances, family, units, fractions, seed=1):
    """Size, bit operations, latency."""
    costs, sizes = instances.FAMILIES[family](units, 6, seed)
    rng = np.random.default_rng(seed)
    operations = (
        sizes // 1000 * rng.choice([1, 1, 1, 4, 16], units)[:, None] * rng.choice([4, 8], sizes.shape) // 8
    )
    latency = np.round(
        sizes / 1e9 * (0.6 + 0.8 * rng.random((units, 1))) + 0.02 * (1 + rng.random(sizes.shape)), 6
    )
    low, high = latency.min(axis=1).sum(), latency.max(axis=1).sum()
    return Problem.from_arrays(
        costs,
        sizes,
        budget=instances.budget_at(sizes, fractions[0]),
        limits=[
            Row(name="bops", values=operations, limit=instances.budget_at(operations, fractions[1])),
            Row(name="latency_ms", values=latency, limit=float(low + fractions[2] * (high - low))),
        ],
    )


@pytest.mark.parametrize("fractions", [(0.35, 0.35, 0.35), (0.3, 0.2, 0.4), (0.3, 0.5, 0.35)])
@pytest.mark.parametrize(("family", "units"), [("transformer", 50), ("transformer", 300), ("noisy", 100)])
def test_equals_the_integer_program_on_models(instances, family, units, fractions):
    problem = multi(instances, family, units, fractions)
    ours, theirs = solve(problem, time_limit_s=60), solve(problem, time_limit_s=60, backend="pulp")
    assert ours.status is SolveStatus.OPTIMAL
    assert theirs.status is SolveStatus.OPTIMAL
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-8)
    assert ours.row_values["bops"] <= problem.rows[0].limit
    assert ours.relative_gap < 1e-7
    # The multipliers are a certificate anyone can repeat.
    limits = [(problem.sizes, problem.budget_bits), *((row.table, row.limit) for row in problem.rows)]
    prices = [ours.multipliers["size"], *(ours.multipliers[row.name] / row.scale for row in problem.rows)]
    assert lagrangian_bound(problem.reduced, limits, prices) <= ours.objective


def test_a_relaxation_that_keeps_the_other_rows_is_the_optimum(instances):
    solution = solve(multi(instances, "transformer", 300, (0.3, 0.9, 0.9)))
    assert solution.status is SolveStatus.OPTIMAL
    assert solution.backend == "exact"
    assert solution.proof in {Proof.SEARCH, Proof.LAGRANGIAN}


def test_time_limit_ends_with_an_honest_gap(instances):
    problem = multi(instances, "shapes", 1000, (0.3, 0.2, 0.4))
    start = time.monotonic()
    solution = solve(problem, time_limit_s=1.0)
    assert time.monotonic() - start < 6
    assert solution.status in {SolveStatus.FEASIBLE, SolveStatus.OPTIMAL}
    assert solution.lower_bound <= solution.objective
    assert solution.relative_gap < 0.1


def test_a_requested_gap_is_kept_and_not_called_optimal(instances):
    problem = multi(instances, "transformer", 300, (0.3, 0.2, 0.4))
    exact, rough = solve(problem, time_limit_s=60), solve(problem, relative_gap=0.01)
    assert rough.status is SolveStatus.FEASIBLE
    assert rough.relative_gap <= 0.01
    assert rough.lower_bound <= exact.objective <= rough.objective


def test_smallest_values_of_each_row_are_told(instances):
    problem = multi(instances, "transformer", 50, (0.3, 0.3, -0.1))
    solution = solve(problem)
    assert solution.status is SolveStatus.INFEASIBLE
    assert solution.proof is Proof.MINIMUM
    assert solution.smallest_row_values["latency_ms"] == pytest.approx(
        problem.rows[1].table.min(axis=1).sum() / problem.rows[1].scale
    )
    assert len(solution.conflict) == 1
    assert solution.conflict[0].startswith("latency_ms <= ")
    assert solution.smallest_feasible_bits == problem.sizes.min(axis=1).sum()


def test_decimal_rows_are_exact():
    values = np.array([[0.1, 0.0], [0.2, 0.0]])
    problem = Problem.from_arrays(
        [[0.0, 1.0], [0.0, 1.0]],
        np.ones((2, 2), int),
        budget=2,
        limits=[Row(name="ms", values=values, limit=0.3)],
    )
    solution = solve(problem)
    assert 0.1 + 0.2 > 0.3  # in binary the plan would seem to overspend
    assert solution.choices == (0, 0)
    assert solution.row_values == {"ms": 0.3}


def test_rows_finer_than_decimals_never_overspend():
    rng = np.random.default_rng(1)
    values = rng.random((8, 3)) / 3
    limit = float(np.median(values, axis=1).sum())
    problem = Problem.from_arrays(
        -values, np.ones((8, 3), int), budget=8, limits=[Row(name="x", values=values, limit=limit)]
    )
    solution = solve(problem)
    used = sum(Fraction(float(values[i, k])) for i, k in enumerate(solution.choices))
    assert used <= Fraction(limit)
    assert solution.objective == pytest.approx(-limit, rel=1e-2)


@pytest.mark.parametrize("factor", [1e-16, 1e-9, 1e9])
def test_any_scale_of_costs_gives_the_same_plan_from_the_program(instances, factor):
    problem = multi(instances, "transformer", 50, (0.35, 0.35, 0.35))
    scaled = Problem.from_arrays(
        problem.costs * factor,
        problem.sizes,
        budget=problem.budget_bits,
        limits=[Row(name=row.name, values=row.table, limit=row.limit) for row in problem.rows],
    )
    assert solve(scaled).choices == solve(problem).choices
    assert solve(scaled, backend="pulp").choices == solve(problem, backend="pulp").choices


@pytest.mark.parametrize(("family", "units"), [("transformer", 50), ("shapes", 100), ("noisy", 100)])
@pytest.mark.parametrize("fractions", [(0.3, 0.2, 0.4), (0.05, 0.6, 0.1)])
def test_dual_is_the_linear_relaxation(instances, family, units, fractions):
    problem = multi(instances, family, units, fractions)
    rows = [
        ReducedRow(name="size", table=problem.sizes, limit=problem.budget_bits),
        *(ReducedRow(name=row.name, table=row.table, limit=row.limit) for row in problem.rows),
    ]
    dual = solve_dual(problem.costs, rows, deadline=time.monotonic() + 30)
    relaxed = linprog(
        problem.costs.ravel(),
        A_ub=np.stack([row.table.ravel() / row.limit for row in rows]),
        b_ub=np.ones(3),
        A_eq=np.kron(np.eye(units), np.ones((1, 6))),
        b_eq=np.ones(units),
        bounds=(0, 1),
    )
    assert dual.bound == pytest.approx(relaxed.fun, rel=1e-8)
    limits = [(row.table, row.limit) for row in rows]
    certified = lagrangian_bound(problem.reduced, limits, dual.prices.tolist())
    assert certified <= relaxed.fun * (1 + 1e-12)
    assert certified == pytest.approx(relaxed.fun, rel=1e-8)


def test_cbc_serves_where_highs_is_missing(instances, monkeypatch):
    monkeypatch.setattr(pulp.HiGHS, "available", lambda self: False)
    solution = solve(multi(instances, "transformer", 20, (0.35, 0.35, 0.35)), backend="pulp", time_limit_s=60)
    monkeypatch.undo()
    assert solution.backend == "pulp-cbc"
    again = solve(multi(instances, "transformer", 20, (0.35, 0.35, 0.35)), backend="pulp", time_limit_s=60)
    assert again.backend == "pulp-highs"
    assert solution.objective == pytest.approx(again.objective, rel=1e-9)


def test_no_solver_at_all_is_a_clear_error(instances, monkeypatch):
    monkeypatch.setattr(pulp.HiGHS, "available", lambda self: False)
    monkeypatch.setattr(pulp.COIN_CMD, "available", lambda self: False)
    monkeypatch.setattr(pulp.PULP_CBC_CMD, "available", lambda self: False)
    with pytest.raises(BackendError, match="HiGHS"):
        solve(multi(instances, "transformer", 20, (0.35, 0.35, 0.35)), backend="pulp")


def test_a_plan_that_overspends_is_repaired_not_returned(instances, monkeypatch):
    # Right-hand sides of 1 make solvers overspend within their tolerances: the check must catch it.
    monkeypatch.setattr(program, "ROW_SCALE", 1e-3)
    for seed in range(4):
        costs, sizes = instances.shapes(60, 6, seed)
        problem = Problem.from_arrays(costs, sizes, budget=instances.budget_at(sizes, 0.35))
        solution = solve(problem, backend="pulp")
        if solution.choice_indices is not None:
            assert solution.size_bits <= problem.budget_bits


def test_foreign_solvers_are_silent():
    code = (
        "from solver import Problem, solve\n"
        "p = Problem.from_rows([('a', 4, 1.0, 4), ('a', 8, 0.0, 8)], budget=5)\n"
        "assert solve(p, backend='pulp').choices == (0,)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (run.stdout, run.stderr) == (b"", b"")


def test_width_sets_left_out_for_want_of_time_are_bounded_not_forgotten(instances):
    costs, sizes = instances.noisy(300, 8, 1)
    problem = Problem.from_arrays(
        costs,
        sizes,
        budget=instances.budget_at(sizes, 0.35),
        labels=instances.WIDTHS[8],
        max_widths=3,
    )
    row = ReducedRow(name="size", table=problem.sizes, limit=problem.budget_bits)
    sets = width_sets(problem.reduced, 3)
    engine = acceleration.reference_engine()
    best = solve(problem)
    assert best.status is SolveStatus.OPTIMAL
    late = by_width_sets(
        problem.reduced, row, sets, relative_gap=0.0, deadline=time.monotonic() - 1.0, engine=engine
    )
    assert (late.slots, late.infeasible, late.proven) == (None, False, False)
    assert late.lower_bound <= best.objective
    # Only the first sets are looked at: whatever is found, it is not called optimal.
    deadline = time.monotonic() + 60.0
    clock = iter([0.0] * 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widths, "time", SimpleNamespace(monotonic=lambda: next(clock, deadline + 1.0)))
        some = by_width_sets(problem.reduced, row, sets, relative_gap=0.0, deadline=deadline, engine=engine)
    assert not some.proven
    assert some.lower_bound <= best.objective
