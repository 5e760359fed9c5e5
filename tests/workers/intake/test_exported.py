"""Exports that are kept beside their artifact: the same model, without transformers, and never anything damaged."""

import shutil
import warnings
from hashlib import sha256

import pytest
import torch

from workers.graph.program import Program
from workers.intake import exported, huggingface
from workers.intake.exported import ExportCache, Exported
from workers.intake.models import read_model
from workers.intake.packing import pack_folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

CONFIG = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
TOKENS = (torch.tensor([[3, 5, 8, 13], [1, 2, 4, 8]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))


@pytest.fixture(scope="module")
def packed_llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
        model.to(torch.bfloat16).save_pretrained(folder)
    file = folder / "packed"
    pack_folder(folder, file)
    return file


@pytest.fixture(scope="module")
def read_once(packed_llama, tmp_path_factory):
    """An artifact with the export that reading it left, and what was read."""
    name = sha256(packed_llama.read_bytes()).hexdigest()
    artifact = shutil.copy(packed_llama, tmp_path_factory.mktemp("store") / name)
    return artifact, read_model(artifact)


@pytest.fixture
def artifact(read_once, tmp_path):
    shutil.copytree(read_once[0].parent, tmp_path / "store")
    return tmp_path / "store" / read_once[0].name


class Exporting(Exception):
    """It was about to export."""


@pytest.fixture
def no_export(monkeypatch):
    def refuse(*_):
        raise Exporting

    monkeypatch.setattr(huggingface, "_network", refuse)


def companions(artifact):
    return sorted(path.name for path in artifact.parent.iterdir() if path != artifact)


def test_the_second_reading_is_the_same_model_without_an_export(artifact, read_once, no_export):
    first, second = read_once[1], read_model(artifact)
    (kept,) = companions(artifact)
    assert kept.startswith(f"{artifact.name}.export-")
    assert second.qualified_names == first.qualified_names
    assert second.parameters == first.parameters
    assert second.inputs == first.inputs
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
    storages = [
        len({tensor.untyped_storage().data_ptr() for tensor in model.tensors.values()})
        for model in (first, second)
    ]
    assert storages[0] == storages[1]  # tied weights still are
    outputs = [Program(model).run(TOKENS)[0] for model in (first, second)]
    assert torch.equal(*outputs)
    assert [node.name for node in second.graph.output_node().all_input_nodes] == ["logits"]


def test_weights_stay_in_the_folder(artifact, read_once):
    model = read_once[1]
    stored = sum(model.tensors[name].nbytes for name in model.parameters)
    held = exported.read_tensors((artifact.parent / companions(artifact)[0]).read_bytes()[64:])
    assert sum(t.nbytes for name, t in held.items() if name not in ("program", "index")) < stored / 10


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other bytes", "too large"])
def test_a_damaged_export_is_not_read(artifact, no_export, damage, monkeypatch):
    kept = artifact.parent / companions(artifact)[0]
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    content = b"not safetensors"
    kept.write_bytes(
        {
            "cut": whole[:-1],
            "flipped": bytes(flipped),
            "empty": b"",
            "other bytes": sha256(content).hexdigest().encode() + content,
            "too large": whole,
        }[damage]
    )
    if damage == "too large":
        monkeypatch.setattr(exported, "MOST_BYTES", len(whole) - 1)
    with pytest.raises(Exporting):
        read_model(artifact)


def test_what_another_release_left_is_replaced(artifact, monkeypatch):
    (before,) = companions(artifact)
    monkeypatch.setattr(exported, "EXPORTER_VERSION", exported.EXPORTER_VERSION + 1)
    read_model(artifact)
    (after,) = companions(artifact)
    assert after != before


def test_nothing_is_left_beside_files_of_users(packed_llama):
    assert ExportCache(packed_llama).path is None


@pytest.mark.parametrize("hindrance", ["too large", "not writable"])
def test_where_nothing_can_be_kept_nothing_is_left(tmp_path, monkeypatch, hindrance):
    cache = ExportCache(tmp_path / ("0" * 64))
    if hindrance == "too large":
        monkeypatch.setattr(exported, "MOST_BYTES", 300)
    else:

        def refuse(self, target):
            raise OSError("read-only file system")

        monkeypatch.setattr(type(tmp_path), "replace", refuse)
    weights = {"w": torch.ones(100)}
    cache.keep(Exported(program=b"{}", weights=weights, constants={}, output="logits"), {})
    assert list(tmp_path.iterdir()) == []
    assert cache.restore({}) is None


def test_reading_it_back_is_no_pickle(artifact, no_export, monkeypatch):
    monkeypatch.setattr("pickle.load", None)
    monkeypatch.setattr("pickle.loads", None)
    monkeypatch.setattr(torch, "load", None)
    assert read_model(artifact).parameters
