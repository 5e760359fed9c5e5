"""The template environment that page and report share: autoescape on, numbers through `app.report.quantities`."""

import unicodedata
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from app.report import library, quantities, summary, words

_FILES = Path(str(files("app"))) / "dashboard"
STATIC = _FILES / "static"
"""Style sheet and script; the report carries copies of them."""


def environment() -> Environment:
    """An environment over all templates; every value is escaped, none may be missing."""
    env = Environment(
        loader=FileSystemLoader(_FILES / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "size": quantities.size,
        "number": quantities.number,
        "count": quantities.count,
        "plural": quantities.plural,
        "percent": quantities.percent,
        "average_bits": quantities.average_bits,
        "operations": quantities.operations,
        "duration": quantities.duration,
        "metric_value": quantities.metric_value,
        "shape": quantities.shape,
    }
    env.globals |= {
        "added_style_ids": library.added_style_ids,
        "measure": quantities.measure,
        "metric_with_error": quantities.metric_with_error,
        "ratio": quantities.ratio,
        "certificate_words": words.certificate_words,
        "certificate_headline": words.certificate_headline,
        "certificate_level": words.certificate_level,
        "data_words": words.data_words,
        "effort_words": words.effort_words,
        "gap_words": words.gap_words,
        "summary": summary,
        "measured_cost": words.measured_cost,
    }
    return env


def visible(value: Any) -> Any:
    """Text with control and direction marks made visible; markup and whatever is no text as it is.

    Every value of a template goes through here: a name must not reorder or hide what stands around it.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in value)
