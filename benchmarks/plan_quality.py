"""Plans of all metrics against each other, uniform and random plans, on data that was not calibrated on.

For each model and quantizer scheme every metric (measured, estimated, or both) makes a plan for each budget; the plans are
applied to the whole model and measured on other photos or documents, next to the largest uniform plan within the budget and
to random plans that fill it. Everything goes through the same search as ``bitwright search``: what an interrupted run has
measured is kept, and equal plans of several metrics are measured once. Prints a Markdown table for each model and scheme;
``--json`` writes every number, beside those of the same data that are in the file already, ``--plots`` draws a figure for each
model, with these as well::

    python benchmarks/plan_quality.py --json benchmarks/results/plan_quality.json --plots docs/images
    python benchmarks/plan_quality.py --models smollm2 --minutes 12
    python benchmarks/plan_quality.py --quick --models efficientnet-lite0

The first scheme is searched by all metrics, the others by the first metric alone unless ``--every`` is given. In the tables a
metric's plan is the one of least added cost, as it proposed it; what the service hands over instead, where that measured
better, stands in the last column.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
# This folder comes last: in front, `solver.py` would hide the package of that name.
sys.path[:] = [str(ROOT), str(ROOT / "examples"), *(p for p in sys.path if p != str(HERE)), str(HERE)]

from quality_models import CASES, METRICS, Case, Prepared, prepare  # noqa: E402 - from the folders just added
from quality_results import Outcome, read, together, write  # noqa: E402
from quality_rows import Table, markdown, overview  # noqa: E402
from random_plans import random_plans  # noqa: E402
from rich.console import Console  # noqa: E402

from app.cli.progress import job_progress  # noqa: E402
from app.cli.service import tune_memory  # noqa: E402
from app.client import JobUpdate  # noqa: E402
from app.local import Engine, Stop, measure_plans, search  # noqa: E402
from app.plans.service import PlanChange  # noqa: E402
from app.report import quantities  # noqa: E402
from app.settings import Settings  # noqa: E402

DATA = ROOT / ".bitwright" / "benchmarks"
BUDGETS = (2.25, 2.5, 3.0, 4.0, 5.0)
CANDIDATES = (2, 3, 4, 5, 6, 8)
RANDOM_PLANS = 5
OPTIONS: dict[str, dict[str, Any]] = {
    "racing": {"regret": 0.01},  # what `auto` tolerates unless told otherwise
    "hessian-trace": {"probes": 2},  # second derivatives take longer than all other estimators together
}
"""What a metric asks for beside its name."""
UNREFINED: dict[str, Any] = {"refine_rounds": 0}
"""What is compared is the metrics' own plans; only with the default are plans measured again around, as users have it."""
QUICK: dict[str, Any] = {"budgets": (3.0, 4.0), "metrics": ("auto", "weight-mse"), "samples": 8, "random": 2}
CONSOLE = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model's part of the benchmark."""

    prepared: Prepared
    given: argparse.Namespace
    settings: Settings
    engine: Engine
    deadline: float
    outcome: Outcome

    @property
    def case(self) -> Case:
        """The model."""
        return self.prepared.case

    def all(self) -> None:
        """Everything there is time for."""
        try:
            for scheme in self.given.schemes or self.case.schemes:
                self.scheme(scheme)
        except Stop:
            self.outcome.notes.append("Out of time: some plans are missing. The same command goes on.")

    def scheme(self, scheme: str) -> None:
        """All metrics with one scheme on offer, then random plans; after the first scheme less, unless all was asked for."""
        metrics = self.given.metrics or self.case.metrics
        whole = self.given.every or scheme == (self.given.schemes or self.case.schemes)[0]
        first = self.search(scheme, metrics[0])
        table = Table(scheme=scheme, compare=self.case.compare, task=self.prepared.task, document=first)
        self.uniform(table, first)
        self.outcome.rows += table.searched(metrics[0], first)
        if whole:
            for metric in metrics[1:]:
                self.outcome.rows += table.searched(metric, self.search(scheme, metric))
            for budget in self.given.budgets if self.given.random else ():
                self.random(table, first, budget)

    def uniform(self, table: Table, document: dict[str, Any]) -> None:
        """Uniform plans, which any search has measured."""
        compare = self.case.compare
        self.outcome.uniform[table.scheme] = [
            (
                plan["average_bits"],
                plan["measured"][compare]["evaluation"],
                plan["measured_standard_error"][compare]["evaluation"],
            )
            for plan in document["baselines"]
        ]
        self.outcome.task_of_float = self.prepared.task.of_float(document["baselines"][0])
        self.outcome.rows += [table.uniform(budget) for budget in self.given.budgets]

    def search(self, scheme: str, metric: str) -> dict[str, Any]:
        """The result document of one metric."""
        compare = self.case.compare
        request: dict[str, Any] = {
            "budgets": [f"{budget:g} bits" for budget in self.given.budgets],
            "candidates": list(CANDIDATES),
            "scheme": scheme,
            "samples": self.given.samples or self.case.samples,
            "compare": compare,
            "metric": compare if metric in ("exact", "racing") else metric,
            **({} if metric == "auto" else UNREFINED),
            **OPTIONS.get(metric, {}),
        }
        CONSOLE.print(f"{self.case.name}, {scheme}, {metric}:")
        with job_progress(CONSOLE) as progress:
            document = search(
                self.prepared.files, request, self.settings, self.watched(progress.update), self.engine
            )
        self.outcome.seconds[f"{scheme} {metric}"] = document["seconds"]["measure"]
        return document

    def random(self, table: Table, document: dict[str, Any], budget: float) -> None:
        """Random plans that fill a budget."""
        weights = {unit["name"]: unit["weights"] for unit in document["units"]}
        drawn = random_plans(
            weights,
            CANDIDATES,
            int(budget * sum(weights.values())),
            count=self.given.random,
            seed=self.given.seed,
        )
        changes = [PlanChange(budget=f"{budget:g} bits", pins=pins, name="random") for pins in drawn]
        CONSOLE.print(f"{self.case.name}, random plans of {budget:g} bits:")
        with job_progress(CONSOLE) as progress:
            plans = measure_plans(
                document["job"], changes, self.settings, self.watched(progress.update), self.engine
            )
        costs = [plan["measured"][self.case.compare]["evaluation"] for plan in plans]
        self.outcome.random.setdefault(table.scheme, {})[f"{budget:g}"] = costs
        self.outcome.rows += table.random(budget, plans)

    def watched(self, update: Callable[..., None]) -> Callable[[JobUpdate], None]:
        """Shows progress, and stops when the time is up."""

        def show(news: JobUpdate) -> None:
            update(news.state, news.progress)
            if time.monotonic() > self.deadline:
                raise Stop

        return show


def run(case: Case, given: argparse.Namespace) -> tuple[Outcome, str]:
    """One model's results, and how they read."""
    deadline = time.monotonic() + 60 * given.minutes
    CONSOLE.print(f"{case.title}: building model and data ...")
    prepared = prepare(case, given.data / "models", given.evaluation_samples or case.evaluation_samples)
    outcome = Outcome(
        model=case.name,
        title=case.title,
        compare=case.compare,
        task_title=prepared.task.title,
        samples=given.samples or case.samples,
        evaluation_samples=prepared.evaluated,
    )
    settings = Settings(data_dir=given.data, workers=given.workers)
    with Engine(settings) as engine:
        Run(
            prepared=prepared,
            given=given,
            settings=settings,
            engine=engine,
            deadline=deadline,
            outcome=outcome,
        ).all()
    return outcome, report(outcome, prepared, given)


def report(outcome: Outcome, prepared: Prepared, given: argparse.Namespace) -> str:
    """A heading, and a table for each scheme."""
    case, task = prepared.case, prepared.task
    lines = [f"## {case.title}", ""]
    if outcome.rows:
        lines += [
            (
                f"{given.samples or case.samples} {case.sample} to calibrate, "
                f"{prepared.evaluated} others to evaluate; widths "
                f"{', '.join(map(str, CANDIDATES))}. {quantities.heading(case.compare)} to the float model, ± standard error; "
                f"{task.title} of the float model: {task.text(outcome.task_of_float)}."
            ),
            "",
        ]
    for scheme in dict.fromkeys(row.scheme for row in outcome.rows):
        rows = [row for row in outcome.rows if row.scheme == scheme]
        lines += [f"`{scheme}`:", "", overview(rows), "", markdown(rows, case.compare, task), ""]
    return "\n".join([*lines, *(f"{note}\n" for note in outcome.notes)])


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [case.name for case in CASES]
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="which models")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="instead of a model's usual ones")
    parser.add_argument("--schemes", nargs="+", help="instead of a model's usual ones")
    parser.add_argument("--every", action="store_true", help="all metrics with every scheme")
    parser.add_argument("--budgets", nargs="+", type=float, help="average bits (2.25 2.5 3 4 5)")
    parser.add_argument("--samples", type=int, help="calibration samples, instead of a model's usual number")
    parser.add_argument("--evaluation-samples", type=int, help="the same for evaluation")
    parser.add_argument("--random", type=int, help="random plans for each budget (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the random plans (0)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="longest time for each model")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one for each core, at most 8")
    parser.add_argument("--data", type=Path, default=DATA, help="where models and measurements are kept")
    parser.add_argument(
        "--quick", action="store_true", help="two metrics and budgets, few samples, one scheme"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every number")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="also draw a figure for each model")
    given = parser.parse_args(words)
    if given.quick:
        given.metrics = given.metrics or QUICK["metrics"]
        given.budgets = given.budgets or QUICK["budgets"]
        given.schemes = given.schemes or ["channel-asymmetric"]
        given.samples = given.samples or QUICK["samples"]
        given.evaluation_samples = given.evaluation_samples or QUICK["samples"]
        given.random = QUICK["random"] if given.random is None else given.random
    given.budgets = given.budgets or BUDGETS
    given.random = RANDOM_PLANS if given.random is None else given.random
    if min(given.budgets) < min(CANDIDATES):
        parser.error(f"--budgets: nothing is smaller than {min(CANDIDATES)} bits")
    return given


def main() -> None:
    """Run the benchmark; what is finished is printed and written even if the rest is interrupted."""
    given = arguments()
    tune_memory()
    outcomes: list[Outcome] = []
    try:
        for case in CASES:
            if case.name in given.models:
                outcome, text = run(case, given)
                print(text, flush=True)
                outcomes.append(outcome)
    finally:
        every = together(outcomes, read(given.json))
        if given.json:
            write(given.json, every)
        if given.plots:
            from quality_plots import draw  # noqa: PLC0415 - needs a browser, which tables do not

            draw([outcome for outcome in every if outcome.model in given.models], given.plots)


if __name__ == "__main__":
    main()
