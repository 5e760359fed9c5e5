"""The benchmark's own honesty: what it says of others, and that it would notice a wrong certificate of ours."""

import importlib
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from solver import Problem, solve

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def benchmarks():
    """The benchmark's modules, imported from the repository's root as the script does."""
    sys.path.append(ROOT)
    return importlib.import_module("benchmarks.solver"), importlib.import_module("benchmarks.solver_rivals")


@pytest.mark.parametrize("rival", ["PuLP+CBC", "PuLP+HiGHS", "highspy", "CP-SAT"])
def test_every_rival_finds_the_optimum_of_a_small_problem(benchmarks, instances, rival):
    costs, sizes = instances.shapes(12, 3, 4)
    costs = costs * 1e-6  # small enough to mislead a solver that is not helped by scaling
    budget = instances.budget_at(sizes, 0.4)
    answer = benchmarks[1].ask(rival, costs, sizes, budget, limit_s=30.0)
    assert answer.proven
    assert answer.seconds > 0
    at = np.arange(12), answer.slots
    assert sizes[at].sum() <= budget
    ours = solve(Problem.from_arrays(costs, sizes, budget=budget)).objective
    assert costs[at].sum() == pytest.approx(ours, rel=1e-8)


def test_a_rival_that_does_not_end_is_ended(benchmarks, monkeypatch):
    rivals = benchmarks[1]
    monkeypatch.setattr(rivals, "_GRACE_S", 0.2)
    monkeypatch.setitem(rivals.RIVALS, "endless", lambda *_: time.sleep(60))
    start = time.monotonic()
    answer = rivals.ask("endless", np.ones((2, 2)), np.ones((2, 2), int), 2, limit_s=0.1)
    assert time.monotonic() - start < 30
    assert (answer.slots, answer.proven) == (None, False)


def test_a_plan_below_our_bound_would_be_noticed(benchmarks, monkeypatch):
    bench, rivals = benchmarks
    cheapest = rivals.Answer(slots=np.zeros(50, np.int64), proven=True, seconds=0.1)
    monkeypatch.setattr(bench, "ask", lambda *_, **__: cheapest)
    case = bench.Case(family="transformer", units=50, candidates=6)
    run = bench.Benchmark(limit_s=1.0, minutes=1.0, rivals=("highspy",))
    honest = run.run(case)
    assert honest.disproofs == []  # the smallest plan is dear, and keeps our bound
    assert len(honest.timings["highspy"].proven) == 3

    class Wrong:
        """Ours, were it to claim too high a bound."""

        status, relative_gap, lower_bound = bench.SolveStatus.OPTIMAL, 0.0, 1e9

    monkeypatch.setattr(bench, "time_ours", lambda *_: (0.1, Wrong))
    wrong = bench.Benchmark(limit_s=1.0, minutes=1.0, rivals=("highspy",)).run(case)
    assert len(wrong.disproofs) == 3
    assert "below our bound" in wrong.disproofs[0]
    assert "below our bound" in bench.markdown([wrong], [], 1.0)


def test_the_table_has_medians_ratios_and_gaps(benchmarks):
    bench, _ = benchmarks
    ours = bench.Timing(seconds=[0.001, 0.003, 0.002], proven=[True] * 3, gap=[0.0] * 3)
    theirs = bench.Timing(seconds=[1.0, 4.0, 2.0], proven=[True] * 3, gap=[0.0] * 3)
    late = bench.Timing(seconds=[20.0], proven=[False], gap=[3e-4])
    nothing = bench.Timing(seconds=[20.0], proven=[False], gap=[None])
    assert bench.cell(ours, None, 2.0) == "2 ms"
    assert bench.cell(theirs, ours.median_s, 20.0) == "2 s (1,000x)"
    assert bench.cell(late, ours.median_s, 20.0) == "> 20 s, gap 3e-04"
    assert bench.cell(nothing, ours.median_s, 20.0) == "> 20 s, no plan"
    assert bench.cell(None, ours.median_s, 20.0) == ""


def test_the_grid_is_the_one_that_was_asked_for(benchmarks):
    bench, _ = benchmarks
    grid = list(bench.cases(quick=False))
    for family in {case.family for case in grid}:
        asked = {(case.units, case.candidates) for case in grid if case.family == family}
        assert asked == {(u, k) for u in (50, 300, 1000, 10_000, 100_000, 1_000_000) for k in (3, 6, 8, 20)}
    assert {case.family for case in grid} >= {"noisy", "tied", "strong", "subset_sum", "all_equal"}
    assert all(len(case.fractions) == 3 for case in grid if case.family not in bench.HARD)
