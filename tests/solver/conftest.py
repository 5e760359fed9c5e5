"""Independent references, instance families, and the two implementations of the knapsack's steps."""

import importlib.util
import itertools
from fractions import Fraction
from pathlib import Path

import pytest

from solver import acceleration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def brute_force():
    """Complete enumeration, as a fixture: test modules cannot import each other."""
    return enumerate_plans


def enumerate_plans(costs, sizes, budget, accept=lambda plan: True):
    """Least cost over all plans within the budget, exactly; ``None`` when there is none."""
    best = None
    for plan in itertools.product(*(range(len(row)) for row in costs)):
        if budget is not None and sum(int(sizes[i][k]) for i, k in enumerate(plan)) > budget:
            continue
        if not accept(plan):
            continue
        cost = sum(Fraction(float(costs[i][k])) for i, k in enumerate(plan))
        if best is None or cost < best:
            best = cost
    return best


@pytest.fixture(scope="session")
def instances():
    """The benchmark's generators."""
    spec = importlib.util.spec_from_file_location(
        "solver_instances", ROOT / "benchmarks" / "solver_instances.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", params=["numpy", "compiled"])
def engine(request):
    """Each implementation; the compiled one is compiled here if need be."""
    if request.param == "numpy":
        return acceleration.reference_engine()
    assert acceleration.warm_up(wait=True), "numba is a development dependency"
    return acceleration.engine()
