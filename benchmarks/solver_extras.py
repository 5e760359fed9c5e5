"""What the solver does beyond one budget: frontiers, several rows, interactions, resampling, hard instances."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core, like everything here; read when NumPy is imported

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import solver_instances as instances
from solver import (
    Interactions,
    Problem,
    Row,
    choice_probabilities,
    frontier,
    smallest_size,
    solve,
    solve_quadratic,
)

MIDDLE = 0.35


@dataclass(frozen=True, kw_only=True)
class Extra:
    """One line of the table: what was asked, how long it should and did take, and what came out."""

    name: str
    target_s: float
    seconds: float
    found: str


def timed(action: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median processor seconds of some runs, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = action()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), result


def problem(family: str, units: int, candidates: int) -> Problem:
    """An instance at the middle budget."""
    costs, sizes = instances.FAMILIES[family](units, candidates, 0)
    return Problem.from_arrays(costs, sizes, budget=instances.budget_at(sizes, MIDDLE))


def hull_frontier(units: int) -> Extra:
    """All plans on the hull, from the bare tables."""
    costs, sizes = instances.experts(units, 8, 0)
    seconds, line = timed(lambda: frontier(Problem.from_arrays(costs, sizes, budget=None)), 3)
    return Extra(
        name=f"hull frontier, {units:,} units x 8",
        target_s=1.0,
        seconds=seconds,
        found=f"{len(line):,} plans",
    )


def exact_budgets() -> Extra:
    """A hundred budgets, each proven."""
    costs, sizes = instances.transformer(1000, 6, 0)
    budgets = [instances.budget_at(sizes, fraction) for fraction in np.linspace(0.01, 0.99, 100)]
    seconds, line = timed(
        lambda: frontier(Problem.from_arrays(costs, sizes, budget=None), budgets=budgets), 5
    )
    return Extra(
        name="100 exact budgets, transformer 1,000 x 6",
        target_s=0.1,
        seconds=seconds,
        found=f"{int(line.exact.sum()):,} of {len(line):,} plans proven",
    )


def complete_frontier() -> Extra:
    """Every nondominated plan."""
    costs, sizes = instances.transformer(300, 6, 0)
    seconds, line = timed(lambda: frontier(Problem.from_arrays(costs, sizes, budget=None), complete=True), 3)
    found = f"{len(line):,} plans{'' if line.complete else ' (not complete)'}"
    return Extra(
        name="complete exact frontier, transformer 300 x 6", target_s=0.1, seconds=seconds, found=found
    )


def inverse() -> Extra:
    """The smallest plan that costs no more than a limit."""
    given = problem("transformer", 1000, 6)
    limit = 1.0001 * (solve(given).objective or 0.0)
    seconds, answer = timed(lambda: smallest_size(given, limit), 5)
    return Extra(
        name="smallest size for a cost, transformer 1,000 x 6",
        target_s=0.1,
        seconds=seconds,
        found=answer.status.value,
    )


def several_rows(family: str, units: int, limit_s: float) -> Extra:
    """Size, bit operations and latency together."""
    costs, sizes = instances.FAMILIES[family](units, 6, 1)
    budget, rows = instances.three_rows(sizes, (0.3, 0.2, 0.4), 1)
    limits = [Row(name=name, values=values, limit=limit) for name, values, limit in rows]
    given = Problem.from_arrays(costs, sizes, budget=budget, limits=limits)
    seconds, found = timed(lambda: solve(given, time_limit_s=limit_s), 1)
    gap = "no bound" if found.relative_gap is None else f"gap {found.relative_gap:.1e}"
    return Extra(
        name=f"three rows, {family} {units:,} x 6",
        target_s=limit_s,
        seconds=seconds,
        found=f"{found.status.value}, {gap}, {found.backend}",
    )


def quadratic() -> Extra:
    """Interactions of 200 units of 6."""
    sizes, factors = instances.interactions(200, 6, 10)
    given = Problem.from_arrays(np.zeros(sizes.shape), sizes, budget=int(sizes[:, 2].sum()))
    between = Interactions.from_factors(factors, units=200, candidates=6)
    seconds, found = timed(lambda: solve_quadratic(given, between), 3)
    better = 1.0 - found.objective / found.additive_optimum
    return Extra(
        name="interactions, 200 x 6",
        target_s=2.0,
        seconds=seconds,
        found=f"{found.word}, {better:.1%} below the additive optimum, gap {found.relative_gap:.2f}",
    )


def resampling() -> Extra:
    """How sure each choice is, from 200 problems."""
    given = problem("transformer", 300, 6)
    seconds, found = timed(lambda: choice_probabilities(given, 0.1 * given.costs, resamples=200), 3)
    sure = float(found.of(solve(given).choice_indices).mean())
    return Extra(
        name="200 resamples, transformer 300 x 6",
        target_s=1.0,
        seconds=seconds,
        found=f"mean probability {sure:.2f}",
    )


def hard(family: str) -> Extra:
    """The gap after two seconds."""
    seconds, found = timed(lambda: solve(problem(family, 300, 6), time_limit_s=2.0), 1)
    return Extra(
        name=f"hard: {family}, 300 x 6, 2 s",
        target_s=2.0,
        seconds=seconds,
        found=f"{found.status.value}, gap {found.relative_gap:.1e}",
    )


def extras(*, quick: bool) -> list[Extra]:
    """All of them; the quick choice leaves out what takes long."""
    found = [
        hull_frontier(100_000 if quick else 1_000_000),
        exact_budgets(),
        complete_frontier(),
        inverse(),
        several_rows("transformer", 300 if quick else 1000, 2.0),
    ]
    if not quick:
        found += [several_rows("experts", 10_000, 30.0)]
    found += [quadratic(), resampling()]
    return found + [hard(family) for family in ("strong", "strong_real", "subset_sum", "all_equal")]
