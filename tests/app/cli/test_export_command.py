"""``bitwright export`` on a user's file and module, then ``bitwright inspect`` on what it wrote."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from app.cli.main import run

SOURCE = """
import torch
from torch import nn
import helper_beside_it

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 3)
    def forward(self, ids):
        return self.head(self.table(ids).mean(1))

def alone():
    return Net()

def whole():
    torch.manual_seed(0)
    ids = torch.arange(12).reshape(4, 3) % 7
    return Net().eval(), ids[:2], [(ids[:3], torch.tensor([0, 1, 2])), (ids[3:], torch.tensor([0]))]

def nothing():
    return 3

value = 3
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "helper_beside_it.py").write_text("")
    path = tmp_path / "users_net.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return path


def test_file_with_calibration(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["export", f"{source}:whole", "--out", "m.pt2", "--calibration-out", "c.safetensors", "--json"])
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert document["input_names"] == ["ids"]
    assert document["batch_size"] is None
    assert document["calibration"]["tensors"] == {"ids": [4, 3], "labels": [4]}
    with safe_open("c.safetensors", "pt") as data:
        assert data.get_tensor("labels").tolist() == [0, 1, 2, 0]
    assert run(["inspect", "m.pt2", "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert [unit["name"] for unit in inspected["units"]] == ["table.weight", "head.weight"]
    assert inspected["name"] == "m.pt2"
    assert len(inspected["sha256"]) == 64


def test_module_with_an_example(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert source.exists()
    assert run(["export", "users_net:alone", "--example", "2x5:int64", "--out", "m.pt2"]) == 0
    assert "2 units" in capsys.readouterr().out
    assert run(["export", "users_net:alone", "--example", "ids=2x5:int64", "--out", "m.pt2"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["users_net.py"], "MODULE:FUNCTION"),
        (["users_net.py:absent"], "no function 'absent'"),
        (["users_net.py:value"], "no function 'value'"),
        (["absent.py:f"], "no file"),
        (["absent_module:f"], "no module"),
        (["users_net.py:nothing"], "must return"),
        (["users_net.py:alone"], "--example"),
        (["users_net.py:alone", "--example", "2xx"], "SHAPE"),
        (["users_net.py:alone", "--example", "2x3:int63"], "SHAPE"),
        (["users_net.py:alone", "--example", "2x3:int64", "--calibration-out", "c"], "no calibration data"),
    ],
)
def test_wrong_usage(
    source: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert source.exists()
    assert run(["export", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not Path("model.pt2").exists()


def test_an_error_in_the_users_code_is_shown_as_it_is(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text("def build():\n    raise RuntimeError('mine')\n")
    assert run(["export", f"{source}:build"]) == 1
    told = capsys.readouterr().err
    assert "RuntimeError: mine" in told
    assert "line 2, in build" in told
    assert "defect in Bitwright" not in told
    assert run(["export", f"{source}:build", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["type"] == "urn:bitwright:problem:module-error"


@pytest.mark.parametrize(
    ("calibration", "field"),
    [
        ("[torch.zeros(4, 3, dtype=torch.int32)]", "ids"),
        ("{'words': torch.zeros(4, 3, dtype=torch.int64)}", "words"),
        ("{'ids': torch.zeros(4, 5, dtype=torch.int64)}", "[samples, 3]"),
        ("[(torch.zeros(4, 3, dtype=torch.int64), torch.tensor([0, 1, 2, 3]))]", "labels"),
        ("[(torch.zeros(4, 3, dtype=torch.int64), torch.rand(4))]", "labels"),
    ],
)
def test_calibration_data_that_do_not_fit_the_model_are_not_written(
    source: Path, calibration: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text(f"{SOURCE}\ndef other():\n    return *whole()[:2], {calibration}\n")
    assert run(["export", f"{source}:other", "--calibration-out", "c.safetensors", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["type"] == "urn:bitwright:problem:dataset-refused"
    assert field in str(document)
    assert not Path("c.safetensors").exists()


def test_inspect_shows_people_the_units(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", f"{source}:whole", "--out", "m.pt2"]) == 0
    capsys.readouterr()
    assert run(["inspect", "m.pt2"]) == 0
    shown = capsys.readouterr().out
    for words in ("table.weight", "embedding", "head.weight", "linear", "any batch", "ids int64"):
        assert words in shown


def test_inspect_of_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.pt2"
    path.write_text("not a zip")
    assert run(["inspect", str(path), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["type"] == "urn:bitwright:problem:model-refused"
    assert run(["inspect", str(tmp_path / "absent.pt2"), "--json"]) == 3
    assert "absent.pt2" in json.loads(capsys.readouterr().out)["detail"]
