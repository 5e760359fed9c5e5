"""A figure for each model: held-out cost against bits, a line for each metric; uniform and random plans as bands.

Drawn by plotly in a headless Chromium (playwright), which the tests of the pages use too.
"""

import base64
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from plotly.graph_objects import Figure
from quality_results import Outcome
from quality_rows import RANDOM_BEST, RANDOM_MEDIAN, UNIFORM, Row

from app.figures import theme
from app.report import library, quantities

WIDTH, HEIGHT, SCALE = 760, 470, 2
_INK = "#222222"
_RANDOM_BAND, _UNIFORM_BAND = "rgba(230,159,0,0.16)", "rgba(125,134,148,0.25)"
_PLAIN: dict[str, Any] = {"width": 1.2, "dash": "dot"}
# What measures or estimates in the metric's own unit is drawn full, scores of other kinds dotted.
STYLES: dict[str, dict[str, Any]] = {
    "auto": {"color": theme.BLUE, "width": 2.6},
    "exact": {"color": _INK, "width": 1.6},
    "racing": {"color": "#56B4E9", "width": 1.6, "dash": "dash"},
    "probe": {"color": theme.GREEN, "width": 1.6},
    "output-hessian": {"color": theme.VERMILION, **_PLAIN},
    "fisher": {"color": "#CC79A7", **_PLAIN},
    "fit": {"color": "#882255", **_PLAIN},
    "hessian-trace": {"color": "#332288", **_PLAIN},
    "output-error": {"color": "#999933", **_PLAIN},
    "weight-mse": {"color": "#AA4499", **_PLAIN},
    "weight-sqnr": {"color": "#6699CC", **_PLAIN},
}
_FAMILY = "Liberation Sans, DejaVu Sans, Arial, sans-serif"


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Any of them draws; without one Playwright's own does, where it is installed."""


def figure(outcome: Outcome) -> Figure:
    """The figure of a model: its first scheme."""
    scheme = outcome.rows[0].scheme
    rows = [row for row in outcome.rows if row.scheme == scheme]
    last = max(row.budget for row in rows)
    found = theme.base_figure(
        HEIGHT,
        width=WIDTH,
        paper_bgcolor="white",
        plot_bgcolor="white",
        title={"text": f"{outcome.title}, {scheme}", "x": 0.01, "font": {"size": 14}},
        font={"family": _FAMILY, "size": 12, "color": _INK},
        legend={"orientation": "v", "x": 1.01, "y": 1, "yanchor": "top", "font": {"size": 11}},
    )
    _add_band(found, "random plans", _RANDOM_BAND, theme.ORANGE, _random(outcome, scheme))
    _add_band(found, "uniform", _UNIFORM_BAND, theme.NEUTRAL, _uniform(outcome, scheme, last))
    for metric in (m for m in STYLES if any(row.plan == m for row in rows)):
        _add_line(found, metric, sorted((r for r in rows if r.plan == metric), key=lambda r: r.budget))
    _add_handed_over(found, [r for r in rows if r.plan == "auto" and r.handed_over is not None])
    costs = [row.cost for row in rows if row.cost > 0]
    cost = quantities.measure(outcome.compare)
    found.update_layout(
        xaxis=theme.axis("average bits per weight (budget)", tickvals=sorted({r.budget for r in rows})),
        yaxis=theme.log_axis(f"{cost.title} on held-out data ({cost.unit})", costs),
    )
    return found


def _random(outcome: Outcome, scheme: str) -> list[tuple[float, float, float, float]]:
    """Budget, least, median and largest cost of random plans."""
    costs = outcome.random.get(scheme, {})
    return sorted((float(b), min(c), median(c), max(c)) for b, c in costs.items() if c)


def _uniform(outcome: Outcome, scheme: str, last: float) -> list[tuple[float, float, float, float]]:
    """Bits, cost less and plus its standard error, up to the largest budget."""
    return [
        (bits, max(cost - (error or 0), cost / 10), cost, cost + (error or 0))
        for bits, cost, error in outcome.uniform.get(scheme, [])
        if bits <= last + 1e-9
    ]


def _add_band(
    found: Figure, name: str, fill: str, colour: str, points: Sequence[tuple[float, float, float, float]]
) -> None:
    """Between a lower and an upper cost, with a line between."""
    if not points:
        return
    bits, low, middle, high = (list(values) for values in zip(*points, strict=True))
    found.add_scatter(
        x=[*bits, *reversed(bits)],
        y=[*high, *reversed(low)],
        fill="toself",
        fillcolor=fill,
        line={"width": 0},
        mode="lines",
        showlegend=False,
        hoverinfo="skip",
    )
    found.add_scatter(
        x=bits,
        y=middle,
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 1.4, "dash": "dash"},
        marker={"size": 5},
    )


def _add_line(found: Figure, metric: str, rows: Sequence[Row]) -> None:
    found.add_scatter(
        x=[row.budget for row in rows],
        y=[row.cost for row in rows],
        name=metric,
        mode="lines+markers",
        line=STYLES[metric],
        marker={"size": 6 if metric == "auto" else 4},
    )


def _add_handed_over(found: Figure, rows: Sequence[Row]) -> None:
    """Where the service hands over another plan than the search's."""
    if rows:
        found.add_scatter(
            x=[row.budget for row in rows],
            y=[row.handed_over for row in rows],
            name="auto, handed over",
            mode="markers",
            marker={"size": 10, "symbol": "diamond-open", "color": theme.BLUE, "line": {"width": 2}},
        )


def draw(outcomes: Iterable[Outcome], folder: Path) -> list[Path]:
    """Write ``plan-quality-MODEL.png`` for each model that has plans; where they are.

    Raises:
        playwright.sync_api.Error: There is no Chromium.
    """
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - tables need no browser

    drawn: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, BROWSERS)), None)
        )
        page = browser.new_page()
        page.add_script_tag(content=library.script())
        for outcome in outcomes:
            if not any(row.plan not in (UNIFORM, RANDOM_MEDIAN, RANDOM_BEST) for row in outcome.rows):
                continue
            options = {"format": "png", "width": WIDTH, "height": HEIGHT, "scale": SCALE}
            script = "([figure, options]) => Plotly.toImage(JSON.parse(figure), options)"
            address = page.evaluate(script, [figure(outcome).to_json(), options])
            path = folder / f"plan-quality-{outcome.model}.png"
            path.write_bytes(base64.b64decode(address.partition(",")[2]))
            drawn.append(path)
        browser.close()
    return drawn
