"""Into how many blocks samples are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.blocks import FEWEST, MOST, measure_blocks
from app.jobs.tasks import cut, source_of
from app.jobs.tasks import measure_blocks as measure_blocks_of
from app.models import Dataset, Model
from workers.contracts import InputInfo, Metric


def output(*shape):
    return InputInfo(name="y", dtype="float32", shape=shape)


@pytest.mark.parametrize(
    ("metric", "shape", "positions", "samples", "blocks"),
    [
        # One divergence for each photo: sixteen of them a block, or as many as a fourth of them is.
        (Metric.KL, (None, 1000), 1, 16, 4),
        (Metric.KL, (None, 1000), 1, 64, 4),
        (Metric.KL, (None, 1000), 1, 96, 6),
        (Metric.KL, (None, 1000), 1, 512, 8),
        # Texts are means over their words already.
        (Metric.KL, (None, 64, 49152), 1, 16, 8),
        (Metric.KL, (None, None, 49152), 64, 16, 8),
        (Metric.KL, (None, None, 49152), 3, 32, 6),
        (Metric.LOSS, (None, None, 49152), 64, 16, 8),
        # Errors are means over all numbers.
        (Metric.MSE, (None, 384), 1, 16, 8),
        (Metric.MSE, (None, 1), 1, 16, 4),
        (Metric.MSE, (None,), 1, 96, 6),
        (Metric.MSE, (None, 3, None, None), 40_000, 8, 4),
    ],
)
def test_blocks_by_what_a_sample_tells(metric, shape, positions, samples, blocks):
    assert measure_blocks(metric, output(*shape), positions, samples) == blocks


@given(st.sampled_from(Metric), st.integers(1, 2000), st.integers(1, 300), st.integers(1, 5000))
def test_more_to_tell_never_means_fewer_blocks(metric, classes, positions, samples):
    found = [
        measure_blocks(metric, output(None, None, classes), p, n)
        for p, n in ((positions, samples), (positions + 1, samples), (positions, samples + 1))
    ]
    assert FEWEST <= found[0] <= min(found[1:])
    assert max(found) <= MOST


@pytest.mark.parametrize(
    ("outputs", "values", "blocks"),
    [
        ([("logits", (None, 10))], {"metric": "auto"}, 4),
        ([("logits", (None, 7, 10))], {"metric": "auto"}, 8),
        ([("logits", (None, 10))], {"metric": "mse", "regret": 0.01}, 8),
        ([("boxes", (None, 10)), ("logits", (None, 7, 10))], {"metric": "auto", "output": "logits"}, 8),
        ([("logits", (None, 7, 10))], {"metric": "kl"}, None),
        ([("logits", (None, 7, 10))], {"metric": "probe"}, None),
        ([], {"metric": "auto", "compare": "mse"}, None),
    ],
)
def test_a_job_says_into_how_many_where_plans_decide(api, world, outputs, values, blocks):
    model_id = world.model().id
    with world.database.write() as session:
        model = session.get_one(Model, model_id)
        found = [{"name": name, "dtype": "float32", "shape": list(shape)} for name, shape in outputs]
        model.description = model.description | {"outputs": found}
    job = api.post("/v1/jobs", json=world.body(model=model_id, **values))
    assert job.status_code == 202, job.json()
    assert job.json()["request"].get("blocks") == blocks


@pytest.mark.parametrize(("size", "blocks"), [(4, 8), (1, 4)])
def test_positions_are_those_of_the_data_where_the_model_leaves_them_open(api, world, size, blocks):
    model_id, dataset_id = world.model().id, world.dataset().id
    with world.database.write() as session:
        model = session.get_one(Model, model_id)
        model.description = model.description | {
            "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 3, size if size == 1 else None, 4]}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": [None, None, 10]}],
        }
        dataset = session.get_one(Dataset, dataset_id)
        dataset.tensors = {"x": {"dtype": "float32", "shape": [40, 3, size, 4]}}
    job = api.post("/v1/jobs", json=world.body(model=model_id, dataset=dataset_id, metric="auto")).json()
    assert job["request"]["blocks"] == blocks


def test_jobs_from_before_there_was_a_choice_have_quarters(world):
    for metric, regret, parts in (("auto", 0.01, FEWEST), ("kl", 0.01, FEWEST), ("kl", None, 1)):
        job = world.job(metric=metric, **({} if regret is None else {"regret": regret}))
        with world.database.read() as session:
            blocks = measure_blocks_of(source_of(session, job), {"regret": regret})
        assert blocks == cut(40, parts)
