"""Hugging Face folders on the command line: packed on the fly, refused by name."""

import json
import warnings
from pathlib import Path

import pytest

from app.cli.main import run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folders") / "tiny-bert"
    config = transformers.BertConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.BertModel(config).save_pretrained(path)
    return path


def test_a_folder_is_inspected_like_its_packed_form(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(folder), "--json"]) == 0
    direct = json.loads(capsys.readouterr().out)
    packed = tmp_path / "packed.zip"
    assert run(["pack", str(folder), "--out", str(packed), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written == {"path": str(packed), "size_bytes": packed.stat().st_size}
    assert run(["inspect", str(packed), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert direct["name"] == "tiny-bert"
    assert {**document, "name": direct["name"]} == direct
    assert [item["name"] for item in direct["inputs"]] == ["input_ids", "attention_mask"]
    assert [item["name"] for item in direct["outputs"]] == ["last_hidden_state"]


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert run(["pack", str(tmp_path), "--out", str(tmp_path / "m.zip")]) == 3
    assert "pytorch_model.bin" in capsys.readouterr().err
    assert run(["inspect", str(tmp_path)]) == 3
