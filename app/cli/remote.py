"""Commands that talk to a running service."""

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from app.cli import options, tables
from app.cli.command import Command
from app.cli.ending import end_with_result
from app.cli.failures import Stopped
from app.cli.gates import Gate
from app.cli.output import Output, json_flag, json_out, output_of
from app.cli.progress import job_progress, transfer_progress
from app.client import Client, JobUpdate
from app.report import quantities, words
from app.report.summary import limit_rows
from workers.intake.packing import packed


@click.command(
    cls=Command,
    examples=(
        'bitwright submit model.pt2 --calibration photos.safetensors --budget "4 bits"',
        'bitwright submit mdl_01jd... --calibration dat_01jd... --budget "4 bits" --budget "12 MB" --name nightly',
        'bitwright submit model.pt2 --calibration c.safetensors --budget "3.5x" --wait --gate "kl<=0.01"',
    ),
)
@click.argument("model")
@options.search_options
@click.option("--name", help="For people.")
@click.option("--priority", type=int, help="Higher runs first, -100 to 100.")
@click.option(
    "--idempotency-key", metavar="KEY", help="The same key with the same request gives the same job."
)
@click.option("--wait", is_flag=True, help="Stay until the job ends, and end as `bitwright watch` does.")
@options.GATES
@options.REPORT
@options.SERVER
@json_out
@click.pass_context
def submit(context: click.Context, /, **given: Any) -> None:
    """Send a search to the service.

    MODEL, --calibration and --evaluation are files, which are uploaded, or ids of uploaded ones. MODEL may also be a
    Hugging Face folder.
    """
    out = output_of(context)
    if (given["gates"] or given["report"]) and not given["wait"]:
        raise click.UsageError("--gate and --report need --wait")
    with Client(given["server"]) as client:
        request = options.request_of(given)
        request["model"] = _stored(client, out, given["model"], "mdl_")
        request["dataset"] = _stored(client, out, given["calibration"], "dat_")
        if given["evaluation"]:
            request["evaluation_dataset"] = _stored(client, out, given["evaluation"], "dat_")
        request |= {name: given[name] for name in ("name", "priority") if given[name] is not None}
        job = client.submit(request, idempotency_key=given["idempotency_key"])
        if given["wait"]:
            _follow(client, out, job["id"], given["gates"], given["report"])
            return
    out.document(job)
    if out.json_target is None:
        out.console.print(f"{job['id']}  {job['state']}")
        out.console.print(f"page:   {given['server'].rstrip('/')}/jobs/{job['id']}")
        out.console.print(f"follow: bitwright watch {job['id']}")


@click.command(
    cls=Command,
    examples=(
        "bitwright status",
        "bitwright status --state running --json",
        "bitwright status job_01jd...",
    ),
)
@click.argument("job", required=False)
@click.option("--state", help="List only jobs in this state: queued, running, done, failed, cancelled.")
@click.option("--limit", type=click.IntRange(1, 200), help="List at most so many.")
@options.SERVER
@json_flag
@click.pass_context
def status(
    context: click.Context, /, job: str | None, state: str | None, limit: int | None, server: str
) -> None:
    """Tell how a job stands, or list the newest jobs."""
    out = output_of(context)
    with Client(server) as client:
        if job is None:
            found = client.jobs(state=state, limit=limit)
            out.document({"items": found})
            if out.json_target is None:
                out.console.print(tables.jobs(found) if found else "no jobs")
            return
        document = client.job(job)
    out.document(document)
    if out.json_target is None:
        out.console.print(tables.jobs([document]))
        if document.get("problem"):
            out.problem(document["problem"])


@click.command(
    cls=Command,
    examples=(
        "bitwright watch job_01jd...",
        'bitwright watch job_01jd... --gate "kl<=0.01" --json result.json',
    ),
)
@click.argument("job")
@options.GATES
@options.REPORT
@options.SERVER
@json_out
@click.pass_context
def watch(context: click.Context, /, job: str, gates: list[Gate], report: str | None, server: str) -> None:
    """Follow a job until it ends, then show its result."""
    with Client(server) as client:
        _follow(client, output_of(context), job, gates, report)


@click.command(
    cls=Command,
    examples=("bitwright cancel job_01jd...",),
)
@click.argument("job")
@options.SERVER
@json_flag
@click.pass_context
def cancel(context: click.Context, /, job: str, server: str) -> None:
    """Stop a job. What it has measured is kept and used by later jobs."""
    out = output_of(context)
    with Client(server) as client:
        document = client.cancel(job)
    out.document(document)
    if out.json_target is None:
        out.console.print(f"{document['id']}  {document['state']}")


@click.command(
    cls=Command,
    examples=(
        'bitwright plan job_01jd... --budget "3.5 bits"',
        'bitwright plan job_01jd... --budget "2 MB" --pin classifier.weight=8 --json',
        "bitwright plan pln_01jd...",
    ),
)
@click.argument("identifier", metavar="JOB|PLAN")
@click.option("--budget", help="As for search; needed with a job.")
@options.plan_options
@options.SERVER
@json_flag
@click.pass_context
def plan(context: click.Context, /, identifier: str, budget: str | None, server: str, **given: Any) -> None:
    """Solve for another budget, pin, tie or limit on what a job knows of costs, or show a plan."""
    out = output_of(context)
    with Client(server) as client:
        if identifier.startswith("pln_"):
            document = client.plan(identifier)
        elif budget is None:
            raise click.UsageError('a job needs --budget, e.g. --budget "3.5 bits"')
        else:
            document = client.create_plan(identifier, {"budget": budget, **options.request_of(given)})
    out.document(document)
    if out.json_target is None:
        _show_plan(out, document)


@click.command(
    cls=Command,
    examples=(
        "bitwright result job_01jd...",
        "bitwright result job_01jd... --json result.json --report report.html",
    ),
)
@click.argument("job")
@options.REPORT
@options.SERVER
@json_out
@click.pass_context
def result(context: click.Context, /, job: str, report: str | None, server: str) -> None:
    """Show what a job found; of a running job, what is there so far."""
    with Client(server) as client:
        document = client.result(job)
    end_with_result(output_of(context), document, gates=[], report=report)


COMMANDS = (submit, status, watch, cancel, plan, result)


def _stored(client: Client, out: Output, given: str, prefix: str) -> str:
    """The id of what was given: an id as it is, a file after uploading it."""
    path = Path(given)
    if given.startswith(prefix) and not path.exists():
        return given
    if prefix == "dat_":
        with transfer_progress(out.errors, path.name, path.stat().st_size) as progress:
            return str(client.upload_dataset(path, progress=progress)["id"])
    with (
        packed(path) as file,
        transfer_progress(out.errors, path.name, file.stat().st_size) as progress,
    ):
        return str(client.upload_model(file, name=path.name, progress=progress)["id"])


def _follow(client: Client, out: Output, job_id: str, gates: list[Gate], report: str | None) -> None:
    last: JobUpdate | None = None
    with job_progress(out.errors) as progress:
        for last in client.watch(job_id):
            progress.update(last.state, last.progress)
    if last is None or last.state != "done":
        raise Stopped(_not_done(client.job(job_id)))
    end_with_result(out, client.result(job_id), gates=gates, report=report)


def _not_done(job: dict[str, Any]) -> dict[str, Any]:
    """Why there is no result."""
    return job.get("problem") or {
        "type": "urn:bitwright:problem:job-cancelled",
        "title": "The job was cancelled",
        "status": 500,
        "detail": f"job {job['id']} was cancelled before it had a result",
    }


def _show_plan(out: Output, plan: dict[str, Any]) -> None:
    out.console.print(f"[bold]{escape(plan['id'])}[/]  {escape(str(plan.get('name', '')))}")
    out.console.print(escape(words.certificate_words(plan)))
    out.console.print(
        f"{quantities.average_bits(plan.get('average_bits'))} on average, weights "
        f"{quantities.size(plan.get('size_bits'))}, file {quantities.size(plan.get('file_size_bits'))}; "
        + ", ".join(
            f"{quantities.measure(metric).title} predicted {quantities.metric_value(value, metric)}"
            for metric, value in (plan.get("predicted") or {}).items()
        )
    )
    for label, text in limit_rows(plan):
        out.console.print(f"{label}: {text}")
    shown = tables.table("", "Unit", ">Bits", ">Inputs", "Scheme")
    for unit, choice in plan["choices"].items():
        inputs = choice.get("activation_bits")
        shown.add_row(
            escape(unit), str(choice["bits"]), "float" if inputs is None else str(inputs), choice["scheme"]
        )
    out.console.print(shown)
