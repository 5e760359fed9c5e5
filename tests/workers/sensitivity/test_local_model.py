"""The local model against its sums written out."""

import numpy as np
import pytest

from workers.sensitivity.gram import shrinkage
from workers.sensitivity.local_model import Trust, local_costs

ENTRIES, SAMPLES = 5, 12
CHOSEN = np.array([True, False, False, True, False])


@pytest.fixture
def found():
    rng = np.random.default_rng(1)

    def make(probes):
        gradients, values = rng.normal(size=(ENTRIES, SAMPLES)), rng.normal(size=(probes, ENTRIES, SAMPLES))
        gradients[CHOSEN] = values[:, CHOSEN] = 0.0
        return gradients, values, np.where(CHOSEN, 0.0, rng.normal(size=ENTRIES))

    return make


def cost(model, changes):
    return model.linear[changes].sum() + np.square(model.factors[changes].sum(0)).sum()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("changes", [[1], [2, 4], [1, 2, 4]])
def test_it_is_the_mean_of_first_and_second_order_and_the_added_costs(found, share, changes):
    gradients, values, added = found(probes=40)  # enough numbers for each entry: nothing is shrunk
    model = local_costs(gradients, values, added, CHOSEN, Trust(share=share, caution=0.0))
    first = sum(gradients[k, n] for k in changes for n in range(SAMPLES)) / SAMPLES
    second = np.mean([sum(values[p, k, n] for k in changes) ** 2 for p in range(40) for n in range(SAMPLES)])
    expected = share * (first + second) + (1 - share) * sum(added[k] for k in changes)
    assert cost(model, changes) == pytest.approx(expected)


@pytest.mark.parametrize("probes", [1, 40])  # with one products are shrunk
def test_curvature_is_how_much_of_the_second_order_is_believed(found, probes):
    gradients, values, added = found(probes=probes)
    flat, half, whole = (
        local_costs(gradients, values, added, CHOSEN, Trust(share=0.5, caution=0.0, curvature=c))
        for c in (0.0, 0.5, 1.0)
    )
    assert not flat.factors.any()
    for changes in ([1], [2, 4], [1, 2, 4]):
        first, both = cost(flat, changes), cost(whole, changes)
        assert both > first + 0.1
        assert cost(half, changes) == pytest.approx((first + both) / 2)


@pytest.mark.parametrize("curvature", [1.0, 0.25])
def test_caution_charges_standard_errors_over_samples(found, curvature):
    gradients, values, added = found(probes=40)
    bold, careful = (
        local_costs(gradients, values, added, CHOSEN, Trust(share=0.5, caution=caution, curvature=curvature))
        for caution in (0.0, 2.0)
    )
    for k in range(ENTRIES):
        single = [
            gradients[k, n] + curvature * np.mean([v[k, n] ** 2 for v in values]) for n in range(SAMPLES)
        ]
        error = np.std(single, ddof=1) / SAMPLES**0.5
        assert careful.linear[k] - bold.linear[k] == pytest.approx(0.5 * 2 * error)
    np.testing.assert_array_equal(careful.factors, bold.factors)


def test_shrinking_leaves_single_changes_and_what_is_chosen_alone(found):
    gradients, values, added = found(probes=1)
    values = np.where(CHOSEN[:, None], 0.0, values + 2 * np.random.default_rng(2).normal(size=SAMPLES))
    vectors = (values / np.sqrt(SAMPLES)).swapaxes(0, 1).reshape(ENTRIES, -1)
    shrunk = shrinkage(vectors)
    assert 0 < shrunk < 1
    model = local_costs(gradients, values, added, CHOSEN, Trust(share=1.0, caution=0.0))
    for k in range(ENTRIES):
        assert cost(model, [k]) == pytest.approx(gradients[k].mean() + np.square(values[0, k]).mean())
    product = 2 * np.mean(values[0, 1] * values[0, 2])
    assert cost(model, [1, 2]) - cost(model, [1]) - cost(model, [2]) == pytest.approx((1 - shrunk) * product)
    assert not model.linear[CHOSEN].any()
    assert not model.factors[CHOSEN].any()
