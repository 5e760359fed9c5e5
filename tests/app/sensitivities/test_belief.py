"""What few samples and estimates tell of all samples: against made-up tables whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.sensitivities.belief import Evidence, believe

WIDTHS = (2, 3, 4, 6, 8)


def made_up(rng, *, units=12, samples=32, difficulty=0.5, rest=0.4):
    """Costs of samples [units * widths, samples]: entry times difficulty times a rest that a unit's entries share in part."""
    entries = units * len(WIDTHS)
    means = np.exp(rng.normal(0, 1, (units, 1))) * 4.0 ** -np.array(WIDTHS)
    hard = np.exp(difficulty * rng.normal(0, 1, samples))
    own = 0.6 * rng.normal(0, 1, (units, 1, samples)) + 0.8 * rng.normal(0, 1, (units, len(WIDTHS), samples))
    return (means[:, :, None] * hard * np.exp(rest * own)).reshape(entries, samples)


def evidence(costs, seen, estimates=None, noise=0.0):
    """The first `seen` samples of each entry."""
    samples = np.arange(costs.shape[1])
    units = len(costs) // len(WIDTHS)
    return Evidence(
        units=np.repeat(np.arange(units), len(WIDTHS)),
        bits=np.tile(WIDTHS, units),
        costs=np.where(samples < np.asarray(seen)[:, None], costs, np.nan),
        lengths=np.ones(len(samples), np.int64),
        first=8,
        estimates=estimates,
        noise=noise,
    )


@pytest.mark.parametrize("estimated", [False, True])
def test_what_is_measured_on_all_samples_is_known(estimated):
    rng = np.random.default_rng(0)
    costs = made_up(rng)
    found = believe(evidence(costs, np.full(len(costs), 32), rng.permuted(costs) if estimated else None))
    assert found.costs == pytest.approx(costs.mean(axis=1), rel=1e-9)
    assert (found.errors == 0).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), estimated=st.booleans())
def test_samples_that_are_harder_for_all_alike_mislead_nobody(seed, estimated):
    """Entries seen on different samples compare as on all of them, and that is told to be certain."""
    rng = np.random.default_rng(seed)
    costs = made_up(rng, units=4, rest=0.0, difficulty=1.0)
    seen = rng.choice([8, 16, 24], len(costs))
    found = believe(evidence(costs, seen, 1.3 * costs if estimated else None))
    ratios = found.costs / costs.mean(axis=1)
    assert ratios == pytest.approx(np.full(len(costs), ratios[0]), rel=1e-3)
    assert found.errors == pytest.approx(np.zeros(len(costs)), abs=1e-3 * costs.mean())


def scores(seed, *, seen, estimated):
    """By how many of their errors costs are off, and how far two of a unit are, by the covariance told."""
    rng = np.random.default_rng(seed)
    costs = made_up(rng, units=20, difficulty=0.6)
    truth, estimates, noise = costs.mean(axis=1), None, 0.0
    if estimated:
        off = np.exp(0.15 * rng.normal(0, 1, len(costs)))[:, None]
        signs = rng.chisquare(4, costs.shape) / 4
        estimates, noise = costs * off * signs, np.sqrt(2 / 4 / 32)
    found = believe(evidence(costs, seen(rng, len(costs)), estimates, noise))
    ratio = np.median(found.costs / truth)  # a factor of all costs changes no plan
    off = (found.costs / ratio - truth).reshape(20, -1)
    pairs = [
        (row[i] - row[j]) / np.sqrt(c[i, i] + c[j, j] - 2 * c[i, j])
        for row, c in zip(off, found.covariances, strict=True)
        for i, j in [(0, 1), (1, 2), (2, 4)]
    ]
    return off.ravel() / found.errors, np.array(pairs)


@pytest.mark.parametrize("estimated", [False, True])
@pytest.mark.parametrize(
    "seen",
    [lambda _rng, n: np.full(n, 8), lambda rng, n: rng.choice([8, 16, 24], n)],
    ids=["a quarter", "different parts"],
)
def test_errors_and_those_of_differences_are_honest(seen, estimated):
    runs = [scores(seed, seen=seen, estimated=estimated) for seed in range(15)]
    for both in zip(*runs, strict=True):
        found = np.concatenate(both)
        assert 0.55 < np.sqrt(np.mean(found**2)) < 1.35
        assert np.mean(np.abs(found) < 2) > 0.86


def test_estimates_and_measurements_together_are_closer_than_either():
    errors = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        costs = made_up(rng)
        estimates = costs * np.exp(0.2 * rng.normal(0, 1, len(costs)))[:, None]
        seen = np.full(len(costs), 8)
        ways = (believe(evidence(costs, seen, e)).costs for e in (None, estimates))
        off = [np.log(found / costs.mean(axis=1)) for found in (*ways, estimates.mean(axis=1))]
        errors.append([np.std(o) for o in off])
    measured, both, estimated = np.mean(errors, axis=0)
    assert both < 0.9 * min(measured, estimated)


def test_what_is_contradicted_is_doubted_whichever_is_larger():
    """A few samples may hold most of an entry's cost: the samples that were measured, or those that were not."""
    rng = np.random.default_rng(1)
    costs = made_up(rng)
    seen, estimates = np.full(len(costs), 8), costs.copy()
    plain = believe(evidence(costs, seen, estimates))
    for factor in (0.1, 10.0):
        changed = costs.copy()
        changed[7] *= factor
        found = believe(evidence(changed, seen, estimates))
        assert found.errors[7] / found.costs[7] > 3 * plain.errors[7] / plain.costs[7]
        between = np.log(found.costs[7] / costs[7].mean()) / np.log(factor)
        assert 0.2 < between < 1.0
        assert np.delete(found.costs, 7) == pytest.approx(np.delete(plain.costs, 7), rel=0.2)


def test_one_run_tells_nothing_of_its_error():
    found = believe(evidence(made_up(np.random.default_rng(2), samples=4), np.ones(60)))
    assert found.errors == pytest.approx(found.costs * (1 - 1 / 4) ** 0.5)


def test_costs_of_either_sign_have_no_common_difficulty():
    """A rise of the loss may be negative: then samples are taken as they are."""
    costs = np.random.default_rng(3).normal(0, 1, (60, 16))
    found = believe(evidence(costs, np.full(60, 8)))
    assert found.costs == pytest.approx(costs[:, :8].mean(axis=1))
    assert np.isfinite(found.errors).all()
    assert 0.7 < np.std((found.costs - costs.mean(axis=1)) / found.errors) < 1.3
    found = believe(evidence(costs, np.repeat([8, 12, 16], 20)))
    assert found.missed.tolist() == [1.0] * 20 + [0.0] * 40, "ratios of what is about nothing tell nothing"


def test_runs_without_a_sample_that_counts_count_for_nothing():
    costs = made_up(np.random.default_rng(4))
    costs[:, 3] = np.nan
    lengths = np.where(np.arange(32) == 3, 0, 1)
    given_ = evidence(costs, np.full(60, 32))
    whole = Evidence(**{**vars(given_), "lengths": lengths})
    assert believe(whole).costs == pytest.approx(np.nanmean(costs, axis=1))
    assert (believe(whole).errors == 0).all()


# What may have been missed --------------------------------------------------------------------------------------------


def grown_later(outliers):
    """60 entries with the same cost on all of 32 samples, but for some that cost more on a single one."""
    costs = np.ones((60, 32))
    for entry, sample, cost in outliers:
        costs[entry, sample] = cost
    return costs


@pytest.mark.parametrize(
    ("sample", "cost", "level"), [(7, 90.0, 8), (10, 30.0, 8), (18, 90.0, 16), (18, 3.0, 8)]
)
def test_any_entry_may_have_missed_as_much_as_the_worst_one_that_was_looked_at_further(sample, cost, level):
    """Sample 7 shows in the first quarter, sample 10 after it, sample 18 after the second; a small one adds to no fear."""
    costs = grown_later([(7, sample, cost)])
    seen = np.repeat([8, 16, 24, 32], 15)
    seen[7] = 32
    missed = believe(evidence(costs, seen)).missed
    grown = costs[7].mean() / costs[7, :level].mean() - 1.0
    # The outlier counts as difficulty of that sample in part: one of the 30 to 45 entries that were measured on it.
    expected = max(grown, 1.0) if level == 8 else grown
    assert missed[seen == level] == pytest.approx(np.full((seen == level).sum(), expected), rel=0.1)
    assert (missed[seen == 32] == 0).all()
    assert (missed[seen == 24] < 0.05).all(), "nothing grew in the last quarter"


def test_of_the_first_samples_alone_as_much_again_may_have_been_missed():
    costs = grown_later([])
    assert believe(evidence(costs, np.full(60, 8))).missed == pytest.approx(np.ones(60))
    assert (believe(evidence(costs, np.full(60, 16))).missed == 0).all(), "all were looked at further"
    assert (believe(evidence(costs, np.full(60, 8), costs)).missed == 0).all(), "estimates would contradict"
