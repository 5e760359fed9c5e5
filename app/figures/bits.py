"""The bit-width of every weight tensor, in execution order."""

import math
from typing import Any

from plotly.graph_objects import Bar, Figure

from app.figures import theme
from app.report import quantities

_NARROWEST = 0.3
_WIDEST = 0.94


def bits_per_unit(result: dict[str, Any], plan: dict[str, Any]) -> Figure:
    """One bar per unit: height and colour are its bits, a wider bar has more weights (root of their number).

    Args:
        result: A result document.
        plan: One of its plans. Units without a choice stay in float and have no bar.

    Returns:
        One trace per bit-width, named ``4 bits``, so that the legend explains the colours.
    """
    choices = plan["choices"]
    names = [theme.plain(n) for n in theme.short_names([u["name"] for u in result["units"]])]
    units = list(zip(result["units"], names, strict=True))
    offered = sorted({int(c["bits"]) for c in choices.values()})
    highest = max(offered, default=8)
    figure = theme.base_figure(
        height=270 + theme.unit_axis_room(names),
        xaxis=theme.unit_axis(names),
        yaxis=theme.axis("bits per weight", range=[0, highest * 1.1], dtick=2 if highest > 4 else 1),
        bargap=0,
        barmode="overlay",
    )
    largest = max((u["weights"] for u, _ in units), default=1)
    for bits in offered:
        chosen = [(u, n) for u, n in units if choices.get(u["name"], {}).get("bits") == bits]
        figure.add_trace(_bars(bits, chosen, choices, largest, outlined=len(units) <= 100))
    average = plan.get("average_bits")
    if average is not None:
        figure.add_hline(
            y=average,
            line={"color": theme.VERMILION, "width": 1.5, "dash": "dash"},
            name=f"average {quantities.average_bits(average)}",
            showlegend=True,
        )
    return figure


def _bars(
    bits: int,
    chosen: list[tuple[dict[str, Any], str]],
    choices: dict[str, dict[str, Any]],
    largest: int,
    *,
    outlined: bool,
) -> Bar:
    """The bars of one bit-width. Outlines would cover the bars where there are hundreds."""
    return Bar(
        x=[name for _, name in chosen],
        y=[bits] * len(chosen),
        width=[_NARROWEST + (_WIDEST - _NARROWEST) * math.sqrt(u["weights"] / largest) for u, _ in chosen],
        name=f"{bits} bits",
        marker={"color": theme.bits_colour(bits), "line": {"width": 0.5 * outlined, "color": theme.NEUTRAL}},
        customdata=[_hover(u, choices[u["name"]]) for u, _ in chosen],
        hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
        showlegend=True,
    )


def _hover(unit: dict[str, Any], choice: dict[str, Any]) -> list[str]:
    lines = [
        theme.candidate_text(choice),
        f"{quantities.count(unit['weights'])} weights, {quantities.size(unit['weights'] * choice['bits'])}",
        f"{theme.plain(unit['operator'])}, {quantities.shape(unit['shape'])}",
    ]
    return [theme.plain(unit["name"]), "<br>".join(lines)]
