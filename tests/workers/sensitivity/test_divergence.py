"""The fused comparison against SciPy and NumPy in float64."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from workers.sampling import SketchForm
from workers.sensitivity import acceleration, divergence
from workers.sensitivity.metrics import COST_LIMIT

WAYS = ["compiled", "by tensors"]


@pytest.fixture(autouse=True, params=WAYS)
def way(request, monkeypatch):
    """All of it holds compiled, and without numba."""
    if request.param == "by tensors":
        monkeypatch.setattr(acceleration, "suits", lambda *values: False)
    return request.param


def outputs(*shape, change, seed=0, spread=3.0):
    draw = torch.Generator().manual_seed(seed)
    reference = spread * torch.randn(*shape, generator=draw)
    return reference, reference + change * torch.randn(*shape, generator=draw) + 0.7


def by_scipy(reference, output):
    p, q = softmax(reference.double().numpy(), -1), softmax(output.double().numpy(), -1)
    rows = rel_entr(p, q).sum(-1)
    return rows.reshape(len(rows), -1).mean(-1)


def changes(reference, output, form, **options):
    found = []
    divergence.kl(
        reference, output, form=form, take=lambda first, change: found.append((first, change)), **options
    )
    assert [first for first, _ in found] == list(np.cumsum([0, *(len(change) for _, change in found)])[:-1])
    return torch.cat([change for _, change in found]).double().numpy()


@pytest.mark.parametrize("change", [10.0, 1.0, 1e-2, 1e-3])
@pytest.mark.parametrize("shape", [(7, 10), (3, 5, 1000), (2, 3, 4, 2)])
def test_divergence_against_scipy(shape, change):
    reference, output = outputs(*shape, change=change)
    assert divergence.kl(reference, output).numpy() == pytest.approx(by_scipy(reference, output), rel=2e-4)


@pytest.mark.parametrize("change", [1.0, 1e-2, 1e-3, 1e-4])
def test_small_changes_of_large_outputs_lose_nothing(change, way):
    """Sums of many float32 terms, none of which cancel: compiled they are as good as the outputs themselves."""
    reference, output = outputs(4, 20_000, change=change)
    precision = {"compiled": 2e-7, "by tensors": max(1e-5, 1e-7 / change)}
    assert divergence.kl(reference, output).numpy() == pytest.approx(
        by_scipy(reference, output), rel=precision[way]
    )


def test_threads_change_nothing():
    reference, output = outputs(64, 4096, change=0.1)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append((divergence.kl(reference, output), changes(reference, output, SketchForm.HELLINGER)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])


def test_many_rows_go_in_chunks(monkeypatch):
    reference, output = outputs(6, 5, 40, change=0.1)
    whole = divergence.kl(reference, output)
    form = SketchForm.HELLINGER
    change = changes(reference, output, form)
    monkeypatch.setattr(divergence, "_CHUNK_ELEMENTS", 90)
    assert divergence.kl(reference, output).numpy() == pytest.approx(whole.numpy(), rel=1e-5)
    assert np.allclose(changes(reference, output, form), change, rtol=1e-4, atol=1e-7)


def test_double_outputs_are_compared_in_double():
    reference, output = outputs(5, 30, change=1e-6)
    reference, output = reference.double(), output.double()
    output = reference + (output - reference) * 1e-3
    assert divergence.kl(reference, output).numpy() == pytest.approx(by_scipy(reference, output), rel=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_outputs(kind):
    reference, output = (t.to(kind) for t in outputs(4, 50, change=0.3))
    assert divergence.kl(reference, output).numpy() == pytest.approx(by_scipy(reference, output), rel=1e-4)


INF = float("inf")
UNUSUAL = {
    # float outputs, quantized outputs
    "impossible in both": ([0.0, 1.0, -INF], [0.5, 0.0, -INF]),
    "becomes possible": ([0.0, 1.0, -INF], [0.5, 0.0, 0.0]),
    "had no chance, takes all": ([0.0, 1.0, -200.0], [0.5, 0.0, 90.0]),
    "had no chance, has hardly any": ([0.0, 1.0, -200.0], [0.5, 0.0, -114.0]),
    "far away": ([0.0, 300.0, 0.0], [300.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_rows(name):
    reference, output = (torch.tensor([row, [0.0, 1.0, 2.0]]) for row in UNUSUAL[name])
    output[1] += torch.tensor([0.1, 0.0, -0.1])
    expected = by_scipy(reference, output)
    assert divergence.kl(reference, output).numpy() == pytest.approx(expected, rel=1e-5)
    p, q = softmax(reference.double(), -1), softmax(output.double(), -1)
    found = changes(reference, output, SketchForm.HELLINGER)
    assert found == pytest.approx(np.sqrt(2) * (np.sqrt(q) - np.sqrt(p)), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("broken", [float("nan"), INF])
def test_broken_outputs_cost_the_limit(broken):
    reference, output = outputs(2, 3, 4, change=0.1)
    output[0, 1, 2] = broken
    found = divergence.kl(reference, output)
    assert found[0] == COST_LIMIT
    assert 0 < found[1] < 1
    impossible = torch.tensor([[0.0, -INF, 0.0]])  # a class that had a chance
    assert divergence.kl(torch.zeros(1, 3), impossible) == COST_LIMIT


@pytest.mark.parametrize("change", [3.0, 0.1, 1e-3])
def test_changes_against_numpy(change):
    reference, output = outputs(4, 3, 60, change=change)
    z, y = (t.double().reshape(-1, 60).numpy() for t in (reference, output))
    p, q = softmax(z, -1), softmax(y, -1)
    hellinger = np.sqrt(2) * (np.sqrt(q) - np.sqrt(p))
    scale = np.abs(hellinger).max()
    assert changes(reference, output, SketchForm.HELLINGER) == pytest.approx(hellinger, abs=1e-5 * scale)
    d = y - z
    fisher = np.sqrt(p / 2) * (d - (p * d).sum(-1, keepdims=True))
    scale = np.abs(fisher).max()
    assert changes(reference, output, SketchForm.FISHER) == pytest.approx(fisher, abs=1e-5 * scale)


@pytest.mark.parametrize("form", list(SketchForm))
def test_squares_of_small_changes_add_up_to_the_divergence(form):
    reference, output = outputs(5, 8, 20, change=1e-2)
    squares = np.square(changes(reference, output, form)).sum(-1).reshape(5, 8).mean(-1)
    assert squares == pytest.approx(by_scipy(reference, output), rel=1e-2)


@pytest.mark.parametrize("form", list(SketchForm))
def test_positions_that_do_not_count(form):
    reference, output = outputs(3, 4, 20, change=1e-2)
    counted = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()
    output[~counted] = float("nan")
    expected = [
        by_scipy(r[c][None], o[c][None])[0] for r, o, c in zip(reference, output, counted, strict=True)
    ]
    assert divergence.kl(reference, output, counted=counted).numpy() == pytest.approx(expected, rel=1e-3)
    change = changes(reference, output, form, counted=counted)
    assert np.square(change).sum(-1).reshape(3, 4).mean(-1) == pytest.approx(expected, rel=2e-2)


def test_a_constant_change_of_all_outputs_costs_nothing():
    reference, _ = outputs(4, 100, change=0.0)
    assert divergence.kl(reference, reference).abs().max() == 0
    assert divergence.kl(reference, reference + 1.0).max() < 1e-11
