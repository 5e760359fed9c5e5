"""Measuring on blocks of samples, and keeping output changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax

from workers.contracts import EstimateRequest, Estimator, Metric
from workers.errors import RequestRefused
from workers.sampling import SampleBlock, SketchForm, SketchRequest
from workers.sensitivity.blocks import positions_of
from workers.sensitivity.engine import measure
from workers.sensitivity.estimators.run import estimate
from workers.sensitivity.exact import quantized
from workers.sensitivity.session import load_model, prepare
from workers.sensitivity.statistics import combine

SKETCH = SketchRequest(columns=1 << 14)


def block(start, stop):
    return SampleBlock(start=start, stop=stop)


@pytest.mark.parametrize("fixed_batch", [None, 3])
@pytest.mark.parametrize("metric", list(Metric))
def test_blocks_combine_to_the_whole(make_case, metric, fixed_batch):
    case = make_case(labels=torch.tensor([0, 1, -100, 3, 4, 0, 1, 2]), fixed_batch=fixed_batch)
    whole = list(measure(case.request(metric=metric)))
    blocks = [list(measure(case.request(metric=metric, block=block(*b)))) for b in ((0, 2), (2, 3), (3, 8))]
    for entry, *parts in zip(whole, *blocks, strict=True):
        combined = combine(parts)
        assert combined.samples == entry.samples
        assert combined.mean == pytest.approx(entry.mean, rel=1e-4, abs=1e-9)
        assert combined.squares == pytest.approx(entry.squares, rel=1e-3, abs=1e-12)
        assert combined.standard_error == pytest.approx(entry.standard_error, rel=1e-3)


def test_the_block_of_all_samples_is_what_no_block_is(make_case):
    case = make_case()
    whole = [(e.mean, e.squares) for e in measure(case.request())]
    assert [(e.mean, e.squares) for e in measure(case.request(block=block(0, 8)))] == whole


def test_blocks_are_random_subsets_of_the_chosen_samples(make_case):
    case = make_case(samples=40)

    def samples(**changes):
        return set(prepare(case.request(**changes)).batches.samples.tolist())

    chosen = samples(samples=20, seed=3)
    parts = [samples(samples=20, seed=3, block=block(*b)) for b in ((0, 5), (5, 11), (11, 20))]
    assert [len(part) for part in parts] == [5, 6, 9]
    assert set().union(*parts) == chosen
    assert parts[0] != set(sorted(chosen)[:5])
    assert samples(block=block(0, 5)) != samples(block=block(0, 5), seed=1)
    assert samples(block=block(0, 9)) > samples(block=block(0, 5))


def test_a_block_without_labels_counts_nothing(make_case):
    case = make_case(labels=torch.tensor([0] + [-100] * 7))
    parts = [
        next(measure(case.request(metric=Metric.LOSS, block=block(start, start + 1)))) for start in range(8)
    ]
    assert sorted(part.samples for part in parts) == [0] * 7 + [1]
    assert combine(parts).mean == pytest.approx(
        next(measure(case.request(metric=Metric.LOSS))).mean, rel=1e-5
    )


@pytest.mark.parametrize("metric", [Metric.KL, Metric.MSE])
def test_around_a_plan_blocks_tell_of_their_samples_what_the_whole_tells(make_case, metric):
    case = make_case(samples=9)
    measured = case.request(metric=metric, seed=2)
    request = EstimateRequest(
        model_path=measured.model_path,
        calibration_path=measured.calibration_path,
        metric=metric,
        estimator=Estimator.PROBE.value,
        wanted=measured.wanted,
        seed=2,
        around=dict(reversed(measured.wanted)),
    )
    whole = estimate(request)
    for part in (block(0, 4), block(4, 9)):
        found = estimate(replace(request, block=part))
        positions = positions_of(part, 9, 2)
        assert len(positions) == part.stop - part.start
        assert found.gradients == pytest.approx(whole.gradients[:, positions], rel=1e-3, abs=1e-6)
        assert found.values == pytest.approx(whole.values[:, :, positions], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (8, 9), (2, 2), (-1, 3)])
def test_bad_blocks(make_case, start, stop):
    with pytest.raises(RequestRefused) as caught:
        next(measure(make_case().request(block=block(start, stop))))
    assert caught.value.field == "block"


def outputs_of(case, choice):
    """First outputs of the eager model's file, float64 rows of classes."""
    loaded = load_model(case.model_path, "cpu")
    override = quantized(loaded.program, loaded.table, choice)
    (output, *_) = loaded.program.run(case.inputs, override)
    return output.double().reshape(-1, output.shape[-1]).numpy()


def change_by_numpy(case, entry, metric, form):
    before, after = outputs_of(case, []), outputs_of(case, [entry])
    p, q = softmax(before, -1), softmax(after, -1)
    if metric is Metric.MSE:
        return (after - before) / np.sqrt(before.size * before.var())
    if form is SketchForm.HELLINGER:
        return np.sqrt(2 / len(p)) * (np.sqrt(q) - np.sqrt(p))
    d = after - before
    return np.sqrt(p / (2 * len(p))) * (d - (p * d).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", ["cnn", "lm"])
@pytest.mark.parametrize("form", list(SketchForm))
@pytest.mark.parametrize("metric", list(Metric))
def test_sketches_that_hold_everything(make_case, kinds, name, metric, form):
    labels = torch.zeros((8,) if name == "cnn" else (8, 5), dtype=torch.int64)
    case = make_case(kinds[name], labels=labels)
    request = case.request(metric=metric, sketch=SketchRequest(columns=1 << 14, form=form))
    for choice, entry in zip(request.wanted, measure(request), strict=True):
        expected = change_by_numpy(case, choice, metric, form).ravel()
        found = np.frombuffer(entry.sketch, "<f4")
        assert found == pytest.approx(expected, abs=1e-4 * np.abs(expected).max())
        if metric is Metric.MSE:
            assert found @ found == pytest.approx(entry.mean, rel=1e-3)


def test_costs_are_the_same_with_and_without_sketches(make_case, kinds):
    case = make_case(kinds["lm"])
    plain = [entry.mean for entry in measure(case.request())]
    assert [entry.mean for entry in measure(case.request(sketch=SKETCH))] == plain


def gram_matrix(entries):
    vectors = np.stack([np.frombuffer(entry.sketch, "<f4").astype(float) for entry in entries])
    return vectors @ vectors.T


def test_short_sketches_estimate_the_gram_matrix(make_case, kinds):
    case = make_case(kinds["lm"], samples=64)
    whole = list(measure(case.request(sketch=SKETCH)))
    short = list(measure(case.request(sketch=SketchRequest(columns=256))))
    exact, found = gram_matrix(whole), gram_matrix(short)
    assert {len(entry.sketch) for entry in short} <= {4 * n for n in range(200, 257)}
    squares = exact.diagonal()
    stated = np.sqrt((np.outer(squares, squares) + exact**2) / 256)
    assert (np.abs(found - exact) < 5 * stated).all()
    assert np.abs((found - exact) / stated).max() > 0.1


def test_sketches_are_the_same_in_every_shard(make_case, kinds):
    case = make_case(kinds["lm"])
    request = case.request(sketch=SketchRequest(columns=64), block=block(1, 7))
    whole = [entry.sketch for entry in measure(request)]
    alone = [
        next(measure(case.request(sketch=request.sketch, block=request.block, wanted=(choice,)))).sketch
        for choice in request.wanted
    ]
    assert alone == whole


def test_a_broken_candidate_has_no_sketch(make_case, monkeypatch):
    case = make_case()
    spoil = lambda weight, *_, **__: torch.full_like(weight, torch.nan)  # noqa: E731
    monkeypatch.setattr("workers.quant.store.apply", spoil)
    assert {entry.sketch for entry in measure(case.request(sketch=SKETCH))} == {None}
