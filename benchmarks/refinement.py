"""Plans of added costs, with interactions, and measured again around, on data that had no part in them.

The evaluation data are cut in two. The first half goes with the search, which may refuse plans that cost more there; the
second half is what is reported. So what is handed over was chosen by neither the calibration data alone nor by what it is
judged on here. Plans are measured sample by sample, so that differences between them are *paired*: their standard error is
that of the difference. Prints a Markdown table and, with ``--json``, writes every number::

    python benchmarks/refinement.py --model model.pt2 --calibration c.safetensors --evaluation e.safetensors --compare mse

Without a model it builds EfficientNet-Lite0 and photos (see ``examples/efficientnet_lite0.py``). An interrupted run goes on
where it was.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# In the place of this folder, where `solver.py` would hide the package of that name.
sys.path[0:1] = [str(ROOT), str(ROOT / "examples")]

import numpy as np  # noqa: E402 - from the folder just added
from rich.console import Console  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from app.cli.progress import job_progress  # noqa: E402
from app.cli.service import tune_memory  # noqa: E402
from app.dispatch.work import candidate_of  # noqa: E402
from app.export import write_dataset  # noqa: E402
from app.local import Files, search  # noqa: E402
from app.settings import Settings  # noqa: E402
from workers.contracts import Metric, Observation, PlanRequest  # noqa: E402
from workers.intake.packing import packed  # noqa: E402
from workers.verify.parts import PlanPart, measure_parts  # noqa: E402

DATA = ROOT / ".bitwright" / "benchmarks"
BUDGETS = ("2.5 bits", "3 bits", "4 bits")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan. Costs in the metric's unit; ``difference`` to the plan of added costs on the reported data."""

    budget: str
    found_by: str
    handed_over: bool
    calibration: float
    evaluation: float
    reported: float
    difference: float
    standard_error: float


def plans_of(document: dict[str, Any], index: int) -> dict[str, dict[str, Any]]:
    """The plans that a search found for a budget: how -> plan with ``choices`` and ``measured``."""
    plan = document["plans"][index]
    found = {"added costs": plan if plan["origin"] == "search" else plan["solver"]["search"]}
    for other in document["alternatives"]:
        if other["budget"] == plan["budget"]:
            found[other["origin"]] = other
    return found


def halves(path: Path, folder: Path) -> tuple[Path, Path]:
    """A data file cut in two: neighbours, which may be of the same document, stay together."""
    tensors = load_file(path)
    middle = len(next(iter(tensors.values()))) // 2
    found = []
    for name, part in (("chosen-by", slice(None, middle)), ("reported-on", slice(middle, None))):
        place = folder / f"{path.stem}-{name}.safetensors"
        inputs = {key: values[part] for key, values in tensors.items() if key != "labels"}
        write_dataset(place, inputs, tensors["labels"][part] if "labels" in tensors else None)
        found.append(place)
    return found[0], found[1]


def rows(document: dict[str, Any], files: Files, report: Path, given: argparse.Namespace) -> list[Row]:
    """All plans of all budgets, measured on the data to report."""
    metric = Metric(document["settings"]["compare"])
    request = PlanRequest(
        model_path=str(files.model),
        data_path=str(report),
        metrics=(metric,),
        batch_size=given.batch_size,
        observation=Observation(path=str(files.calibration), samples=given.samples),
    )
    everything = tuple(range(len(next(iter(load_file(report).values())))))
    table = []
    for index, handed in enumerate(document["plans"]):
        plans = plans_of(document, index)
        parts = [
            PlanPart(
                choices={unit: candidate_of(choice) for unit, choice in plan["choices"].items()},
                positions=everything,
            )
            for plan in plans.values()
        ]
        costs = measure_parts(request, parts)
        for (found_by, plan), own in zip(plans.items(), costs, strict=True):
            difference = own - costs[0]
            measured = plan["measured"].get("values", plan["measured"])[metric.value]
            table.append(
                Row(
                    budget=handed["budget"],
                    found_by=found_by,
                    handed_over=plan["choices"] == handed["choices"],
                    calibration=measured["calibration"],
                    evaluation=measured["evaluation"],
                    reported=float(own.mean()),
                    difference=float(difference.mean()),
                    standard_error=float(np.std(difference, ddof=1)) / math.sqrt(len(difference)),
                )
            )
    return table


def markdown(table: list[Row]) -> str:
    """One line for each plan."""
    lines = [
        "| budget | plan | calibration | chosen by | reported | difference to added costs | handed over |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        share = row.difference / (row.reported - row.difference)
        lines.append(
            f"| {row.budget} | {row.found_by} | {row.calibration:.4g} | {row.evaluation:.4g} | {row.reported:.4g} | "
            f"{row.difference:+.4g} "
            f"± {row.standard_error:.2g} ({share:+.1%}) | {'yes' if row.handed_over else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "calibration", "evaluation"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--budget", action="append", help="may be repeated; 2.5, 3 and 4 bits if not given")
    parser.add_argument("--compare", choices=("kl", "mse"))
    parser.add_argument("--metric", default="auto")
    parser.add_argument("--scheme", default="channel-asymmetric")
    parser.add_argument("--activations", type=int, nargs="+", default=[], help="widths of units' inputs")
    parser.add_argument("--limit", help="on bit operations, e.g. 1.2G")
    parser.add_argument("--samples", type=int, help="calibration samples to use; all if not given")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument(
        "--refine-passes", type=float, help="what steps may take; a share of the rest if not given"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every number")
    given = parser.parse_args()
    tune_memory()
    if given.model is None:
        import efficientnet_lite0  # noqa: PLC0415 - only here, since it needs the example's packages

        assets = efficientnet_lite0.build(DATA / "assets")
        files = Files(model=assets.model, calibration=assets.calibration, evaluation=assets.evaluation)
    else:
        files = Files(model=given.model, calibration=given.calibration, evaluation=given.evaluation)
    assert files.evaluation is not None
    DATA.mkdir(parents=True, exist_ok=True)
    chosen_by, report = halves(files.evaluation, DATA)
    files = replace(files, evaluation=chosen_by)
    request: dict[str, Any] = {
        "budgets": list(given.budget or BUDGETS),
        "candidates": [2, 3, 4, 5, 6, 8],
        "scheme": given.scheme,
        "metric": given.metric,
        "samples": given.samples,
        "batch_size": given.batch_size,
        "activation_candidates": given.activations,
        "limits": {} if given.limit is None else {"bit_operations": given.limit},
        **({} if given.compare is None else {"compare": given.compare}),
        **({} if given.refine_passes is None else {"refine_passes": given.refine_passes}),
    }
    with packed(files.model) as model, job_progress(Console(stderr=True)) as progress:
        files = replace(files, model=model)
        document = search(
            files,
            request,
            Settings(data_dir=DATA, workers=given.workers),
            lambda update: progress.update(update.state, update.progress),
        )
        table = rows(document, files, report, given)
    print(markdown(table))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in table], indent=2) + "\n")


if __name__ == "__main__":
    main()
