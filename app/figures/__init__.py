"""Figures of a result document, as plotly figures: one source for the page and for the saved report."""

import json
from collections.abc import Sequence
from typing import Any

from plotly.graph_objects import Figure

from app.figures.bits import bits_per_unit
from app.figures.costs import frontier_figure, predicted_and_measured
from app.figures.heat_map import sensitivity_heat_map

__all__ = [
    "bits_per_unit",
    "figures_json",
    "frontier_figure",
    "job_figures",
    "predicted_and_measured",
    "sensitivity_heat_map",
]


def job_figures(
    result: dict[str, Any], plan: dict[str, Any] | None = None, tried: Sequence[dict[str, Any]] = ()
) -> dict[str, Figure]:
    """All figures that the document has data for, by name: ``heat-map``, ``frontier``, ``bits``, ``costs``.

    Args:
        result: A result document, of a finished or of a running job.
        plan: The plan that is looked at; marked in the heat map and drawn as bits.
        tried: Plans for budgets tried after the job.
    """
    figures = {}
    if result["sensitivities"]:
        figures["heat-map"] = sensitivity_heat_map(result, plan)
    if result["frontier"] or result["plans"]:
        figures["frontier"] = frontier_figure(result, tried)
    if plan is not None and plan.get("choices"):
        figures["bits"] = bits_per_unit(result, plan)
    if result["plans"] or result["baselines"]:
        figures["costs"] = predicted_and_measured(result)
    return figures


def figures_json(figures: dict[str, Figure]) -> str:
    """The figures as one JSON object, fit to stand inside a ``<script>`` element."""
    text = "{" + ",".join(f"{json.dumps(name)}:{figure.to_json()}" for name, figure in figures.items()) + "}"
    # The same escapes as Jinja's tojson: no text in it can end the element.
    return text.translate(
        {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}
    )
