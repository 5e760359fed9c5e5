"""Sketches keep inner products in expectation, and miss them by what is stated."""

import numpy as np
import pytest
import torch

from workers.errors import RequestRefused
from workers.sampling import SketchRequest
from workers.sensitivity import acceleration
from workers.sensitivity.sketches import Projection


def two_changes(rows, classes, relation=0.5):
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=(2, rows, classes))
    return torch.tensor(np.stack([one, relation * one + other]), dtype=torch.float32)


def sketched(projection, change, cuts=()):
    sketch = projection.start()
    for start, stop in zip((0, *cuts), (*cuts, len(change)), strict=True):
        projection.add(sketch, start, change[start:stop])
    return sketch.flatten().double()


SHAPES = {
    # rows, classes, numbers kept, projections -> groups, width
    "short rows, all kept": (10, 6, 64, 1, (10, 6)),
    "long rows, all kept": (2, 40, 128, 1, (2, 40)),
    "short rows added up": (100, 6, 64, 1, (10, 6)),
    "long rows reduced": (32, 70, 64, 1, (32, 2)),
    "one number a row": (64, 70, 64, 1, (64, 1)),
    "long rows reduced and added up": (300, 70, 64, 4, (16, 4)),
    "one group": (5, 100, 64, 64, (1, 64)),
}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


def projection_for(shape, seed=0):
    rows, classes, columns, projections, _ = shape
    request = SketchRequest(columns=columns, projections=projections)
    return Projection.of(request, rows=rows, classes=classes, seed=(seed,))


def test_compiled_sums_are_those_by_tensors(shape, monkeypatch):
    changes = two_changes(*shape[:2])[0]
    found = sketched(projection_for(shape), changes)
    monkeypatch.setattr(acceleration, "suits", lambda *values: False)
    expected = sketched(projection_for(shape), changes)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_size(shape):
    projection = projection_for(shape)
    assert (projection.groups, projection.width) == shape[-1]
    assert projection.start().numel() <= shape[2]
    assert projection.whole == (shape[:2] == shape[-1])


def test_the_split_of_rows_does_not_matter(shape):
    projection = projection_for(shape)
    change = two_changes(*shape[:2])[0]
    cuts = (1,) if len(change) < 10 else (3, 4, 9)
    assert torch.allclose(
        sketched(projection, change, cuts), sketched(projection, change), rtol=1e-5, atol=1e-5
    )


def test_the_map_is_linear(shape):
    projection = projection_for(shape)
    one, other = two_changes(*shape[:2])
    both = sketched(projection, 2 * one - other)
    assert torch.allclose(
        both, 2 * sketched(projection, one) - sketched(projection, other), rtol=1e-4, atol=1e-4
    )


def test_products_are_right_in_expectation_and_off_by_no_more_than_stated(shape):
    changes = two_changes(*shape[:2])
    exact = (changes.double().flatten(1) @ changes.double().flatten(1).T).numpy()
    found = []
    for seed in range(300):
        projection = projection_for(shape, seed)
        sketches = torch.stack([sketched(projection, change) for change in changes])
        found.append((sketches @ sketches.T).numpy())
    errors = np.array(found) - exact
    numbers = projection.start().numel()
    squares = exact.diagonal()
    stated = np.sqrt((np.outer(squares, squares) + exact**2) / numbers)
    assert (np.abs(errors.mean(0)) < 4 * stated / np.sqrt(len(found)) + 1e-5).all()
    assert (errors.std(0) < 1.25 * stated).all()
    if projection.whole:
        assert np.allclose(errors, 0, atol=1e-4)


def test_rows_that_are_all_alike_do_not_make_it_worse():
    """Signs shared between rows would: then the error would not fall with the number of rows."""
    row = two_changes(1, 200)[0]
    change = row.expand(64, -1)
    exact = float(change.square().sum())
    found = []
    for seed in range(100):
        sketch = sketched(projection_for((64, 200, 64, 1, None), seed), change)
        found.append(float(sketch @ sketch) / exact)
    assert np.std(found) < 1.3 * np.sqrt(2 / 64)
    assert np.mean(found) == pytest.approx(1, abs=4 * np.sqrt(2 / 64 / 100))


def test_the_seed_decides():
    change = two_changes(100, 70)[0]
    shape = (100, 70, 64, 1, None)
    assert torch.equal(sketched(projection_for(shape, 3), change), sketched(projection_for(shape, 3), change))
    assert not torch.equal(
        sketched(projection_for(shape, 3), change), sketched(projection_for(shape, 4), change)
    )


@pytest.mark.parametrize(("field", "value"), [("columns", 63), ("projections", 0), ("projections", 65)])
def test_bad_requests(field, value):
    with pytest.raises(RequestRefused, match=str(value)) as caught:
        SketchRequest(**{field: value})
    assert caught.value.field == field
