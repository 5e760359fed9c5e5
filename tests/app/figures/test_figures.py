"""Figures hold the document's numbers, with units on every axis, and survive whatever a document may lack."""

import copy
import json
import math

import pytest

from app.figures import (
    bits_per_unit,
    figures_json,
    frontier_figure,
    job_figures,
    predicted_and_measured,
    sensitivity_heat_map,
    theme,
)
from tests.app.dashboard.samples import BITS, result_document, running


@pytest.fixture(scope="module")
def document():
    return result_document()


def trace(figure, name):
    return next(t for t in figure.data if t.name == name)


def test_heat_map_holds_every_measured_cost_as_a_logarithm(document):
    figure = sensitivity_heat_map(document)
    z = trace(figure, "cost").z
    names = [u["name"] for u in document["units"]]
    assert len(z) == len(BITS)
    for entry in document["sensitivities"]:
        cell = z[BITS.index(entry["bits"])][names.index(entry["unit"])]
        assert cell == pytest.approx(math.log10(entry["mean"]))
    assert list(trace(figure, "cost").y) == [f"{bits} bits" for bits in BITS]


def test_heat_map_leaves_what_is_not_measured_empty(document):
    partial = running(document, 8)
    figure = sensitivity_heat_map(partial)
    z = trace(figure, "cost").z
    assert len(z) == len(BITS)
    assert [len(row) for row in z] == [len(document["units"])] * len(BITS)
    assert sum(cell is not None for row in z for cell in row) == 8
    assert trace(figure, "cost").hoverongaps is False


def test_heat_map_tells_costs_at_or_below_zero_apart(document):
    changed = copy.deepcopy(document)
    changed["sensitivities"][0]["mean"] = -1e-3
    changed["sensitivities"][1]["mean"] = 0.0
    figure = sensitivity_heat_map(changed)
    below = trace(figure, "at or below zero")
    assert [(i, j) for i, row in enumerate(below.z) for j, cell in enumerate(row) if cell is not None] == [
        (0, 0),
        (1, 0),
    ]
    assert trace(figure, "cost").z[0][0] is None
    assert trace(figure, "cost").z[1][0] is None
    assert "\u22120.00100" in below.customdata[0][0][1]
    assert [t.name for t in sensitivity_heat_map(document).data] == ["cost"]


def test_heat_map_with_costs_below_zero_only(document):
    changed = copy.deepcopy(document)
    for entry in changed["sensitivities"]:
        entry["mean"] = -abs(entry["mean"])
    figure = sensitivity_heat_map(changed)
    assert not any(cell is not None for row in trace(figure, "cost").z for cell in row)
    json.loads(figures_json({"heat-map": figure}))


def test_colours_span_eight_decades_at_most(document):
    changed = copy.deepcopy(document)
    changed["sensitivities"][0]["mean"] = 1e-30
    cost = trace(sensitivity_heat_map(changed), "cost")
    assert cost.zmax - cost.zmin == pytest.approx(8)


def test_heat_map_marks_what_is_measured_where_the_rest_is_estimated(document):
    changed = copy.deepcopy(document)
    for number, entry in enumerate(changed["sensitivities"]):
        entry["source"] = "measured" if number % 7 == 0 else "estimated"
    marks = sensitivity_heat_map(changed).data[-1]
    names = theme.short_names([u["name"] for u in document["units"]])
    expected = {
        (names[[u["name"] for u in document["units"]].index(e["unit"])], f"{e['bits']} bits")
        for e in changed["sensitivities"][::7]
    }
    assert "measured" in marks.name
    assert set(zip(marks.x, marks.y, strict=True)) == expected
    for entry in changed["sensitivities"]:
        entry["source"] = "estimated"
    assert [t.name for t in sensitivity_heat_map(changed).data] == ["cost"]


def test_heat_map_marks_the_plan(document):
    plan = document["plans"][0]
    marks = trace(sensitivity_heat_map(document, plan), "chosen")
    assert list(marks.y) == [f"{plan['choices'][u['name']]['bits']} bits" for u in document["units"]]
    assert len(set(marks.x)) == len(document["units"])


def test_heat_map_shows_excluded_units_not_at_all_and_other_metrics_neither(document):
    changed = copy.deepcopy(document)
    excluded = changed["units"][3]["name"]
    changed["settings"]["exclude"] = [excluded]
    changed["sensitivities"] = [e for e in changed["sensitivities"] if e["unit"] != excluded]
    changed["sensitivities"].append(changed["sensitivities"][0] | {"metric": "mse", "mean": 1e6})
    cost = trace(sensitivity_heat_map(changed), "cost")
    assert len(cost.x) == len(document["units"]) - 1
    assert cost.zmax < 6


def test_candidates_of_several_schemes_get_a_row_each(document):
    changed = copy.deepcopy(document)
    changed["sensitivities"].append(changed["sensitivities"][0] | {"scheme": "tensor-symmetric"})
    rows = list(trace(sensitivity_heat_map(changed), "cost").y)
    assert rows[:2] == ["2 bits · channel-asymmetric", "2 bits · tensor-symmetric"]
    assert len(rows) == len(BITS) + 1


def test_frontier_holds_line_points_errors_and_budgets(document):
    figure = frontier_figure(document)
    line = trace(figure, "best predicted")
    assert list(line.y) == [p["objective"] for p in document["frontier"]]
    unit_bits = 8 * figure.layout.meta["bytes_per_unit"]
    assert list(line.x) == pytest.approx([p["size_bits"] / unit_bits for p in document["frontier"]])
    assert line.line.shape == "hv"
    plans = trace(figure, "plan, measured")
    assert list(plans.y) == [p["measured"]["kl"]["evaluation"] for p in document["plans"]]
    assert list(plans.error_y.array) == [
        p["measured_standard_error"]["kl"]["evaluation"] for p in document["plans"]
    ]
    uniform = trace(figure, "uniform, measured")
    assert list(uniform.x) == pytest.approx([p["size_bits"] / unit_bits for p in document["baselines"]])
    assert uniform.marker.symbol != plans.marker.symbol
    assert [s.x0 * unit_bits for s in figure.layout.shapes] == pytest.approx(
        [p["budget_bits"] for p in document["plans"]]
    )
    assert figure.layout.yaxis.type == "log"


def test_error_bars_end_above_zero(document):
    changed = copy.deepcopy(document)
    plan = changed["plans"][0]
    plan["measured_standard_error"]["kl"]["evaluation"] = 10 * plan["measured"]["kl"]["evaluation"]
    bars = trace(frontier_figure(changed), "plan, measured").error_y
    assert bars.arrayminus[0] < plan["measured"]["kl"]["evaluation"] < bars.array[0]


def test_calibration_stands_in_where_there_is_no_evaluation(document):
    changed = copy.deepcopy(document)
    for plan in changed["plans"]:
        plan["measured"]["kl"]["evaluation"] = None
    figure = frontier_figure(changed)
    assert list(trace(figure, "plan, measured").y) == [
        p["measured"]["kl"]["calibration"] for p in document["plans"]
    ]


def test_costs_that_no_log_axis_can_show_are_left_out(document):
    changed = copy.deepcopy(document)
    changed["frontier"][-1]["objective"] = -1e-5
    changed["baselines"][-1]["measured"]["kl"]["evaluation"] = 0.0
    figure = frontier_figure(changed)
    assert len(trace(figure, "best predicted").x) == len(document["frontier"]) - 1
    assert len(trace(figure, "uniform, measured").x) == len(document["baselines"]) - 1


def test_a_budget_on_the_file_is_drawn_against_file_sizes(document):
    changed = copy.deepcopy(document)
    changed["settings"]["budget_counts"] = "file"
    figure = frontier_figure(changed)
    unit_bits = 8 * figure.layout.meta["bytes_per_unit"]
    assert list(trace(figure, "plan, measured").x) == pytest.approx(
        [p["file_size_bits"] / unit_bits for p in document["plans"]]
    )
    assert "whole file" in figure.layout.xaxis.title.text


def test_long_frontiers_are_thinned_but_keep_their_ends(document):
    changed = copy.deepcopy(document)
    first = changed["frontier"][0]
    changed["frontier"] = [first | {"size_bits": first["size_bits"] + i} for i in range(14_004)]
    x = trace(frontier_figure(changed), "best predicted").x
    assert len(x) <= 2001
    assert x[-1] > x[-2] > x[0]
    assert x[-1] * 8 * frontier_figure(changed).layout.meta["bytes_per_unit"] == pytest.approx(
        first["size_bits"] + 14_003
    )


def test_tried_plans_are_points_of_their_own(document):
    tried = document["plans"][1] | {"role": "adhoc", "measured": {}, "measured_standard_error": {}}
    figure = frontier_figure(document, [tried])
    assert list(trace(figure, "tried, predicted").y) == [tried["predicted"]["kl"]]
    assert not [t for t in figure.data if t.name == "tried, measured"]


def test_bits_bars_are_in_execution_order_and_wider_for_more_weights(document):
    plan = document["plans"][0]
    figure = bits_per_unit(document, plan)
    order = list(figure.layout.xaxis.categoryarray)
    widths = {}
    for bars in figure.data:
        assert set(bars.y) == {int(bars.name.split()[0])}
        for x, y, width, hover in zip(bars.x, bars.y, bars.width, bars.customdata, strict=True):
            unit = document["units"][order.index(x)]
            assert plan["choices"][unit["name"]]["bits"] == y
            assert hover[0] == unit["name"]
            assert f"{unit['weights']:,}".replace(",", "\u2009") in hover[1]
            widths[unit["weights"]] = width
    assert len(widths) == len({u["weights"] for u in document["units"]})
    ordered = [widths[w] for w in sorted(widths)]
    assert ordered == sorted(ordered)
    assert ordered[0] < ordered[len(ordered) // 2] < ordered[-1] <= 1
    assert figure.layout.shapes[0].y0 == plan["average_bits"]


def test_units_left_in_float_have_no_bar(document):
    plan = copy.deepcopy(document["plans"][0])
    left = plan["choices"].popitem()[0]
    hovered = [c[0] for bars in bits_per_unit(document, plan).data for c in bars.customdata]
    assert left not in hovered
    assert len(hovered) == len(document["units"]) - 1


def test_each_bit_width_has_its_own_colour_in_order():
    colours = [theme.bits_colour(bits) for bits in range(2, 9)]
    assert len(set(colours)) == 7
    assert theme.bits_colour(16) == colours[-1]
    lightness = [sum(map(int, c.removeprefix("rgb(").removesuffix(")").split(","))) for c in colours]
    assert lightness[0] == min(lightness)


def test_predicted_next_to_measured_has_a_row_for_each_plan(document):
    figure = predicted_and_measured(document)
    rows = list(figure.layout.yaxis.categoryarray)
    assert len(rows) == len(document["plans"]) + len(document["baselines"])
    assert rows[0] == "uniform 2 bits"
    assert "<b>4 bits</b>" in rows
    predicted, calibration, evaluation = figure.data
    at = list(predicted.y).index("<b>4 bits</b>")
    plan = document["plans"][0]
    assert predicted.x[at] == plan["predicted"]["kl"]
    assert calibration.x[at] == plan["measured"]["kl"]["calibration"]
    assert evaluation.x[at] == plan["measured"]["kl"]["evaluation"]


def test_every_axis_names_its_unit(document):
    figures = job_figures(document, document["plans"][0])
    assert list(figures) == ["heat-map", "frontier", "bits", "costs"]
    titles = {name: (f.layout.xaxis.title.text, f.layout.yaxis.title.text) for name, f in figures.items()}
    assert titles == {
        "heat-map": ("weight tensors in execution order", "candidate (bits per weight)"),
        "frontier": ("size of the searched weights (kB)", "KL divergence (nats)"),
        "bits": ("weight tensors in execution order", "bits per weight"),
        "costs": ("KL divergence (nats)", None),
    }
    assert trace(figures["heat-map"], "cost").colorbar.title.text == "KL divergence (nats)"


def test_a_job_that_has_only_begun_has_no_figures(document):
    assert job_figures(running(document, 0)) == {}


def test_an_infeasible_plan_does_not_stop_the_others(document):
    changed = copy.deepcopy(document)
    changed["plans"][0] |= {"status": "infeasible", "choices": {}, "predicted": {}, "measured": {}}
    changed["plans"][0] |= {
        "size_bits": None,
        "file_size_bits": None,
        "average_bits": None,
        "objective": None,
    }
    figures = job_figures(changed, changed["plans"][0])
    assert list(figures) == ["heat-map", "frontier", "costs"]
    assert len(trace(figures["frontier"], "plan, measured").x) == 1


def test_names_cannot_leave_their_script_element_or_bring_markup(document):
    changed = copy.deepcopy(document)
    hostile = "</script><script>alert(1)</script><a href='https://evil.example'>x\u202e"
    changed["units"][0]["name"] = hostile
    for entry in changed["sensitivities"][: len(BITS)]:
        entry["unit"] = hostile
    changed["plans"][0]["name"] = changed["baselines"][0]["name"] = changed["plans"][0]["budget"] = hostile
    text = figures_json(job_figures(changed, changed["plans"][0]))
    assert "<" not in text
    assert "&" not in text
    decoded = json.dumps(json.loads(text), ensure_ascii=False)
    assert "<script" not in decoded
    assert "<a " not in decoded
    assert "\u202e" not in decoded
    assert "&lt;a href" in decoded


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.weight", "b.weight"], ["a", "b"]),  # the suffix that all share says nothing
        (["a.weight", "b.bias"], ["a.weight", "b.bias"]),
        (["model.layers.12.self_attn.q_proj.weight"], ["m.layers.12.self_attn.q_proj"]),
        (["_blocks.15._depthwise_conv_and_more.w"], ["_b.15._depthwise_conv_and_more"[:28]]),
        (["x" * 60], ["xxxx…" + "x" * 23]),
        (
            ["a" + "x" * 60 + "z", "a" + "x" * 70 + "z"],
            ["axxx…" + "x" * 22 + "z", "axxx…" + "x" * 22 + "z (2)"],
        ),
        (["weight"], ["weight"]),
        ([".weight", "a.weight"], [".weight", "a.weight"]),
        ([], []),
    ],
)
def test_short_names(names, expected):
    if names and names[0].startswith("_blocks"):
        expected = ["_b.1…" + "_depthwise_conv_and_more"[-23:]]
    assert theme.short_names(names) == expected


def test_short_names_are_unique_and_short_for_three_hundred_tensors():
    names = [u["name"] for u in result_document(300)["units"]]
    short = theme.short_names(names)
    assert len(set(short)) == 300
    assert max(map(len, short)) <= 28


def test_log_ticks_are_powers_where_there_are_any():
    assert theme.log_ticks(-4.2, 0.3) == (
        [-4.0, -3.0, -2.0, -1.0, 0.0],
        ["10⁻⁴", "0.001", "0.01", "0.1", "1"],
    )
    positions, texts = theme.log_ticks(-1.9, -1.2)
    assert len(positions) == len(set(texts)) == 4
    assert theme.log_ticks(0.5, 0.5) == ([0.5], ["3.2"])
