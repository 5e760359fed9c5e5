"""The benchmark of plans: what it draws at random, how it reads results, and which data it takes."""

import importlib
import itertools
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from app.local import Files

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    # At the end: in front, `benchmarks/solver.py` would hide the package of that name.
    for folder in ("examples", "benchmarks"):
        if str(ROOT / folder) not in sys.path:
            sys.path.append(str(ROOT / folder))
    return importlib.import_module(name)


random_plans = load("random_plans")
rows = load("quality_rows")
tasks = load("quality_tasks")
results = load("quality_results")
WIDTHS = (2, 3, 4, 6)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=12), st.floats(2, 7), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_random_plans_keep_the_budget_and_fill_it(sizes, average, seed):
    weights = {f"unit{i}": size for i, size in enumerate(sizes)}
    budget = math.ceil(average * sum(sizes))
    plan = random_plans.random_plan(weights, WIDTHS, budget, np.random.default_rng(seed))
    assert set(plan) == set(weights)
    assert set(plan.values()) <= set(WIDTHS)
    taken = sum(weights[name] * bits for name, bits in plan.items())
    assert taken <= budget
    for name, bits in plan.items():
        larger = [width for width in WIDTHS if width > bits]
        if larger:
            assert taken + weights[name] * (larger[0] - bits) > budget


def test_random_plans_follow_the_seed_and_differ():
    weights = {f"unit{i}": 10 + i for i in range(12)}
    budget = 3 * sum(weights.values())
    plans = random_plans.random_plans(weights, WIDTHS, budget, count=6, seed=1)
    assert len({tuple(plan.values()) for plan in plans}) == 6
    assert plans == random_plans.random_plans(weights, WIDTHS, budget, count=6, seed=1)
    assert plans != random_plans.random_plans(weights, WIDTHS, budget, count=6, seed=2)
    # Every unit gets more than one width in some of many plans: none is left out.
    many = random_plans.random_plans(weights, WIDTHS, budget, count=60, seed=1)
    assert all(len({plan[name] for plan in many}) > 2 for name in weights)


def test_there_are_no_more_random_plans_than_different_ones():
    # One unit of 4 at 3 or two of 1 at 6 bits: all plans that fill 22 bits are these.
    weights, budget = {"a": 4, "b": 1}, 22
    filling = {
        (a, b)
        for a, b in itertools.product(WIDTHS, repeat=2)
        if 4 * a + b <= budget
        and all(4 * w + b > budget for w in WIDTHS if w > a)
        and all(4 * a + w > budget for w in WIDTHS if w > b)
    }
    found = random_plans.random_plans(weights, WIDTHS, budget, count=50, seed=0)
    assert {(plan["a"], plan["b"]) for plan in found} == filling
    with pytest.raises(ValueError, match="9 bits are less"):
        random_plans.random_plan(weights, WIDTHS, 9, np.random.default_rng(0))


def plan(bits, kl, agreement, **members):
    return {
        "average_bits": bits,
        "size_bits": round(1000 * bits),
        "objective": kl / 2,
        "origin": "search",
        "solver": {},
        "choices": {},
        "measured": {
            "kl": {"calibration": kl / 3, "evaluation": kl},
            "top1_agreement": {"calibration": 1.0, "evaluation": agreement},
        },
        "measured_standard_error": {
            "kl": {"calibration": 0.0, "evaluation": kl / 10},
            "top1_agreement": {"calibration": 0.0, "evaluation": 0.0},
        },
        **members,
    }


AGREEMENT = tasks.Share(title="top-1 agreement", metric="top1_agreement")


@pytest.fixture
def document():
    """Budgets of 2.5 and 4 bits; at 4 bits another plan than the search's was handed over."""
    found = plan(3.5, 0.6, 0.7)
    search = {
        "objective": found["objective"],
        "size_bits": found["size_bits"],
        "choices": {"found": "by the search"},
        "measured": {"values": found["measured"], "standard_error": found["measured_standard_error"]},
    }
    over = plan(3.9, 0.5, 0.8, origin="interactions", solver={"search": search})
    return {
        "plans": [
            plan(2.49, 1.25, 0.4) | {"budget": "2.5 bits"},
            over | {"budget": "4 bits", "choices": {"handed": "over"}},
        ],
        "baselines": [plan(float(bits), 10.0 / bits, bits / 10) for bits in (8, 2, 3, 4)],
    }


@pytest.fixture
def table(document):
    return rows.Table(scheme="channel-asymmetric", compare="kl", task=AGREEMENT, document=document)


def test_a_row_is_what_the_search_found_next_to_the_largest_uniform_plan_that_fits(table, document):
    first, second = table.searched("auto", document)
    assert (first.budget, first.cost, first.uniform_cost, first.task) == (2.5, 1.25, 5.0, 0.4)
    assert (first.handed_over, first.origin) == (None, "search")
    assert (second.budget, second.cost, second.uniform_cost, second.task) == (4.0, 0.6, 2.5, 0.7)
    assert (second.average_bits, second.size_bits) == (pytest.approx(3.5), 3500)
    assert (second.predicted, second.calibration_cost) == (0.3, pytest.approx(0.2))
    assert second.standard_error == pytest.approx(0.06)
    assert (second.handed_over, second.origin) == (0.5, "interactions")


def test_uniform_and_random_rows(table):
    uniform = table.uniform(2.5)
    assert (uniform.plan, uniform.average_bits, uniform.cost) == (rows.UNIFORM, 2.0, 5.0)
    assert table.uniform(4.0).average_bits == 4.0  # exactly the budget fits
    drawn = [plan(2.5, cost, cost / 10) for cost in (4.0, 1.0, 9.0)]
    middle, best = table.random(2.5, drawn)
    assert (middle.plan, middle.cost, middle.task, middle.plans) == (rows.RANDOM_MEDIAN, 4.0, 0.4, 3)
    assert (best.plan, best.cost) == (rows.RANDOM_BEST, 1.0)


def test_the_table_goes_budget_by_budget(table, document):
    found = [
        *table.searched("auto", document),
        table.uniform(4.0),
        *table.random(4.0, [plan(4.0, 20.0, 0.1)]),
    ]
    lines = rows.markdown(found, "kl", AGREEMENT).replace("\u2009", " ").splitlines()
    assert lines[2:] == [
        "| 2.5 | `auto` | 2.49 | 1.25 ± 0.12 | 4\u00d7 | 40 % |  |",
        "| 4 | uniform 4 bits | 4.00 | 2.50 ± 0.25 |  | 40 % |  |",
        "| 4 | random, median of 1 | 4.00 | 20.0 ± 2.0 | 0.125\u00d7 | 10 % |  |",
        "| 4 | random, best of 1 | 4.00 | 20.0 ± 2.0 | 0.125\u00d7 | 10 % |  |",
        "| 4 | `auto` | 3.50 | 0.600 ± 0.060 | 4.17\u00d7 | 70 % | 0.500 (interactions) |",
    ]
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_the_overview_has_a_line_for_each_way_to_a_plan(table, document):
    found = [*table.searched("auto", document), *table.searched("fit", document)[:1], table.uniform(4.0)]
    assert rows.overview(found).splitlines() == [
        "| plan by | 2.5 bits | 4 bits |",
        "|---|---|---|",
        "| uniform | – | 2.50 |",  # noqa: RUF001 - an en dash stands where there is no value
        "| `auto` | 1.25 | 0.600 |",
        "| `auto`, handed over | 1.25 | 0.500 |",
        "| `fit` | 1.25 | – |",  # noqa: RUF001
    ]


def test_cosine_similarity_follows_from_the_measured_error(monkeypatch):
    rng = np.random.default_rng(0)
    floats = rng.normal(size=(9, 5))
    floats /= np.linalg.norm(floats, axis=1, keepdims=True)
    others = floats + rng.normal(size=floats.shape) / 5
    others /= np.linalg.norm(others, axis=1, keepdims=True)

    class Outputs:
        batches = range(2)

        def of(self, batch):
            return torch.tensor(np.array_split(floats, 2)[batch])

    monkeypatch.setattr(tasks, "load_model", lambda *_: None)
    monkeypatch.setattr(tasks, "load_float_outputs", lambda *_: Outputs())
    error = np.square(others - floats).mean() / floats.var()
    cosine = tasks.Cosine(files=Files(model=Path("m"), calibration=Path("c"), evaluation=Path("e")))
    expected = np.einsum("ij,ij->i", floats, others).mean()
    assert cosine.of({"measured": {"mse": {"evaluation": error}}}) == pytest.approx(expected, rel=1e-12)
    assert cosine.of_float({}) == pytest.approx(cosine.of({"measured": {"mse": {"evaluation": 0.0}}}))


def test_a_figure_of_outputs_is_computed_once_for_each_plan(tmp_path, monkeypatch):
    run = []

    def outputs(files, choices):
        run.append(choices)
        return np.full((3, 2), 0.25 * len(choices))

    monkeypatch.setattr(tasks, "outputs", outputs)
    given = {
        "title": "mean",
        "files": Files(model=Path("m"), calibration=Path("c"), evaluation=Path("e")),
        "figure": lambda found: float(found.mean()),
        "known": tmp_path / "known.json",
    }
    figure = tasks.Computed(**given)
    assert (figure.of_float({}), figure.of({"choices": {"a": 1, "b": 2}})) == (0.0, 0.5)
    again = tasks.Computed(**given, words=tasks.quantities.percent)
    assert again.of({"choices": {"b": 2, "a": 1}}) == 0.5
    assert run == [{}, {"a": 1, "b": 2}]
    assert figure.text(-0.5) == "\u22120.50"
    assert again.text(0.5).replace("\u2009", " ") == "50 %"


def test_a_part_of_the_evaluation_data_is_spread_evenly(tmp_path):
    models = load("quality_models")
    path = tmp_path / "e.safetensors"
    save_file({"x": np.arange(10, dtype=np.float32)[:, None], "labels": np.arange(10)}, path)
    part, taken = models.evaluation_part(path, 4)
    assert list(taken) == [0, 2, 5, 7]
    found = load_file(part)
    assert list(found["labels"]) == list(found["x"][:, 0]) == [0, 2, 5, 7]
    assert list(models.evaluation_part(path, 99)[1]) == list(range(10))


def test_a_case_tells_how_many_evaluation_samples_it_has(tmp_path, monkeypatch):
    """Which may be fewer than were asked for."""
    models = load("quality_models")
    path = tmp_path / "evaluation.safetensors"
    save_file({"x": np.arange(10.0, dtype=np.float32)[:, None]}, path)
    assets = SimpleNamespace(model=path, calibration=path, evaluation=path)
    monkeypatch.setattr(models.importlib, "import_module", lambda _: SimpleNamespace(build=lambda _: assets))
    for asked, evaluated in ((4, 4), (99, 10)):
        prepared = models.prepare(models.CASES[1], tmp_path, asked)
        assert prepared.evaluated == evaluated == len(load_file(prepared.files.evaluation)["x"])


def test_every_metric_of_the_service_is_compared():
    from app.jobs.rules import METRICS
    from workers.contracts import Metric

    models = load("quality_models")
    measured = {"exact", "racing"}
    assert set(models.METRICS) - measured == set(METRICS) - {m.value for m in Metric}
    assert [case.name for case in models.CASES] == ["efficientnet-lite0", "minilm", "esrgan", "smollm2"]
    assert all(set(case.metrics) <= set(models.METRICS) for case in models.CASES)
    # Four-bit codes in groups of 32 are what SmolLM2's weights are made of.
    assert not any(s.startswith("group:32") for c in models.CASES if c.name == "smollm2" for s in c.schemes)


def outcome_of(model, **members):
    about = {"title": model.upper(), "compare": "kl", "task_title": AGREEMENT.title}
    return results.Outcome(model=model, **about, **{"samples": 8, "evaluation_samples": 4} | members)


def test_results_of_several_runs_are_put_together(table, document, tmp_path):
    """What is measured again takes the place of what was there; other metrics, schemes and models stay."""
    path = tmp_path / "results.json"
    assert results.read(path) == results.read(None) == []
    first = outcome_of("m", notes=["out of time"], seconds={"channel-asymmetric auto": 5.0})
    first.rows = [
        table.uniform(4.0),
        *table.searched("auto", document),
        *table.searched("fisher", document),
        replace(table.uniform(4.0), scheme="other"),
    ]
    first.uniform = {"channel-asymmetric": [(2.0, 5.0, 0.5), (8.0, 1.0, None)]}
    first.random = {"channel-asymmetric": {"2.5": [3.0, 1.0]}}
    elsewhere = outcome_of("n")
    results.write(path, [first, elsewhere])
    assert results.read(path) == [first, elsewhere]

    second = outcome_of("m", seconds={"channel-asymmetric auto": 6.0})
    second.rows = [replace(row, cost=0.125) for row in table.searched("auto", document)]
    second.random = {"channel-asymmetric": {"4": [2.0]}}
    both, other = results.together([second], results.read(path))
    assert other == elsewhere
    assert [(r.scheme, r.plan, r.budget) for r in both.rows] == [
        ("channel-asymmetric", "uniform", 4.0),
        ("channel-asymmetric", "fisher", 2.5),
        ("channel-asymmetric", "fisher", 4.0),
        ("channel-asymmetric", "auto", 2.5),
        ("channel-asymmetric", "auto", 4.0),
        ("other", "uniform", 4.0),
    ]
    assert {r.cost for r in both.rows if r.plan == "auto"} == {0.125}
    assert both.uniform == first.uniform
    assert both.random == {"channel-asymmetric": {"2.5": [3.0, 1.0], "4": [2.0]}}
    assert (both.seconds, both.notes) == ({"channel-asymmetric auto": 6.0}, [])
    assert results.together([], [first, elsewhere]) == [first, elsewhere]


@pytest.mark.parametrize("member", ["samples", "evaluation_samples", "task_title"])
def test_results_on_other_data_do_not_stand_in_one_table(table, member):
    earlier = outcome_of("m", rows=[table.uniform(4.0)])
    new = replace(outcome_of("m"), **{member: 5})
    assert results.together([new], [earlier]) == [new]


def test_a_figure_has_a_line_for_each_metric_and_bands_beside(table, document):
    plots = load("quality_plots")
    outcome = outcome_of("m")
    outcome.rows = [
        table.uniform(4.0),
        *table.searched("auto", document),
        *table.searched("fisher", document),
    ]
    outcome.random = {"channel-asymmetric": {"2.5": [3.0, 1.0, 2.0]}}
    outcome.uniform = {"channel-asymmetric": [(2.0, 5.0, 0.5), (8.0, 1.0, None)]}
    drawn = {trace.name: trace for trace in plots.figure(outcome).data}
    assert {"auto", "fisher", "random plans", "uniform"} <= set(drawn)
    assert (list(drawn["auto"].x), list(drawn["auto"].y)) == ([2.5, 4.0], [1.25, 0.6])
    # At 4 bits another plan was handed over.
    assert (list(drawn["auto, handed over"].x), list(drawn["auto, handed over"].y)) == ([4.0], [0.5])
    assert (list(drawn["random plans"].y), list(drawn["uniform"].x)) == ([2.0], [2.0])
    bands = [list(trace.y) for trace in plots.figure(outcome).data if trace.fill == "toself"]
    assert sorted(bands) == [[3.0, 1.0], [5.5, 4.5]], (
        "largest and least of random plans; uniform and its error"
    )
    assert set(plots.STYLES) == set(load("quality_models").METRICS)


def test_figures_are_drawn_of_models_that_something_is_known_of(table, document, tmp_path):
    plots = load("quality_plots")
    if not any(map(shutil.which, plots.BROWSERS)):
        pytest.skip("there is no Chromium on this machine")
    known, unknown = (outcome_of(name) for name in ("known", "unknown"))
    known.rows = [table.uniform(4.0), *table.searched("auto", document)]
    unknown.rows = [table.uniform(4.0)]
    assert plots.draw([known, unknown], tmp_path) == [tmp_path / "plan-quality-known.png"]
    assert (tmp_path / "plan-quality-known.png").read_bytes().startswith(b"\x89PNG")
