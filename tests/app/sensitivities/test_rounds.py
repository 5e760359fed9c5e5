"""Which entries are measured next: against the normal distribution itself, and played to the end on made-up truths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from app.sensitivities.rounds import Table, expected_losses, next_round
from solver import Problem, Row, solve

BITS = (2, 3, 4, 6, 8)
BLOCKS = 4


def problem(costs, *, weights=None, widths=BITS, **rules):
    units, width = np.shape(costs)
    sizes = np.outer(np.full(units, 100) if weights is None else weights, widths[:width])
    return Problem.from_arrays(costs, sizes, budget=None, labels=list(widths[:width]), **rules)


def table_of(problem, errors, can_be_measured=None, missed=None):
    every = np.ones(problem.costs.shape, bool)
    return Table(
        problem=problem,
        errors=np.asarray(errors, float),
        open=every if can_be_measured is None else can_be_measured,
        missed=missed,
    )


def made_up(rng, units):
    """Costs that fall with the width, weights, and how far off estimates of them are."""
    scale = np.exp(rng.normal(0, 1.5, units))
    costs = scale[:, None] * 4.0 ** -np.array(BITS) * np.exp(rng.normal(0, 0.2, (units, len(BITS))))
    return costs, rng.integers(50, 2000, units)


# What is expected to be lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_expected_losses_are_what_draws_lose_on_average(seed):
    rng = np.random.default_rng(seed)
    costs, weights = made_up(rng, 3)
    errors = costs * rng.uniform(0.05, 1.0, costs.shape)
    chosen, price = rng.integers(0, len(BITS), 3), 1e-5
    found = expected_losses(table_of(problem(costs, weights=weights), errors), chosen, {"size": price})

    draws = costs + errors * rng.standard_normal((200_000, *costs.shape))
    priced = draws + price * np.outer(weights, BITS)
    known = costs + price * np.outer(weights, BITS)
    for unit, own in enumerate(chosen):
        for k in range(len(BITS)):
            # A candidate that is better by what is known would be chosen: it counts as equal.
            shift = max(known[unit, own] - known[unit, k], 0.0)
            lost = np.maximum(priced[:, unit, own] - priced[:, unit, k] - shift, 0.0)
            expected = 0.0 if k == own else lost.mean()
            rare = 1e-5 * np.hypot(errors[unit, k], errors[unit, own])  # what too few draws show
            assert abs(found[unit, k] - expected) <= 5 * lost.std() / 200_000**0.5 + rare


def test_expected_losses_equal_the_closed_form_far_into_the_tail():
    gaps = np.array([0.0, 0.1, 1.0, 5.0, 20.0])
    losses = expected_losses(
        table_of(problem([[0.0, *gaps[1:]]]), [[0.0, 1, 1, 1, 1]]), np.array([0]), {"size": 0.0}
    )
    expected = stats.norm.pdf(gaps) - gaps * stats.norm.sf(gaps)
    assert losses[0, 1:] == pytest.approx(expected[1:], rel=1e-6)
    assert losses[0, 0] == 0.0


def test_what_pins_and_bounds_forbid_and_what_is_not_there_loses_nothing():
    costs = np.full((3, 5), 1.0)
    rules = {"pins": {"0": 4}, "bounds": {"1": (3, 6)}, "counts": [5, 5, 2]}
    losses = expected_losses(table_of(problem(costs, **rules), np.ones((3, 5))), np.array([2, 2, 0]), {})
    assert (losses[0] == 0).all()
    assert (losses[1] > 0).tolist() == [False, True, False, True, False]
    assert (losses[2] > 0).tolist() == [False, True, False, False, False]


def test_tied_units_move_together():
    # One by one unit 0 gains as much by the other width as unit 1 loses; together they lose 4, with errors of 5.
    costs = np.array([[3.0, 0.0], [0.0, 7.0]])
    tied = problem(costs, widths=(2, 4), ties=[["0", "1"]])
    losses = expected_losses(table_of(tied, [[0, 3.0], [0, 4.0]]), np.array([0, 0]), {})
    expected = 5 * (stats.norm.pdf(0.8) - 0.8 * stats.norm.sf(0.8))
    assert losses.max(axis=1).sum() == pytest.approx(expected)
    assert losses[:, 1] == pytest.approx(expected * np.array([9, 16]) / 25)


def test_a_unit_tied_to_a_pinned_one_has_nothing_to_lose():
    tied = problem(np.ones((2, 5)), ties=[["0", "1"]], pins={"0": 4})
    assert (expected_losses(table_of(tied, np.ones((2, 5))), np.array([2, 2]), {}) == 0).all()


def test_other_limits_have_their_price():
    costs = np.array([[4.0, 1.0], [4.0, 1.0]])
    values = np.array([[1.5, 3.0], [1.5, 3.0]])
    limited = problem(costs, widths=(2, 4), limits=[Row(name="operations", values=values, limit=4.5)])
    losses = expected_losses(table_of(limited, np.ones((2, 2))), np.array([0, 1]), {"operations": 2.0})
    spread, other = 2**0.5, 0.0  # what a move saves in cost, 3, it pays for in operations: 1.5 * 2
    expected = spread * stats.norm.pdf(other)
    assert losses[0, 1] == pytest.approx(expected)
    assert losses[1, 0] == pytest.approx(expected)


# What is asked for ----------------------------------------------------------------------------------------------------


def test_nothing_is_asked_for_where_everything_is_known():
    costs, weights = made_up(np.random.default_rng(0), 6)
    known = table_of(problem(costs, weights=weights), np.zeros(costs.shape))
    found = next_round(known, [4 * int(weights.sum())], regret=1e-9)
    assert (found.cells, found.likely_regret) == ((), 0.0)


def test_nothing_is_asked_for_below_the_tolerance_and_something_above():
    costs, weights = made_up(np.random.default_rng(1), 6)
    table = table_of(problem(costs, weights=weights), 0.1 * costs)
    budgets = [4 * int(weights.sum())]
    expected = next_round(table, budgets, regret=1e-6).likely_regret
    assert 0 < expected < 1
    assert next_round(table, budgets, regret=expected * 1.0001).cells == ()
    assert next_round(table, budgets, regret=expected * 0.9999).cells


def test_of_several_budgets_the_worst_counts_and_one_that_nothing_keeps_does_not():
    costs, weights = made_up(np.random.default_rng(2), 6)
    table = table_of(problem(costs, weights=weights), 0.1 * costs)
    budgets = [k * int(weights.sum()) for k in (3, 4, 5)]
    alone = [next_round(table, [b], regret=1e-6).likely_regret for b in budgets]
    assert next_round(table, budgets, regret=1e-6).likely_regret == max(alone)
    assert next_round(table, [1], regret=1e-6).cells == ()


def test_what_cannot_be_measured_further_is_not_asked_for():
    costs, weights = made_up(np.random.default_rng(3), 8)
    fixed = problem(costs, weights=weights)
    budgets = [4 * int(weights.sum())]
    first = next_round(table_of(fixed, 0.3 * costs), budgets, regret=0.001).cells
    can_be_measured = np.ones(costs.shape, bool)
    can_be_measured[tuple(np.transpose(first))] = False
    then = next_round(table_of(fixed, 0.3 * costs, can_be_measured), budgets, regret=0.001).cells
    assert first
    assert not set(first) & set(then)
    closed = table_of(fixed, 0.3 * costs, np.zeros(costs.shape, bool))
    assert next_round(closed, budgets, regret=0.001).cells == ()


def test_the_most_doubtful_unit_comes_first_and_a_sure_one_not_at_all():
    costs = np.array([[4.0, 1.0]] * 3)
    errors = np.array([[0.1, 0.1], [2.0, 2.0], [0.0, 0.0]])
    found = next_round(table_of(problem(costs, widths=(2, 4)), errors), [800], regret=1e-4)
    assert found.cells[0][0] == 1
    assert 2 not in {unit for unit, _ in found.cells}


def test_a_plan_that_costs_nothing_is_no_trouble():
    costs = np.array([[1e9, 0.0], [1e9, 0.0]])
    found = next_round(table_of(problem(costs, widths=(2, 4)), 0.3 * costs), [800], regret=0.01)
    assert np.isfinite(found.likely_regret)


def test_what_a_plan_takes_is_asked_for_where_more_than_is_tolerated_may_have_been_missed():
    """Its error says nothing is left to doubt; that it was seen on a few samples only does."""
    costs = np.array([[4.0, 1.0, 0.1], [9.0, 2.9, 0.1], [1.0, 0.1, 0.01]])
    fixed, errors, budget = problem(costs, widths=(2, 3, 4)), np.zeros(costs.shape), 900
    chosen = solve(fixed.with_budget(budget)).choice_indices
    shares = costs[np.arange(3), chosen] / costs[np.arange(3), chosen].sum()
    for share in np.linspace(0.02, 1.0, 8):
        missed = np.full(costs.shape, share)
        expected = {(i, int(k)) for i, k in enumerate(chosen) if share * shares[i] >= 0.04}
        found = next_round(table_of(fixed, errors, missed=missed), [budget], regret=0.1)
        assert set(found.cells) == expected, "two fifths of what is tolerated, without estimates"
        closed = table_of(fixed, errors, np.zeros(costs.shape, bool), missed)
        assert next_round(closed, [budget], regret=0.1).cells == ()


# Played to the end ----------------------------------------------------------------------------------------------------


def play(seed, units, *, regret, budgets_bits, off=0.2, noise=0.3, ties=()):
    """Ask until nothing more is asked for; regret on the truth of each budget's plan, and what was asked."""
    rng = np.random.default_rng(seed)
    truth, weights = made_up(rng, units)
    blocks = truth * noise * rng.standard_normal((BLOCKS, *truth.shape))
    blocks += truth - blocks.mean(axis=0)
    costs = np.maximum(truth * np.exp(off * rng.standard_normal(truth.shape)), 1e-12)
    errors, measured = off * costs, np.zeros(truth.shape, int)
    budgets = [int(b * weights.sum()) for b in budgets_bits]
    asked, rounds = [], 0
    while True:
        fixed = problem(costs, weights=weights, ties=ties)
        found = next_round(table_of(fixed, errors, measured < BLOCKS), budgets, regret=regret)
        if not found.cells:
            break
        rounds += 1
        assert rounds <= BLOCKS * truth.size, "it does not end"
        assert len(set(found.cells)) == len(found.cells)
        for cell in found.cells:
            asked.append((*cell, int(measured[cell])))
            measured[cell] += 1
            n = measured[cell]
            costs[cell] = blocks[:n, *cell].mean()
            errors[cell] = noise * truth[cell] * np.sqrt((1 / n) * (1 - n / BLOCKS))
    assert len(set(asked)) == len(asked), "an entry was asked for twice on one block"
    assert measured.max() <= BLOCKS
    exact, regrets = problem(truth, weights=weights, ties=ties), []
    for budget in budgets:
        chosen = solve(fixed.with_budget(budget)).choice_indices
        best = solve(exact.with_budget(budget)).objective
        regrets.append(truth[np.arange(units), chosen].sum() / best - 1)
    return regrets, asked, truth.size


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    units=st.integers(1, 12),
    regret=st.sampled_from([0.003, 0.01, 0.05]),
    budgets=st.lists(st.sampled_from([2.5, 3.0, 4.0, 6.0]), min_size=1, max_size=2, unique=True),
    tied=st.booleans(),
)
def test_rounds_end_and_never_ask_the_same_twice(seed, units, regret, budgets, tied):
    ties = [["0", "1"]] if tied and units > 1 else []
    regrets, asked, cells = play(seed, units, regret=regret, budgets_bits=budgets, ties=ties)
    assert min(regrets) >= -1e-9
    assert len(asked) <= BLOCKS * cells


def test_plans_cost_no_more_than_tolerated_on_average_and_little_is_measured():
    regret = 0.01
    runs = [play(seed, 16, regret=regret, budgets_bits=[4.0]) for seed in range(20)]
    found = np.array([regrets[0] for regrets, _, _ in runs])
    assert found.mean() <= regret
    assert (found <= regret).mean() >= 0.75
    assert np.quantile(found, 0.95) <= 4 * regret
    assert np.mean([len(asked) / (BLOCKS * cells) for _, asked, cells in runs]) < 0.2
    unmeasured = [play(seed, 16, regret=0.99, budgets_bits=[4.0])[0][0] for seed in range(20)]
    assert np.mean(unmeasured) > 3 * found.mean(), "measuring has to pay"
