"""Bitwright's plans against uniform quantization on EfficientNet-Lite0, on photos that were not calibrated on.

For each quantizer scheme the network's sensitivities are measured once; plans for 3, 4 and 5 bits on average are
solved and measured jointly, next to the uniform plans of the same size. Everything goes through the same search as
``bitwright search``, so an interrupted run goes on where it was. Prints a Markdown table and, with ``--json``, writes
every number::

    python benchmarks/plan_quality.py --json plan_quality.json
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# In the place of this folder, where `solver.py` would hide the package of that name.
sys.path[0:1] = [str(ROOT), str(ROOT / "examples")]

import efficientnet_lite0  # noqa: E402 - from the folder just added
from rich.console import Console  # noqa: E402

from app.cli.progress import job_progress  # noqa: E402
from app.cli.service import tune_memory  # noqa: E402
from app.local import Files, search  # noqa: E402
from app.report import quantities  # noqa: E402
from app.settings import Settings  # noqa: E402

DATA = ROOT / ".bitwright" / "benchmarks"
BITS = (3, 4, 5)
CANDIDATES = (2, 3, 4, 5, 6, 8)
SCHEMES = ("channel-symmetric", "channel-asymmetric", "channel-asymmetric-mse", "group:32-asymmetric")
QUICK_SCHEMES = ("channel-asymmetric",)
QUICK_SAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scheme at one average: Bitwright's plan and the uniform one. KL in nats, agreement as a share of 1."""

    scheme: str
    bits: int
    status: str
    origin: str
    average_bits: float
    predicted_kl: float
    kl: float
    kl_standard_error: float
    agreement: float
    uniform_kl: float
    uniform_kl_standard_error: float
    uniform_agreement: float


def measure(scheme: str, assets: efficientnet_lite0.Assets, samples: int | None) -> dict[str, Any]:
    """The result document of one scheme."""
    request: dict[str, Any] = {
        "budgets": [f"{bits} bits" for bits in BITS],
        "candidates": list(CANDIDATES),
        "scheme": scheme,
        "samples": samples,
    }
    files = Files(model=assets.model, calibration=assets.calibration, evaluation=assets.evaluation)
    console = Console(stderr=True)
    console.print(f"{scheme}:")
    with job_progress(console) as progress:
        return search(
            files,
            request,
            Settings(data_dir=DATA),
            lambda update: progress.update(update.state, update.progress),
        )


def rows(scheme: str, document: dict[str, Any]) -> list[Row]:
    """What a result says at each average."""
    uniform = {round(plan["average_bits"]): plan for plan in document["baselines"]}
    return [
        _row(scheme, bits, plan, uniform[bits]) for bits, plan in zip(BITS, document["plans"], strict=True)
    ]


def _row(scheme: str, bits: int, plan: dict[str, Any], uniform: dict[str, Any]) -> Row:
    def value(of: dict[str, Any], metric: str, member: str = "measured") -> float:
        return float(of[member][metric]["evaluation"])

    return Row(
        scheme=scheme,
        bits=bits,
        status=plan["status"],
        origin=plan["origin"],
        average_bits=plan["average_bits"],
        predicted_kl=plan["predicted"]["kl"],
        kl=value(plan, "kl"),
        kl_standard_error=value(plan, "kl", "measured_standard_error"),
        agreement=value(plan, "top1_agreement"),
        uniform_kl=value(uniform, "kl"),
        uniform_kl_standard_error=value(uniform, "kl", "measured_standard_error"),
        uniform_agreement=value(uniform, "top1_agreement"),
    )


def markdown(table: list[Row], document: dict[str, Any]) -> str:
    """One table for all schemes."""
    calibration, evaluation = document["calibration"]["samples"], document["evaluation"]["samples"]
    used = document["settings"]["samples"] or calibration
    title = (
        f"EfficientNet-Lite0, {document['model']['units']} units, candidates {', '.join(map(str, CANDIDATES))}; "
        f"{used} calibration crops, {evaluation} evaluation crops of other photos. KL in nats, ± standard error."
    )
    lines = [
        title,
        "",
        "| scheme | bits | Bitwright KL | uniform KL | ratio | Bitwright agreement | uniform agreement | proof |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        cells = (
            f"`{row.scheme}`",
            str(row.bits),
            quantities.metric_with_error(row.kl, row.kl_standard_error, "kl"),
            quantities.metric_with_error(row.uniform_kl, row.uniform_kl_standard_error, "kl"),
            quantities.ratio(row.uniform_kl, row.kl),
            quantities.percent(row.agreement),
            quantities.percent(row.uniform_agreement),
            row.status if row.origin == "search" else f"{row.status}, {row.origin} handed over",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one scheme, few calibration samples")
    parser.add_argument("--scheme", action="append", help="instead of the usual ones; may be repeated")
    parser.add_argument("--samples", type=int, help="calibration samples to use; all if not given")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every number")
    given = parser.parse_args()
    tune_memory()
    assets = efficientnet_lite0.build(DATA / "assets")
    schemes = given.scheme or (QUICK_SCHEMES if given.quick else SCHEMES)
    samples = given.samples or (QUICK_SAMPLES if given.quick else None)
    table: list[Row] = []
    document: dict[str, Any] = {}
    for scheme in schemes:
        document = measure(scheme, assets, samples)
        table += rows(scheme, document)
    print(markdown(table, document))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in table], indent=2) + "\n")


if __name__ == "__main__":
    main()
