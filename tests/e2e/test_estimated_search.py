"""Searches that estimate first and measure what is open: held against measuring everything, and against hand-made sums."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file

from app.cli.main import run
from app.client import JobUpdate
from app.db import get_database
from app.local import Files, search
from app.models import JobEntry, Measurement, ProbeResult
from app.settings import Settings

_spec = importlib.util.spec_from_file_location("bitwright_stack", Path(__file__).with_name("stack.py"))
stack_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = stack_module
_spec.loader.exec_module(stack_module)

BITS = (2, 3, 4, 6, 8)
REGRET = 0.01


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, groups=8)
        self.mix = torch.nn.Conv2d(8, 16, 1)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, image):
        hidden = torch.relu(self.mix(torch.relu(self.depthwise(torch.relu(self.conv(image))))))
        return self.head(hidden.mean((2, 3)))


MACS = {"conv.weight": 216 * 100, "depthwise.weight": 72 * 64, "mix.weight": 128 * 64, "head.weight": 80}
WEIGHTS = {"conv.weight": 216, "depthwise.weight": 72, "mix.weight": 128, "head.weight": 80}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimated")
    torch.manual_seed(11)
    model = Small().eval()
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (torch.randn(2, 3, 10, 10),), dynamic_shapes={"image": {0: batch}})
    torch.export.save(exported, folder / "small.pt2")
    save_file({"image": torch.randn(24, 3, 10, 10)}, folder / "calibration.safetensors")
    return Files(model=folder / "small.pt2", calibration=folder / "calibration.safetensors")


@pytest.fixture(scope="module")
def service(files, tmp_path_factory):
    """The service, asked over HTTP: `service(**request)` is the finished job's document."""
    stack = stack_module.Stack(tmp_path_factory.mktemp("service") / "data")
    stack.start()
    stack.upload(files.model, files.calibration)

    def ask(**values):
        job_id = stack.submit(**request(**values))
        stack.await_done(job_id)
        return httpx.get(f"{stack.url}/v1/jobs/{job_id}/result").json()

    ask.stack = stack
    yield ask
    stack.stop()


@pytest.fixture(scope="module")
def exact(service):
    """Everything measured."""
    return service(metric="kl")


def request(**values):
    return {"budgets": ["4 bits"], "candidates": list(BITS), **values}


def costs_of(document):
    return {
        (r["unit"], r["bits"], r["scheme"], r["activation_bits"]): r["mean"]
        for r in document["sensitivities"]
    }


def searched(plan):
    """What the search by added costs found, whatever was handed over."""
    return plan["objective"] if plan["origin"] == "search" else plan["solver"]["search"]["objective"]


def best_of(costs, limit, fits=lambda plan: True):
    """Least cost of all plans within a size, by trying all of them; a plan is unit -> (bits, scheme, activation bits)."""
    offers = [[key[1:] for key in costs if key[0] == unit] for unit in WEIGHTS]
    plans = (dict(zip(WEIGHTS, choice, strict=True)) for choice in itertools.product(*offers))
    return min(
        sum(costs[unit, *choice] for unit, choice in plan.items())
        for plan in plans
        if sum(WEIGHTS[u] * choice[0] for u, choice in plan.items()) <= limit and fits(plan)
    )


def rows(database, table):
    with database.read() as session:
        return {row.key: row.created_at for row in session.query(table)}


def search_arguments(files, data_dir):
    """The same search on the command line."""
    words = [
        "search",
        files.model,
        "--calibration",
        files.calibration,
        "--budget",
        "4 bits",
        "--workers",
        "1",
    ]
    words += [
        "--candidates",
        ",".join(map(str, BITS)),
        "--metric",
        "auto",
        "--data-dir",
        data_dir,
        "--json",
        "-",
    ]
    return [*map(str, words)]


def test_an_estimated_search_is_as_good_as_one_that_measures_all(files, exact, tmp_path, capsys):
    settings = Settings(data_dir=tmp_path / "data", workers=1)
    database = get_database(settings.resolved_database_url)
    true = costs_of(exact)

    def interrupt(update: JobUpdate) -> None:
        if rows(database, ProbeResult):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(files, request(metric="auto"), settings, interrupt)
    before = rows(database, ProbeResult)
    assert before

    assert run(search_arguments(files, settings.data_dir)) == 0
    document = json.loads(capsys.readouterr().out)
    then = rows(database, ProbeResult)
    assert {key: then[key] for key in before} == before, "what was estimated is not estimated again"
    with database.read() as session:
        samples = [result.samples for result in session.query(ProbeResult)]
    assert set(samples) == {6}, "four parts of the samples, around plans too"
    assert len(samples) % 4 == 0

    found = costs_of(document)
    assert list(found) == list(true)
    sources = [row["source"] for row in document["sensitivities"]]
    assert set(sources) <= {"estimated", "measured"}
    with database.read() as session:
        # The search that was interrupted may have come as far as asking for entries, too.
        blocks = session.query(JobEntry).where(JobEntry.job_id == document["job"]).all()
    assert blocks, "nothing was open: the test tells nothing"
    assert len(blocks) == len({(b.unit, b.bits, b.block_start) for b in blocks}), (
        "an entry was asked for twice on a block"
    )
    assert sources.count("measured") == len({(b.unit, b.bits) for b in blocks})
    assert len(rows(database, Measurement)) == len(blocks) < 4 * len(found)

    best = best_of(true, 4 * sum(WEIGHTS.values()))
    chosen = document["choices"] if document["origin"] == "search" else None
    if chosen is not None:
        assert sum(true[u, c["bits"], c["scheme"], None] for u, c in chosen.items()) <= best * (
            1 + 3 * REGRET
        )
    assert searched(document) == pytest.approx(best_of(found, 4 * sum(WEIGHTS.values())), rel=1e-9)
    measured = {
        name: plan["measured"]["kl"]["calibration"] for name, plan in (("auto", document), ("kl", exact))
    }
    assert measured["auto"] <= measured["kl"] * 1.1


def test_activations_are_chosen_within_a_limit_on_bit_operations(service):
    limit = round(sum(MACS.values()) * 4 * 4.4)
    limits = {"bit_operations": str(limit)}
    document = service(metric="auto", candidates=[2, 4, 8], activation_candidates=[8, 4], limits=limits)

    def operations(plan):
        return sum(MACS[unit] * bits * activation for unit, (bits, _, activation) in plan.items())

    costs = costs_of(document)
    assert {key[3] for key in costs} == {4, 8}
    assert len(costs) == 4 * 3 * 2
    chosen = {u: (c["bits"], c["scheme"], c["activation_bits"]) for u, c in document["choices"].items()}
    assert operations(chosen) <= limit
    assert document["solver"]["limited"]["bit_operations"] == operations(chosen)
    budget = 4 * sum(WEIGHTS.values())
    best = best_of(costs, budget, lambda plan: operations(plan) <= limit)
    assert searched(document) == pytest.approx(best, rel=1e-9)
    assert best > best_of(costs, budget), "the limit does not bind: the test tells nothing"
    around = document["solver"]["refinement"]
    assert around["ended"] != "failed", around
    assert around["ended"] in {"no-gain", "small-gain", "rounds", "passes"}
    assert around["passes"] > 0, "nothing was looked at around the plan: the test tells nothing"
    for plan in (document, *document["alternatives"]):
        widths = {u: (c["bits"], c["scheme"], c["activation_bits"]) for u, c in plan["choices"].items()}
        assert operations(widths) <= limit


def test_each_unit_takes_the_scheme_that_suits_it(service, exact):
    schemes = ["channel-asymmetric", "tensor-symmetric"]
    document = service(metric="kl", candidates=[2, 4, 8], schemes=schemes)
    costs, limit = costs_of(document), 4 * sum(WEIGHTS.values())
    assert {key[2] for key in costs} == set(schemes)
    assert len(costs) == 4 * 3 * 2
    assert {k: v for k, v in costs_of(exact).items() if k in costs}.items() <= costs.items()
    best = best_of(costs, limit)
    assert searched(document) == pytest.approx(best, rel=1e-9)
    for scheme in schemes:
        assert best <= best_of({k: v for k, v in costs.items() if k[2] == scheme}, limit)
    uniform = next(plan for plan in document["baselines"] if plan["size_bits"] == 4 * sum(WEIGHTS.values()))
    cheapest = sum(min(costs[u, 4, s, None] for s in schemes) for u in WEIGHTS)
    assert sum(
        costs[u, c["bits"], c["scheme"], None] for u, c in uniform["choices"].items()
    ) == pytest.approx(cheapest)


def test_an_estimator_alone_measures_nothing_but_its_plans(service):
    before = rows(service.stack.database, Measurement)
    document = service(metric="fisher", candidates=[2, 4, 8])
    assert rows(service.stack.database, Measurement) == before
    assert {(row["source"], row["metric"]) for row in document["sensitivities"]} == {("estimated", "fisher")}
    costs = costs_of(document)
    assert all(costs[u, 2, s, None] > costs[u, 8, s, None] > 0 for u, _, s, _ in costs)
    assert searched(document) == pytest.approx(best_of(costs, 4 * sum(WEIGHTS.values())), rel=1e-9)
    assert document["origin"] in ("search", "uniform")
    assert document["measured"]["kl"]["calibration"] > 0
