import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from solver.interactions import Interactions
from workers.contracts import Entry, Metric
from workers.errors import RequestRefused
from workers.sampling import SampleBlock
from workers.sensitivity.gram import pairwise_costs

UNITS, CANDIDATES = 3, 2


def entry(vector, *, samples=8, block=None):
    return Entry(
        unit="unit",
        bits=4,
        scheme="channel-symmetric",
        metric=Metric.KL,
        size_bits=1,
        storage_bits=1,
        mean=0.0,
        standard_error=None,
        samples=samples,
        seconds=0.0,
        block=block,
        sketch=None if vector is None else np.asarray(vector, "<f4").tobytes(),
    )


def vectors(columns, seed=0, cells=UNITS * CANDIDATES):
    return np.random.default_rng(seed).normal(size=(cells, columns)).astype(np.float32).astype(float)


def cells(parts):
    """Per unit and candidate; one list of entries per cell."""
    parts = list(parts)
    return [parts[unit * CANDIDATES : (unit + 1) * CANDIDATES] for unit in range(len(parts) // CANDIDATES)]


COSTS = np.arange(1.0, 7.0).reshape(UNITS, CANDIDATES)


def cost_of(found, plan):
    """What the solver would say of a plan."""
    interactions = Interactions.from_factors(found.factors, units=UNITS, candidates=CANDIDATES)
    return found.costs[np.arange(UNITS), plan].sum() + interactions.value(np.asarray(plan))


def lengthened(v, costs):
    """Vectors whose squares are the costs."""
    return v * np.sqrt(np.ravel(costs) / np.square(v).sum(1))[:, None]


def test_products_of_different_units_are_added_to_the_measured_costs():
    v = vectors(30)
    found = pairwise_costs(COSTS, cells([entry(row)] for row in v))
    assert found.shrinkage == 0
    assert found.known == 6
    for plan in ((0, 0, 0), (1, 0, 1), (1, 1, 1)):
        chosen = [lengthened(v, COSTS)[unit * CANDIDATES + candidate] for unit, candidate in enumerate(plan)]
        between = sum(a @ b for i, a in enumerate(chosen) for j, b in enumerate(chosen) if i != j)
        assert cost_of(found, plan) == pytest.approx(COSTS[range(UNITS), plan].sum() + between)


def test_a_unit_alone_costs_what_was_measured():
    v = vectors(30)
    measured = cells([[entry(v[0])], [entry(v[1])], [], [], [], [entry(None)]])
    costs = np.zeros((UNITS, CANDIDATES))
    costs[0] = 0.5, 0.25
    found = pairwise_costs(costs, measured)
    assert found.known == 2
    assert cost_of(found, (0, 0, 1)) == pytest.approx(0.5)
    assert cost_of(found, (1, 1, 0)) == pytest.approx(0.25)


def test_blocks_together_are_what_all_samples_are():
    v = vectors(40)
    first, second = SampleBlock(start=0, stop=6), SampleBlock(start=6, stop=8)
    whole = pairwise_costs(COSTS, cells([entry(row)] for row in v))
    # A block's sketch is scaled by its own number of samples.
    parts = [
        [
            entry(row[25:] / 0.25**0.5, samples=2, block=second),
            entry(row[:25] / 0.75**0.5, samples=6, block=first),
        ]
        for row in v
    ]
    blocks = pairwise_costs(COSTS, cells(parts))
    assert np.allclose(blocks.factors, whole.factors, rtol=1e-6)
    assert np.allclose(blocks.costs, whole.costs, rtol=1e-6)


def test_entries_with_different_blocks_keep_their_squares_and_share_what_both_have():
    v = vectors(40)
    first, second = SampleBlock(start=0, stop=6), SampleBlock(start=6, stop=8)
    parts = [[entry(row[:25], samples=6, block=first)] for row in v]
    parts[0].append(entry(v[0][25:], samples=2, block=second))
    found = pairwise_costs(COSTS, cells(parts))
    gram = found.factors @ found.factors.T
    squares = 0.75 * v[0][:25] @ v[0][:25] + 0.25 * v[0][25:] @ v[0][25:], v[1][:25] @ v[1][:25]
    assert np.diagonal(gram) == pytest.approx(COSTS.ravel())
    correlation = 0.75**0.5 * v[0][:25] @ v[1][:25] / np.sqrt(squares[0] * squares[1])
    assert gram[0, 1] == pytest.approx(correlation * np.sqrt(COSTS[0, 0] * COSTS[0, 1]))


def test_a_cost_that_is_not_positive_has_no_interactions():
    costs = COSTS.copy()
    costs[1, 0] = -0.5
    found = pairwise_costs(costs, cells([entry(row)] for row in vectors(30)))
    assert found.known == 5
    assert not found.factors[CANDIDATES].any()
    assert found.costs[1, 0] == -0.5


def test_short_sketches_are_shrunk_towards_no_interaction():
    v = vectors(12)  # unrelated: all products are noise
    found = pairwise_costs(COSTS, cells([entry(row)] for row in v))
    assert found.shrinkage > 0.6
    assert found.costs + np.square(found.factors).sum(1).reshape(COSTS.shape) == pytest.approx(COSTS)
    alike = v[:1] + 0.01 * v  # all the same: all products are real
    assert pairwise_costs(COSTS, cells([entry(row)] for row in alike)).shrinkage < 0.15


def test_shrinkage_brings_products_closer_to_the_truth():
    """Against the Gram matrix that infinitely long sketches would give, and against scikit-learn's estimate."""
    draw = np.random.default_rng(5)
    mixing = draw.normal(size=(UNITS * CANDIDATES, 3)) * 0.6
    truth = mixing @ mixing.T + np.eye(UNITS * CANDIDATES)
    raw, shrunk, peer = [], [], []
    costs = np.diagonal(truth).reshape(UNITS, CANDIDATES)
    for _ in range(50):
        v = (np.linalg.cholesky(truth) @ draw.normal(size=(UNITS * CANDIDATES, 10))) / 10**0.5
        found = pairwise_costs(costs, cells([entry(row)] for row in v))
        off = ~np.eye(len(truth), dtype=bool)
        raw.append(np.square((v @ v.T - truth)[off]).sum())
        shrunk.append(np.square((found.factors @ found.factors.T - truth)[off]).sum())
        peer.append(np.square((ledoit_wolf(v.T * 10**0.5, assume_centered=True)[0] - truth)[off]).sum())
    assert np.mean(shrunk) < 0.95 * np.mean(raw)
    assert np.mean(shrunk) < 1.1 * np.mean(peer)


def test_nothing_measured_means_no_interactions():
    found = pairwise_costs(COSTS, cells([] for _ in range(6)))
    assert found.known == 0
    assert not found.factors.any()
    assert np.array_equal(found.costs, COSTS)
    assert cost_of(found, (1, 0, 1)) == COSTS[0, 1] + COSTS[1, 0] + COSTS[2, 1]


def test_bad_tables():
    v = vectors(30)
    measured = cells([entry(row)] for row in v)
    with pytest.raises(RequestRefused, match="do not fit"):
        pairwise_costs(COSTS[:2], measured)
    measured[1][1] = [entry(v[0][:20])]
    with pytest.raises(RequestRefused, match="20 and 30 numbers"):
        pairwise_costs(COSTS, measured)
