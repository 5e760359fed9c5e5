"""Searching without a server: what it gives is told elsewhere (tests/e2e); here, what it keeps and reuses."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from app import local
from app.cli.main import run
from app.client import JobUpdate
from app.db import get_database
from app.export import export_model, write_dataset
from app.local import Files, SearchProblem, Stop, search
from app.models import Job, JobState, Measurement
from app.plans.service import PlanChange
from app.settings import Settings

REQUEST = {"budgets": ["4 bits"], "candidates": [2, 4, 8], "metric": "kl"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("local")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    model = export_model(net, torch.randn(2, 6), folder / "net.pt2")
    write_dataset(folder / "c.safetensors", {model.input_names[0]: torch.randn(16, 6)})
    return Files(model=model.path, calibration=folder / "c.safetensors")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", workers=1)


def quiet(_update: JobUpdate) -> None:
    """Nobody watches."""


def jobs(settings: Settings) -> list[tuple[str, JobState]]:
    with get_database(settings.resolved_database_url).read() as session:
        return [(job.id, job.state) for job in session.query(Job).order_by(Job.created_at)]


def test_interrupted_then_finished_then_asked_again(files: Files, settings: Settings) -> None:
    updates: list[JobUpdate] = []

    def interrupt(update: JobUpdate) -> None:
        if update.progress and update.progress["done"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(files, REQUEST, settings, interrupt)
    assert [state for _, state in jobs(settings)] == [JobState.CANCELLED]
    with get_database(settings.resolved_database_url).read() as session:
        kept = {m.key: m.created_at for m in session.query(Measurement)}
    assert kept

    first = search(files, REQUEST, settings, updates.append)
    assert first["state"] == "done"
    assert updates[-1].final
    with get_database(settings.resolved_database_url).read() as session:
        now = {m.key: m.created_at for m in session.query(Measurement)}
    assert len(now) == 6
    assert {key: now[key] for key in kept} == kept  # not measured again

    # The same again is answered without any worker.
    again = search(files, REQUEST, settings, quiet)
    assert again == first
    assert [state for _, state in jobs(settings)] == [JobState.CANCELLED, JobState.DONE]


def test_the_same_again_starts_no_process(
    files: Files, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", str(files.model), "--calibration", str(files.calibration), "--budget", "4 bits"]
    arguments += [
        "--candidates",
        "2,4",
        "--data-dir",
        str(settings.data_dir),
        "--workers",
        "1",
        "--json",
        "-",
    ]
    assert run(arguments) == 0
    first = json.loads(capsys.readouterr().out)

    def refuse(*_arguments: object, **_named: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(local, "LocalEngine", refuse)
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert run([*arguments, "--gate", "kl<=0"]) == 5
    capsys.readouterr()
    assert run([*arguments, "--budget", "1 bits"]) == 4
    assert json.loads(capsys.readouterr().out)["minimum_bits"] == 2 * (6 * 16 + 16 * 4)


def test_a_refused_model_leaves_nothing(files: Files, settings: Settings, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt2"
    bad.write_bytes(files.model.read_bytes()[:1000])
    with pytest.raises(SearchProblem) as caught:
        search(Files(model=bad, calibration=files.calibration), REQUEST, settings, quiet)
    assert caught.value.document["type"] == "urn:bitwright:problem:model-refused"
    assert jobs(settings) == []
    stored = [p for p in settings.artifacts_dir.rglob("*") if p.is_file()]
    assert len(stored) == 1  # the data


def test_further_plans_are_measured_once_and_a_watcher_can_stop_a_search(
    files: Files, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = search(files, REQUEST, settings, quiet)
    first, second = (unit["name"] for unit in done["units"])
    changes = [
        PlanChange(budget="8 bits", pins={first: 8, second: 2}),
        PlanChange(budget="8 bits", pins={first: 2, second: 2}),
    ]
    states: list[str] = []
    plans = local.measure_plans(done["job"], changes, settings, lambda update: states.append(update.state))
    assert states[0] == "measuring 2 plans"
    bits = [[plan["choices"][unit]["bits"] for unit in (first, second)] for plan in plans]
    assert bits == [[8, 2], [2, 2]]
    uniform = next(plan for plan in done["baselines"] if plan["average_bits"] == 2)
    assert plans[1]["measured"] == uniform["measured"]
    assert plans[0]["measured"]["kl"]["calibration"] > 0

    monkeypatch.delattr(local, "LocalEngine")  # from here on nobody needs to work
    assert local.measure_plans(done["job"], changes, settings, quiet) == plans

    def stop(_update: JobUpdate) -> None:
        raise Stop

    with pytest.raises(Stop):
        search(files, REQUEST | {"budgets": ["3 bits"]}, settings, stop)
    assert [state for _, state in jobs(settings)] == [JobState.DONE, JobState.CANCELLED]


def test_a_job_that_takes_long_to_look_at_is_looked_at_more_rarely():
    assert [local._pause_after(seconds) for seconds in (0.0, 0.004, 0.02, 3.0)] == pytest.approx(
        [0.1, 0.1, 0.4, 1.0]
    )
