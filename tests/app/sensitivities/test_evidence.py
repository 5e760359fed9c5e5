"""From rows to arrays: what of estimates is believed."""

import numpy as np
import pytest

from app.sensitivities.evidence import Estimates, evidence_of
from app.sensitivities.smoothing import smooth

BITS = (2, 4, 8)
BLOCKS = ((0, 3), (3, 8))


def estimates(units=30, probes=4, samples=8):
    draw = np.random.default_rng(0)
    size = np.exp(draw.normal(size=(units, 1, 1, 1))) * np.array([1.0, 0.1, 0.01])[None, :, None, None]
    values = np.sqrt(size) * draw.standard_normal((units, len(BITS), probes, samples))
    keys = [(f"unit {unit}", f"{bits}:channel-symmetric") for unit in range(units) for bits in BITS]
    return Estimates(
        keys=tuple(keys), values=values.reshape(-1, probes, samples), storage_bits=(1,) * len(keys)
    )


def test_what_signs_added_is_taken_out_on_all_samples_alike():
    found = estimates()
    evidence = evidence_of(found.keys, [], found, blocks=BLOCKS, noisy=True)
    expected = smooth(found.values, np.repeat(np.arange(30), 3), list(BITS) * 30)
    raw = np.square(found.values).mean(1)
    assert evidence.estimates == pytest.approx(raw * expected.factors[:, None])
    assert evidence.noise == expected.noise > 0
    assert np.array_equal(evidence.units, np.repeat(np.arange(30), 3))
    assert np.array_equal(evidence.bits, list(BITS) * 30)
    assert evidence.first == 3, "samples of the first block"


def test_scores_without_signs_are_taken_as_they_are():
    found = estimates()
    evidence = evidence_of(found.keys, [], found, blocks=BLOCKS, noisy=False)
    assert evidence.estimates == pytest.approx(np.square(found.values).mean(1))
    assert evidence.noise == 0
