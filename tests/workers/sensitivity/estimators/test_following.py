"""Followed changes against models taken apart by hand: what lies up to the next weights run as it is, the rest by `torch.func`."""

import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.workers.sensitivity.estimators import models
from tests.workers.sensitivity.estimators.layers import Block, Clipped, build, call, under, value_of
from workers.graph.residency import tensors_in
from workers.sensitivity.estimators.contraction import InnerProducts
from workers.sensitivity.estimators.following import Following
from workers.sensitivity.estimators.precision import Precision
from workers.sensitivity.estimators.probe import ProbeOptions, probe
from workers.sensitivity.estimators.summary import summarize


@pytest.mark.parametrize("batch_size", [1, 3])
def test_queries_keys_and_gates_are_followed_to_the_next_weights(make_setup, batch_size):
    module, inputs = build(Block, 4, 6)
    case = make_setup(module, inputs, batch_size=batch_size)
    (values,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    (linear,) = probe(case.setup, case.wanted, ProbeOptions(probes=1, follow_bits=0))
    expected = linear.weights.clone()
    for row, (name, candidate) in enumerate(case.wanted):
        if name not in ("enter.weight", "q.weight", "k.weight", "gate.weight") or candidate.bits > 3:
            continue
        changed = under(module, case, name, candidate)
        for sample in range(5):
            with torch.no_grad():
                x = module.enter(inputs[0][sample : sample + 1])
                y = module.norm(x)
                stream = x + module.out(module.mixed(y))
                if name == "enter.weight":
                    new = functional.linear(inputs[0][sample : sample + 1], changed[name], module.enter.bias)
                    before, after, far = (x, y), (new, module.norm(new)), module.after_enter
                elif name == "gate.weight":
                    before, after = (module.gated(stream),), (call(module, "gated", changed, stream),)
                    far = partial(module.after_gated, stream)
                else:
                    before, after = (module.mixed(y),), (call(module, "mixed", changed, y),)
                    far = partial(module.after_mixed, x)
            expected[row, sample] = value_of(sample, far, before, after)
    inner = [row for row, (name, _) in enumerate(case.wanted) if name != "head.weight"]
    torch.testing.assert_close(values.weights[inner], expected[inner], rtol=1e-8, atol=1e-12)
    changed_rows = (values.weights - linear.weights).abs().amax(1) > 1e-6
    followed = {case.wanted[row][0] for row in torch.nonzero(changed_rows).flatten().tolist()}
    assert followed == {"enter.weight", "q.weight", "k.weight", "gate.weight", "head.weight"}


def expect_followed(case, values, name, after):
    """The rows of a unit's candidates of few bits, given what comes after its module's ``between``."""
    module = case.module
    rows = [row for row, entry in enumerate(case.wanted) if entry[0] == name and entry[1].bits <= 3]
    assert rows
    for row in rows:
        changed = under(module, case, *case.wanted[row])
        for sample in range(5):
            x = case.inputs[0][sample : sample + 1]
            before, moved = module.between(x).detach(), call(module, "between", changed, x).detach()
            expected = value_of(sample, after, (before,), (moved,))
            assert float(values.weights[row, sample]) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("fixed", [None, 2])
def test_convolutions_are_followed_through_norms_and_clipping(make_setup, fixed):
    module, inputs = build(Clipped, 2, 7, 7)
    case = make_setup(module, inputs, fixed=fixed)
    (values,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    expect_followed(case, values, "first.weight", module.after)


class Shared(nn.Module):
    """A number for the whole batch that others add to."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        y = self.first(x)
        largest = y.max()
        return self.head(self.second(torch.exp(y - largest)) + largest)


def test_what_samples_share_is_left_to_the_linear_form(make_setup):
    case = make_setup(*build(Shared, 4), fixed=1)
    (values,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    assert bool(values.weights.isfinite().all())


class Chosen(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def between(self, x):
        z = self.first(x)
        return torch.where(z > 0, z, 0.1 * z)

    def forward(self, x):
        return self.head(self.between(x))


def test_choices_are_made_again(make_setup):
    """Nothing comes back to the step that compares."""
    module, inputs = build(Chosen, 4)
    case = make_setup(module, inputs)
    (values,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    expect_followed(case, values, "first.weight", module.head)


class Logarithm(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        with torch.no_grad():
            self.inner.weight.copy_(torch.full((4, 4), 0.02) + torch.eye(4))

    def forward(self, x):
        return self.head(torch.log(self.inner(x.abs() + 0.01)))


def test_where_a_function_is_not_defined_any_more_the_linear_form_is_taken(make_setup):
    module, inputs = build(Logarithm, 4)
    case = make_setup(module, inputs)

    def negative(_unit, weight, candidate):
        return weight * (-1.0 if candidate.bits == 2 else 1.01)

    wanted = [entry for entry in case.wanted if entry[0] == "inner.weight"]
    (values,) = probe(case.setup, wanted, ProbeOptions(probes=1, quantize=negative))
    (linear,) = probe(case.setup, wanted, ProbeOptions(probes=1, quantize=negative, follow_bits=0))
    torch.testing.assert_close(values.weights[0], linear.weights[0], rtol=1e-9, atol=0.0)
    assert not torch.allclose(values.weights[1], linear.weights[1], rtol=1e-6)


class Twofold(nn.Module):
    """What one step reads at the end of a reach, another inside it reads later."""

    def __init__(self):
        super().__init__()
        self.inner, self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        y = torch.tanh(self.inner(x))
        return self.head(self.first(y) * self.second(torch.exp(y)))


SMALL = {
    **models.CASES,
    "block": (Block, (4, 6)),
    "clipped": (Clipped, (2, 7, 7)),
    "twofold": (Twofold, (4,)),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_changes_are_followed_to_what_is_linear(make_setup, monkeypatch, name):
    """Every path once, whatever the model."""
    monkeypatch.setattr("workers.sensitivity.estimators.totals.Totals.know", lambda *_: None)
    monkeypatch.setattr("workers.sensitivity.estimators.totals.Totals.know_part", lambda *_: None)
    made = models.build(name) if name in models.CASES else build(SMALL[name][0], *SMALL[name][1])
    case = make_setup(*made)

    def nearly(_unit, weight, candidate):
        draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(candidate.bits))
        return weight + 1e-6 * draw.to(weight)

    options = ProbeOptions(probes=2, quantize=nearly)
    found = [values.weights for values in probe(case.setup, case.wanted, options)]
    linear = probe(case.setup, case.wanted, replace(options, follow_bits=0))
    for values, expected in zip(found, [each.weights for each in linear], strict=True):
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_what_a_change_does_depends_on_the_model_alone(make_setup):
    """Not on which other units are asked for."""
    case = make_setup(*build(Block, 4, 6))
    (together,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    for name in {name for name, _ in case.wanted}:
        rows = [row for row, entry in enumerate(case.wanted) if entry[0] == name]
        (alone,) = probe(case.setup, [case.wanted[row] for row in rows], ProbeOptions(probes=1))
        torch.testing.assert_close(alone.weights, together.weights[rows], rtol=1e-9, atol=1e-14)


def test_products_in_bfloat16_are_followed_too(make_setup):
    module, inputs = build(Block, 4, 6)
    module, inputs = module.float(), (inputs[0].float().repeat(8, 1, 1),)
    case = make_setup(module, inputs, batch_size=40)
    plain = summarize(probe(case.setup, case.wanted)).weights.mean
    half = summarize(probe(case.setup, case.wanted, ProbeOptions(dtype=torch.bfloat16))).weights.mean
    few = torch.tensor([candidate.bits <= 3 for _, candidate in case.wanted])
    assert float((half / plain - 1).abs()[few].max()) < 0.1


def test_masks_go_with_the_parts_of_a_batch(make_setup, monkeypatch):
    case = make_setup(*models.build("tied"), batch_size=5)
    counted = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]])
    options = ProbeOptions(probes=1, position_masks=lambda _: counted)
    (whole,) = probe(case.setup, case.wanted, options)
    monkeypatch.setattr("workers.sensitivity.estimators.feeds._MOST_BYTES", 0)
    (parts,) = probe(case.setup, case.wanted, options)
    torch.testing.assert_close(parts.weights, whole.weights, rtol=1e-9, atol=1e-14)
    assert parts.counted.tolist() == whole.counted.tolist()


def test_what_is_not_needed_is_not_held(make_setup, monkeypatch):
    """Of what comes back: what comes back to ends; of what has changed: what a later step reads."""
    case = make_setup(*build(Block, 4, 6), batch_size=5)
    leave, call_step, multiply = Following.leave, Precision.call, InnerProducts.with_output
    made, alive = [], []

    def look(self, node):
        for end, back in self._back.items():
            held = {source for sources in back for source, _ in sources}
            assert held <= self.reaches.ends.get(end, set())
        made.clear()
        leave(self, node)

    def record(self, step, value):
        result = call_step(self, step, value)
        made.extend(weakref.ref(tensor) for tensor in tensors_in(result))
        return result

    def count(self, output):
        alive.append(sum(each() is not None for each in made))
        made.clear()
        return multiply(self, output)

    monkeypatch.setattr(Following, "leave", look)
    monkeypatch.setattr(Precision, "call", record)
    monkeypatch.setattr(InnerProducts, "with_output", count)
    rows = [entry for entry in case.wanted if entry[0] == "q.weight" and entry[1].bits <= 3]
    list(probe(case.setup, rows, ProbeOptions(probes=1)))
    assert len(alive) == 2
    assert alive[1] <= 4, "of 15 steps what is at the end, with what it is a view of"


def test_what_the_walk_has_left_behind_is_dropped(make_setup, monkeypatch):
    case = make_setup(*build(Block, 4, 6), batch_size=5)
    made = []
    before = Following.__init__

    def keep(self, *args, **kwargs):
        before(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Following, "__init__", keep)
    list(probe(case.setup, case.wanted, ProbeOptions(probes=2)))
    (following,) = made
    assert (following._values, following._back, following.starts) == ({}, {}, [])
