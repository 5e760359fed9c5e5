"""EfficientNet-Lite0 from upload to a measured plan, through the service as it runs in production.

Starts the service on a free port, uploads the network and photos (see `efficientnet_lite0.py`), asks for 4 bits per
weight on average, shows the progress (all candidates are estimated, those that could change the plan are measured),
and ends with the plan next to uniform quantization. Then the job's page stays open until Ctrl-C. Run again, it answers
at once from what it found; ``--fresh`` begins anew.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import efficientnet_lite0
from packaged import Assets
from rich.markup import escape

from app.cli import tables
from app.cli.output import Output, check_writable
from app.cli.progress import job_progress, transfer_progress
from app.client import Client
from app.kit.ids import content_sha256
from app.report import quantities, render_report, words

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / ".bitwright" / "demo"
OUTPUT = ROOT / "demo-output"
REQUEST = {
    "budgets": ["4 bits"],
    "candidates": [2, 3, 4, 5, 6, 8],
    "scheme": "channel-asymmetric",
    "metric": "auto",
    "name": "Demo: EfficientNet-Lite0 at 4 bits",
}
STOP_S = 15


@contextmanager
def running_service(port: int) -> Iterator[str]:
    """The service in a process of its own; its URL."""
    command = [
        sys.executable,
        "-m",
        "app.cli",
        "serve",
        "--json",
        "--port",
        str(port),
        "--data-dir",
        str(DATA),
    ]
    DATA.mkdir(parents=True, exist_ok=True)
    log = DATA / "serve.log"
    with log.open("w") as errors:
        # A session of its own: Ctrl-C is for this script, which then ends the service in order.
        service = subprocess.Popen(  # noqa: S603 - our own command
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
    try:
        assert service.stdout is not None
        ready = json.loads(service.stdout.readline() or "{}")
        if "url" not in ready:
            service.wait(STOP_S)
            raise SystemExit(f"the service did not start:\n{log.read_text()}")
        yield str(ready["url"])
    finally:
        service.send_signal(signal.SIGTERM)
        try:
            service.wait(STOP_S)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()


def submit(client: Client, out: Output, assets: Assets) -> dict[str, Any]:
    """Upload the files and ask for the search; the same search again gives the same job."""

    def upload(send: Any, path: Path) -> str:
        with transfer_progress(out.errors, path.name, path.stat().st_size) as progress:
            return str(send(path, progress=progress)["id"])

    request = REQUEST | {
        "model": upload(client.upload_model, assets.model),
        "dataset": upload(client.upload_dataset, assets.calibration),
        "evaluation_dataset": upload(client.upload_dataset, assets.evaluation),
    }
    job = client.submit(request, idempotency_key=f"demo {content_sha256(request)}")
    return client.submit(request) if job["state"] in ("failed", "cancelled") else job


def search(client: Client, out: Output) -> dict[str, Any]:
    """The whole way; the result document."""
    out.errors.print("Exporting EfficientNet-Lite0 and cropping the photos ...")
    assets = efficientnet_lite0.build(DATA / "assets")
    job = submit(client, out, assets)
    page = f"{client.base_url}/jobs/{job['id']}"
    out.errors.print(f"Job {job['id']}, live at [link={page}]{page}[/link]")
    update = None
    with job_progress(out.errors) as progress:
        for update in client.watch(job["id"]):
            progress.update(update.state, update.progress)
    if update is None or update.state != "done":
        out.problem(client.job(job["id"]).get("problem") or {"title": "The job was cancelled"})
        raise SystemExit(1)
    return client.result(job["id"])


def show(out: Output, document: dict[str, Any], elapsed_s: float) -> Path:
    """Print the result and save the report; where it is."""
    out.document(document)
    out.console.print(tables.result(document))
    OUTPUT.mkdir(exist_ok=True)
    report = OUTPUT / "report.html"
    report.write_text(render_report(document), encoding="utf-8")
    out.console.print()
    out.console.print(escape(words.effort_words(document)))
    out.console.print(escape(gain(document)))
    out.console.print(f"Report: {report.relative_to(ROOT)}   Time: {quantities.duration(elapsed_s)}")
    return report


def gain(document: dict[str, Any]) -> str:
    """What mixed precision gained over the uniform plan of the same average, in one sentence."""
    uniform = next(b for b in document["baselines"] if b["average_bits"] == 4)
    ours, theirs = (plan["measured"]["kl"]["evaluation"] for plan in (document, uniform))
    agreement = [
        quantities.percent(plan["measured"]["top1_agreement"]["evaluation"]) for plan in (document, uniform)
    ]
    return (
        f"At 4 bits per weight, on photos that were not calibrated on: KL divergence {quantities.number(ours)} instead of "
        f"{quantities.number(theirs)} nats ({quantities.ratio(theirs, ours)} less), and the float model's answer on "
        f"{agreement[0]} instead of {agreement[1]} of them."
    )


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exit", action="store_true", help="end when the result is there")
    parser.add_argument("--json", metavar="OUT", help="write the result as JSON; '-' is standard output")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs found")
    parser.add_argument("--port", type=int, default=0, help="of the service; a free one if not given")
    given = parser.parse_args()
    if given.json is not None:
        try:
            check_writable(given.json)
        except click.BadParameter as error:
            parser.error(f"--json: {error.message}")
    out = Output(json_target=given.json)
    started = time.monotonic()
    if given.fresh:
        shutil.rmtree(DATA, ignore_errors=True)
    try:
        with running_service(given.port) as url, Client(url) as client:
            document = search(client, out)
            show(out, document, time.monotonic() - started)
            if given.exit:
                return
            out.console.print(f"\n[bold]{url}/jobs/{document['job']}[/] is served until Ctrl-C.")
            signal.pause()
    except KeyboardInterrupt:
        out.errors.print("stopped")


if __name__ == "__main__":
    main()
