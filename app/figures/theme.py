"""What all figures share: palette, layout, axis texts. Colours keep apart for colour-blind readers, on light and on dark.

Qualitative colours: Okabe and Ito 2008, "Color Universal Design". Ordered ones: viridis (van der Walt, Smith 2015).
Backgrounds are transparent and greys neutral; the page's script lays the page's own text colour over them.
"""

import html
import math
import unicodedata
from typing import Any

from plotly.colors import sample_colorscale
from plotly.graph_objects import Figure

from app.report import quantities

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILION = "#D55E00"
NEUTRAL = "#7d8694"
TEXT = "#4a5261"
GRID = "rgba(128,134,148,0.22)"
BELOW_ZERO = "#e6bdb4"
"""Cells at or below zero: a hue that the ordered scale does not have."""

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif'
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_UNIT_FONT_SIZE = 10
_DARKEST = 0.12
"""Share of viridis left out at its dark end, which a dark page would swallow."""


def ordered(position: float) -> str:
    """A colour of the ordered scale; ``position`` in [0, 1]."""
    return str(sample_colorscale("Viridis", [_DARKEST + (1 - _DARKEST) * position])[0])


COST_SCALE = [[i / 10, ordered(i / 10)] for i in range(11)]
"""Colour scale of costs: dark is cheap, bright is expensive."""


def bits_colour(bits: int) -> str:
    """The colour of a bit-width, the same in every figure: 2 is darkest, 8 and more brightest."""
    return ordered(min(max((bits - 2) / 6, 0.0), 1.0))


def base_figure(height: int, **layout: Any) -> Figure:
    """An empty figure with the common layout.

    Args:
        height: In CSS pixels; the width follows the page.
        layout: Further members of plotly's layout; they win.
    """
    common: dict[str, Any] = {
        "template": "none",
        "autosize": True,
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": TEXT},
        "margin": {"l": 8, "r": 8, "t": 38, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 12}},
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}},
    }
    return Figure(layout=common | layout)


def axis(title: str, **members: Any) -> dict[str, Any]:
    """An axis that names its quantity and unit."""
    common = {
        "title": {"text": title, "standoff": 10},
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "ticks": "",
    }
    return common | members


def metric_title(metric: str) -> str:
    """The title of an axis or a colour bar: the metric with its unit."""
    shown = quantities.measure(metric)
    return f"{shown.title} ({shown.unit})" if shown.unit else shown.title


def log_axis(title: str, values: list[float], **members: Any) -> dict[str, Any]:
    """A logarithmic axis; powers of ten alone where the values span more than two."""
    spread = math.log10(max(values) / min(values)) if values else 0.0
    ticks = {"dtick": 1} if spread > 2 else {"nticks": 8}
    # Powers are drawn a quarter larger than asked for.
    font = {"size": 10}
    return axis(title, type="log", exponentformat="power", tickfont=font, **ticks, **members)


def unit_axis(names: list[str], **members: Any) -> dict[str, Any]:
    """The axis of the units in execution order. Its labels are thinned by the figure's real width."""
    return axis(
        "weight tensors in execution order",
        type="category",
        categoryorder="array",
        categoryarray=names,
        range=[-0.5, len(names) - 0.5],
        tickangle=-60 if len(names) > 6 else 0,
        tickfont={"size": _UNIT_FONT_SIZE},
        showgrid=False,
        **members,
    )


def unit_axis_room(names: list[str]) -> int:
    """Height that the labels and the title of the axis of the units take, in CSS pixels."""
    longest = max((len(html.unescape(name)) for name in names), default=0)
    # 0.58: mean width of a character in units of the font's size; sin 60° = 0.87.
    return 46 + (round(0.87 * 0.58 * _UNIT_FONT_SIZE * longest) if len(names) > 6 else 16)


def log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Positions (decimal logarithms) and texts of ticks between two decimal logarithms."""
    whole = list(range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1))
    if len(whole) >= 2:
        step = max(1, math.ceil(len(whole) / 6))
        chosen: list[float] = [float(p) for p in whole[::-1][::step]][::-1]
    else:
        chosen = [low + (high - low) * i / 3 for i in range(4)] if high > low else [low]
    return chosen, [_power(round(p)) if p == round(p) else quantities.number(10**p, 2) for p in chosen]


def _power(exponent: int) -> str:
    """A power of ten: ``1``, ``0.01``, ``10⁻⁴``."""
    return (
        quantities.number(10.0**exponent, 1)
        if -3 <= exponent <= 3
        else f"10{str(exponent).translate(_SUPERSCRIPTS)}"
    )


def plain(text: str) -> str:
    """User text for a figure: no control or direction marks, and no markup (plotly reads a part of HTML)."""
    kept = "".join(c if unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return html.escape(kept, quote=False)


def short_names(names: list[str], longest: int = 28) -> list[str]:
    """Names for the ticks of an axis: the telling end of each, unique, at most ``longest`` characters.

    The suffix that all share (``.weight``) goes first; then leading parts shrink to their first letter
    (``model.layers.3.attn`` to ``m.l.3.attn``); what is still too long loses its middle. Not yet escaped.
    """
    suffix = "." + names[0].rpartition(".")[2] if names and "." in names[0] else ""
    if suffix and all(n.endswith(suffix) and n != suffix for n in names):
        names = [n[: -len(suffix)] for n in names]
    taken: dict[str, int] = {}
    unique = []
    for name in (_shorten(n, longest) for n in names):
        times = taken[name] = taken.get(name, 0) + 1
        unique.append(name if times == 1 else f"{name} ({times})")
    return unique


def _shorten(name: str, longest: int) -> str:
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= longest:
            break
        if not part.isdigit():
            parts[i] = part[: 2 if part.startswith("_") else 1]
    text = ".".join(parts)
    return text if len(text) <= longest else f"{text[:4]}…{text[-(longest - 5) :]}"


def candidate_text(candidate: dict[str, Any]) -> str:
    """A candidate where hovering tells it in full: ``4 bits, inputs 8 bits, channel-asymmetric``."""
    activation = candidate.get("activation_bits")
    inputs = f", inputs {activation} bits" if activation else ""
    return f"{candidate['bits']} bits{inputs}, {plain(candidate['scheme'])}"
