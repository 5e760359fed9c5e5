"""Estimates of a unit told from each other, against the best linear guess made of one large covariance."""

import numpy as np
import pytest

from app.sensitivities.smoothing import smooth

CANDIDATES = ["a", "b", "c"]


def probes(costs, *, probes=4, samples=16, seed=0):
    """Probes whose squares have the costs [units, K] as their expectations: [E, P, N]."""
    draw = np.random.default_rng(seed)
    return np.sqrt(costs).reshape(-1, 1, 1) * draw.standard_normal((costs.size, probes, samples))


def related(units=200, spread=0.1, seed=1):
    """Costs of units that are of all sizes, and whose candidates go together."""
    draw = np.random.default_rng(seed)
    size = draw.normal(size=(units, 1))
    return np.exp(size + np.log([1.0, 0.3, 0.05]) + spread * draw.standard_normal((units, 3)))


def numbers(units, width=3):
    return np.repeat(np.arange(units), width), CANDIDATES[:width] * units


def error(estimates, costs):
    return float(np.sqrt(np.square(np.log(estimates / costs.ravel())).mean()))


def test_no_estimate_is_moved_beyond_the_mean():
    """Where units are all alike, the covariance among them is now more and now less than that among the probes."""
    costs = np.ones((12, 3))
    values = probes(costs)
    raw = np.log(np.square(values).mean((1, 2)).reshape(costs.shape))
    told = raw + np.log(smooth(values, *numbers(len(costs))).factors.reshape(costs.shape))
    apart = raw - raw.mean(0)
    gain = np.linalg.lstsq(apart, told - raw.mean(0), rcond=None)[0]
    assert np.linalg.eigvals(gain).real.min() > -1e-9
    assert np.abs(told - raw.mean(0)).mean() < 0.7 * np.abs(apart).mean()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_what_signs_added_is_taken_out(count):
    costs = related()
    values = probes(costs, probes=count, samples=32 // count)
    raw = np.square(values).mean((1, 2))
    found = smooth(values, *numbers(len(costs)))
    before, after = error(raw, costs), error(raw * found.factors, costs)
    assert before == pytest.approx(np.sqrt(2 / 32), rel=0.15)
    assert after < 0.75 * before
    assert found.noise == pytest.approx(after, rel=0.25)


def test_the_best_linear_guess():
    """All units and candidates in one vector, with covariances as they were drawn."""
    costs = related(2000)
    values = probes(costs, probes=8, samples=8)
    raw = np.square(values).mean((1, 2)).reshape(costs.shape)
    found = smooth(values, *numbers(len(costs))).factors.reshape(costs.shape)
    true = np.ones((3, 3)) + 0.1**2 * np.eye(3)
    gain = true @ np.linalg.inv(true + 2 / 64 * np.eye(3))
    mean = np.log(raw).mean(0)
    expected = np.exp(mean + (np.log(raw) - mean) @ gain.T)
    assert np.abs(np.log(raw * found / expected)).max() < 0.1
    assert error((raw * found).ravel(), costs) == pytest.approx(error(expected.ravel(), costs), rel=0.05)


def test_nothing_is_taken_from_what_has_no_noise_or_nothing_in_common():
    costs = related()
    exact = np.repeat(np.repeat(np.sqrt(costs).reshape(-1, 1, 1), 4, 1), 5, 2)
    found = smooth(exact, *numbers(len(costs)))
    assert found.factors == pytest.approx(np.ones(costs.size))
    assert found.noise == pytest.approx(0.0, abs=1e-6)
    draw = np.random.default_rng(0)
    unlike = np.exp(2 * draw.standard_normal((400, 3)))
    moved = np.log(smooth(probes(unlike, samples=64), *numbers(400)).factors)
    assert np.abs(moved).mean() < 0.02


def test_few_units_and_candidates_without_cost_are_left_alone():
    costs = related(8)
    found = smooth(probes(costs), *numbers(8))
    assert np.array_equal(found.factors, np.ones(24))
    assert found.noise == pytest.approx(np.sqrt(2 / 64), rel=0.3)
    costs = related(50)
    costs[7, 1] = 0.0
    found = smooth(probes(costs), *numbers(50)).factors.reshape(50, 3)
    assert (found[7] == 1).all()
    assert (np.delete(found, 7, 0) != 1).all()
    assert smooth(np.zeros((6, 4, 5)), *numbers(2)).noise == 0.0


def test_units_with_other_candidates_tell_nothing():
    many, few = related(60), related(40, seed=3)[:, :2]
    values = np.concatenate([probes(many), probes(few, seed=2)])
    units = np.concatenate([numbers(60)[0], 60 + numbers(40, 2)[0]])
    found = smooth(values, units, numbers(60)[1] + numbers(40, 2)[1])
    assert np.array_equal(found.factors[:180], smooth(values[:180], *numbers(60)).factors)
    assert np.array_equal(found.factors[180:], smooth(values[180:], *numbers(40, 2)).factors)
