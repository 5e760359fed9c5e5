"""`bitwright solve`: the solver for tables that were measured elsewhere."""

from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.cli.command import Command
from app.cli.failures import needs
from app.cli.output import Exit, json_flag, output_of

Pairs = list[tuple[str, str]]


def _pairs(_context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> Pairs:
    pairs = []
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name or not value:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param=parameter)
        pairs.append((name, value))
    return pairs


def _limits(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in _pairs(context, parameter, texts)}
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


@click.command(
    cls=Command,
    examples=(
        'bitwright solve table.csv --budget "123456 bits total" --json',
        'bitwright solve table.csv --budget "12 MB" --limit latency_ms=3.5 --time-limit 10',
        "bitwright solve table.csv --frontier --json",
    ),
)
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--budget", "budgets", multiple=True, metavar="SIZE", help='E.g. "123456 bits total". May be repeated.'
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    callback=_limits,
    metavar="COLUMN=VALUE",
    help="Largest sum of a further column. May be repeated.",
)
@click.option(
    "--pin",
    "pins",
    multiple=True,
    callback=_pairs,
    metavar="UNIT=CANDIDATE",
    help="Fix a unit. May be repeated.",
)
@click.option(
    "--tie", "ties", multiple=True, metavar="UNIT,UNIT", help="Units that share one choice. May be repeated."
)
@click.option("--weights", type=click.IntRange(1), help='Number of weights, for "4 bits".')
@click.option("--float-bits", type=click.IntRange(1), help='Size in float, in bits, for "3.5x".')
@click.option("--frontier", is_flag=True, help="Also tell the best cost at every size.")
@click.option(
    "--time-limit", type=float, default=10.0, show_default=True, metavar="SECONDS", help="For each budget."
)
@click.option("--gap", type=float, default=0.0, show_default=True, help="Stop at this proven relative gap.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "exact", "pulp"]),
    default="auto",
    show_default=True,
    help="What searches.",
)
@json_flag
@click.pass_context
def solve(context: click.Context, /, *, table: Path, **given: Any) -> None:
    """Solve TABLE, a CSV file with the columns unit,candidate,cost,size_bits and any further numeric column."""
    out = output_of(context)
    with needs("server"):
        from app.solving.service import SolveRequest, solve_table  # noqa: PLC0415
        from app.solving.table import from_csv  # noqa: PLC0415
    with table.open(encoding="utf-8", newline="") as lines:
        costs = from_csv(lines)
    document = solve_table(
        SolveRequest(
            table=costs,
            budgets=given["budgets"],
            limits=given["limits"],
            pins=dict(given["pins"]),
            ties=[[name.strip() for name in text.split(",")] for text in given["ties"]],
            weights=given["weights"],
            float_bits=given["float_bits"],
            with_frontier=given["frontier"],
            time_limit_s=given["time_limit"],
            relative_gap=given["gap"],
            backend=given["backend"],
        )
    )
    out.document(document)
    if out.json_target is None:
        for plan in document["plans"]:
            out.console.print(_words(plan))
        if given["frontier"]:
            out.console.print(_frontier(document["frontier"]))
    if any(plan["status"] == "infeasible" for plan in document["plans"]):
        context.exit(Exit.INFEASIBLE)


def _words(plan: dict[str, Any]) -> Group:
    title = f"{plan['budget'] or 'no size limit'}: {plan['status'].replace('_', ' ')}"
    shown = Table(title=title, title_justify="left")
    shown.add_column("unit")
    shown.add_column("candidate", justify="right")
    for unit, candidate in plan["choices"].items():
        shown.add_row(escape(unit), escape(candidate))
    return Group(shown, Text(_certificate(plan)))


def _certificate(plan: dict[str, Any]) -> str:
    if plan["status"] == "infeasible":
        smallest = ", ".join(f"{name}: {value:,.6g}" for name, value in plan["smallest_rows"].items())
        conflict = f"; these cannot hold together: {', '.join(plan['conflict'])}" if plan["conflict"] else ""
        return f"smallest possible: {smallest}{conflict}"
    if plan["objective"] is None:
        return "neither a plan nor a proof that there is none was found in the time"
    bound = "unknown" if plan["lower_bound"] is None else f"{plan['lower_bound']:.9g}"
    gap = "unknown" if plan["relative_gap"] is None else f"{plan['relative_gap']:.2g}"
    return (
        f"objective {plan['objective']:.9g}, lower bound {bound}, relative gap {gap}; {plan['size_bits']:,} bits; "
        f"{plan['backend']}, proof: {plan['proof']}, {plan['seconds'] * 1e3:.3g} ms"
    )


def _frontier(points: list[dict[str, Any]]) -> Table:
    shown = Table(title="frontier", title_justify="left")
    for column in ("size (bits)", "objective", "proven"):
        shown.add_column(column, justify="right")
    for point in points:
        shown.add_row(
            f"{point['size_bits']:,}", f"{point['objective']:.9g}", "yes" if point["exact"] else "no"
        )
    return shown


COMMANDS = (solve,)
