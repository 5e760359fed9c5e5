"""How a command line ends: exit code, documents, and where each is written."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from rich.console import Console

from app.cli import tables
from app.cli.ending import end_with_result
from app.cli.failures import exit_code, problem_of
from app.cli.gates import Gate
from app.cli.main import cli, run
from app.cli.output import Exit, Output, check_writable
from app.client import ApiProblem, Unreachable
from app.errors import BudgetBelowMinimum, DatabaseUnavailable, InvalidRequest, NotFound, StorageFull
from solver.errors import BudgetError, PinError
from tests.app.dashboard.samples import result_document
from workers.errors import DatasetRefused, MeasurementFailed, ModelRefused, RequestRefused

PLAN = {
    "id": "pln_1",
    "role": "requested",
    "name": "4 bits",
    "budget": "4 bits",
    "budget_bits": 40,
    "status": "optimal",
    "objective": 0.5,
    "lower_bound": 0.5,
    "relative_gap": 0.0,
    "size_bits": 40,
    "file_size_bits": 100,
    "average_bits": 4.0,
    "origin": "search",
    "solver": {"backend": "x", "version": "1", "proof": "search"},
    "choices": {"a[0].weight": {"bits": 4, "scheme": "channel-asymmetric"}},
    "predicted": {"kl": 0.5},
    "measured": {"kl": {"calibration": 0.4, "evaluation": 0.6}},
    "measured_standard_error": {"kl": {"calibration": 0.01, "evaluation": 0.02}},
}
RESULT = {
    **PLAN,
    "job": "job_1",
    "state": "done",
    "settings": {"metric": "kl", "compare": "kl", "predicts": "kl"},
    "evaluation": {"id": "dat_2"},
    "plans": [PLAN],
    "baselines": [
        {**PLAN, "role": "uniform", "name": "uniform 2 bits", "size_bits": 20, "average_bits": 2.0}
    ],
    "sensitivities": [
        {
            "unit": "a[0].weight",
            "bits": 4,
            "scheme": "channel-asymmetric",
            "mean": 0.5,
            "standard_error": None,
        }
    ],
    "units": [{"name": "a[0].weight", "operator": "linear", "shape": [2, 5], "weights": 10}],
}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelRefused("m"), Exit.REFUSED),
        (DatasetRefused("m"), Exit.REFUSED),
        (RequestRefused("m"), Exit.USAGE),
        (InvalidRequest("m"), Exit.USAGE),
        (NotFound("m"), Exit.USAGE),
        (BudgetError("m"), Exit.USAGE),
        (PinError("m"), Exit.USAGE),
        (BudgetBelowMinimum("m"), Exit.INFEASIBLE),
        (MeasurementFailed("m"), Exit.DEFECT),
        (StorageFull("m"), Exit.DEFECT),
        (DatabaseUnavailable("m"), Exit.DEFECT),
        (Unreachable("m"), Exit.DEFECT),
        (ApiProblem({"type": "urn:bitwright:problem:model-refused", "status": 422}), Exit.REFUSED),
        (ApiProblem({"type": "about:blank", "status": 502}), Exit.DEFECT),
        (FileNotFoundError(2, "No such file or directory", "x.pt2"), Exit.REFUSED),
    ],
)
def test_each_failure_has_its_code(error: Exception, code: Exit) -> None:
    document = problem_of(error)
    assert document is not None
    assert exit_code(document) == code


def test_every_error_of_the_trees_has_a_code_that_is_not_a_success() -> None:
    def all_kinds(kind: type) -> list[type]:
        return [kind, *(k for sub in kind.__subclasses__() for k in all_kinds(sub))]

    import app.dispatch.errors
    from app.errors import AppError
    from solver.errors import SolverError
    from workers.errors import WorkerError

    assert app.dispatch.errors
    for kind in [*all_kinds(AppError), *all_kinds(SolverError), *all_kinds(WorkerError)]:
        document = problem_of(kind("message"))
        assert document is not None, kind
        assert exit_code(document) in (Exit.DEFECT, Exit.USAGE, Exit.REFUSED, Exit.INFEASIBLE), kind


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def callback(*_args: object, **_given: object) -> None:
        raise error

    monkeypatch.setattr(cli.commands["inspect"], "callback", click.pass_context(callback))


def test_a_refusal_with_json_is_a_document_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ModelRefused("not a zip", "model", "x", "a .pt2 file", {"rule": "zip"}))
    assert run(["inspect", "x.pt2", "--json"]) == 3
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["type"] == "urn:bitwright:problem:model-refused"
    assert (document["detail"], document["rule"]) == ("not a zip", "zip")
    assert captured.err == ""


def test_a_refusal_without_json_is_words_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ModelRefused("entry [red]x[/] is bad", "data/[0]", 3, ["a", "b"]))
    assert run(["inspect", "x.pt2"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    for words in ("entry [red]x[/] is bad", "data/[0]", "3", '["a", "b"]'):  # markup in a message stays text
        assert words in captured.err


def test_a_defect_tells_its_traceback_and_has_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ZeroDivisionError("division by zero"))
    assert run(["inspect", "x.pt2", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["type"] == "urn:bitwright:problem:internal-error"
    assert "Traceback" in captured.err


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())  # type: ignore[arg-type]
    assert run(["inspect", "x.pt2"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["search", "m.pt2"],
        ["status", "--limit", "0"],
        ["plan", "job_1"],
        ["submit", "m", "--gate", "kl<=1"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Usage" in capsys.readouterr().err or arguments[0] == "submit"


def test_no_server_says_where_it_looked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--server", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9" in capsys.readouterr().err


def test_no_database_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITWRIGHT_DATABASE_URL", "postgresql+psycopg://user:secret@127.0.0.1:9/none")
    assert run(["migrate", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["type"] == "urn:bitwright:problem:database-unavailable"
    assert "Traceback" not in captured.err
    assert "secret" not in captured.out + captured.err


def test_a_setting_out_of_range_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITWRIGHT_PORT", "99999999")
    assert run(["migrate"]) == 2
    assert "BITWRIGHT_PORT" in capsys.readouterr().err


def test_migrate_makes_a_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["migrate", "--data-dir", str(tmp_path / "new"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["revision"]
    assert (tmp_path / "new" / "bitwright.db").exists()


def test_a_result_goes_to_people_and_into_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end_with_result(Output(), RESULT, gates=[], report=None)
    shown = capsys.readouterr().out
    for words in ("a[0].weight", "uniform 2 bits", "Proven optimal", "0.600 ± 0.020"):
        assert words in shown
    # Bare numbers stand under a head that names their unit.
    assert "KL divergence (nats): predicted" in shown
    assert "measured ± std. error, evaluation" in shown
    assert "Objective 0.500000 nats, lower bound 0.500000 nats" in shown
    target = tmp_path / "sub" / "out.json"
    end_with_result(Output(json_target=str(target)), RESULT, gates=[], report=None)
    assert json.loads(target.read_text()) == RESULT
    assert [p.name for p in target.parent.iterdir()] == ["out.json"]
    assert capsys.readouterr().out == ""
    end_with_result(Output(json_target="-"), RESULT, gates=[], report=None)
    assert json.loads(capsys.readouterr().out) == RESULT


def test_evaluation_on_the_calibration_data_is_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    same = {**RESULT, "calibration": {"sha256": "0"}, "evaluation": {"sha256": "0"}}
    end_with_result(Output(json_target="-"), same, gates=[], report=None)
    assert "The evaluation data are the calibration data" in capsys.readouterr().err
    end_with_result(Output(json_target="-"), {**same, "evaluation": {"sha256": "1"}}, gates=[], report=None)
    assert capsys.readouterr().err == ""


def test_a_missed_gate_ends_with_5_after_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    gates = [Gate.parse("kl<=0.6"), Gate.parse("kl<=0.5")]
    with pytest.raises(click.exceptions.Exit) as ended:
        end_with_result(Output(json_target="-"), RESULT, gates=gates, report=None)
    assert ended.value.exit_code == 5
    captured = capsys.readouterr()
    assert json.loads(captured.out) == RESULT
    assert "kl<=0.5 is not met" in captured.err
    assert "kl<=0.6" not in captured.err


@pytest.mark.parametrize(("status", "code"), [("infeasible", 4), ("no_solution", 1)])
def test_a_search_without_a_plan(status: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    document = {**RESULT, "status": status, "choices": {}, "objective": None}
    with pytest.raises(click.exceptions.Exit) as ended:
        end_with_result(Output(json_target="-"), document, gates=[], report=None)
    assert ended.value.exit_code == code
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == status
    assert captured.err


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_target_that_cannot_be_written_is_told_before_the_work(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    search = [
        "search",
        "m.pt2",
        "--calibration",
        "c",
        "--budget",
        "4 bits",
        "--data-dir",
        str(tmp_path / "data"),
    ]
    for target, words in (
        (tmp_path, "a folder's"),
        ("", "a folder's"),
        (tmp_path / "file" / "out", "is not a folder"),
    ):
        assert run([*search, option, str(target)]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert option in told
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_device_or_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(str(pipe), click.Option(["--json"]))
        end_with_result(Output(json_target=str(pipe)), RESULT, gates=[], report=None)
        assert json.loads(os.read(reader, 1 << 16)) == RESULT
        assert pipe.is_fifo()
    finally:
        os.close(reader)


def test_a_problem_is_told_although_its_file_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Output(json_target=str(tmp_path)).problem({"type": "x", "detail": "why"})
    captured = capsys.readouterr()
    assert json.loads(captured.out)["detail"] == "why"
    assert str(tmp_path) in captured.err.replace("\n", "")


def test_a_full_disk_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "out.json"))
    assert run(["inspect", "x.pt2", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["type"] == "urn:bitwright:problem:storage-full"
    assert "out.json" in captured.out
    assert "Traceback" not in captured.err


def test_names_with_brackets_are_shown_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    table.write_text("unit,candidate,cost,size_bits\nlayers[red].weight,w[b]4,1.0,10\n")
    assert run(["solve", str(table), "--budget", "15 bits total"]) == 0
    shown = capsys.readouterr().out
    assert "layers[red].weight" in shown
    assert "w[b]4" in shown


def test_a_closed_pipe_is_no_traceback() -> None:
    script = "import sys; from app.cli import main; sys.argv = ['bitwright', '--help']; main()"
    ended = subprocess.run(
        ["sh", "-c", f'{sys.executable} -c "{script}" | true'], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in ended.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bitwright"].count(".") == 2


def test_a_search_without_a_plan_tells_what_is_measured_and_what_estimated() -> None:
    entry = {"unit": "a", "scheme": "channel-asymmetric", "mean": 0.5, "standard_error": None}
    document = {
        "job": "job_1",
        "state": "running",
        "settings": {"predicts": "kl"},
        "sensitivities": [
            entry | {"bits": 4, "activation_bits": 8, "source": "measured"},
            entry | {"bits": 8, "activation_bits": None, "source": "estimated"},
            entry | {"bits": 2, "activation_bits": None, "source": "estimated"},
        ],
    }
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tables.unfinished(document))
    said = console.export_text()
    assert "1 entries are measured, 2 estimated" in said
    assert "4/a8 · channel-asymmetric" in said


def test_agreement_is_shown_where_outputs_are_classes():
    document = result_document()

    def printed():
        console = Console(file=io.StringIO(), width=220)
        console.print(tables.plans(document))
        return console.file.getvalue()

    assert "Top-1 agreement" in printed()
    for plan in (*document["plans"], *document["baselines"]):
        plan["measured"].pop("top1_agreement", None)
    assert "Top-1 agreement" not in printed()
