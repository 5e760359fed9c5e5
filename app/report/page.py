"""A job's result as one HTML file that needs nothing else: style, script, figures and the plotting library inside."""

import re
from functools import lru_cache
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from app.figures import figures_json, job_figures
from app.report import library, summary
from app.report.policy import report_policy
from app.report.rendering import STATIC, environment


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return environment()


@lru_cache(maxsize=1)
def _scripts() -> tuple[str, str]:
    """The plotting library and our own script, as they stand in the file."""
    return _inlined(library.script()), _inlined((STATIC / "bitwright.js").read_text("utf-8"))


def _inlined(script: str) -> str:
    """A script that can stand inside a ``<script>`` element."""
    # In strings and regular expressions, where alone these can stand, the backslash changes nothing.
    return re.sub("<(?=/script|!--)", r"<\\", script, flags=re.IGNORECASE)


@lru_cache(maxsize=1)
def _policy(style: str) -> str:
    return report_policy(_scripts(), style)


def render_report(result: dict[str, Any]) -> str:
    """The report of a result document.

    A content security policy inside the file allows its own two scripts and its own style by hash and no request at
    all: names of models and tensors are text of strangers.

    Args:
        result: As `app.results` builds it; of a finished job or of one that has come part of the way.

    Returns:
        One HTML file, about 5 MB (the plotting library), that works offline.
    """
    plan = summary.featured(result)
    figures = job_figures(result, plan)
    plotly, script = _scripts()
    style = (STATIC / "bitwright.css").read_text("utf-8")
    return (
        _environment()
        .get_template("report.html")
        .render(
            result=result,
            plan=plan,
            figures=figures,
            figure_data=Markup(figures_json(figures)),  # noqa: S704 - escaped by figures_json
            plotly=Markup(plotly),  # noqa: S704 - the library as published
            script=Markup(script),  # noqa: S704 - our own file
            style=Markup(style),  # noqa: S704 - our own file
            policy=_policy(style),
        )
    )
