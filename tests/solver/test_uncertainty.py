"""Costs with errors: probabilities of choices, and risk-averse plans."""

import math
import time

import numpy as np
import pytest

from solver import OptionError, Problem, Row, TableError, choice_probabilities, risk_averse, solve


def test_without_errors_the_plan_is_certain(instances):
    costs, sizes = instances.transformer(50, 6, 1)
    problem = Problem.from_arrays(costs, sizes, budget=instances.budget_at(sizes, 0.4))
    answer = choice_probabilities(problem, np.zeros_like(costs), resamples=5)
    assert (answer.of(solve(problem).choice_indices) == 1.0).all()
    assert (answer.resamples, answer.infeasible) == (5, 0)


def test_two_candidates_have_the_normal_probability():
    problem = Problem.from_rows([("a", "x", 1.0, 1), ("a", "y", 1.5, 1), ("b", "z", 0.0, 1)], budget=2)
    errors = {("a", "x"): 0.3, ("a", "y"): 0.4, ("b", "z"): 9.0}
    answer = choice_probabilities(problem, errors, resamples=4000, seed=1)
    expected = 0.5 * (1 + math.erf(0.5 / math.hypot(0.3, 0.4) / math.sqrt(2)))
    assert answer.probabilities[0, 0] == pytest.approx(expected, abs=0.03)
    assert np.allclose(answer.probabilities.sum(axis=1), 1.0)
    assert answer.probabilities[1].tolist() == [1.0, 0.0]


def test_the_same_seed_gives_the_same_probabilities(instances):
    costs, sizes = instances.transformer(50, 6, 1)
    problem = Problem.from_arrays(costs, sizes, budget=instances.budget_at(sizes, 0.4), ties=[("1", "2")])
    first, second, other = (
        choice_probabilities(problem, 0.2 * costs, resamples=20, seed=seed).probabilities
        for seed in (3, 3, 4)
    )
    assert (first == second).all()
    assert (first != other).any()
    assert (first[1] == first[2]).all()


def test_two_hundred_resamples_in_time(instances):
    costs, sizes = instances.transformer(300, 6, 1)
    problem = Problem.from_arrays(costs, sizes, budget=instances.budget_at(sizes, 0.4))
    start = time.monotonic()
    answer = choice_probabilities(problem, 0.1 * costs)
    assert time.monotonic() - start < 5  # well under one second when the machine is not shared
    assert answer.resamples == 200
    assert 0.5 < answer.of(solve(problem).choice_indices).mean() < 1.0


def test_further_rows_hold_in_every_resample(instances):
    costs, sizes = instances.transformer(20, 3, 1)
    rows = [Row(name="t", values=sizes[:, ::-1].copy(), limit=instances.budget_at(sizes, 0.6))]
    problem = Problem.from_arrays(costs, sizes, budget=instances.budget_at(sizes, 0.6), limits=rows)
    answer = choice_probabilities(problem, 0.1 * costs, resamples=5)
    assert answer.infeasible == 0
    assert np.allclose(answer.probabilities.sum(axis=1), 1.0)


def test_time_limit_ends_early_and_says_so(instances):
    costs, sizes = instances.transformer(300, 6, 1)
    problem = Problem.from_arrays(costs, sizes, budget=instances.budget_at(sizes, 0.4))
    answer = choice_probabilities(problem, 0.1 * costs, resamples=10**6, time_limit_s=0.2)
    assert 1 <= answer.resamples < 10**6


def test_risk_aversion_avoids_what_is_badly_known():
    rows = [("a", "known", 1.0, 1), ("a", "unknown", 0.9, 1)]
    problem = Problem.from_rows(rows, budget=1)
    errors = {("a", "known"): 0.01, ("a", "unknown"): 0.5}
    assert solve(problem).named_choices == {"a": "unknown"}
    careful = risk_averse(problem, errors, factor=1.0)
    assert solve(careful).named_choices == {"a": "known"}
    assert solve(careful).objective == pytest.approx(1.01)
    assert solve(risk_averse(problem, errors, factor=0.0)).objective == 0.9


RAGGED = [("a", "x", 1.0, 1), ("a", "y", 0.9, 1), ("b", "x", 0.0, 1)]


@pytest.mark.parametrize(
    ("errors", "unit"),
    [
        ({("a", "x"): 1.0, ("b", "x"): 1.0}, "a"),  # ("a", "y") is missing
        ([[0.1, -0.1], [0.1, 0.0]], "a"),
        ([[0.1, 0.1], [math.nan, 0.0]], "b"),
        ([[0.1, math.inf], [0.1, 0.0]], "a"),
        ([[0.1], [0.1]], None),
    ],
)
def test_refused_errors(errors, unit):
    problem = Problem.from_rows(RAGGED, budget=2)
    for call in (choice_probabilities, lambda p, e: risk_averse(p, e, factor=1.0)):
        with pytest.raises(TableError) as caught:
            call(problem, errors)
        assert caught.value.extra.get("unit") == unit


def test_cells_beyond_a_units_candidates_are_ignored():
    problem = Problem.from_rows(RAGGED, budget=2)
    assert choice_probabilities(problem, [[0.1, 0.1], [0.1, math.nan]], resamples=3).resamples == 3


@pytest.mark.parametrize("arguments", [{"resamples": 0}, {"resamples": 1.5}, {"time_limit_s": 0.0}])
def test_refused_options(arguments):
    with pytest.raises(OptionError):
        choice_probabilities(Problem.from_rows(RAGGED, budget=2), np.zeros((2, 2)), **arguments)
    with pytest.raises(OptionError):
        risk_averse(Problem.from_rows(RAGGED, budget=2), np.zeros((2, 2)), factor=-1.0)
