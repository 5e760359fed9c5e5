"""The saved report: complete, self-contained, and safe whatever the names in it are."""

import copy
import html
import json
import re
from html.parser import HTMLParser

import pytest

from app.report import render_report, summary
from app.report.page import _inlined
from app.report.policy import PLOTLY_STYLES, source_of
from app.report.quantities import TIMES, measure, number
from tests.app.dashboard.samples import result_document, running

_VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """Tags, visible text and attributes; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.scripts, self._open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self._open[-1:] in (["script"], ["style"]) else self.texts).append(data)


@pytest.fixture(scope="module")
def document():
    return result_document()


@pytest.fixture(scope="module")
def report(document):
    return render_report(document)


@pytest.fixture(scope="module")
def page(report):
    return Page(report)


def test_it_loads_nothing(page):
    for tag, name, value in page.attributes:
        assert name not in ("src", "href", "action", "data", "poster", "srcset"), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
        assert name != "style", (tag, value)
    assert "link" not in page.tags
    assert "img" not in page.tags


def test_its_policy_allows_exactly_its_own_scripts_and_style(report, page):
    policy = next(
        v for t, n, v in page.attributes if t == "meta" and n == "content" and v.startswith("default-src")
    )
    assert policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy
    assert "'self'" not in policy
    style = re.search(r"<style>(.*?)</style>", report, re.DOTALL)[1]
    scripts = [s for attrs, s in re.findall(r"<script([^>]*)>(.*?)</script>", report, re.DOTALL) if not attrs]
    assert len(scripts) == 2
    listed = set(re.findall(r"'sha256-[^']+'", policy))
    assert listed == {source_of(s) for s in (style, *scripts, *PLOTLY_STYLES)}


def test_a_script_cannot_end_its_own_element():
    script = "let a = '</script>'; let b = '<!--'; let c = '</SCRIPT';"
    inlined = _inlined(script)
    assert not re.search("</script|<!--", inlined, re.IGNORECASE)
    assert inlined.replace("<\\", "<") == script


def test_the_figures_data_is_inside(page, document):
    data = json.loads(next(s for s in page.scripts if s.startswith('{"heat-map"')))
    assert list(data) == ["heat-map", "frontier", "bits", "costs"]
    assert data["frontier"]["data"][0]["y"] == [p["objective"] for p in document["frontier"]]


def test_it_tells_budget_size_compression_certificate_and_measurements(page, document):
    plan = document["plans"][0]
    for text in (
        "efficientnet-lite0.pt2",
        "Budget: 4 bits",
        "Budget: 3 bits",
        "Proven optimal. An exhaustive search",
        "smaller than float",
        "searched",
        "uniform 8 bits",
        "Quantizer: channel-asymmetric, in every tensor that has bits.",
        "one scale per channel, read by a normalisation",
        "Bitwright 0.1.0",
        "128 samples",
        document["job"],
        "Measuring 1 min 33 s",
    ):
        assert text in page.text, text
    assert f"{plan['measured']['kl']['evaluation']:.3g}" in page.text
    for unit in document["units"]:
        assert unit["name"] in page.text


def test_comparison_with_the_best_uniform_plan_that_fits(document):
    plan = document["plans"][0]
    found = summary.against_uniform(document, plan)
    assert found.uniform["name"] == "uniform 4 bits"
    assert found.factor == pytest.approx(
        found.uniform["measured"]["kl"]["evaluation"] / plan["measured"]["kl"]["evaluation"]
    )
    cheap = copy.deepcopy(document)
    cheap["baselines"][0]["measured"]["kl"]["evaluation"] = 1e-9  # smaller *and* better
    assert summary.against_uniform(cheap, cheap["plans"][0]).uniform["name"] == "uniform 2 bits"
    cheap["baselines"] = cheap["baselines"][3:]  # nothing that fits
    assert summary.against_uniform(cheap, cheap["plans"][0]) is None


def test_a_plan_that_measured_worse_than_uniform_is_told_as_worse(document):
    changed = copy.deepcopy(document)
    changed["plans"] = changed["plans"][:1]
    changed["baselines"][2]["measured"]["kl"]["evaluation"] = (
        changed["plans"][0]["measured"]["kl"]["evaluation"] / 2
    )
    assert "2x worse".replace("x", TIMES) in Page(render_report(changed)).text


def test_shares_of_the_predicted_cost_add_up(document):
    rows = summary.choice_rows(document, document["plans"][0])
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert sum(row.cost for row in rows) == pytest.approx(document["plans"][0]["objective"])
    assert [row.unit["name"] for row in rows] == [u["name"] for u in document["units"]]


def test_shares_leave_negative_costs_out(document):
    changed = copy.deepcopy(document)
    bits = changed["plans"][0]["choices"][changed["units"][0]["name"]]["bits"]
    entry = next(
        e for e in changed["sensitivities"] if e["unit"] == changed["units"][0]["name"] and e["bits"] == bits
    )
    entry["mean"] = -5.0
    rows = summary.choice_rows(changed, changed["plans"][0])
    assert rows[0].share is None
    assert sum(row.share for row in rows[1:]) == pytest.approx(1)


HOSTILE = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>{{7*7}}\u202e\x07'


def with_hostile_names(document):
    changed = copy.deepcopy(document)
    old = changed["units"][0]["name"]
    changed["units"][0]["name"] = HOSTILE
    changed["units"][0]["tied"] = [HOSTILE]
    changed["units"][0]["operator"] = HOSTILE
    for entry in changed["sensitivities"]:
        if entry["unit"] == old:
            entry["unit"] = HOSTILE
    for plan in (*changed["plans"], *changed["baselines"]):
        plan["choices"][HOSTILE] = plan["choices"].pop(old)
        plan["name"] = HOSTILE
    changed["plans"][0]["budget"] = HOSTILE
    changed["model"]["name"] = changed["calibration"]["name"] = changed["name"] = HOSTILE
    changed["model"]["unsupported"][0] |= {"name": HOSTILE, "operator": HOSTILE, "reason": HOSTILE}
    changed["settings"] |= {"pins": {HOSTILE: 8}, "ties": [[HOSTILE, "b"]], "exclude": ["z" + HOSTILE]}
    return changed


def test_hostile_names_stay_text(document, page):
    hostile = Page(render_report(with_hostile_names(document)))
    assert sorted(set(hostile.tags)) == sorted(set(page.tags))
    assert hostile.tags.count("script") == page.tags.count("script")
    assert "{{7*7}}" in hostile.text
    assert "49" not in hostile.text.split("{{7*7}}")[0][-20:]
    assert "\u202e" not in hostile.text
    assert not [a for a in hostile.attributes if a[1].startswith("on") or a[1] == "src"]


def variants(document):
    """Documents of jobs in all the states that a report can be asked for."""
    yield (
        "queued",
        running(document, 0)
        | {"state": "queued", "stage": None, "seconds": dict.fromkeys(document["seconds"])},
    )
    yield "measuring", running(document, 20)
    yield "verifying", _unmeasured(document)
    no_evaluation = copy.deepcopy(document)
    no_evaluation["evaluation"] = None
    for plan in (*no_evaluation["plans"], *no_evaluation["baselines"]):
        for values in plan["measured"].values():
            values["evaluation"] = None
    yield "no evaluation", no_evaluation
    infeasible = copy.deepcopy(document)
    nothing = dict.fromkeys(
        ("objective", "lower_bound", "relative_gap", "size_bits", "file_size_bits", "average_bits")
    )
    infeasible["plans"][0] |= {
        **nothing,
        "status": "infeasible",
        "choices": {},
        "predicted": {},
        "measured": {},
    }
    infeasible["plans"][0] |= {
        "measured_standard_error": {},
        "solver": {"backend": "exact", "minimum_bits": 10**6},
    }
    yield "infeasible", infeasible
    uniform = copy.deepcopy(document)
    uniform["plans"][0] |= {"origin": "uniform", "status": "feasible", "relative_gap": 0.1}
    yield "uniform handed over", uniform
    other = copy.deepcopy(document)
    for entry in other["sensitivities"]:
        entry["metric"] = "loss"
        entry["standard_error"] = None
    other["settings"]["compare"] = other["settings"]["predicts"] = "loss"
    for plan in (*other["plans"], *other["baselines"]):
        plan["predicted"] = {"loss": -plan["objective"]}
        plan["measured"] = {"loss": {"calibration": -plan["objective"], "evaluation": None}}
        plan["measured_standard_error"] = {}
    yield "negative loss", other
    failed = running(document, 20) | {"state": "failed", "problem": {"title": "x"}, "stage": None}
    yield "failed", failed


def _unmeasured(document):
    changed = copy.deepcopy(document) | {"state": "running", "stage": "verify"}
    for plan in (*changed["plans"], *changed["baselines"]):
        plan["measured"] = plan["measured_standard_error"] = {}
    return changed


@pytest.mark.parametrize("name", [name for name, _ in variants(result_document(4))])
def test_every_state_of_a_job_has_a_report(name):
    document = dict(variants(result_document(6)))[name]
    page = Page(render_report(document))
    assert html.escape(document["model"]["name"]) in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_evaluation_on_the_calibration_data_is_pointed_out(document, page):
    words = "The evaluation data are the calibration data"
    assert words not in page.text
    same = copy.deepcopy(document)
    same["evaluation"]["sha256"] = same["calibration"]["sha256"]
    assert words in Page(render_report(same)).text


def test_the_certificates_numbers_have_a_unit(document, page):
    plan = document["plans"][0]
    unit = measure(next(iter(plan["predicted"]))).unit
    assert unit
    for name, value in (("Predicted cost", plan["objective"]), ("Lower bound", plan["lower_bound"])):
        assert f"{name} {number(value, 5)} {unit}" in page.text
    unbounded = copy.deepcopy(document)
    unbounded["plans"][0] |= {"lower_bound": None, "relative_gap": None}
    assert f"Lower bound {number(None, 5)} Gap" in Page(render_report(unbounded)).text, (
        "no unit without a number"
    )
