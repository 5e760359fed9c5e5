"""Sensitivities as a heat map: weight tensors from left to right, candidates from bottom to top, cost as colour."""

import math
from typing import Any

from plotly.graph_objects import Figure, Heatmap, Scatter

from app.figures import theme
from app.report import quantities

_DECADES = 8
"""Costs this many powers of ten below the largest are not told apart by colour (hovering still gives them)."""

Row = tuple[int, int, str]
"""Bits, bits of activations (0: float), scheme."""
Key = tuple[str, Row]


def sensitivity_heat_map(result: dict[str, Any], plan: dict[str, Any] | None = None) -> Figure:
    """Cost of every candidate in every unit, log colour scale; what is not known yet stays empty.

    Args:
        result: A result document; ``sensitivities`` may be incomplete.
        plan: The plan whose choices are marked; none are marked without one.

    Returns:
        Traces ``cost`` (positive costs), ``at or below zero`` (where there are any), ``chosen`` (with a plan), ``measured``
        (where others are estimated).
    """
    metric = str(result["settings"]["predicts"])
    entries = {(e["unit"], _row(e)): e for e in result["sensitivities"] if e["metric"] == metric}
    excluded = set(result["settings"].get("exclude") or ())
    units = [u["name"] for u in result["units"] if u["name"] not in excluded]
    rows = _candidates(result, entries)
    several = len({scheme for _, _, scheme in rows}) > 1
    labels = [_label(row, with_scheme=several) for row in rows]
    names = [theme.plain(n) for n in theme.short_names(units)]
    figure = theme.base_figure(
        height=60 + 34 * max(len(rows), 2) + theme.unit_axis_room(names),
        xaxis=theme.unit_axis(names),
        yaxis=theme.axis(
            "candidate (bits per weight)",
            type="category",
            categoryorder="array",
            categoryarray=labels,
            range=[-0.5, len(labels) - 0.5],
            showgrid=False,
        ),
        plot_bgcolor="rgba(128,134,148,0.10)",
        margin={"l": 8, "r": 8, "t": 38 if plan or _is_mixed(entries) else 16, "b": 8},
    )
    grid = [[entries.get((unit, row)) for unit in units] for row in rows]
    _add_costs(figure, grid, names, labels, metric)
    if plan is not None and plan.get("choices"):
        label = dict(zip(rows, labels, strict=True))
        chosen = {unit: label.get(_row(c)) for unit, c in plan["choices"].items()}
        _mark_choices(figure, [(name, chosen.get(unit)) for unit, name in zip(units, names, strict=True)])
    if _is_mixed(entries):
        _mark_measured(figure, grid, names, labels)
    return figure


def _candidates(result: dict[str, Any], entries: dict[Key, dict[str, Any]]) -> list[Row]:
    """The rows: what was asked for, and whatever else is known, by bits."""
    settings = result["settings"]
    activations = settings.get("activation_candidates") or [0]
    asked = {
        (int(bits), int(activation), str(scheme))
        for bits in settings["candidates"]
        for scheme in settings["schemes"]
        for activation in activations
    }
    return sorted(asked | {row for _, row in entries})


def _row(candidate: dict[str, Any]) -> Row:
    return int(candidate["bits"]), int(candidate.get("activation_bits") or 0), str(candidate["scheme"])


def _label(row: Row, *, with_scheme: bool) -> str:
    bits, activation, scheme = row
    inputs = f", inputs {activation} bits" if activation else ""
    return f"{bits} bits{inputs}" + (f" · {scheme}" if with_scheme else "")


def _add_costs(
    figure: Figure, grid: list[list[dict[str, Any] | None]], names: list[str], labels: list[str], metric: str
) -> None:
    means = [[None if e is None else float(e["mean"]) for e in row] for row in grid]
    hover = [[_hover(e, metric) for e in row] for row in grid]
    positive = [m for row in means for m in row if m is not None and m > 0]
    high = math.log10(max(positive)) if positive else 0.0
    low = max(math.log10(min(positive)), high - _DECADES) if positive else 0.0
    ticks, texts = theme.log_ticks(low, high)
    common = {"x": names, "y": labels, "customdata": hover, "hoverongaps": False}
    # A gap would eat up the narrow columns of a large model.
    common |= {"xgap": 1 if len(names) <= 100 else 0, "ygap": 1}
    common["hovertemplate"] = "<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>"
    figure.add_trace(
        Heatmap(
            z=[[math.log10(m) if m is not None and m > 0 else None for m in row] for row in means],
            zmin=low,
            zmax=high if high > low else low + 1,
            colorscale=theme.COST_SCALE,
            colorbar={
                "title": {"text": theme.metric_title(metric), "side": "right"},
                "thickness": 12,
                "outlinewidth": 0,
                "tickvals": ticks,
                "ticktext": texts,
            },
            name="cost",
            showlegend=False,
            **common,
        )
    )
    if any(m is not None and m <= 0 for row in means for m in row):
        figure.add_trace(_below_zero(means, common))


def _below_zero(means: list[list[float | None]], common: dict[str, Any]) -> Heatmap:
    """Cells whose cost has no logarithm, in a colour of their own."""
    return Heatmap(
        z=[[1 if m is not None and m <= 0 else None for m in row] for row in means],
        colorscale=[[0, theme.BELOW_ZERO], [1, theme.BELOW_ZERO]],
        showscale=False,
        name="at or below zero",
        showlegend=True,
        **common,
    )


def _hover(entry: dict[str, Any] | None, metric: str) -> list[str] | None:
    """Full name, and the rest of the text that hovering shows."""
    if entry is None:
        return None
    cost = quantities.metric_with_error(entry["mean"], entry.get("standard_error"), metric)
    unit = quantities.measure(metric).unit
    lines = [
        theme.candidate_text(entry),
        f"cost {cost} {unit}".rstrip(),
        f"{quantities.size(entry['size_bits'])}, {entry['samples']} samples"
        + (", estimated" if entry.get("source") == "estimated" else ""),
    ]
    return [theme.plain(entry["unit"]), "<br>".join(lines)]


def _is_mixed(entries: dict[Key, dict[str, Any]]) -> bool:
    """Whether some costs are measured and some estimated."""
    return len({e.get("source", "measured") for e in entries.values()}) > 1


def _mark_measured(
    figure: Figure, grid: list[list[dict[str, Any] | None]], names: list[str], labels: list[str]
) -> None:
    """A small dark diamond in the cell of each measured candidate, to be seen on any colour and within the dot of a choice."""
    marked = [
        (name, label)
        for label, row in zip(labels, grid, strict=True)
        for name, entry in zip(names, row, strict=True)
        if entry is not None and entry.get("source") != "estimated"
    ]
    figure.add_trace(
        Scatter(
            x=[name for name, _ in marked],
            y=[label for _, label in marked],
            mode="markers",
            name="measured, others estimated",
            hoverinfo="skip",
            marker={
                "symbol": "diamond",
                "size": min(6.0, max(3.0, 300 / max(len(names), 1))),
                "color": "#14181f",
                "line": {"width": 0.75, "color": "#ffffff"},
            },
            showlegend=True,
        )
    )


def _mark_choices(figure: Figure, chosen: list[tuple[str, str | None]]) -> None:
    """A dot in the cell of each chosen candidate; smaller ones where there are many columns."""
    size = min(11.0, max(4.0, 480 / max(len(chosen), 1)))
    marked = [(name, label) for name, label in chosen if label is not None]
    figure.add_trace(
        Scatter(
            x=[name for name, _ in marked],
            y=[label for _, label in marked],
            mode="markers",
            name="chosen",
            hoverinfo="skip",
            marker={
                "symbol": "circle",
                "size": size,
                "color": "#ffffff",
                "line": {"width": 1.5 if size > 6 else 0.75, "color": "#14181f"},
            },
            showlegend=True,
        )
    )
