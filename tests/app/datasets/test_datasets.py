"""`/v1/datasets` over HTTP: what fits is kept, what does not leaves nothing."""

import json
import struct
from hashlib import sha256

import numpy as np
import pytest

_CODES = {"float32": "F32", "float64": "F64", "int64": "I64", "int32": "I32", "uint8": "U8"}


def safetensors(tensors, **header):
    """A file in the safetensors format, written independently of the reader."""
    described, data = dict(header), b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        described[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text + data


def images(samples=6, shape=(3, 4, 4), dtype="float32"):
    return np.random.default_rng(0).standard_normal((samples, *shape)).astype(dtype)


def labels(*values):
    return np.array(values, dtype="int64")


GOOD = {"x": images()}


def test_a_dataset_that_fits_its_model_is_kept(api, world):
    data = safetensors({"x": images(), "labels": labels(3, 1, 4, -100, 5, 9)})
    model = world.model()

    response = api.post("/v1/datasets", params={"model": model.id, "name": "calibration"}, content=data)

    assert response.status_code == 201
    dataset = response.json()
    digest = sha256(data).hexdigest()
    assert response.headers["location"] == f"/v1/datasets/{dataset['id']}"
    assert api.get(response.headers["location"]).json() == dataset
    assert dataset["name"] == "calibration"
    assert (dataset["samples"], dataset["sha256"], dataset["size_bytes"]) == (6, digest, len(data))
    assert dataset["tensors"]["x"]["shape"] == [6, 3, 4, 4]
    assert dataset["tensors"]["x"]["dtype"] == "float32"
    assert dataset["tensors"]["labels"] == {
        "dtype": "int64",
        "shape": [6],
        "minimum": 1,
        "maximum": 9,
    }, "a label that does not count is no class"
    assert world.files() == [f"{digest[:2]}/{digest}"]


def test_the_same_content_is_registered_once(api, world):
    data = safetensors(GOOD)
    first = api.post("/v1/datasets?name=one", content=data)
    before = world.rows()
    second = api.post("/v1/datasets?name=two", content=data)
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json() == first.json()
    assert world.rows() == before


def test_without_a_model_any_inputs_will_do(api, world):
    response = api.post("/v1/datasets", content=safetensors({"a": images(2), "b": labels(1, 2)}))
    assert response.status_code == 201
    assert response.json()["name"] == response.json()["sha256"][:12]


def test_a_dataset_may_stay_where_it_is(api, world, settings):
    path = settings.allowed_locations[0] / "data.safetensors"
    path.write_bytes(safetensors(GOOD))
    response = api.post("/v1/datasets", params={"model": world.model().id}, json={"location": str(path)})
    assert response.status_code == 201
    assert response.json()["location"] == str(path)
    assert world.files() == []


def test_unsigned_labels_have_no_value_that_does_not_count(api):
    data = safetensors({"x": images(2), "labels": np.array([156, 7], dtype="uint8")})
    assert api.post("/v1/datasets", content=data).json()["tensors"]["labels"]["maximum"] == 156


def test_labels_none_of_which_counts_have_no_extremes(api):
    data = safetensors({"x": images(2), "labels": labels(-100, -100)})
    tensors = api.post("/v1/datasets", content=data).json()["tensors"]
    assert (tensors["labels"]["minimum"], tensors["labels"]["maximum"]) == (None, None)


def nan_images():
    array = images()
    array[4, 1, 2, 3] = np.nan
    return array


# what is wrong, the file, the rule it breaks, the field, a part of what is allowed
REFUSED = [
    # Not the format.
    ("nothing", b"", "not-safetensors", "dataset", "safetensors"),
    ("not safetensors", b"hello, this is text", "not-safetensors", "dataset", "safetensors"),
    ("a header that is no JSON", struct.pack("<Q", 4) + b"{{{{", "not-safetensors", None, ""),
    ("cut short", safetensors(GOOD)[:-1], "file-size", "dataset", ""),
    ("something appended", safetensors(GOOD) + b"x", "file-size", "dataset", ""),
    ("an unknown type", safetensors(GOOD).replace(b'"F32"', b'"C64"'), "tensor-dtype", "x", "float32"),
    # Empty.
    ("no tensors", safetensors({}), "empty", "dataset", "one tensor for each input"),
    ("no samples", safetensors({"x": images(0)}), "empty", "dataset", "one sample"),
    # Other names, types, shapes than the model's inputs.
    ("another name", safetensors({"image": images()}), "input-names", "dataset", "x"),
    ("a name too many", safetensors({"x": images(), "y": images()}), "input-names", "dataset", "x"),
    ("another type", safetensors({"x": images(dtype="float64")}), "input-dtype", "x", "float32"),
    ("another shape", safetensors({"x": images(shape=(3, 5, 4))}), "input-shape", "x", "samples, 3, 4, 4"),
    ("another rank", safetensors({"x": images(shape=(48,))}), "input-shape", "x", "samples, 3, 4, 4"),
    # Values.
    ("a value that is no number", safetensors({"x": nan_images()}), "non-finite-data", "x", "finite"),
    # Labels.
    ("a label too many", safetensors({"x": images(), "labels": labels(1, 2)}), "samples", "labels", "6"),
    ("a label beyond the classes", safetensors({"x": images(), "labels": labels(0, 1, 2, 10, 4, 5)}), "label-range", "labels", "0 to 9"),
    ("a negative label", safetensors({"x": images(), "labels": labels(0, 1, 2, -1, 4, 5)}), "label-range", "labels", "0 to 9"),
    ("labels that are no classes", safetensors({"x": images(), "labels": images(shape=())}), "label-dtype", "labels", "int64"),
]  # fmt: skip


@pytest.mark.parametrize("row", REFUSED, ids=[row[0] for row in REFUSED])
def test_a_bad_file_is_refused_by_rule_and_not_kept(api, world, problem, row):
    _, data, rule, field, allowed = row
    model = world.model()
    before = world.rows()

    refused = problem(
        api.post("/v1/datasets", params={"model": model.id}, content=data), 422, "dataset-refused", field
    )

    assert refused["rule"] == rule
    assert allowed in str(refused["allowed"])
    assert (world.rows(), world.files()) == (before, [])


@pytest.mark.parametrize(
    "data",
    [
        safetensors({"x": nan_images()}),
        safetensors({"x": images(), "labels": labels(0, 1, 2, -1, 4, 5)}),
        safetensors({"labels": labels(1)}) + b"x",
    ],
    ids=["NaN", "a negative label", "garbage"],
)
def test_without_a_model_the_file_itself_is_still_checked(api, world, problem, data):
    problem(api.post("/v1/datasets", content=data), 422, "dataset-refused")
    assert world.files() == []


def test_a_model_must_be_ready(api, world, problem):
    from app.models import ModelState

    data = safetensors(GOOD)
    waiting = world.model(state=ModelState.INSPECTING).id
    problem(
        api.post("/v1/datasets", params={"model": waiting}, content=data), 409, "model-not-ready", "model"
    )
    missing = problem(api.post("/v1/datasets", params={"model": "mdl_0"}, content=data), 404, "not-found")
    assert missing["field"] == "model"
    assert world.files() == []
    assert world.rows()["datasets"] == 0


@pytest.mark.parametrize("name", ["x" * 256, "a\x00b", "a\nb"])
def test_a_name_is_short_and_printable(api, world, problem, name):
    problem(
        api.post("/v1/datasets", params={"name": name}, content=safetensors(GOOD)),
        422,
        "invalid-request",
        "name",
    )
    assert world.files() == []


def test_upload_limits_hold(api, world, problem, settings):
    data = safetensors(GOOD)
    problem(api.post("/v1/datasets?sha256=" + "0" * 64, content=data), 422, "checksum-mismatch", "sha256")
    too_much = safetensors({"x": np.zeros((1, settings.max_upload_bytes // 4), "float32")})
    problem(api.post("/v1/datasets", content=too_much), 413, "too-large", "body")
    assert world.files() == []


def test_datasets_are_listed_by_page(api, world):
    made = [world.dataset(name=f"d{i}").id for i in range(3)]
    first = api.get("/v1/datasets", params={"limit": 2}).json()
    second = api.get("/v1/datasets", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [d["id"] for d in first["items"] + second["items"]] == list(reversed(made))
    assert second["next_cursor"] is None


def test_an_unknown_dataset_is_not_found(api, problem):
    for dataset_id in ("dat_00000000000000000000000000", "dat_%00", "job_0"):
        assert problem(api.get(f"/v1/datasets/{dataset_id}"), 404, "not-found")["field"] == "dataset"
