"""How a command that has a result ends: document, report, tables, gates, exit code."""

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from app.cli import tables
from app.cli.failures import needs
from app.cli.gates import Gate
from app.cli.output import Exit, Output
from app.report import words


def end_with_result(out: Output, document: dict[str, Any], *, gates: list[Gate], report: str | None) -> None:
    """Write and show a result.

    Args:
        out: Where to.
        document: The result document.
        gates: Conditions on the measured plan.
        report: Where to save the report, if anywhere.

    Raises:
        click.exceptions.Exit: With the code for an infeasible budget or a missed gate.
    """
    out.document(document)
    if report is not None:
        save_report(document, Path(report))
    if document.get("state") == "done" and not document.get("choices"):
        out.errors.print(f"[bold red]{escape(words.certificate_words(document))}[/]")
        infeasible = document.get("status") == "infeasible"
        raise click.exceptions.Exit(Exit.INFEASIBLE if infeasible else Exit.DEFECT)
    if words.data_words(document):
        out.errors.print(f"[yellow]{escape(words.data_words(document))}[/]")
    if out.json_target is None:
        out.console.print(tables.result(document) if document.get("choices") else tables.unfinished(document))
        if report is not None:
            out.console.print(f"report: {report}")
    missed = [gate for gate in gates if not gate.holds(document)]
    for gate in missed:
        out.errors.print(f"[bold red]{gate.missed_words(document)}[/]")
    if missed:
        raise click.exceptions.Exit(Exit.GATE_MISSED)


def save_report(document: dict[str, Any], path: Path) -> None:
    """Write the report of a result as one HTML file."""
    with needs("server"):
        from app.report import render_report  # noqa: PLC0415 - figures need the server extra
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(document), encoding="utf-8")
