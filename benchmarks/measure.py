"""Ways of coming by costs, in one run and one table: seconds, memory, entries measured, and what plans lose by it.

The same search runs on the same samples in each way, in a data directory of its own, so that nothing is shared:

* ``plain loop``: every entry (unit, candidate) a whole pass. Where that would take longer than ``--naive-minutes`` it is
  reckoned, entries times a float pass (the median of those timed between the ways) over the number of workers, and only as many
  entries as fit are run, drawn at random. What is run tells whether the exact table equals it, bit for bit; the program ends with 1 if it does not.
* ``exact``: every entry by prefix reuse (``--metric kl`` or ``mse``).
* ``racing``: every entry on a first block of the samples (a quarter to an eighth), and on more where a plan may still
  change (with ``--regret``).
* ``estimates``: Gauss-Newton probes, nothing measured (``--metric probe``).
* ``auto``: estimates, and measuring where they leave a plan open; *bounded*, measuring takes 1.75 passes for each probe at most
  (``--max-passes``): with the probes' own, about four, that is what six passes a probe can tell.

The *regret* of a way is what its plan for a budget costs more than the best one, both by the exact table; with ``--skip
exact``, where that would take hours, by the table of racing, or by one that was measured before (``--table``: the result of
``bitwright search --metric kl --json`` with the same model, samples, widths and budgets). Estimates alone are also compared
by the rank correlation with the exact costs (Spearman), between units at each bit-width. Seconds are wall-clock, until all
costs are known; processor seconds are the workers'; *passes* are these in units of one float pass; memory is the most that
one worker had (Linux).
Without a model it builds EfficientNet-Lite0 and photos (see ``examples/efficientnet_lite0.py``)::

    python benchmarks/measure.py --samples 64 --json measure.json
    python benchmarks/measure.py --model minilm.pt2 --calibration c.safetensors --compare mse --samples 16
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# In the place of this folder, where `solver.py` would hide the package of that name.
sys.path[0:1] = [str(ROOT), str(ROOT / "examples")]

from rich.console import Console  # noqa: E402 - from the folder just added
from scipy.stats import spearmanr  # noqa: E402

from app.cli.service import tune_memory  # noqa: E402
from benchmarks.foretold import Error  # noqa: E402
from benchmarks.measure_ways import (  # noqa: E402
    Asked,
    Entry,
    FloatPass,
    Found,
    Plain,
    float_pass,
    middle,
    offered,
    plain_loop,
    reckoned_again,
    searched,
)
from workers.intake.packing import packed  # noqa: E402

BUDGETS = ("2.5 bits", "3 bits", "4 bits", "5 bits")
CANDIDATES = (2, 3, 4, 5, 6, 8)
WAYS = {
    "exact": "exact",
    "racing": "exact, racing",
    "probe": "estimates only",
    "bounded": "auto, bounded",
    "auto": "auto",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way. ``regrets`` are shares, one for each budget; empty for the table that the others are held against.

    ``equal`` of ``compared`` entries have bit for bit the mean of the plain loop. ``correlations`` are of estimates, by
    bit-width.
    """

    way: str
    seconds: float
    cpu_seconds: float
    passes: float
    entries_measured: int
    work: float
    peak_mib: float
    speedup: float
    reckoned: bool = False
    regrets: tuple[float, ...] = ()
    equal: int | None = None
    compared: int | None = None
    correlations: tuple[tuple[int, float], ...] = ()
    foretold: tuple[Error, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run found."""

    model: str
    metric: str
    samples: int
    units: int
    entries: int
    workers: int
    budgets: tuple[str, ...]
    reference: str
    tolerated_regret: float
    pass_seconds: float
    pass_cpu_seconds: float
    rows: tuple[Row, ...]


def table_of(document: dict[str, Any]) -> dict[Entry, float]:
    """Unit and candidate -> cost."""
    return {(e["unit"], f"{e['bits']}:{e['scheme']}"): e["mean"] for e in document["sensitivities"]}


def choices_of(plan: dict[str, Any]) -> list[Entry]:
    """What the search by added costs found for a budget, whatever was handed over."""
    own = plan["solver"].get("search") or plan
    return [(unit, f"{choice['bits']}:{choice['scheme']}") for unit, choice in own["choices"].items()]


def regrets(document: dict[str, Any], reference: dict[str, Any]) -> tuple[float, ...]:
    """What plans cost more than those of the reference, by the reference's table."""
    table = table_of(reference)

    def price(plan: dict[str, Any]) -> float:
        return math.fsum(table[entry] for entry in choices_of(plan))

    pairs = zip(document["plans"], reference["plans"], strict=True)
    return tuple(price(ours) / price(best) - 1.0 for ours, best in pairs)


def rank_correlations(document: dict[str, Any], reference: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    """Spearman's, between units, at each bit-width; that over all entries would tell of the bits."""
    exact = table_of(reference)
    pairs: dict[int, list[tuple[float, float]]] = {}
    for row in document["sensitivities"]:
        pairs.setdefault(row["bits"], []).append(
            (row["mean"], exact[row["unit"], f"{row['bits']}:{row['scheme']}"])
        )
    return tuple(
        (bits, float(spearmanr(*zip(*found, strict=True)).statistic)) for bits, found in sorted(pairs.items())
    )


def row_of(way: str, found: Found, reference: dict[str, Any], plain: Plain, unit: FloatPass) -> Row:
    """A way's figures."""
    rows, used = found.document["sensitivities"], found.document["calibration"]["samples"]
    measured = [row for row in rows if row["source"] == "measured"]
    table = table_of(found.document)
    same = [table[entry] == mean for entry, mean in plain.means.items()] if way == "exact" else None
    return Row(
        way=way,
        seconds=found.seconds,
        cpu_seconds=found.cpu_seconds,
        passes=found.cpu_seconds / unit.cpu_seconds,
        entries_measured=len(measured),
        work=sum(row["samples"] for row in measured) / used,
        peak_mib=found.peak_mib,
        speedup=plain.seconds / found.seconds,
        regrets=() if found.document is reference else regrets(found.document, reference),
        equal=None if same is None else sum(same),
        compared=None if same is None else len(same),
        correlations=rank_correlations(found.document, reference) if way in {"probe", "bounded"} else (),
        foretold=found.foretold,
    )


def plain_row(plain: Plain, entries: int, unit: FloatPass) -> Row:
    """The plain loop's figures."""
    return Row(
        way="naive",
        seconds=plain.seconds,
        cpu_seconds=plain.cpu_seconds,
        passes=plain.cpu_seconds / unit.cpu_seconds,
        entries_measured=len(plain.means),
        work=float(entries),
        peak_mib=plain.peak_mib,
        speedup=1.0,
        reckoned=plain.reckoned,
    )


def compared(
    asked: Asked, given: argparse.Namespace, table: dict[str, Any] | None, folder: Path, console: Console
) -> Result:
    """Run every way, one after the other; what all are held against may be known already."""
    entries = offered(asked)
    unit = float_pass(asked)
    console.print(f"one float pass takes {unit.seconds:.2f} s; plain loop:")
    plain = plain_loop(asked, entries, unit, given.naive_minutes)
    skipped = {*given.skip} if table is None else {*given.skip, "exact"}
    found: dict[str, Found] = {}
    passes = [unit]
    for way in WAYS:
        if way not in skipped:
            found[way] = searched(asked, way, folder, console)
            passes.append(float_pass(asked))
    unit = middle(passes)
    plain = reckoned_again(plain, len(entries), asked.workers, unit)
    reference = "racing" if table is None and "exact" in skipped else "exact"
    document = found[reference].document if table is None else table
    rows = [row_of(way, each, document, plain, unit) for way, each in found.items()]
    return Result(
        model=asked.model.stem,
        metric=asked.compare,
        samples=document["calibration"]["samples"],
        units=document["model"]["units"],
        entries=len(entries),
        workers=asked.workers,
        budgets=asked.budgets,
        reference=reference,
        tolerated_regret=asked.regret,
        pass_seconds=unit.seconds,
        pass_cpu_seconds=unit.cpu_seconds,
        rows=(plain_row(plain, len(entries), unit), *rows),
    )


def markdown(result: Result) -> str:
    """The table, with what has to be known to read it."""
    regret_heads = "".join(f" regret {budget} |" for budget in result.budgets)
    lines = [
        (
            f"{result.model}: {result.units} units, {result.entries} entries, {result.samples} samples, metric "
            f"{result.metric}, {result.workers} workers; one float pass takes {result.pass_seconds:.2f} s. Regrets are by "
            f"the table of {WAYS[result.reference]}; tolerated: {100 * result.tolerated_regret:g} %."
        ),
        "",
        f"| way | seconds | times plain | CPU s | passes | entries | work | MiB | equal |{regret_heads}",
        "|---|" + "---:|" * (8 + len(result.budgets)),
        *(_line(row, result) for row in result.rows),
        "",
        *(
            f"Rank correlation of {WAYS[row.way]}: {_correlations(row)}."
            for row in result.rows
            if row.correlations
        ),
        "",
        "Length of a stage as foretold after its first tenth, largest (median) error:",
        *(f"- {WAYS[row.way]}: {_errors(row)}" for row in result.rows if row.foretold),
    ]
    return "\n".join(lines)


def _correlations(row: Row) -> str:
    return ", ".join(f"{bits} bits {value:.3f}" for bits, value in row.correlations)


def _errors(row: Row) -> str:
    return ", ".join(
        f"{error.stage} ({error.seconds:.0f} s) {100 * error.largest:.0f} % ({100 * error.median:.0f} %)"
        for error in row.foretold
    )


def _line(row: Row, result: Result) -> str:
    name = "plain loop" + (" (reckoned)" if row.reckoned else "") if row.way == "naive" else WAYS[row.way]
    losses = row.regrets or (None,) * len(result.budgets)
    cells = [
        name,
        f"{row.seconds:.1f}",
        f"{row.speedup:.1f}",
        f"{row.cpu_seconds:.1f}",
        f"{row.passes:.1f}",
        str(row.entries_measured),
        f"{row.work:.1f}",
        f"{row.peak_mib:.0f}",
        "" if row.equal is None else f"{row.equal}/{row.compared}",
        *("" if loss is None else f"{100 * loss:.2f} %" for loss in losses),
    ]
    return f"| {' | '.join(cells)} |"


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, help="a model file or Hugging Face folder; EfficientNet-Lite0 if not given"
    )
    parser.add_argument("--calibration", type=Path, help="its calibration data")
    parser.add_argument("--compare", choices=["kl", "mse"], default="kl", help="what is compared")
    parser.add_argument("--samples", type=int, help="calibration samples to use; all if not given")
    parser.add_argument("--batch-size", type=int, default=16, help="samples per pass (default 16)")
    parser.add_argument("--scheme", default="channel-asymmetric", help="quantizer scheme")
    parser.add_argument("--candidates", type=int, nargs="+", help="bit-widths (default 2 3 4 5 6 8)")
    parser.add_argument("--budget", action="append", help="may be repeated (default 2.5, 3, 4, 5 bits)")
    parser.add_argument("--regret", type=float, default=0.01, help="tolerated (default 0.01)")
    parser.add_argument("--probes", type=int, default=4, help="of estimates (default 4)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that measure")
    parser.add_argument(
        "--naive-minutes", type=float, default=2.0, help="most that the plain loop is really run (default 2)"
    )
    parser.add_argument(
        "--table",
        type=Path,
        metavar="JSON",
        help="a search's result with everything measured, instead of the exact way",
    )
    parser.add_argument(
        "--skip", nargs="+", choices=["exact", "racing", "probe", "bounded", "auto"], default=[], help="ways"
    )
    parser.add_argument("--quick", action="store_true", help="8 samples, 3 widths, 2 budgets: a trial run")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every number")
    given = parser.parse_args()
    if (given.model is None) != (given.calibration is None):
        parser.error("--model and --calibration go together")
    if given.table is None and {"exact", "racing"} <= {*given.skip}:
        parser.error("without exact and racing, --table has to tell what plans cost")
    if given.quick:
        given.samples = given.samples or 8
        given.candidates = given.candidates or [2, 4, 8]
        given.budget = given.budget or ["3 bits", "4 bits"]
        given.naive_minutes = min(given.naive_minutes, 0.25)
    return given


def main() -> int:
    """Run the benchmark; 0 if the exact table equals the plain loop where both were run."""
    given = arguments()
    tune_memory()
    if given.model is None:
        import efficientnet_lite0  # noqa: PLC0415 - builds from packages that other models do not need

        assets = efficientnet_lite0.build(ROOT / ".bitwright" / "benchmarks" / "assets")
        given.model, given.calibration = assets.model, assets.calibration
    folder = Path(tempfile.mkdtemp(prefix="bitwright-measure-"))
    try:
        with packed(given.model) as model:
            asked = Asked(
                model=model,
                calibration=given.calibration,
                compare=given.compare,
                samples=given.samples,
                batch_size=given.batch_size,
                scheme=given.scheme,
                candidates=tuple(given.candidates or CANDIDATES),
                budgets=tuple(given.budget or BUDGETS),
                regret=given.regret,
                probes=given.probes,
                workers=given.workers,
            )
            table = None if given.table is None else json.loads(given.table.read_text())
            result = compared(asked, given, table, folder, Console(stderr=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(markdown(result))
    if given.json:
        given.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return 0 if all(row.equal == row.compared for row in result.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
