"""Steps around a plan: how samples are cut, what counts as a gain, and when it is over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.plans.refinement import (
    FOLDS,
    MIN_SAMPLES,
    TRUSTS,
    Outcome,
    crossed_changes,
    judge,
    next_turn,
    partitions,
    rest,
    unchanged,
)


@given(st.integers(MIN_SAMPLES, 60))
def test_every_sample_is_left_out_once_either_way(samples):
    for folds in partitions(samples):
        assert sorted(np.concatenate(folds).tolist()) == list(range(samples))
        assert len(folds) == FOLDS
        assert max(map(len, folds)) - min(map(len, folds)) <= 1
        for fold in folds:
            assert sorted([*fold.tolist(), *rest(fold, samples).tolist()]) == list(range(samples))
    neighbours, turns = partitions(samples)
    assert all(np.array_equal(fold, np.arange(fold[0], fold[-1] + 1)) for fold in neighbours)
    assert all(set((fold % FOLDS).tolist()) == {i} for i, fold in enumerate(turns))


def test_each_sample_is_judged_by_the_step_that_has_not_seen_it():
    before = np.arange(8.0)
    folds = partitions(8)[1]
    found = crossed_changes(before, folds, {0: np.array([10.0, 20.0]), 2: np.array([1.0, 2.0])}.get)
    assert found.tolist() == [10.0, 0.0, -1.0, 0.0, 16.0, 0.0, -4.0, 0.0]


def judged(after, *crossed, changed=3):
    before = np.full(16, 1.0)
    return judge(TRUSTS[0], changed, before, before + after, crossed)


NOISE = np.tile([0.1, -0.1], 8)


def test_a_gain_beyond_two_standard_errors_both_ways_is_taken():
    error = float(NOISE.std(ddof=1) / 4)
    well, barely = NOISE - 2.01 * error, NOISE - 1.99 * error
    assert judged(-0.5, well, well).accepted
    assert not judged(-0.5, well, barely).accepted
    assert not judged(-0.5, barely, well).accepted
    assert not judged(0.0, well, well).accepted, "measured no lower"
    assert not judged(-0.5, well, well, changed=0).accepted
    outcome = judged(-0.5, well, barely)
    assert (outcome.before, outcome.after) == (1.0, 0.5)
    assert outcome.crossed == pytest.approx((-2.01 * error, -1.99 * error))
    assert outcome.standard_errors == pytest.approx((error, error))
    assert outcome.to_json()["crossed"] == list(outcome.crossed)


def test_a_step_that_leads_nowhere_is_not_taken():
    outcome = unchanged(TRUSTS[1], np.arange(9.0))
    assert (outcome.accepted, outcome.changed, outcome.before, outcome.after) == (False, 0, 4.0, 4.0)


def outcome(*, accepted, after=0.5):
    return Outcome(
        share=0.5,
        changed=1,
        before=1.0,
        after=after,
        crossed=(0.0, 0.0),
        standard_errors=(0.0, 0.0),
        accepted=accepted,
    ).to_json()


YES, NO = outcome(accepted=True), outcome(accepted=False)


@pytest.mark.parametrize(
    ("tried", "trust", "rounds"),
    [
        ([], TRUSTS[0], 0),
        ([NO], TRUSTS[1], 0),
        ([NO, NO], None, 0),
        ([YES], TRUSTS[0], 1),
        ([NO, YES], TRUSTS[0], 1),
        ([YES, NO], TRUSTS[1], 1),
        ([YES, NO, NO], None, 1),
        ([YES, NO, YES], TRUSTS[0], 2),
        ([YES, YES, YES], None, 3),
        ([outcome(accepted=True, after=0.991)], None, 1),
        ([outcome(accepted=True, after=0.989)], TRUSTS[0], 1),
    ],
    ids=str,
)
def test_steps_go_on_while_they_help(tried, trust, rounds):
    turn = next_turn(tried, rounds=3, regret=0.01)
    assert (turn.trust, turn.rounds, turn.number) == (trust, rounds, len(tried))


def test_steps_of_noise_alone_are_seldom_taken():
    """Steps whose measured gain is all fitted: what they gain on other samples is noise around 0."""
    rng = np.random.default_rng(0)
    taken = sum(judged(-1.0, *rng.normal(size=(2, 16))).accepted for _ in range(400))
    assert taken < 0.03 * 400
