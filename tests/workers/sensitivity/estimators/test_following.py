"""Followed changes against models taken apart by hand: what lies up to the next weights run as it is, the rest by `torch.func`."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from workers.contracts import Metric
from workers.graph.dataflow import Dataflow
from workers.sensitivity.estimators.changes import round_to_nearest
from workers.sensitivity.estimators.cotangents import random_signs
from workers.sensitivity.estimators.following import Following
from workers.sensitivity.estimators.probe import ProbeOptions, probe
from workers.sensitivity.estimators.reaches import Reaches
from workers.sensitivity.estimators.uses import Uses
from workers.sensitivity.exact import exact_costs
from workers.sensitivity.prefixes import Prefixes


def sibling(name):
    spec = importlib.util.spec_from_file_location(f"estimators_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models = sibling("models")


class Block(nn.Module):
    """A layer of a language model: rotated queries and keys, attention, a gate, a stream that all add to."""

    def __init__(self):
        super().__init__()
        self.enter, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)
        self.register_buffer("angles", torch.linspace(0, 1.5, 4, dtype=torch.double)[:, None])

    def rotated(self, x):
        left, right = x.chunk(2, -1)
        turned = torch.cat([-right, left], -1)
        return x * torch.cos(self.angles) + turned * torch.sin(self.angles)

    def mixed(self, y):
        q, k, v = self.rotated(self.q(y)), self.rotated(self.k(y)), self.v(y)
        return functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[
            :, 0
        ]

    def gated(self, x):
        y = self.norm(x)
        return functional.silu(self.gate(y)) * self.up(y)

    def after_mixed(self, x, mixed):
        x = x + self.out(mixed)
        return self.after_gated(x, self.gated(x))

    def after_gated(self, x, gated):
        return self.head(x + self.down(gated))

    def after_enter(self, x, y):
        return self.after_mixed(x, self.mixed(y))

    def forward(self, x):
        x = self.enter(x)
        return self.after_enter(x, self.norm(x))


class Clipped(nn.Module):
    """Convolutions with a norm and a clipped activation between them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, groups=4)
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.5, 0.5)
            self.norm.running_var.uniform_(0.5, 2)

    def between(self, x):
        return functional.relu6(3 * self.norm(self.first(x)))

    def after(self, between):
        return self.head(self.second(between).mean((2, 3)))

    def forward(self, x):
        return self.after(self.between(x))


class Saturated(nn.Module):
    """Weights whose change has passed a function when it is the output."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return 4 * torch.tanh(self.head(torch.tanh(self.inner(x))))


def build(kind, *shape):
    torch.manual_seed(0)
    return kind().double().eval(), (torch.randn(5, *shape, dtype=torch.double),)


def reaches_of(case):
    flow = Dataflow.of(case.setup.program.model)
    uses = Uses.of(flow, case.units)
    found = Reaches.find(case.setup.program, flow, uses.active, uses.at)
    names = {use.unit: node for node, of_step in uses.at.items() for use in of_step}
    return {case.units[number].info.name: found.of.get(node) for number, node in names.items()}


def under(module, case, name, candidate):
    """Parameters with one of them as a candidate stores it."""
    unit = case.setup.table.unit(name)
    weight = case.setup.program.constant(unit.node)
    return dict(module.named_parameters()) | {name: round_to_nearest(unit, weight, candidate)}


def call(module, method, parameters, *arguments):
    return torch.func.functional_call(
        Calling(module, method), {f"module.{k}": v for k, v in parameters.items()}, arguments
    )


class Calling(nn.Module):
    """Another method of a module as its ``forward``."""

    def __init__(self, module, method):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *arguments):
        return getattr(self.module, self.method)(*arguments)


def start(logits, sample, number=0, seed=0):
    """``R s`` of a sample ``[1, positions, classes]``."""
    p = torch.softmax(logits, -1)
    signs = random_signs(seed, number, [sample], logits.numel())[0].double().reshape(logits.shape)
    root = p.sqrt() * signs
    return (root - p * (p.sqrt() * signs).sum(-1, keepdim=True)) / (2 * logits[0, ..., 0].numel()) ** 0.5


def value_of(sample, far, before, after):
    """``<R s, J (after - before)>`` for a sample's values in between, and what follows them."""
    logits, back = torch.func.vjp(far, *before)
    gradients = back(start(logits.detach(), sample))
    return sum(
        float((g.detach() * (new - old)).sum()) for g, new, old in zip(gradients, after, before, strict=True)
    )


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


@pytest.mark.parametrize("fixed", [None, 2])
def test_convolutions_are_followed_through_norms_and_clipping(make_setup, fixed):
    module, inputs = build(Clipped, 2, 7, 7)
    case = make_setup(module, inputs, fixed=fixed)
    (values,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    for row, (name, candidate) in enumerate(case.wanted):
        if name != "first.weight" or candidate.bits > 3:
            continue
        changed = under(module, case, name, candidate)
        for sample in range(5):
            x = inputs[0][sample : sample + 1]
            before, after = module.between(x).detach(), call(module, "between", changed, x).detach()
            expected = value_of(sample, module.after, (before,), (after,))
            assert float(values.weights[row, sample]) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("metric", [Metric.KL, Metric.MSE])
@pytest.mark.parametrize("kind", ["tokens", "saturated", "convolutions"])
def test_last_weights_cost_what_they_cost(make_setup, kind, metric):
    """Each probe tells the exact cost, whatever its signs; so does its scatter."""
    module, inputs = build(Saturated, 4) if kind == "saturated" else models.build(kind)
    case = make_setup(module, inputs, metric=metric)
    last = [unit.info.name for unit in case.units][-1]
    wanted = [entry for entry in case.wanted if entry[0] == last]
    prefixes = Prefixes(case.setup.program, case.setup.batches, memory_bytes=1 << 24)
    exact = torch.stack([found.costs for found in exact_costs(case.setup, wanted, prefixes)]).mean(1)
    for values in probe(case.setup, wanted, ProbeOptions(probes=3, together=2)):
        torch.testing.assert_close(values.weights.square().mean(1), exact, rtol=1e-9, atol=1e-15)


def test_of_tied_weights_the_outputs_part_is_exact(make_setup):
    """The head's own cost takes the place of its estimate; what the embedding adds stays one."""
    module, inputs = models.build("tied")
    case = make_setup(module, inputs)
    name = "embed.weight"
    wanted = [entry for entry in case.wanted if entry[0] == name]
    assert wanted
    (linear,) = probe(case.setup, wanted, ProbeOptions(probes=1, follow_bits=0))
    options = ProbeOptions(probes=1)
    (values,) = probe(case.setup, wanted, options)
    words = inputs[0]
    for row, (_, candidate) in enumerate(wanted):
        if candidate.bits <= 3:
            continue  # its other use is followed too
        table = under(module, case, name, candidate)[name].detach()
        total, seen = 0.0, 0.0
        for sample in range(5):
            with torch.no_grad():
                x = module.embed(words[sample : sample + 1])
                h = x + torch.tanh(module.inner(x))
                logits, after = h @ module.head.weight.T, h @ table.T
                costs = functional.kl_div(
                    after.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="none"
                )
                by_head = float((start(logits, sample) * (after - logits)).sum())
            total += float(costs.sum(-1).mean()) - by_head**2
            seen += float(linear.weights[row, sample]) ** 2
        expected = linear.weights[row] * (1 + total / seen) ** 0.5
        torch.testing.assert_close(values.weights[row], expected, rtol=1e-8, atol=1e-14)


def test_positions_that_do_not_count_have_no_cost(make_setup):
    case = make_setup(*models.build("tokens"))
    counted = torch.ones(5, 7)
    counted[0, 3:] = 0
    counted[2] = 0
    masks = ProbeOptions(probes=1, position_masks=lambda batch: counted[3 * batch : 3 * batch + 3])
    last = [entry for entry in case.wanted if entry[0] == case.wanted[-1][0]]
    (values,) = probe(case.setup, last, masks)
    for row, (name, candidate) in enumerate(last):
        with torch.no_grad():
            logits = case.module(case.inputs[0])
            after = torch.func.functional_call(
                case.module, under(case.module, case, name, candidate), case.inputs
            )
            costs = functional.kl_div(
                after.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="none"
            ).sum(-1)
        expected = (costs * counted).sum(1) / counted.sum(1).clamp_min(1)
        assert float(values.weights[row].square().sum()) == pytest.approx(float(expected.sum()), rel=1e-9)


def test_where_following_ends(make_setup):
    case = make_setup(*build(Block, 4, 6))
    found = reaches_of(case)
    assert {name for name, reach in found.items() if reach is not None} == {
        *("enter.weight", "q.weight", "k.weight", "gate.weight", "head.weight"),
    }
    assert found["head.weight"].whole
    assert not found["head.weight"].steps
    assert sorted(str(end.target) for end, _ in found["enter.weight"].ends) == [
        "aten.add.Tensor",
        *("aten.linear.default",) * 3,
    ]
    assert [str(end.target) for end, _ in found["q.weight"].ends] == ["aten.linear.default"]
    assert [str(step.node.target) for step in found["gate.weight"].steps] == [
        "aten.silu.default",
        "aten.mul.Tensor",
    ]


def test_attention_written_out_is_followed_through_its_softmax(make_setup):
    """Scores are products of values, not of weights."""
    found = reaches_of(make_setup(*models.build("sequence-first")))
    steps = [str(step.node.target) for step in found["fused.weight"].steps]
    assert any("softmax" in name for name in steps)
    assert [str(end.target) for end, _ in found["fused.weight"].ends] == ["aten.linear.default"]


class Frozen(nn.Module):
    """A product with a buffer, which is no unit, lies between."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("fixed", torch.randn(6, 6, dtype=torch.double))

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)) @ self.fixed)


def test_following_ends_in_front_of_weights_that_are_no_unit(make_setup):
    found = reaches_of(make_setup(*build(Frozen, 4)))
    assert [str(step.node.target) for step in found["inner.weight"].steps] == ["aten.tanh.default"]
    assert [str(end.target) for end, _ in found["inner.weight"].ends] == ["aten.matmul.default"]


class Shifted(nn.Module):
    """What the model is fed is added to what a unit makes of it; no other unit has made it."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(x + self.inner(x)))


def test_a_sum_with_an_input_is_followed(make_setup):
    found = reaches_of(make_setup(*build(Shifted, 4)))
    steps = [str(step.node.target) for step in found["inner.weight"].steps]
    assert steps == ["aten.add.Tensor", "aten.tanh.default"]


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
