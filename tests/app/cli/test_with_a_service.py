"""The client's commands against a real service: `bitwright serve` in a process of its own, on a free port."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from app.cli.main import run
from app.client import ApiProblem, Client
from app.export import export_model, write_dataset


@dataclass(frozen=True)
class Service:
    url: str
    model: Path
    calibration: Path
    evaluation: Path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    files = {name: folder / f"{name}.safetensors" for name in ("calibration", "evaluation")}
    model = export_model(net, torch.randn(2, 6), folder / "net.pt2")
    for path in files.values():
        write_dataset(path, {model.input_names[0]: torch.randn(32, 6)})
    command = [sys.executable, "-m", "app.cli", "serve", "--json", "--port", "0", "--workers", "1"]
    command += ["--data-dir", str(folder / "data")]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (folder / "serve.log").read_text()
            yield Service(json.loads(line)["url"], model.path, files["calibration"], files["evaluation"])
        finally:
            process.terminate()
            with process:
                assert process.wait(30) == 0


@pytest.fixture(scope="module")
def job(service: Service) -> str:
    """A finished job, submitted by the client library."""
    sent: list[int] = []
    with Client(service.url) as client:
        model = client.upload_model(service.model, progress=sent.append)
        data = client.upload_dataset(service.calibration)
        request = {
            "model": model["id"],
            "dataset": data["id"],
            "evaluation_dataset": client.upload_dataset(service.evaluation)["id"],
            "budgets": ["4 bits"],
            "candidates": [2, 4, 8],
        }
        made = client.submit(request, idempotency_key="same")
        assert client.submit(request, idempotency_key="same")["id"] == made["id"]
        updates = list(client.watch(made["id"]))
    assert sent[-1] == service.model.stat().st_size
    assert model["state"] == "ready"
    assert updates[-1].state == "done"
    return str(made["id"])


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_submit_files_and_wait(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "out.json", tmp_path / "report.html"
    arguments = ["submit", service.model, "--calibration", service.calibration, "--budget", "4 bits"]
    arguments += ["--candidates", "2,4,8", "--wait", "--gate", "kl<=10", "--json", out, "--report", report]
    assert run([*map(str, arguments), "--server", service.url]) == 0
    result = json.loads(out.read_text())
    assert result["state"] == "done"
    assert set(result["choices"]) == {"0.weight", "2.weight"}
    assert "<html" in report.read_text()
    assert "uploading net.pt2" in capsys.readouterr().err


def test_a_job_from_submit_to_its_result(
    service: Service, job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITWRIGHT_SERVER", service.url)
    assert run(["watch", job, "--gate", "kl<=10", "--json", "-"]) == 0
    result = document(capsys)
    assert result["job"] == job
    assert run(["watch", job, "--gate", "kl<=0", "--json", "-"]) == 5
    assert document(capsys) == result
    assert run(["result", job]) == 0
    assert "Certificate" in capsys.readouterr().out
    assert run(["status", job, "--json"]) == 0
    assert document(capsys)["state"] == "done"
    assert run(["status"]) == 0
    assert job in capsys.readouterr().out
    assert run(["status", "--state", "failed", "--json"]) == 0
    assert document(capsys)["items"] == []


def test_plans_on_stored_measurements(service: Service, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    def plan(*arguments: str) -> int:
        return run(["plan", *arguments, "--server", service.url])

    assert plan(job, "--budget", "3 bits", "--json") == 0
    made = document(capsys)
    assert made["average_bits"] <= 3  # type: ignore[operator]
    assert plan(str(made["id"])) == 0
    assert "0.weight" in capsys.readouterr().out
    assert plan(job, "--budget", "8 bits", "--pin", "2.weight=4", "--json") == 0
    assert document(capsys)["choices"]["2.weight"]["bits"] == 4  # type: ignore[index]
    assert plan(job, "--budget", "1 bits", "--json") == 4
    assert document(capsys)["minimum_bits"] == 2 * (6 * 16 + 16 * 4)
    assert plan(job, "--budget", "4", "--json") == 2
    assert "unit" in str(document(capsys)["detail"])


def test_what_is_refused(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.pt2"
    bad.write_bytes(b"PK\x03\x04 no more")
    arguments = ["--calibration", str(service.calibration), "--budget", "4 bits", "--server", service.url]
    assert run(["submit", str(bad), *arguments, "--json", "-"]) == 3
    assert document(capsys)["type"] == "urn:bitwright:problem:model-refused"
    assert run(["submit", str(tmp_path / "absent.pt2"), *arguments, "--json", "-"]) == 3
    assert "absent.pt2" in str(document(capsys)["detail"])
    assert run(["submit", str(service.model), *arguments, "--scheme", "none", "--json", "-"]) == 2
    assert document(capsys)["field"] == "scheme"
    assert run(["status", "job_unknown", "--server", service.url, "--json"]) == 2
    assert document(capsys)["status"] == 404
    assert run(["cancel", "job_unknown", "--server", service.url, "--json"]) == 2


def test_cancel(service: Service, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cancel", job, "--server", service.url, "--json"]) == 3  # it is done already
    assert document(capsys)["type"] == "urn:bitwright:problem:job-finished"
    with Client(service.url) as client:
        finished = client.job(job)
        # Held back by its size: nothing of it is measured by the time it is cancelled.
        request = {"model": finished["model"], "dataset": finished["dataset"], "budgets": ["4 bits"]}
        other = client.submit(
            request | {"candidates": list(range(2, 17)), "scheme": "group:2-asymmetric-mse"}
        )
        assert run(["cancel", other["id"], "--server", service.url, "--json"]) == 0
        assert document(capsys)["state"] == "cancelled"
        assert run(["watch", other["id"], "--server", service.url, "--json", "-"]) == 1
        assert "cancelled" in str(document(capsys)["detail"])
        with pytest.raises(ApiProblem):
            client.cancel(other["id"])
