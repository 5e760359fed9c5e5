"""Every kind of file that is no acceptable model, over HTTP: refused by rule, and nothing of it is kept."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest

WEIGHTS = "data/weights/model_weights_config.json"
MODEL = "models/model.json"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def tampered(data, change):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = archive.namelist()[0].partition("/")[0]
        entries = {name.removeprefix(root + "/"): archive.read(name) for name in archive.namelist()}
    change(entries)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{root}/{name}", content)
    return buffer.getvalue()


def edit(entries, name, change):
    value = json.loads(entries[name])
    change(value)
    entries[name] = json.dumps(value).encode()


def pickled_weights(entries, evil):
    def mark(value):
        first = next(iter(value["config"].values()))
        first["use_pickle"] = True
        entries[f"data/weights/{first['path_name']}"] = evil

    edit(entries, WEIGHTS, mark)


def first_operator(entries, target):
    edit(entries, MODEL, lambda v: v["graph_module"]["graph"]["nodes"][0].update(target=target))


def expression(entries, code):
    def change(value):
        sizes = value["graph_module"]["graph"]["tensor_values"]["image"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": code, "hint": None}}

    edit(entries, MODEL, change)


def short_storage(entries):
    name = next(n for n in entries if n.startswith("data/weights/weight_"))
    entries[name] = entries[name][:-4]


# what is wrong, how it is made of a good file (and code that would leave a trace), the rule it breaks
ROWS = [
    # Not the format at all.
    ("empty", lambda good, evil: b"", "empty-file"),
    ("not a zip", lambda good, evil: b"hello", "not-a-zip"),
    ("a pickle", lambda good, evil: evil, "pickle"),
    ("cut in the middle", lambda good, evil: good[: len(good) // 2], None),
    # Code in the places where torch.export.load would run it.
    ("pickled weights", lambda good, evil: tampered(good, lambda e: pickled_weights(e, evil)), "pickled-weights"),
    ("pickled example inputs", lambda good, evil: tampered(good, lambda e: e.update({"data/sample_inputs/model.pt": evil})), "pickled-example-inputs"),
    ("an opaque constant", lambda good, evil: tampered(good, lambda e: e.update({"data/constants/opaque_obj_0": evil})), "opaque-constant"),
    ("code in a symbolic size", lambda good, evil: tampered(good, lambda e: expression(e, "__import__('os').getpid()")), "symbolic-expression"),
    # Operators that are not on the list.
    ("an unknown operator", lambda good, evil: tampered(good, lambda e: first_operator(e, "torch.ops.aten.from_file.default")), "unknown-operator"),
    ("an operator of an extension", lambda good, evil: tampered(good, lambda e: first_operator(e, "torch.ops.torchvision.nms.default")), "custom-operator"),
    ("a function of Python", lambda good, evil: tampered(good, lambda e: first_operator(e, "builtins.exec")), "unknown-operator"),
    # Lies about sizes.
    ("a storage that is too short", lambda good, evil: tampered(good, short_storage), None),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_bad_file_is_refused_by_rule_and_not_kept(patient, world, problem, model_file, tmp_path, row):
    _, make, rule = row
    marker = tmp_path / "marker"
    before = world.rows()

    response = patient.post(
        "/v1/models", params={"name": "bad"}, content=make(model_file, pickle.dumps(Payload(marker)))
    )

    refused = problem(response, 422, "model-refused")
    assert refused["instance"] == "/v1/models"
    assert refused["rule"]
    assert rule in (None, refused["rule"])
    assert refused["allowed"]
    assert not marker.exists(), "code from the file ran"
    assert world.rows() == before
    assert world.files() == []


def test_weights_that_are_no_numbers_are_refused(patient, world, problem, nan_file):
    before = world.rows()
    refused = problem(patient.post("/v1/models", content=nan_file), 422, "model-refused")
    assert "weight" in refused["field"]
    assert (world.rows(), world.files()) == (before, [])


def test_a_model_with_nothing_to_quantize_is_refused(patient, world, problem, flat_file):
    before = world.rows()
    problem(patient.post("/v1/models", content=flat_file), 422, "model-refused")
    assert (world.rows(), world.files()) == (before, [])


def test_the_same_bad_file_is_refused_again(patient, problem):
    first = problem(patient.post("/v1/models", content=b"hello"), 422, "model-refused")
    second = problem(patient.post("/v1/models", content=b"hello"), 422, "model-refused")
    assert first == second


def test_a_refused_model_leaves_a_dataset_of_the_same_content_alone(patient, world, problem, settings):
    from app.artifacts import ArtifactStore, Limits
    from app.kit.ids import new_id
    from app.models import Dataset

    store = ArtifactStore(settings.artifacts_dir)
    with store.incoming(Limits(max_bytes=100)) as incoming:
        incoming.write(b"hello")
        incoming.finish()
        store.keep(incoming)
        digest = incoming.sha256
    with world.database.write() as session:
        session.add(Dataset(id=new_id("dat"), sha256=digest, size_bytes=5, name="d", samples=1, tensors={}))

    problem(patient.post("/v1/models", content=b"hello"), 422, "model-refused")

    assert store.exists(digest)
