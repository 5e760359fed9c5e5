import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workers.errors import DatasetRefused
from workers.sensitivity.statistics import (
    MOST_RUNS,
    combine,
    moments,
    run_lengths,
    run_means,
    summarize,
)

COSTS = st.lists(st.floats(-1e4, 1e4) | st.just(float("nan")), max_size=20)


@given(parts=st.lists(COSTS, max_size=6))
def test_blocks_combine_to_the_whole(parts):
    whole = moments(np.array([cost for part in parts for cost in part], dtype=float))
    combined = combine(moments(np.array(part, dtype=float)) for part in parts)
    assert combined.samples == whole.samples
    assert combined.mean == pytest.approx(whole.mean, rel=1e-12, abs=1e-10)
    assert combined.squares == pytest.approx(whole.squares, rel=1e-9, abs=1e-9)


def test_costs_close_to_each_other_and_far_from_zero_keep_their_spread():
    costs = 1e4 + np.random.default_rng(0).normal(size=64) * 1e-3
    combined = combine(moments(part) for part in np.split(costs, 8))
    assert combined.squares == pytest.approx(np.square(costs - costs.mean()).sum(), rel=1e-6)


def test_against_scipy():
    costs = np.random.default_rng(1).normal(size=17)
    found = summarize(np.append(costs, np.nan))
    assert found.samples == 17
    assert found.mean == pytest.approx(costs.mean(), rel=1e-14)
    assert found.standard_error == pytest.approx(stats.sem(costs), rel=1e-12)


def test_one_sample_has_no_standard_error_and_none_is_refused():
    assert summarize(np.array([2.0])).standard_error is None
    with pytest.raises(DatasetRefused, match="no sample has a label"):
        summarize(np.array([np.nan]))


@pytest.mark.parametrize("samples", [1, 2, 63, 64, 65, 100, 640, 1000])
def test_runs_are_few_and_tell_the_mean(samples):
    costs = np.random.default_rng(samples).normal(size=samples)
    lengths, means = run_lengths(samples), run_means(costs)
    assert len(lengths) == len(means) == min(samples, MOST_RUNS)
    assert lengths.sum() == samples
    assert lengths.max() - lengths.min() <= 1
    ends = np.cumsum(lengths)
    assert means == pytest.approx([costs[a:b].mean() for a, b in zip(ends - lengths, ends, strict=True)])


def test_runs_leave_out_samples_that_do_not_count():
    costs = np.arange(128.0)
    costs[[0, 4, 5]] = np.nan
    means = run_means(costs)
    assert means[0] == 1.0
    assert np.isnan(means[2])
    assert means[3] == 6.5
