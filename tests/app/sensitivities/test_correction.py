"""Estimates held against what was measured: the scale and the error that ratios show, for each width by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.sensitivities.correction import PRIOR_ERROR, PRIOR_ERRORS, correct


def test_too_few_measured_entries_change_nothing():
    estimated = np.arange(1.0, 11.0)
    bits = np.array([2, 3, 4, 5, 8] * 2)
    found = correct(estimated, np.where(np.arange(10) < 5, 3 * estimated, np.nan), bits)
    assert (found.costs == estimated).all()
    prior = np.array([PRIOR_ERRORS.get(b, PRIOR_ERROR) for b in bits])
    assert found.errors == pytest.approx(prior * estimated)
    assert (estimated == np.arange(1.0, 11.0)).all(), "what was given is left alone"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    factors=st.lists(st.floats(0.2, 5.0), min_size=2, max_size=2),
    number=st.integers(6, 40),
)
def test_a_common_factor_is_found_for_each_width(seed, factors, number):
    rng = np.random.default_rng(seed)
    bits = np.repeat([2, 4], number)
    estimated = np.exp(rng.normal(0, 2, 2 * number))
    factor = np.repeat(factors, number)
    measured = np.where(rng.permuted(np.tile([True, False], number)), estimated * factor, np.nan)
    measured[:6], measured[-6:] = (estimated * factor)[:6], (estimated * factor)[-6:]
    found = correct(estimated, measured, bits)
    assert found.costs == pytest.approx(estimated * factor)
    # Without any spread the error still is a third of what it is taken to be at first.
    assert found.errors == pytest.approx(found.costs * np.where(bits == 2, 0.35, 0.15) / 3)


def test_the_error_is_the_spread_of_the_ratios_and_outliers_do_not_move_it():
    rng = np.random.default_rng(0)
    estimated = np.exp(rng.normal(0, 2, 4000))
    measured = estimated * 1.5 * (1 + 0.3 * rng.standard_normal(4000))
    measured[:200] = 1e6 * estimated[:200]
    found = correct(estimated, measured, np.full(4000, 4))
    assert found.costs / estimated == pytest.approx(np.full(4000, 1.5), rel=0.05)
    assert found.errors / found.costs == pytest.approx(np.full(4000, 0.3), rel=0.12)


def test_entries_that_cost_nothing_say_nothing():
    estimated = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    measured = np.array([5.0, 0.0, 0.0, -1.0, 2.0, 2.0, 2.0, 2.0])
    found = correct(estimated, measured, np.full(8, 4))
    assert (found.costs == estimated).all()


def test_what_measuring_adds_to_the_spread_is_not_the_estimates():
    rng = np.random.default_rng(1)
    estimated, bits = np.exp(rng.normal(0, 2, 4000)), np.full(4000, 4)
    measured = estimated * (1 + 0.4 * rng.standard_normal(4000))
    alone = correct(estimated, measured, bits, variances=np.full(4000, 0.4**2 - 0.2**2))
    assert alone.errors / alone.costs == pytest.approx(np.full(4000, 0.2), rel=0.2)
    noisy = correct(estimated, measured, bits, variances=np.full(4000, 0.4**2 - 0.2**2), noise=0.3)
    assert noisy.errors == pytest.approx(0.3 * noisy.costs)
    unknown = correct(estimated, np.full(4000, np.nan), bits, noise=0.2)
    assert unknown.errors == pytest.approx(0.25 * estimated), "on top of the prior of 15 %"
