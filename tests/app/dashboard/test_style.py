"""The style sheet: colours that can be read on light and on dark, and the same bit-width colours as the figures."""

import re
import tomllib
from pathlib import Path

import pytest

from app.figures import theme
from app.report.rendering import STATIC

CSS = (STATIC / "bitwright.css").read_text("utf-8")
LIGHT = dict(re.findall(r"(--[\w-]+):\s*(#[0-9a-f]{6})", CSS[: CSS.index("@media")]))
DARK = LIGHT | dict(
    re.findall(r"(--[\w-]+):\s*(#[0-9a-f]{6})", CSS[CSS.index("@media") : CSS.index("*, *::before")])
)


def luminance(colour):
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


TEXTS = [
    ("--text", "--page"),
    ("--text", "--surface"),
    ("--text", "--neutral-wash"),
    ("--text", "--accent-wash"),
    ("--text", "--good-wash"),
    ("--text", "--warn-wash"),
    ("--text", "--bad-wash"),
    ("--soft", "--page"),
    ("--soft", "--surface"),
    ("--soft", "--neutral-wash"),
    ("--soft", "--accent-wash"),
    ("--soft", "--bad-wash"),
    ("--accent", "--page"),
    ("--accent", "--surface"),
    ("--accent", "--accent-wash"),
    ("--accent-strong", "--accent-wash"),
    ("--on-accent", "--accent"),
    ("--on-accent", "--accent-strong"),
    ("--good", "--good-wash"),
    ("--good", "--surface"),
    ("--bad", "--bad-wash"),
    ("--bad", "--surface"),
]


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("text", "background"), TEXTS)
def test_texts_have_enough_contrast(scheme, text, background):
    assert contrast(scheme[text], scheme[background]) >= 4.5


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("colour", [theme.BLUE, theme.VERMILION, theme.GREEN, theme.NEUTRAL])
def test_marks_of_figures_stand_out(scheme, colour):
    assert contrast(colour, scheme["--surface"]) >= 3


@pytest.mark.parametrize("bits", range(2, 9))
def test_bit_widths_have_the_colours_of_the_figures_and_can_be_read(bits):
    background, text = re.search(rf"\.bits-{bits} {{ background: (#\w+); color: (#\w+); }}", CSS).groups()
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    assert theme.bits_colour(bits) == f"rgb({red}, {green}, {blue})"
    assert contrast(background, "#ffffff" if text == "#fff" else text) >= 4.5


def test_nothing_is_fetched_from_elsewhere():
    assert "url(" not in CSS
    assert "@import" not in CSS
    script = (STATIC / "bitwright.js").read_text("utf-8")
    assert not re.search(r"https?://", script)
    assert "innerHTML" not in script
    assert "eval(" not in script


def test_an_installation_has_every_file():
    root = Path(__file__).parents[3]
    patterns = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"][
        "package-data"
    ]["app"]
    packed = {path for pattern in patterns for path in (root / "app").glob(pattern)}
    for package in ("dashboard", "report", "figures"):
        files = {
            p for p in (root / "app" / package).rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")
        }
        assert files <= packed
    assert STATIC / "icon.svg" in packed
