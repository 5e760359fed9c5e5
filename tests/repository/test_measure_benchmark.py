"""The measuring benchmark's own honesty: what it calls equal, what it reckons, and what it says that plans lose."""

import importlib
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import pytest
import torch
from rich.console import Console
from torch import nn

from app.client import JobUpdate
from app.export import export_model, write_dataset
from workers.contracts import Candidate, MeasureRequest, Metric
from workers.sensitivity.engine import measure

ROOT = str(Path(__file__).resolve().parents[2])
BURN = "import time\nwhile time.process_time() < 1.2: sum(range(1000))"


@pytest.fixture(scope="module")
def benchmark() -> tuple[ModuleType, ModuleType]:
    sys.path.insert(0, ROOT)
    return importlib.import_module("benchmarks.measure"), importlib.import_module("benchmarks.measure_ways")


class InThisProcess:
    """In place of a pool of processes: the same calls, one after the other."""

    def __init__(self, *_args: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None: ...

    map = staticmethod(map)


@pytest.fixture
def asked(benchmark: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    _, ways = benchmark
    monkeypatch.setattr(ways, "ProcessPoolExecutor", InThisProcess)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    data = torch.randn(7, 6)
    model = export_model(module, data[:2], tmp_path / "net.pt2")
    write_dataset(tmp_path / "c.safetensors", {model.input_names[0]: data})
    return ways.Asked(
        model=model.path,
        calibration=tmp_path / "c.safetensors",
        compare="kl",
        samples=None,
        batch_size=3,
        scheme="channel-asymmetric",
        candidates=(2, 3, 4, 8),
        budgets=("4 bits",),
        regret=0.01,
        probes=4,
        workers=2,
    )


def exact(asked: Any, entries: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
    request = MeasureRequest(
        model_path=str(asked.model),
        calibration_path=str(asked.calibration),
        metric=Metric.KL,
        wanted=tuple((unit, Candidate.parse(candidate)) for unit, candidate in entries),
        batch_size=3,
    )
    return {entry: found.mean for entry, found in zip(entries, measure(request), strict=True)}


def test_the_plain_loop_gives_the_exact_table(benchmark: tuple[ModuleType, ModuleType], asked: Any) -> None:
    _, ways = benchmark
    entries = ways.offered(asked)
    assert len(entries) == 2 * 4
    plain = ways.plain_loop(asked, entries, ways.FloatPass(seconds=0.01, cpu_seconds=0.01), minutes=1.0)
    assert not plain.reckoned
    assert plain.means == exact(asked, entries)


def test_a_float_pass_is_timed(benchmark: tuple[ModuleType, ModuleType], asked: Any) -> None:
    _, ways = benchmark
    found = ways._timed_pass(asked)
    assert 0 < found.seconds < 5
    assert 0 < found.cpu_seconds < 5


def test_what_would_take_too_long_is_reckoned(benchmark: tuple[ModuleType, ModuleType], asked: Any) -> None:
    _, ways = benchmark
    entries = ways.offered(asked)
    # 60 s on two workers are time for six passes of 20 s.
    plain = ways.plain_loop(asked, entries, ways.FloatPass(seconds=20.0, cpu_seconds=19.0), minutes=1.0)
    assert plain.reckoned
    assert len(plain.means) == 6
    assert (plain.seconds, plain.cpu_seconds) == (8 * 20.0 / 2, 8 * 19.0)
    passes = [
        ways.FloatPass(seconds=wall, cpu_seconds=cpu) for wall, cpu in ((20.0, 9.0), (30.0, 8.0), (25.0, 7.0))
    ]
    again = ways.reckoned_again(plain, len(entries), 2, ways.middle(passes))
    assert (again.seconds, again.cpu_seconds) == (8 * 25.0 / 2, 8 * 8.0)
    few = ways.plain_loop(asked, entries, ways.FloatPass(seconds=1e6, cpu_seconds=1.0), minutes=1.0)
    assert len(few.means) == 4, "two for each worker, to compare at all"


def test_processes_below_this_one_are_looked_after(benchmark: tuple[ModuleType, ModuleType]) -> None:
    _, ways = benchmark
    with ways.Usage() as usage:
        subprocess.run([sys.executable, "-c", BURN], check=True)
    assert 0.5 < usage.cpu_seconds < 5.0
    assert usage.peak_mib > 1


def test_a_way_has_what_its_workers_spent_until_costs_were_known(
    benchmark: tuple[ModuleType, ModuleType], asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ways = benchmark
    usage = SimpleNamespace(cpu_seconds=0.0, peak_mib=7.0)

    def search(_files: object, request: dict[str, Any], _settings: object, on_update: Any) -> dict[str, Any]:
        assert (request["metric"], request["regret"], request["refine_rounds"]) == ("kl", 0.01, 0)
        for cpu_seconds, stage in ((2.0, "probe"), (5.0, "measure"), (9.0, "solve"), (40.0, "verify")):
            usage.cpu_seconds = cpu_seconds
            progress = {
                "stage": stage,
                "fraction": 0.5,
                "eta_seconds": None,
                "done": 1,
                "total": 2,
                "unit": "entries",
            }
            on_update(JobUpdate(state="running", progress=progress))
        return {"seconds": {"measure": 6.5}}

    monkeypatch.setattr(ways, "search", search)
    monkeypatch.setattr(ways, "Usage", lambda: nullcontext(usage))
    found = ways.searched(asked, "racing", tmp_path, Console(quiet=True))
    assert (found.seconds, found.cpu_seconds, found.peak_mib) == (6.5, 9.0 - 2.0, 7.0)


def document(choices: dict[str, int], costs: dict[tuple[str, int], float], **plan: Any) -> dict[str, Any]:
    scheme = "channel-asymmetric"
    return {
        "plans": [
            {"choices": {u: {"bits": b, "scheme": scheme} for u, b in choices.items()}, "solver": {}, **plan}
        ],
        "sensitivities": [
            {"unit": u, "bits": b, "scheme": scheme, "mean": cost, "source": "measured", "samples": 8}
            for (u, b), cost in costs.items()
        ],
        "calibration": {"samples": 8},
        "seconds": {"measure": 2.0},
    }


TABLE = {("a", 2): 4.0, ("a", 4): 1.0, ("b", 2): 3.0, ("b", 4): 0.5}


def test_regret_is_by_the_reference_table_and_of_the_searchs_own_plan(
    benchmark: tuple[ModuleType, ModuleType],
) -> None:
    script, _ = benchmark
    best = document({"a": 4, "b": 2}, TABLE)
    wrong_table = dict.fromkeys(TABLE, 99.0)
    ours = document({"a": 2, "b": 4}, wrong_table)
    assert script.regrets(ours, best) == pytest.approx([4.5 / 4.0 - 1])
    handed_over = document({"a": 4, "b": 4}, wrong_table, solver={"search": ours["plans"][0]})
    assert script.regrets(handed_over, best) == pytest.approx([4.5 / 4.0 - 1])


def test_estimates_are_ranked_between_units_at_each_width(benchmark: tuple[ModuleType, ModuleType]) -> None:
    """Not over all entries, where the widths alone give a high one."""
    measure, _ = benchmark

    def table(costs: dict[int, list[float]]) -> dict[str, Any]:
        rows = [
            {"unit": unit, "bits": bits, "scheme": "any", "mean": mean}
            for bits, means in costs.items()
            for unit, mean in zip("abc", means, strict=True)
        ]
        return {"sensitivities": rows}

    exact = table({4: [1.0, 2.0, 3.0], 2: [10.0, 20.0, 30.0]})
    found = measure.rank_correlations(table({2: [33.0, 22.0, 11.0], 4: [1.5, 9.0, 9.5]}), exact)
    assert found == ((2, pytest.approx(-1.0)), (4, pytest.approx(1.0)))


def test_one_entry_that_differs_is_told(benchmark: tuple[ModuleType, ModuleType]) -> None:
    script, ways = benchmark
    found = ways.Found(
        document=document({"a": 4, "b": 2}, TABLE), seconds=2.0, cpu_seconds=3.0, peak_mib=5.0, foretold=()
    )
    means = {(u, f"{b}:channel-asymmetric"): cost for (u, b), cost in TABLE.items()}
    means["a", "2:channel-asymmetric"] += 1e-12
    plain = ways.Plain(means=means, seconds=9.0, cpu_seconds=8.0, peak_mib=1.0, reckoned=False)
    row = script.row_of("exact", found, found.document, plain, ways.FloatPass(seconds=1.0, cpu_seconds=1.5))
    assert (row.equal, row.compared) == (3, 4)
    assert (row.speedup, row.passes, row.work, row.regrets) == (4.5, 2.0, 4.0, ())


def test_a_table_that_was_measured_before_is_not_measured_again(
    benchmark: tuple[ModuleType, ModuleType], asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, ways = benchmark
    table = document({"a": 4, "b": 2}, TABLE) | {"model": {"units": 2}}
    ours = document({"a": 2, "b": 4}, TABLE) | {"model": {"units": 2}}
    run = []

    def searched(_asked: object, way: str, _folder: Path, _console: Console) -> Any:
        run.append(way)
        return ways.Found(document=ours, seconds=2.0, cpu_seconds=3.0, peak_mib=5.0, foretold=())

    plain = ways.Plain(means={}, seconds=9.0, cpu_seconds=8.0, peak_mib=1.0, reckoned=True)
    monkeypatch.setattr(script, "offered", lambda _asked: list(TABLE))
    monkeypatch.setattr(script, "float_pass", lambda _asked: ways.FloatPass(seconds=1.0, cpu_seconds=1.0))
    monkeypatch.setattr(script, "plain_loop", lambda *_given: plain)
    monkeypatch.setattr(script, "searched", searched)
    given = SimpleNamespace(naive_minutes=1.0, skip=["probe", "bounded"])
    result = script.compared(asked, given, table, tmp_path, Console(quiet=True))
    assert run == ["racing", "auto"]
    assert result.reference == "exact"
    assert [row.regrets for row in result.rows] == [(), (pytest.approx(0.125),), (pytest.approx(0.125),)]
    script.compared(asked, given, None, tmp_path, Console(quiet=True))
    assert run[2:] == ["exact", "racing", "auto"]
    given.skip = ["racing", "probe"]
    script.compared(asked, given, table, tmp_path, Console(quiet=True))
    assert run[5:] == ["bounded", "auto"]


def test_bounded_measuring_and_probes_stay_within_six_passes_a_probe(
    benchmark: tuple[ModuleType, ModuleType], asked: Any
) -> None:
    free, bounded = asked.request("auto"), asked.request("bounded")
    assert bounded.pop("max_passes") <= (6 - 4) * asked.probes, "a probe takes about four"
    assert bounded == free


def test_some_way_has_to_tell_what_plans_cost(
    benchmark: tuple[ModuleType, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script, _ = benchmark
    monkeypatch.setattr("sys.argv", ["measure.py", "--skip", "exact", "racing"])
    with pytest.raises(SystemExit):
        script.arguments()
    assert "--table" in capsys.readouterr().err
