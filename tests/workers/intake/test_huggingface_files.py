"""Files of a Hugging Face folder: weights that do not fit, indices, links, archives."""

import warnings
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.errors import ModelRefused
from workers.intake.models import read_model
from workers.intake.packing import model_files, pack_folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
from .families import read, refusal, rewrite, shards, write_index


def test_a_missing_tensor_is_named(copy):
    rewrite(copy, lambda w: w.update(spare=w.pop("pooler.dense.bias")))
    assert refusal(copy) == ("missing-tensor", "pooler.dense.bias")


def test_an_extra_tensor_is_named(copy):
    rewrite(copy, lambda w: w.update(spare=torch.zeros(3)))
    assert refusal(copy) == ("extra-tensor", "spare")


def test_a_tensor_of_another_shape_is_named(copy):
    rewrite(copy, lambda w: w.update({"pooler.dense.bias": torch.zeros(33)}))
    assert refusal(copy) == ("tensor-shape", "pooler.dense.bias")


def test_a_weight_that_is_not_finite_is_named(copy):
    rewrite(copy, lambda w: w["pooler.dense.weight"].fill_(float("nan")))
    # The pooler does not reach the output, so the embedding is spoilt too.
    rewrite(copy, lambda w: w["embeddings.word_embeddings.weight"].fill_(float("inf")))
    assert refusal(copy)[0] == "non-finite-weights"


def test_weights_that_are_no_safetensors_are_refused(copy):
    (copy / "model.safetensors").write_bytes(b"\x80\x02pickle" * 10)
    assert refusal(copy) == ("not-safetensors", "model.safetensors")


def test_truncated_weights_are_refused(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert refusal(copy)[1] == "model.safetensors"


def test_a_file_without_tensors_is_refused(copy):
    save_file({}, copy / "model.safetensors")
    assert refusal(copy) == ("empty", "model.safetensors")


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/passwd", "x/a.safetensors", "a.bin", ".a.safetensors"]
)
def test_an_index_cannot_point_elsewhere(copy, name):
    index = shards(copy)
    index["weight_map"]["pooler.dense.bias"] = name
    write_index(copy, index)
    assert refusal(copy) == ("shard-name", "model.safetensors.index.json")


def test_an_index_must_agree_with_the_files(copy):
    index = shards(copy)
    del index["weight_map"]["pooler.dense.bias"]
    write_index(copy, index)
    assert refusal(copy) == ("index", "model.safetensors.index.json")


def test_a_tensor_in_two_files_is_refused(copy):
    shards(copy)
    weights = load_file(copy / "b.safetensors")
    first = next(iter(load_file(copy / "a.safetensors")))
    weights[first] = torch.zeros(1)
    save_file(weights, copy / "b.safetensors")
    assert refusal(copy) == ("duplicate-tensor", "b.safetensors")


def test_a_missing_file_is_named(copy):
    shards(copy)
    (copy / "b.safetensors").unlink()
    assert refusal(copy) == ("missing-entry", "b.safetensors")


def test_a_folder_with_pickled_weights_alone_is_refused_by_their_name(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert refusal(copy) == ("pickle", "pytorch_model.bin")


def test_a_folder_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    assert refusal(copy) == ("missing-entry", "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_out_of_the_folder_are_refused(copy, tmp_path, name):
    (copy / name).rename(tmp_path / "secret")
    (copy / name).symlink_to(tmp_path / "secret")
    assert refusal(copy) == ("link", name)


def test_links_within_the_folder_are_followed(copy):
    (copy / "model.safetensors").rename(copy / "weights")
    (copy / "model.safetensors").symlink_to("weights")
    assert set(model_files(copy)) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("model/pytorch_model.bin", "pickle"),
        ("model/modeling_evil.py", "code"),
        ("model/tokenizer.json", "unknown-entry"),
        ("model/deep/config.json", "unknown-entry"),
    ],
)
def test_a_packed_folder_holds_nothing_else(bert, tmp_path, name, rule):
    target = tmp_path / "bert.zip"
    pack_folder(bert, target)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(ModelRefused) as caught:
        read_model(target)
    assert (caught.value.extra["rule"], caught.value.field) == (rule, name.removeprefix("model/"))


def test_entries_cannot_leave_the_archive(bert, tmp_path):
    target = tmp_path / "bert.zip"
    pack_folder(bert, target)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr("model/../../x", b"x")
    with pytest.raises(ModelRefused):
        read_model(target)


def test_reading_needs_no_network(bert, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert read(bert).inputs
