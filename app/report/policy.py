"""Content security policies under which plotly.js draws: no request elsewhere, no script or style but what is named.

plotly.js asks for two things that a strict policy forbids: an empty ``<style>`` element, which it then fills rule by rule
through the object model, and a handful of constant ``style`` attributes. Both are allowed by their hashes, so that no
other inline style is. Standard library only.
"""

import base64
import hashlib

_DECLARATIONS = (
    "optimizeSpeed",
    "-moz-crisp-edges",
    "-o-crisp-edges",
    "-webkit-optimize-contrast",
    "optimize-contrast",
    "crisp-edges",
    "pixelated",
)
PLOTLY_STYLES = (
    "",  # the style element before it is filled, and attributes that are reset
    "font-weight:bold",  # <b> in a hover text
    "font-size:70%",  # <sup> in powers of ten
    "".join(f"image-rendering: {value}; " for value in _DECLARATIONS),  # heat maps: cells with sharp edges
)
"""Every inline style of plotly.js that our figures use; a browser test fails when a new release needs another."""


def source_of(text: str) -> str:
    """A script or style as a source expression: exactly this text is allowed."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _plotly_sources() -> str:
    return "'unsafe-hashes' " + " ".join(source_of(text) for text in PLOTLY_STYLES)


def page_policy() -> str:
    """For the dashboard: scripts, styles and data from this server alone; never inside another site's frame."""
    return (
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        f"style-src 'self' {_plotly_sources()}; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


def report_policy(scripts: tuple[str, ...], style: str) -> str:
    """For a saved report: its own scripts and style by hash, and no request at all."""
    return (
        f"default-src 'none'; script-src {' '.join(map(source_of, scripts))}; img-src data:; "
        f"style-src {source_of(style)} {_plotly_sources()}; form-action 'none'; base-uri 'none'"
    )
