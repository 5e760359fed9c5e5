"""What is fed at once: as much as fits."""

from dataclasses import replace

import pytest
import torch

from tests.workers.sensitivity.estimators import models
from workers.graph.program import Program
from workers.intake.dataset import PositionMask
from workers.sensitivity.estimators import feeds
from workers.sensitivity.estimators.probe import ProbeOptions, probe
from workers.sensitivity.estimators.run import _masks
from workers.sensitivity.estimators.tape import Tape


def test_samples_that_need_much_memory_are_fed_in_parts(make_setup, monkeypatch):
    case = make_setup(*models.build("convolutions"), batch_size=5)
    (expected,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    fed = []
    before = Tape.__init__

    def record(self, plan, inputs):
        before(self, plan, inputs)
        fed.append((len(inputs[0]), self.computed_bytes))

    monkeypatch.setattr(Tape, "__init__", record)
    feeds._KNOWN.clear()
    monkeypatch.setattr("workers.sensitivity.estimators.feeds._MOST_BYTES", 0)
    (one_by_one,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    (layouts, *walks) = fed
    assert [samples for samples, _ in walks] == [1, 1, 1, 1, 1]
    fed.clear()
    feeds._KNOWN.clear()
    monkeypatch.setattr("workers.sensitivity.estimators.feeds._MOST_BYTES", 2 * layouts[1])
    (in_parts,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    assert [samples for samples, _ in fed[1:]] == [3, 2], "four have room, and parts are alike"
    for found in (one_by_one, in_parts):
        torch.testing.assert_close(found.weights, expected.weights, rtol=1e-9, atol=1e-14)


def test_where_samples_lie_is_found_once_for_a_program(make_setup, monkeypatch):
    """A worker probes part by part; another model, others of its units, and other shapes are looked at anew."""
    looked = []
    find = feeds.find_layouts
    monkeypatch.setattr(feeds, "find_layouts", lambda *given: looked.append(given) or find(*given))
    case, other = (make_setup(*models.build("convolutions"), batch_size=2) for _ in range(2))
    (first,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    (again,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    assert torch.equal(first.weights, again.weights)
    assert len(looked) == 1
    list(probe(case.setup, case.wanted[-1:], ProbeOptions(probes=1)))
    assert len(looked) == 2
    list(probe(other.setup, other.wanted, ProbeOptions(probes=1)))
    assert len(looked) == 3
    fixed = make_setup(*models.build("convolutions"), batch_size=3, fixed=3)
    list(probe(fixed.setup, fixed.wanted, ProbeOptions(probes=1)))
    assert len(looked) == 4


def of_shorter_samples(plan, batches):
    shorter = tuple(tensor[:, :, 1:] for tensor in batches.inputs)
    return plan, replace(batches, inputs=shorter)


@pytest.mark.parametrize(
    "other",
    [
        lambda plan, batches: (replace(plan, wanted=list(plan.wanted)[1:]), batches),
        lambda plan, batches: (replace(plan, kept={}), batches),
        lambda plan, batches: (replace(plan, through=not plan.through), batches),
        lambda plan, batches: (replace(plan, quantizers={next(iter(plan.wanted)): {}}), batches),
        lambda plan, batches: (plan, replace(batches, size=2, fixed=True)),
        of_shorter_samples,
    ],
    ids=["wanted", "kept", "through", "quantizers", "fixed", "shapes"],
)
def test_other_walks_over_the_same_program_are_looked_at_anew(make_setup, monkeypatch, other):
    looked = []
    monkeypatch.setattr(feeds, "find_layouts", lambda *given: looked.append(given) or feeds.Layouts(None))
    case = make_setup(*models.build("convolutions"), batch_size=2)
    list(probe(case.setup, case.wanted, ProbeOptions(probes=1)))
    ((plan, start, batches),) = looked
    assert plan.kept, "changes are followed"
    feeds.layouts_of(plan, start, batches)
    assert len(looked) == 1
    plan, batches = other(plan, batches)
    feeds.layouts_of(plan, start, batches)
    assert len(looked) == 2


class Viewed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = torch.nn.Linear(4, 6), torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x).view(-1, 2, 3).transpose(0, 1)).transpose(0, 1))


def test_what_a_walk_computes_is_counted_without_views(make_setup, monkeypatch):
    torch.manual_seed(0)
    case = make_setup(Viewed().double(), (torch.randn(4, 4, dtype=torch.double),), batch_size=4)
    computed = []
    before = Tape.backward

    def record(self, *arguments):
        computed.append(self.computed_bytes)
        before(self, *arguments)

    monkeypatch.setattr(Tape, "backward", record)
    list(probe(case.setup, case.wanted, ProbeOptions(probes=1)))
    assert computed[-1] == 4 * (6 + 6 + 6) * 8, "two products and a function"


def test_the_mask_of_a_batch_that_is_fed_in_parts_is_made_once(make_setup, monkeypatch):
    """Where the float model's outputs were not kept it takes a forward pass."""
    case = make_setup(*models.build("tied"), batch_size=5)
    masked = replace(
        case.setup.batches, mask=PositionMask(values=torch.ones(5, 4, dtype=torch.bool), required=True)
    )
    setup = replace(
        case.setup, batches=masked, reference=replace(case.setup.reference, batches=masked, outputs=(None,))
    )
    runs, run = [], Program.run

    def count(self, inputs, *arguments):
        runs.append(len(inputs[0]))
        return run(self, inputs, *arguments)

    monkeypatch.setattr(Program, "run", count)
    monkeypatch.setattr("workers.sensitivity.estimators.feeds._MOST_BYTES", 0)
    list(probe(setup, case.wanted, ProbeOptions(probes=1, position_masks=_masks(setup))))
    assert runs == [5]
