"""Estimating first against measuring everything: seconds, entries, and what the plans lose by it.

The same search runs twice on the same samples, each in a data directory of its own so that nothing is shared: once with
every candidate measured, once with ``auto``. Plans of both are then priced with the measured table: the *regret* is what
the plan of ``auto`` costs more there than the best plan. The plain loop (every entry a whole pass) is not run but reckoned:
entries times one float pass, timed in between, over the number of workers. Seconds are wall-clock, both searches with the
same number of workers. Prints a Markdown table and, with ``--json``, writes every number::

    python benchmarks/auto.py --model model.pt2 --calibration c.safetensors --samples 16 --json auto.json

Without a model it builds EfficientNet-Lite0 and photos (see ``examples/efficientnet_lite0.py``).
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# In the place of this folder, where `solver.py` would hide the package of that name.
sys.path[0:1] = [str(ROOT), str(ROOT / "examples")]

from rich.console import Console  # noqa: E402 - from the folder just added

from app.cli.progress import job_progress  # noqa: E402
from app.cli.service import tune_memory  # noqa: E402
from app.local import Files, search  # noqa: E402
from app.settings import Settings  # noqa: E402
from workers.contracts import Metric, PlanRequest  # noqa: E402
from workers.sensitivity.session import load_batches, load_model, selection_of  # noqa: E402

BUDGETS = ("2.5 bits", "3 bits", "4 bits", "5 bits")
CANDIDATES = (2, 3, 4, 5, 6, 8)
PASSES = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One budget. Costs are of the measured table, in the metric's unit; ``joint`` ones measured on the whole model."""

    budget: str
    best: float
    auto: float
    regret: float
    predicted: float
    joint_best: float
    joint_auto: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run found. Seconds are wall-clock seconds of all workers together."""

    model: str
    metric: str
    samples: int
    units: int
    entries: int
    measured_entries: int
    workers: int
    pass_seconds: float
    naive_seconds: float
    exact_seconds: float
    auto_seconds: float
    rows: tuple[Row, ...]


def searched(files: Files, given: argparse.Namespace, metric: str, folder: Path) -> dict[str, Any]:
    """The result document of one search."""
    request: dict[str, Any] = {
        "budgets": list(given.budget),
        "candidates": list(given.candidates),
        "scheme": given.scheme,
        "metric": metric,
        "samples": given.samples,
        "batch_size": given.batch_size,
    }
    if metric == "auto":
        request |= {"compare": given.compare, "regret": given.regret, "probes": given.probes}
    settings = Settings(data_dir=folder, workers=given.workers)
    console = Console(stderr=True)
    console.print(f"{metric}:")
    with job_progress(console) as progress:
        return search(files, request, settings, lambda update: progress.update(update.state, update.progress))


def pass_seconds(files: Files, given: argparse.Namespace) -> float:
    """Median seconds of one float pass over the calibration samples, in one worker's way."""
    request = PlanRequest(
        model_path=str(files.model),
        data_path=str(files.calibration),
        metrics=(Metric(given.compare),),
        samples=given.samples,
        batch_size=given.batch_size,
    )
    loaded = load_model(request.model_path, "cpu")
    batches = load_batches(request.data_path, loaded, selection_of(request))
    seconds = []
    for _ in range(PASSES):
        started = time.perf_counter()
        for batch in range(len(batches)):
            loaded.program.run(batches.inputs_of(batch))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def compared(exact: dict[str, Any], auto: dict[str, Any], metric: str) -> tuple[Row, ...]:
    """Plans of both, priced with the measured table."""
    table = {(e["unit"], e["bits"], e["scheme"]): e["mean"] for e in exact["sensitivities"]}

    def price(choices: dict[str, Any]) -> float:
        return math.fsum(table[unit, choice["bits"], choice["scheme"]] for unit, choice in choices.items())

    def found(plan: dict[str, Any]) -> dict[str, Any]:
        """What the search by added costs found, whatever was handed over."""
        own: dict[str, Any] = plan["solver"].get("search") or plan | {
            "measured": {"values": plan["measured"]}
        }
        return own

    def joint(plan: dict[str, Any]) -> float:
        return float(found(plan)["measured"]["values"][metric]["calibration"])

    rows = []
    for best, ours in zip(exact["plans"], auto["plans"], strict=True):
        least, predicted = found(best)["objective"], found(ours)["objective"]
        cost = price(found(ours)["choices"])
        rows.append(
            Row(
                budget=ours["budget"],
                best=least,
                auto=cost,
                regret=cost / least - 1,
                predicted=predicted,
                joint_best=joint(best),
                joint_auto=joint(ours),
            )
        )
    return tuple(rows)


def markdown(result: Result) -> str:
    """Two tables."""
    speed = [
        ("plain loop (reckoned)", result.naive_seconds, result.entries),
        ("all measured", result.exact_seconds, result.entries),
        ("auto", result.auto_seconds, result.measured_entries),
    ]
    lines = [
        (
            f"{result.model}: {result.units} units, {result.entries} candidates, {result.samples} samples, "
            f"metric {result.metric}, {result.workers} workers; one float pass takes {result.pass_seconds:.2f} s."
        ),
        "",
        "| way | seconds | entries measured | times the plain loop's speed |",
        "|---|---|---|---|",
        *(
            f"| {name} | {seconds:.1f} | {entries} | {result.naive_seconds / seconds:.1f} |"
            for name, seconds, entries in speed
        ),
        "",
        "| budget | best plan | plan of auto | regret | auto predicted | joint: best plan | joint: auto |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {r.budget} | {r.best:.5g} | {r.auto:.5g} | {100 * r.regret:.2f} % | {r.predicted:.5g} "
            f"| {r.joint_best:.5g} | {r.joint_auto:.5g} |"
            for r in result.rows
        ),
    ]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a model file; EfficientNet-Lite0 if not given")
    parser.add_argument("--calibration", type=Path, help="its calibration data")
    parser.add_argument("--compare", choices=["kl", "mse"], default="kl", help="what is compared")
    parser.add_argument("--samples", type=int, help="calibration samples to use; all if not given")
    parser.add_argument("--batch-size", type=int, default=16, help="samples per pass (default 16)")
    parser.add_argument("--scheme", default="channel-asymmetric", help="quantizer scheme")
    parser.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES, help="bit-widths")
    parser.add_argument("--budget", action="append", help="may be repeated")
    parser.add_argument("--regret", type=float, default=0.01, help="tolerated by auto (default 0.01)")
    parser.add_argument("--probes", type=int, default=4, help="of auto (default 4)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that measure")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every number")
    given = parser.parse_args()
    given.budget = given.budget or list(BUDGETS)
    if (given.model is None) != (given.calibration is None):
        parser.error("--model and --calibration go together")
    return given


def main() -> None:
    """Run the benchmark."""
    given = arguments()
    tune_memory()
    if given.model is None:
        import efficientnet_lite0  # noqa: PLC0415 - builds from packages that other models do not need

        assets = efficientnet_lite0.build(ROOT / ".bitwright" / "benchmarks" / "assets")
        given.model, given.calibration = assets.model, assets.calibration
    files = Files(model=given.model, calibration=given.calibration)
    folder = Path(tempfile.mkdtemp(prefix="bitwright-auto-"))
    try:
        auto = searched(files, given, "auto", folder / "auto")
        seconds = pass_seconds(files, given)
        exact = searched(files, given, given.compare, folder / "exact")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    entries = len(exact["sensitivities"])
    result = Result(
        model=given.model.stem,
        metric=given.compare,
        samples=exact["calibration"]["samples"],
        units=exact["model"]["units"],
        entries=entries,
        measured_entries=sum(e["source"] == "measured" for e in auto["sensitivities"]),
        workers=given.workers,
        pass_seconds=seconds,
        naive_seconds=entries * seconds / given.workers,
        exact_seconds=exact["seconds"]["measure"],
        auto_seconds=auto["seconds"]["measure"],
        rows=compared(exact, auto, given.compare),
    )
    print(markdown(result))
    if given.json:
        given.json.write_text(json.dumps(asdict(result), indent=2) + "\n")


if __name__ == "__main__":
    main()
