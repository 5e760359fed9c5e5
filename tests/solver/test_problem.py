"""What a problem refuses, and that each refusal names unit, field, value and what is allowed."""

import json
import math
import pickle

import numpy as np
import pytest

from solver import (
    BoundError,
    BudgetError,
    OptionError,
    PinError,
    Problem,
    Row,
    RowError,
    SolverError,
    TableError,
    TieError,
    WidthCount,
    solve,
)

ROWS = [("a", 4, 1.0, 40), ("a", 8, 0.5, 80), ("b", 4, 2.0, 400), ("b", 8, 0.1, 800), ("c", 2, 0.0, 7)]


def build(rows=ROWS, budget=1000, **rules):
    return Problem.from_rows(rows, budget=budget, **rules)


def with_cell(cost=1.0, size=1):
    return [*ROWS, ("d", 4, cost, size)]


REFUSED = [
    # (what, error, the unit it must name)
    (lambda: build(with_cell(cost=math.nan)), TableError, "d"),
    (lambda: build(with_cell(cost=math.inf)), TableError, "d"),
    (lambda: build(with_cell(cost=-math.inf)), TableError, "d"),
    (lambda: build(with_cell(cost="1.0")), TableError, "d"),
    (lambda: build(with_cell(cost=True)), TableError, "d"),
    (lambda: build(with_cell(cost=10**400)), TableError, "d"),
    (lambda: build(with_cell(size=-1)), TableError, "d"),
    (lambda: build(with_cell(size=1.5)), TableError, "d"),
    (lambda: build(with_cell(size=2**63)), TableError, "d"),
    (lambda: build([*ROWS, ("a", "4", 1.0, 40)]), TableError, "a"),  # the candidate 4 twice
    (lambda: build([*ROWS, ("", 4, 1.0, 40)]), TableError, None),
    (lambda: build([*ROWS, (None, 4, 1.0, 40)]), TableError, None),
    (lambda: build([*ROWS, ("a", 4)]), TableError, None),
    (lambda: build([]), TableError, None),
    (lambda: build([("a", 4, 0.0, 2**61), ("b", 4, 0.0, 2**61)]), TableError, None),  # sums overflow
    (lambda: build(budget=-1), BudgetError, None),
    (lambda: build(budget=1.5), BudgetError, None),
    (lambda: build(budget="4 bits"), BudgetError, None),
    (lambda: build(budget=True), BudgetError, None),
    (lambda: build(pins={"z": 4}), PinError, "z"),
    (lambda: build(pins={"a": 5}), PinError, "a"),
    (lambda: build(pins={"a": 4}, bounds={"a": (8, None)}), PinError, "a"),
    (lambda: build(pins={"a": 4, "b": 8}, ties=[("a", "b")]), PinError, "a"),
    (lambda: build(bounds={"z": (4, 8)}), BoundError, "z"),
    (lambda: build(bounds={"a": (5, 7)}), BoundError, "a"),
    (lambda: build([("a", "x", 0.0, 1)], bounds={"a": (4, 8)}), BoundError, "a"),  # widths not known
    (lambda: build([("a", "x", 0.0, 1)], widths={"y": 4}), BoundError, "a"),
    (lambda: build(ties=[("a", "z")]), TieError, "z"),
    (lambda: build(ties=["ab"]), TieError, None),
    (lambda: build(ties=[("a", "c")]), TieError, "a"),  # no candidate in common
    (lambda: build(ties=[("a", "b")], bounds={"a": (8, None), "b": (None, 4)}), TieError, "a"),
    (lambda: build(limits=[Row(name="t", values={("a", 4): 1.0}, limit=1)]), RowError, "a"),
    (lambda: build(limits=[Row(name="size", values=np.ones((3, 2)), limit=1)]), RowError, None),
    (lambda: build(limits=[Row(name="t", values=np.ones((3, 3)), limit=1)]), RowError, None),
    (lambda: build(limits=[Row(name="t", values=np.full((3, 2), np.nan), limit=1)]), RowError, "a"),
    (lambda: build(limits=[Row(name="t", values=np.ones((3, 2)), limit=math.nan)]), RowError, None),
    (lambda: build(width_counts=[WidthCount(width=8, minimum=3, maximum=2)]), RowError, None),
    (lambda: build(max_widths=0), RowError, None),
    (lambda: build([("a", "x", 0.0, 1)], max_widths=1), RowError, None),
    (lambda: solve(build(), time_limit_s=0), OptionError, None),
    (lambda: solve(build(), time_limit_s=math.nan), OptionError, None),
    (lambda: solve(build(), relative_gap=-0.1), OptionError, None),
    (lambda: solve(build(), backend="gurobi"), OptionError, None),
]


@pytest.mark.parametrize(("call", "error", "unit"), REFUSED)
def test_refusals(call, error, unit):
    with pytest.raises(error) as caught:
        call()
    refusal = caught.value
    assert refusal.field
    assert json.dumps([refusal.value, refusal.allowed, refusal.extra], allow_nan=False)
    if unit is not None:
        assert refusal.extra["unit"] == unit
        assert repr(unit) in str(refusal) or unit in str(refusal)
    again = pickle.loads(pickle.dumps(refusal))
    assert type(again) is error
    assert (str(again), again.extra) == (str(refusal), refusal.extra)


ARRAYS_REFUSED = [
    (np.ones((2, 0)), np.ones((2, 0), int), {}),  # units without candidates
    (np.ones((0, 2)), np.ones((0, 2), int), {}),  # no units
    (np.ones(3), np.ones(3, int), {}),
    (np.ones((2, 2)), np.ones((2, 3), int), {}),
    (np.ones((2, 2)), np.ones((2, 2)), {}),  # sizes must be whole numbers
    (np.ones((2, 2)), -np.ones((2, 2), int), {}),
    (np.array([[1.0, np.nan]]), np.ones((1, 2), int), {}),
    (np.array([[np.inf, -np.inf]]), np.ones((1, 2), int), {}),
    (np.ones((2, 2)), np.full((2, 2), 2**61), {}),
    (np.ones((2, 2)), np.full((2, 2), 2**63, np.uint64), {}),
    (np.ones((2, 2)), np.ones((2, 2), int), {"units": ["a", "a"]}),
    (np.ones((2, 2)), np.ones((2, 2), int), {"units": ["a"]}),
    (np.ones((2, 2)), np.ones((2, 2), int), {"labels": ["x", "x"]}),
    (np.ones((2, 2)), np.ones((2, 2), int), {"counts": [0, 2]}),
    (np.ones((2, 2)), np.ones((2, 2), int), {"counts": [1, 3]}),
    ([["x", 1]], np.ones((1, 2), int), {}),
]


@pytest.mark.parametrize(("costs", "sizes", "more"), ARRAYS_REFUSED)
def test_refused_arrays(costs, sizes, more):
    with pytest.raises(TableError):
        Problem.from_arrays(costs, sizes, budget=1, **more)


def test_rows_and_arrays_mean_the_same():
    by_rows = build(ROWS, 900)
    by_arrays = Problem.from_arrays(
        [[1.0, 0.5], [2.0, 0.1], [0.0, math.nan]],  # what lies beyond counts is ignored
        [[40, 80], [400, 800], [7, -1]],
        counts=[2, 2, 1],
        units=["a", "b", "c"],
        budget=900,
    )
    assert solve(by_rows).choices == solve(by_arrays).choices == (1, 1, 0)


def test_overlapping_ties_are_joined():
    rows = [(u, k, 1.0, 1) for u in "abcd" for k in (4, 8)]
    assert build(rows, ties=[("a", "b"), ("d", "c"), ("b", "c")]).ties == ((0, 1, 2, 3),)


def test_another_budget_shares_the_tables():
    problem = build()
    other = problem.with_budget(500)
    assert other.costs is problem.costs
    assert (problem.budget_bits, other.budget_bits) == (1000, 500)
    with pytest.raises(BudgetError):
        problem.with_budget(-1)


def test_problem_survives_pickling():
    problem = build(ties=[("a", "b")])
    assert solve(problem).choices == solve(pickle.loads(pickle.dumps(problem))).choices


def test_every_error_has_its_own_kind():
    def tree(cls):
        return [cls, *(leaf for sub in cls.__subclasses__() for leaf in tree(sub))]

    kinds = [cls.kind for cls in tree(SolverError)]
    assert len(set(kinds)) == len(kinds)
