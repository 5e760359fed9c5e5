"""What a measurement depends on, and which samples are set aside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.keys import SampleChoice, entry_key, split_samples
from app.jobs.rules import split_sizes
from workers.contracts import Candidate, ComputeDtype, Metric, Scheme

BASE = {
    "model_sha256": "a" * 64,
    "dataset_sha256": "b" * 64,
    "unit": "conv.weight",
    "candidate": Candidate(bits=4, scheme=Scheme.parse("channel-asymmetric")),
    "metric": Metric.KL,
    "choice": SampleChoice(available=100, samples=None, holdout=0.0, seed=0),
    "block": (0, 100),
}


def choice(samples=None, holdout=0.0, seed=0):
    return SampleChoice(available=100, samples=samples, holdout=holdout, seed=seed)


@pytest.mark.parametrize(
    "other",
    [
        {"model_sha256": "c" * 64},
        {"dataset_sha256": "c" * 64},
        {"unit": "conv.bias"},
        {"candidate": Candidate(bits=5, scheme=Scheme.parse("channel-asymmetric"))},
        {"candidate": Candidate(bits=4, scheme=Scheme.parse("channel-symmetric"))},
        {"candidate": Candidate(bits=4, scheme=Scheme.parse("channel-asymmetric-mse"))},
        {"metric": Metric.MSE},
        {"choice": choice(samples=99)},
        {"choice": choice(holdout=0.1)},
        {"block": (0, 50)},
        {"block": (50, 100)},
        {"compute_dtype": ComputeDtype.MODEL},
    ],
    ids=str,
)
def test_whatever_the_value_depends_on_changes_the_key(other):
    assert entry_key(**BASE | other) != entry_key(**BASE)


@pytest.mark.parametrize("same", [choice(samples=100), choice(seed=9), choice(samples=100, seed=9)], ids=str)
def test_what_makes_no_difference_does_not(same):
    assert entry_key(**BASE | {"choice": same}) == entry_key(**BASE)


def test_the_seed_counts_when_it_chooses_samples():
    assert choice(samples=50, seed=1).key() != choice(samples=50, seed=2).key()
    assert choice(holdout=0.5, seed=1).key() != choice(holdout=0.5, seed=2).key()


def test_the_seed_counts_when_it_orders_samples():
    first, second = (BASE | {"choice": choice(seed=seed), "block": (0, 50)} for seed in (0, 1))
    assert entry_key(**first) != entry_key(**second)


def test_taking_all_that_is_not_held_out_is_no_choice():
    assert choice(samples=75, holdout=0.25).key() == choice(holdout=0.25).key()


def test_the_key_of_a_measurement_stays_what_it_is():
    # Measurements outlive releases: this changes only together with MEASURE_VERSION.
    assert entry_key(**BASE) == "8ced9bc556132a35ec15f5268178aa0608d82dc28aa162031b45f07d0c5bc69f"


@given(st.integers(2, 500), st.floats(0, 0.9), st.integers(0, 2**63 - 1))
def test_a_split_parts_the_samples(available, holdout, seed):
    split = split_samples(available, holdout, seed)
    if split.evaluation is None:
        assert holdout == 0
        assert split.calibration is None
        return
    calibration, evaluation = set(split.calibration), set(split.evaluation)
    assert calibration
    assert evaluation
    assert calibration | evaluation == set(range(available))
    assert not calibration & evaluation
    assert list(split.calibration) == sorted(calibration)
    assert list(split.evaluation) == sorted(evaluation)
    assert (len(calibration), len(evaluation)) == split_sizes(available, holdout)
    assert abs(len(evaluation) - available * holdout) <= 1


def test_a_split_is_the_same_everywhere():
    assert split_samples(10, 0.3, 7) == split_samples(10, 0.3, 7)
    assert split_samples(10, 0.3, 7).evaluation == (0, 2, 5)
    assert split_samples(10, 0.3, 8) != split_samples(10, 0.3, 7)
