"""Costs of whole plans: the frontier of predictions, and predictions next to measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plotly.graph_objects import Figure, Scatter

from app.figures import theme
from app.report import quantities
from app.report.words import measured_cost

_MOST_POINTS = 2000
"""Points of the frontier that are drawn; more are not seen and only make the page heavy."""

_GROUP_MARKERS = {
    "plan": ("circle", theme.BLUE),
    "uniform": ("diamond", theme.VERMILION),
    "tried": ("square", theme.GREEN),
}
_ROW_MARKERS = {
    "predicted": ("circle-open", theme.NEUTRAL),
    "calibration": ("circle", theme.ORANGE),
    "evaluation": ("diamond", theme.BLUE),
}

Plan = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """What is drawn against what.

    Args:
        metric: The cost on the vertical axis.
        size_of: The member of a plan that is its size in bits.
        scale: Bytes in one unit of the horizontal axis.
    """

    metric: str
    size_of: str
    scale: float


def frontier_figure(result: dict[str, Any], tried: Sequence[Plan] = ()) -> Figure:
    """Size against cost: the best predictions as a line, plans and uniform plans as points, budgets as lines.

    Filled markers are measured (on the evaluation data where there are any), with their standard error; open ones are
    predicted. A cost at or below zero has no place on a logarithmic axis and is left out.

    Args:
        result: A result document.
        tried: Plans for budgets tried later.

    Returns:
        Traces ``best predicted``, then ``plan``, ``uniform`` and ``tried``, each ``, measured`` and ``, predicted``, as
        far as there are any. ``layout.meta`` tells the bytes in one unit of the horizontal axis.
    """
    metric = str(result["settings"]["compare"])
    on_file = result["settings"].get("budget_counts") == "file"
    size_of = "file_size_bits" if on_file else "size_bits"
    groups = {"plan": result["plans"], "uniform": result["baselines"], "tried": tried}
    # A score of its own unit has no place on the axis of what is measured.
    same = result["settings"]["predicts"] == metric
    points = [p for p in _thin(result["frontier"]) if same and p["objective"] > 0]
    sizes = [p["size_bits"] for p in points]
    sizes += [p[size_of] for plans in groups.values() for p in plans if p.get(size_of)]
    scale, unit = quantities.size_unit(max(sizes, default=8))
    axes = _Axes(metric=metric, size_of=size_of, scale=scale)
    pairs = [_points(axes, plans, name) for name, plans in groups.items()]
    markers = [trace for traces in zip(*pairs, strict=True) for trace in traces if len(trace.x)]
    traces = [_line(axes, points), *markers]
    what = "size of the whole file" if on_file else "size of the searched weights"
    figure = theme.base_figure(
        height=430,
        meta={"bytes_per_unit": scale},
        xaxis=theme.axis(f"{what} ({unit})"),
        yaxis=theme.log_axis(theme.metric_title(metric), [float(y) for trace in traces for y in trace.y]),
    )
    figure.add_traces(traces)
    _add_budgets(figure, result["plans"], scale)
    return figure


def predicted_and_measured(result: dict[str, Any]) -> Figure:
    """One row per plan, smallest at the bottom: predicted cost, and the cost measured on either data set.

    Args:
        result: A result document with plans.

    Returns:
        Traces ``predicted``, ``measured, calibration``, ``measured, evaluation``, as far as there are any.
    """
    metric = str(result["settings"]["compare"])
    plans = [p for p in (*result["plans"], *result["baselines"]) if p["size_bits"]]
    plans.sort(key=lambda p: p["size_bits"])
    names = [
        f"<b>{n}</b>" if p["role"] == "requested" else n for p in plans for n in [theme.plain(p["name"])]
    ]
    traces = [_row_trace(plans, names, metric, part) for part in ("predicted", "calibration", "evaluation")]
    traces = [trace for trace in traces if len(trace.x)]
    costs = [float(x) for trace in traces for x in trace.x]
    figure = theme.base_figure(
        height=max(430, 130 + 30 * len(plans)),
        xaxis=theme.log_axis(theme.metric_title(metric), costs),
        yaxis=theme.axis("plan", type="category", categoryorder="array", categoryarray=names),
    )
    figure.update_yaxes(title=None)
    figure.add_traces(traces)
    return figure


def _thin(points: list[Plan]) -> list[Plan]:
    """Every n-th point and the last."""
    step = -(-len(points) // _MOST_POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def _line(axes: _Axes, points: list[Plan]) -> Scatter:
    unit = quantities.measure(axes.metric).unit
    return Scatter(
        x=[p["size_bits"] / 8 / axes.scale for p in points],
        y=[p["objective"] for p in points],
        mode="lines",
        # A plan keeps its cost until the next one fits: the frontier is a staircase.
        line={"color": theme.NEUTRAL, "width": 2, "shape": "hv"},
        name="best predicted",
        customdata=[
            [
                quantities.size(p["size_bits"]),
                quantities.average_bits(p["average_bits"]),
                quantities.number(p["objective"]),
            ]
            for p in points
        ],
        hovertemplate=f"%{{customdata[0]}}, %{{customdata[1]}}<br>predicted %{{customdata[2]}} {unit}<extra></extra>",
        showlegend=True,
    )


def _points(axes: _Axes, plans: Sequence[Plan], name: str) -> tuple[Scatter, Scatter]:
    """The measured and the predicted points of a group of plans."""
    symbol, colour = _GROUP_MARKERS[name]
    sized = [p for p in plans if p.get(axes.size_of)]
    measured = [(p, measured_cost(p.get("measured"), axes.metric)) for p in sized]
    predicted = [(p, (p.get("predicted") or {}).get(axes.metric)) for p in sized]
    known = [(p, y) for p, y in measured if y is not None and y > 0]
    expected = [(p, y) for p, y in predicted if y is not None and y > 0]
    filled = _scatter(axes, known, f"{name}, measured")
    # The standard error of what `measured_cost` takes.
    errors = [measured_cost(p.get("measured_standard_error"), axes.metric) for p, _ in known]
    filled.error_y = _error(errors, [y for _, y in known], colour)
    filled.marker = {"symbol": symbol, "size": 11, "color": colour, "line": {"width": 1, "color": "#ffffff"}}
    opened = _scatter(axes, expected, f"{name}, predicted")
    opened.marker = {"symbol": f"{symbol}-open", "size": 9, "color": colour, "line": {"width": 2}}
    return filled, opened


def _scatter(axes: _Axes, points: list[tuple[Plan, float]], name: str) -> Scatter:
    return Scatter(
        x=[p[axes.size_of] / 8 / axes.scale for p, _ in points],
        y=[y for _, y in points],
        mode="markers",
        name=name,
        customdata=[
            [
                theme.plain(p["name"]),
                quantities.size(p[axes.size_of]),
                quantities.average_bits(p["average_bits"]),
                quantities.number(y),
            ]
            for p, y in points
        ],
        hovertemplate=(
            f"<b>%{{customdata[0]}}</b><br>{name.rpartition(', ')[2]} %{{customdata[3]}}"
            "<br>%{customdata[1]}, %{customdata[2]}<extra></extra>"
        ),
        showlegend=True,
    )


def _row_trace(plans: list[Plan], names: list[str], metric: str, part: str) -> Scatter:
    values, errors, rows = [], [], []
    for plan, name in zip(plans, names, strict=True):
        source = plan.get("predicted") if part == "predicted" else (plan.get("measured") or {}).get(metric)
        value = (source or {}).get(metric if part == "predicted" else part)
        if value is not None and value > 0:
            values.append(value)
            rows.append(name)
            spread = ((plan.get("measured_standard_error") or {}).get(metric) or {}).get(part)
            errors.append(None if part == "predicted" else spread)
    symbol, colour = _ROW_MARKERS[part]
    label = part if part == "predicted" else f"measured, {part}"
    return Scatter(
        x=values,
        y=rows,
        mode="markers",
        name=label,
        marker={
            "size": 10,
            "symbol": symbol,
            "color": colour,
            "line": {"width": 2 if part == "predicted" else 0},
        },
        error_x=_error(errors, values, colour),
        customdata=[quantities.metric_with_error(v, e, metric) for v, e in zip(values, errors, strict=True)],
        hovertemplate=f"<b>%{{y}}</b><br>{label} %{{customdata}} {quantities.measure(metric).unit}<extra></extra>",
        showlegend=True,
    )


def _error(errors: list[float | None], values: list[float], colour: str) -> dict[str, Any]:
    """Bars of one standard error; the lower end stays above zero, where a logarithmic axis ends."""
    upper = [e or 0.0 for e in errors]
    lower = [min(e, 0.99 * v) for e, v in zip(upper, values, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": upper,
        "arrayminus": lower,
        "visible": any(upper),
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }


def _add_budgets(figure: Figure, plans: Sequence[Plan], scale: float) -> None:
    """A vertical line at each budget."""
    for plan in plans:
        if plan.get("budget_bits"):
            figure.add_vline(
                x=plan["budget_bits"] / 8 / scale,
                line={"color": theme.NEUTRAL, "width": 1, "dash": "dash"},
                annotation={
                    "text": f"budget {theme.plain(plan.get('budget') or '')}",
                    "textangle": -90,
                    "xanchor": "right",
                    "yanchor": "top",
                    "font": {"size": 11},
                },
            )
