"""Activation bits, bit operations and limits: page, report and terminal show the same."""

import copy
import io
import re

import pytest
from rich.console import Console

from app.cli import tables
from app.figures import bits_per_unit
from app.report import render_report, summary
from app.report.quantities import NOTHING, THIN_SPACE, operations
from tests.app.dashboard.samples import result_document


@pytest.fixture(scope="module")
def document():
    """A result whose plans quantize inputs to 8 bits, except those of one unit, under a limit."""
    made = result_document()
    made["settings"] |= {"activation_candidates": [8], "limits": {"bit_operations": "1.5G"}}
    for number, plan in enumerate((*made["plans"], *made["baselines"])):
        plan["bit_operations"] = 123_456_789 * (number + 1)
        for unit, choice in plan["choices"].items():
            if unit != "_fc.weight":
                choice["activation_bits"] = 8
    made["plans"][0]["spec"]["limits"] = {"bit_operations": "1.5G"}
    made["plans"][0]["solver"] |= {"limited": {"bit_operations": 987_654_321}}
    return made


@pytest.fixture(scope="module")
def plain():
    return result_document()


def text_of(markup):
    return " ".join(re.sub(r"<[^>]+>", " ", markup.split("<main>")[1].split("</main>")[0]).split())


def printed(renderable):
    console = Console(file=io.StringIO(), width=220)
    console.print(renderable)
    return console.file.getvalue()


def test_plans_tell_their_bit_operations_where_they_are_chosen_by(document, plain):
    shown = [text_of(render_report(document)), printed(tables.plans(document))]
    for text in shown:
        assert "Bit operations" in text
        for plan in (*document["plans"], *document["baselines"]):
            assert operations(plan["bit_operations"]).replace(THIN_SPACE, " ") in text.replace(
                THIN_SPACE, " "
            )
    for text in (text_of(render_report(plain)), printed(tables.plans(plain))):
        assert "Bit operations" not in text


def test_a_limit_is_told_with_what_the_plan_takes(document, plain):
    expected = [("Bit operations", f"988{THIN_SPACE}M of 1.5G")]
    assert summary.limit_rows(document["plans"][0]) == expected
    assert summary.limit_rows(plain["plans"][0]) == []
    # One kind of space: markup and terminal break lines differently.
    for text in (text_of(render_report(document)), printed(tables.result(document))):
        assert "988 M of 1.5G" in text.replace(THIN_SPACE, " ")


def test_each_unit_tells_the_bits_of_its_inputs(document, plain):
    rows = summary.choice_rows(document, document["plans"][0])
    assert {row.activation_bits for row in rows if row.unit["name"] != "_fc.weight"} == {8}
    assert "/a8" in printed(tables.choices(document))
    assert "Inputs" in text_of(render_report(document))
    assert "/a8" not in printed(tables.choices(plain))
    assert "Inputs" not in text_of(render_report(plain))


def test_figures_tell_the_bits_of_inputs_where_one_points(document, plain):
    for made, there in ((document, True), (plain, False)):
        hovered = [c[1] for bars in bits_per_unit(made, made["plans"][0]).data for c in bars.customdata]
        assert any("inputs 8 bits" in text for text in hovered) is there


def test_settings_tell_target_output_and_passes(plain):
    changed = copy.deepcopy(plain)
    changed["settings"] |= {
        "target": "gguf",
        "menu": "short",
        "schemes": [],
        "output": "logits",
        "exclude": ["a"],
        "batch_size": None,
        "max_passes": 12.5,
        "refine_passes": 80.0,
    }
    rows = dict(summary.settings_rows(changed))
    assert rows["Quantizers"] == "short menu for gguf"
    assert rows["Compared"] == "KL divergence of output logits"
    assert rows["Left in float"] == "a"
    assert rows["Samples per pass"] == "by size"
    assert (rows["Measured at most"], rows["Refined with at most"]) == ("12.5 passes", "80 passes")
    render_report(changed)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NOTHING),
        (0, "0"),
        (999, "999"),
        (999.6, f"1.00{THIN_SPACE}K"),
        (12_345, f"12.3{THIN_SPACE}K"),
        (98_600_000_000, f"98.6{THIN_SPACE}G"),
        (999_600_000, f"1.00{THIN_SPACE}G"),
        (2.5e15, f"2.50{THIN_SPACE}P"),
    ],
)
def test_operations(value, text):
    assert operations(value) == text
