"""Steps around a plan: how samples are cut, what counts as a gain, and when it is over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.plans.refinement import (
    FOLDS,
    MIN_SAMPLES,
    TRUSTS,
    End,
    Outcome,
    crossed_changes,
    judge,
    next_turn,
    partitions,
    passes_ahead,
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
    return judge(next_turn([], rounds=1, regret=0.0), changed, before, before + after, crossed)


NOISE = np.tile([0.1, -0.1], 8)


def test_a_gain_beyond_two_standard_errors_both_ways_holds():
    error = float(NOISE.std(ddof=1) / 4)
    well, barely = NOISE - 2.01 * error, NOISE - 1.99 * error
    assert judged(-0.5, well, well).holds
    assert not judged(-0.5, well, barely).holds
    assert not judged(-0.5, barely, well).holds
    assert not judged(0.0, well, well).holds, "measured no lower"
    assert not judged(-0.5, well, well, changed=0).holds
    outcome = judged(-0.5, well, barely)
    assert (outcome.before, outcome.after) == (1.0, 0.5)
    assert outcome.crossed == pytest.approx((-2.01 * error, -1.99 * error))
    assert outcome.standard_errors == pytest.approx((error, error))
    assert outcome.to_json()["crossed"] == list(outcome.crossed)
    assert (outcome.round, outcome.share, outcome.caution) == (0, TRUSTS[0].share, TRUSTS[0].caution)
    assert outcome.curvature == TRUSTS[0].curvature
    assert not judged(-0.5, well, well).accepted, "others may be better"


def test_a_step_that_leads_nowhere_does_not_hold():
    outcome = unchanged(next_turn([outcome_of(0)], rounds=1, regret=0.0), np.arange(9.0))
    assert (outcome.holds, outcome.accepted, outcome.changed) == (False, False, 0)
    assert (outcome.before, outcome.after, outcome.share) == (4.0, 4.0, TRUSTS[1].share)


def outcome_of(number, *, holds=False, accepted=False, after=0.5, crossed=(0.0, 0.0), errors=(0.0, 0.0)):
    """A trial in the round of this number."""
    return Outcome(
        round=number,
        share=0.5,
        caution=1.0,
        curvature=1.0,
        changed=1,
        before=1.0,
        after=after,
        crossed=crossed,
        standard_errors=errors,
        holds=holds or accepted,
        accepted=accepted,
    ).to_json()


ALL = len(TRUSTS)


def around(number, *, taken=None, trials=ALL, **of_it):
    """The trials around a plan, one of which was taken."""
    return [outcome_of(number, accepted=i == taken, **(of_it if i == taken else {})) for i in range(trials)]


@pytest.mark.parametrize(
    ("tried", "trust", "rounds", "end"),
    [
        ([], TRUSTS[0], 0, None),
        (around(0, trials=1), TRUSTS[1], 0, None),
        (around(0, trials=ALL - 1), TRUSTS[-1], 0, None),
        (around(0), None, 0, End.NO_GAIN),
        (around(0, taken=0), TRUSTS[0], 1, None),
        (around(0, taken=ALL - 1), TRUSTS[0], 1, None),
        (around(0, taken=1) + around(1, trials=2), TRUSTS[2], 1, None),
        (around(0, taken=1) + around(1), None, 1, End.NO_GAIN),
        (around(0, taken=1) + around(1, taken=4), TRUSTS[0], 2, None),
        (around(0, taken=1) + around(1, taken=4) + around(2, taken=0), None, 3, End.ROUNDS),
        (around(0, taken=1, after=0.991), None, 1, End.SMALL_GAIN),
        (around(0, taken=1, after=0.989), TRUSTS[0], 1, None),
        (around(0, taken=1, trials=2), TRUSTS[0], 1, None),
    ],
)
def test_steps_go_on_while_they_help(tried, trust, rounds, end):
    turn = next_turn(tried, rounds=3, regret=0.01)
    assert (turn.trust, turn.rounds, turn.number, turn.end) == (trust, rounds, len(tried), end)
    assert turn.tried == tuple(i for i, o in enumerate(tried) if o["round"] == rounds)
    assert turn.best is None


def test_the_best_step_that_holds_is_the_one_to_take():
    """Judged by the worse of the two ways of cutting the samples."""
    first = around(0, taken=0)
    little, much = {"crossed": (-9.0, -1.0)}, {"crossed": (-2.0, -3.0)}
    tried = [
        *first,
        *(outcome_of(1, crossed=(-5.0, -5.0)) for _ in range(ALL - 4)),
        outcome_of(1, holds=True, **little),
        outcome_of(1, holds=True, **much),
        outcome_of(1, holds=True, **much),
    ]
    turn = next_turn(tried, rounds=3, regret=0.01)
    assert turn.best == len(tried) - 2
    assert (turn.trust, turn.end) == (TRUSTS[-1], None), "one is still to be tried"
    turn = next_turn([*tried, outcome_of(1)], rounds=3, regret=0.01)
    assert (turn.best, turn.trust, turn.end) == (len(tried) - 2, None, None)


def test_of_two_steps_the_surer_gain_is_taken():
    """The first gains more, and may gain less: its standard errors are large."""
    noisy = outcome_of(0, holds=True, crossed=(-10.1, -9.4), errors=(4.6, 4.1))
    sure = outcome_of(0, holds=True, crossed=(-7.9, -8.0), errors=(2.3, 1.4))
    for tried, best in (([noisy, sure], 1), ([sure, noisy], 0)):
        assert next_turn(tried, rounds=3, regret=0.01).best == best


def test_what_is_likely_to_follow_shrinks_as_steps_fail():
    """Of 20 passes for probes and 3 for a step; a step is taken around every second plan."""

    def ahead(tried, queued=0, rounds=3):
        turn = next_turn(tried, rounds=rounds, regret=0.0)
        return passes_ahead(turn, rounds=rounds, queued=queued, probing=20.0, measuring=3.0)

    round_of = 20 + 3 * ALL
    assert ahead([]) == 3 * ALL + 0.75 * round_of, (
        "as the probes are queued: all steps, and two more rounds at most"
    )
    assert ahead([], queued=1) == 3 * (ALL - 1) + 0.75 * round_of
    assert ahead(around(0, trials=ALL - 1), queued=1) == 0.75 * round_of
    held = [*around(0, trials=ALL - 2), outcome_of(0, holds=True)]
    assert ahead(held, queued=1) == 1.5 * round_of, "one more round is certain"
    assert ahead(around(0, taken=0)) == 3 * ALL + 0.5 * round_of
    assert ahead(around(0, taken=0) + around(1, taken=1)) == 3 * ALL
    assert ahead([], rounds=1) == 3 * ALL


def test_what_earlier_versions_tried_is_gone_on_from():
    old = [{name: o[name] for name in ("before", "after", "accepted")} for o in around(0, taken=1, trials=2)]
    turn = next_turn(old, rounds=3, regret=0.0)
    assert (turn.rounds, turn.tried, turn.trust, turn.best) == (1, (), TRUSTS[0], None)
    turn = next_turn(old[:1], rounds=3, regret=0.0)
    assert (turn.rounds, turn.tried, turn.trust, turn.best) == (0, (0,), TRUSTS[1], None)


def test_steps_of_noise_alone_seldom_hold():
    """Steps whose measured gain is all fitted: what they gain on other samples is noise around 0."""
    rng = np.random.default_rng(0)
    held = sum(judged(-1.0, *rng.normal(size=(2, 16))).holds for _ in range(400))
    assert held < 0.03 * 400
