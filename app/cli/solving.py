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


def _ranges(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, tuple[int | None, int | None]]:
    ranges = {}
    for name, value in _pairs(context, parameter, texts):
        least, dots, most = value.partition("..")
        if not dots or not all(end.isdecimal() or not end for end in (least, most)):
            raise click.BadParameter(f"{value!r} is not LEAST..MOST", param=parameter)
        ranges[name] = (int(least) if least else None, int(most) if most else None)
    return ranges


def _counts(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[int, tuple[int | None, int | None]]:
    try:
        return {int(width): ends for width, ends in _ranges(context, parameter, texts).items()}
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


@click.command(
    cls=Command,
    examples=(
        'bitwright solve table.csv --budget "123456 bits total" --json',
        'bitwright solve table.csv --budget "12 MB" --limit latency_ms=3.5 --time-limit 10',
        "bitwright solve table.csv --frontier --json",
        'bitwright solve table.csv --budget "4 bits" --prices --target-cost 0.02',
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
@click.option(
    "--bound",
    "bounds",
    multiple=True,
    callback=_ranges,
    metavar="UNIT=LEAST..MOST",
    help="Bit-widths a unit may take; either end may be left out. May be repeated.",
)
@click.option(
    "--count",
    "counts",
    multiple=True,
    callback=_counts,
    metavar="WIDTH=LEAST..MOST",
    help="How many units take a bit-width; either end may be left out. May be repeated.",
)
@click.option("--max-widths", type=click.IntRange(1), help="Most different bit-widths in a plan.")
@click.option("--weights", type=click.IntRange(1), help='Number of weights, for "4 bits".')
@click.option("--float-bits", type=click.IntRange(1), help='Size in float, in bits, for "3.5x".')
@click.option("--frontier", is_flag=True, help="Also tell the best cost at every size.")
@click.option(
    "--prices", is_flag=True, help="Also tell what more bits would buy, and where each unit changes."
)
@click.option("--target-cost", type=float, help="Also find the smallest plan that costs no more than this.")
@click.option(
    "--standard-errors", metavar="COLUMN", help="Also tell how sure each choice is, from the costs' errors."
)
@click.option(
    "--risk",
    type=click.FloatRange(0.0),
    default=0.0,
    show_default=True,
    help="Standard errors added to each cost.",
)
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
        from solver import WidthCount  # noqa: PLC0415
    with table.open(encoding="utf-8", newline="") as lines:
        costs = from_csv(lines)
    document = solve_table(
        SolveRequest(
            table=costs,
            budgets=given["budgets"],
            limits=given["limits"],
            pins=dict(given["pins"]),
            ties=[[name.strip() for name in text.split(",")] for text in given["ties"]],
            bounds=given["bounds"],
            width_counts=[
                WidthCount(width=width, minimum=least, maximum=most)
                for width, (least, most) in given["counts"].items()
            ],
            max_widths=given["max_widths"],
            weights=given["weights"],
            float_bits=given["float_bits"],
            with_frontier=given["frontier"],
            with_prices=given["prices"],
            target_cost=given["target_cost"],
            errors=given["standard_errors"],
            risk=given["risk"],
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
        if given["target_cost"] is not None:
            out.console.print(Text(_smallest(document["smallest"])))
    if any(plan["status"] == "infeasible" for plan in document["plans"]):
        context.exit(Exit.INFEASIBLE)


def _words(plan: dict[str, Any]) -> Group:
    title = f"{plan['budget'] or 'no size limit'}: {plan['status'].replace('_', ' ')}"
    prices, probabilities = plan.get("prices"), plan.get("probabilities")
    shown = Table(title=title, title_justify="left")
    shown.add_column("unit")
    shown.add_column("candidate", justify="right")
    if probabilities:
        shown.add_column("probability", justify="right")
    if prices:
        shown.add_column("changes from (bits)", justify="right")
    for unit, candidate in plan["choices"].items():
        cells = [escape(unit), escape(candidate)]
        if probabilities:
            cells.append(f"{probabilities[unit]:.0%}")
        if prices:
            cells.append(_next_switch(prices["switches"][unit], plan["budget_bits"]))
        shown.add_row(*cells)
    lines = [Text(_certificate(plan))]
    if prices:
        lines.append(Text(_prices(prices)))
    return Group(shown, *lines)


def _next_switch(switches: list[dict[str, Any]], budget_bits: int) -> str:
    coming = next((switch for switch in switches if switch["budget_bits"] > budget_bits), None)
    return "" if coming is None else f"{coming['budget_bits']:,}: {escape(coming['candidate'])}"


def _prices(prices: dict[str, Any]) -> str:
    if prices["next_budget_bits"] is None:
        return "more bits would buy nothing"
    return (
        f"one more KB would save {prices['per_kilobyte']:.3g}; "
        f"{prices['next_budget_bits']:,} bits would save {prices['next_saving']:.3g}"
    )


def _smallest(answer: dict[str, Any]) -> str:
    target = f"cost {answer['target_cost']:.9g}"
    if answer["status"] == "infeasible":
        return f"no plan keeps {target}; the cheapest costs {answer['least_cost']:.9g}"
    bound = "" if answer["status"] == "optimal" else f"; none below {answer['size_lower_bound']:,} bits does"
    return f"{target}: {answer['size_bits']:,} bits ({answer['status']}){bound}"


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
