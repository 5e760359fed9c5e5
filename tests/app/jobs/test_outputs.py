"""A job may name which of the model's outputs it compares; all checks then look at that one."""

import pytest

from app.errors import InvalidRequest
from app.jobs.keys import SampleChoice, entry_key, probe_key
from app.jobs.outputs import with_output_first
from app.jobs.tasks import source_of
from app.models import Job, Model
from tests.app.world import description
from workers.contracts import Candidate, ComputeDtype, Metric, ModelDescription, Scheme
from workers.mixtures import mixture_text, parse_mixture

OUTPUTS = (
    {"name": "boxes", "dtype": "float32", "shape": [None]},
    {"name": "ids", "dtype": "int64", "shape": [None, 10]},
    {"name": "loss", "dtype": "float32", "shape": []},
    {"name": "logits", "dtype": "bfloat16", "shape": [None, 10]},
)


def model(outputs=OUTPUTS, batch_size=None):
    return ModelDescription.from_json(description() | {"outputs": list(outputs), "batch_size": batch_size})


def names(found):
    return [output.name for output in found.outputs]


@pytest.mark.parametrize("wanted", ["logits", "3"])
def test_the_named_output_comes_first_and_the_others_stay(wanted):
    assert names(with_output_first(model(), wanted)) == ["logits", "boxes", "ids", "loss"]


def test_by_default_the_first_that_can_be_compared():
    assert names(with_output_first(model(OUTPUTS[1:]), None))[0] == "logits"
    assert names(with_output_first(model(), None))[0] == "boxes"
    nothing = model(OUTPUTS[1:3])
    assert with_output_first(nothing, None) == nothing


def test_a_fixed_batch_is_the_samples_axis():
    fixed = (
        {"name": "state", "dtype": "float32", "shape": [1, 4]},
        {"name": "y", "dtype": "float32", "shape": [8, 4]},
    )
    assert names(with_output_first(model(fixed, 8), None))[0] == "y"


@pytest.mark.parametrize("wanted", ["ids", "1", "loss", "4", "-1", "", "Logits"])
def test_what_cannot_be_compared_is_refused_with_what_can(wanted):
    with pytest.raises(InvalidRequest) as refused:
        with_output_first(model(), wanted)
    assert refused.value.field == "output"
    assert refused.value.allowed == ["0 or boxes", "3 or logits"]


def test_keys_hold_an_output_only_where_one_is_named():
    common = {
        "model_sha256": "m",
        "dataset_sha256": "d",
        "metric": Metric.KL,
        "choice": SampleChoice(available=8, samples=None, holdout=0.0, seed=0),
        "block": (0, 8),
    }
    candidate = Candidate(bits=4, scheme=Scheme.parse("channel-symmetric"))
    entries = [
        entry_key(unit="u", candidate=candidate, **common, **o)
        for o in ({}, {"output": None}, {"output": "y"}, {"output": "z"})
    ]
    probes = [
        probe_key(offer_sha256="o", estimator="probe", probes=4, **common, **o)
        for o in ({}, {"output": None}, {"output": "y"}, {"output": "z"})
    ]
    for keys in (entries, probes):
        assert keys[0] == keys[1]
        assert len(set(keys)) == 3


@pytest.fixture
def several(world):
    """The id of a model of which the last output holds the classes."""
    made = world.model()
    with world.database.write() as session:
        row = session.get_one(Model, made.id)
        row.description = description() | {"outputs": list(OUTPUTS)}
    return made.id


def test_metrics_are_checked_against_that_output(api, world, several, problem):
    def submit(**members):
        return api.post("/v1/jobs", json=world.body(model=several, **members))

    refused = problem(submit(metric="kl"), 422, "invalid-request", "metric")
    assert "boxes" in refused["detail"]
    job = submit(metric="kl", output="3").json()
    assert job["request"]["output"] == "logits"
    assert submit(metric="auto", output="logits").json()["request"]["compare"] == "kl"
    by_default = submit(metric="auto").json()["request"]
    assert by_default["compare"] == "mse"
    assert "output" not in by_default
    with world.database.read() as session:
        assert source_of(session, session.get_one(Job, job["id"])).output == "logits"


def test_labels_are_checked_against_that_output(api, world, problem):
    made = world.model()
    with world.database.write() as session:
        narrow = {"name": "y", "dtype": "float32", "shape": [None, 4]}
        row = session.get_one(Model, made.id)
        row.description = description() | {"outputs": [narrow, OUTPUTS[3]]}
    body = world.body(model=made.id, dataset=world.dataset(labels=10).id, metric="loss")
    refused = problem(api.post("/v1/jobs", json=body), 422, "dataset-refused", "labels")
    assert refused["value"] == 9
    assert api.post("/v1/jobs", json=body | {"output": "logits"}).status_code == 202


def test_an_unknown_output_is_refused_and_nothing_is_created(api, world, several, problem):
    body = world.body(model=several, output="probabilities")
    before = world.rows()
    refused = problem(api.post("/v1/jobs", json=body), 422, "invalid-request", "output")
    assert refused["value"] == "probabilities"
    assert refused["allowed"] == ["0 or boxes", "3 or logits"]
    assert world.rows() == before


def test_a_models_outputs_are_listed(api, several):
    assert api.get(f"/v1/models/{several}").json()["outputs"] == list(OUTPUTS)


def test_a_compute_dtype_is_kept_where_it_is_not_the_default(api, world, problem):
    def submit(text):
        return api.post("/v1/jobs", json=world.body(compute_dtype=text))

    assert "compute_dtype" not in submit("float32").json()["request"]
    job = submit("model").json()
    assert job["request"]["compute_dtype"] == "model"
    with world.database.read() as session:
        assert source_of(session, session.get_one(Job, job["id"])).compute_dtype is ComputeDtype.MODEL
    refused = problem(submit("bfloat16"), 422, "invalid-request", "compute_dtype")
    assert refused["allowed"] == ["float32", "model"]


MIXED = (
    {"name": "boxes", "dtype": "float32", "shape": [None, 5, 4]},
    {"name": "score", "dtype": "float32", "shape": [None]},
    {"name": "logits", "dtype": "bfloat16", "shape": [None, 10]},
    {"name": "ids", "dtype": "int64", "shape": [None, 10]},
)


@pytest.fixture
def mixed(world):
    made = world.model()
    with world.database.write() as session:
        session.get_one(Model, made.id).description = description() | {"outputs": list(MIXED)}
    return made.id


@pytest.mark.parametrize(
    ("members", "text", "compare"),
    [
        ({"outputs": {"logits": 1, "1": 0.5}}, "score=0.5:mse,logits=1.0:kl", "kl"),
        (
            {"outputs": {"2": 2.0, "boxes": {"weight": 0.25, "compare": "mse"}}},
            "boxes=0.25:mse,logits=2.0:kl",
            "kl",
        ),
        ({"outputs": {"logits": 1.0, "boxes": 1.0}}, "boxes=1.0:kl,logits=1.0:kl", "kl"),
        ({"outputs": {"logits": 1.0, "boxes": 1.0}, "compare": "mse"}, "boxes=1.0:mse,logits=1.0:mse", "mse"),
        ({"outputs": {"logits": 1.0, "boxes": 1.0}, "metric": "mse"}, "boxes=1.0:mse,logits=1.0:mse", "mse"),
        ({"outputs": {"score": 3.0}}, "score=3.0:mse", "mse"),
        ({"outputs": {"score": 3.0, "logits": 1e-3}, "metric": "kl"}, "score=3.0:mse,logits=0.001:kl", "kl"),
    ],
)
def test_several_outputs_become_one_text_in_the_models_order(api, world, mixed, members, text, compare):
    made = api.post("/v1/jobs", json=world.body(model=mixed, **({"metric": "auto"} | members)))
    assert made.status_code == 202, made.text
    request = made.json()["request"]
    assert request["output"] == text
    assert request["compare"] == compare
    assert mixture_text(parse_mixture(text)) == text
    with world.database.read() as session:
        assert source_of(session, session.get_one(Job, made.json()["id"])).output == text


@pytest.mark.parametrize(
    ("members", "field", "part"),
    [
        ({"outputs": {"logits": 1.0, "nowhere": 1.0}}, "outputs", "no output 'nowhere'"),
        ({"outputs": {"logits": 1.0, "ids": 1.0}}, "outputs", "'ids'"),
        ({"outputs": {"logits": 1.0, "2": 1.0}}, "outputs", "named twice"),
        ({"outputs": {"score": {"weight": 1.0, "compare": "kl"}}}, "outputs", "holds no distribution"),
        ({"outputs": {"logits": {"weight": 1.0, "compare": "loss"}}}, "outputs", "'loss'"),
        (
            {"outputs": {"logits": {"weight": 1.0, "compare": "kl"}}, "compare": "mse"},
            "outputs",
            "compared by 'mse'",
        ),
        ({"outputs": {"score": 1.0}, "compare": "kl"}, "compare", "no output is compared by 'kl'"),
        ({"outputs": {"logits": 1.0}, "output": "boxes"}, "outputs", "both"),
        ({"outputs": {"logits": 1.0}, "metric": "loss"}, "metric", "several outputs"),
        ({"outputs": {"logits": 1.0}, "metric": "hessian-trace"}, "metric", "several outputs"),
    ],
)
def test_outputs_that_cannot_be_mixed_are_refused(api, world, mixed, problem, members, field, part):
    body = world.body(model=mixed, **({"metric": "auto"} | members))
    refused = problem(api.post("/v1/jobs", json=body), 422, "invalid-request", field)
    assert part in refused["detail"]


@pytest.mark.parametrize("weight", [0, -1.0, "1", None])
def test_weights_are_numbers_above_0(api, world, mixed, weight):
    body = world.body(model=mixed, metric="auto", outputs={"logits": weight})
    assert api.post("/v1/jobs", json=body).status_code == 422
