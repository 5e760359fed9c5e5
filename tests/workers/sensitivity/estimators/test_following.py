"""Followed changes against models taken apart by hand: what lies up to the next weights run as it is, the rest by `torch.func`."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.workers.sensitivity.estimators import models
from workers.contracts import Metric
from workers.graph.dataflow import Dataflow
from workers.graph.outputs import pack_outputs
from workers.graph.program import Program
from workers.graph.units import find_units
from workers.mixtures import WeightedOutput
from workers.sensitivity.estimators.changes import round_to_nearest
from workers.sensitivity.estimators.cotangents import random_signs
from workers.sensitivity.estimators.following import Following
from workers.sensitivity.estimators.probe import ProbeOptions, probe
from workers.sensitivity.estimators.reaches import Reaches
from workers.sensitivity.estimators.starts import costs_of
from workers.sensitivity.estimators.summary import summarize
from workers.sensitivity.estimators.totals import Totals
from workers.sensitivity.estimators.uses import Uses
from workers.sensitivity.exact import exact_costs
from workers.sensitivity.mixture import MixedReference, Packing
from workers.sensitivity.prefixes import Prefixes


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
    found = Reaches.find(case.setup.program, flow, uses, uses.at)
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


class WithProbabilities(nn.Module):
    """Logits, and what is made of them beside: nothing that is compared."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        logits = self.head(torch.tanh(self.inner(x)))
        return logits, logits.softmax(-1)


class HiddenFirst(nn.Module):
    """What is compared is read by further weights."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        hidden = torch.tanh(self.inner(x))
        return hidden, self.head(hidden)


LAST = {
    "tokens": (models.build("tokens"), "2.weight"),
    "convolutions": (models.build("convolutions"), None),
    "saturated": (build(Saturated, 4), "head.weight"),
    "with-probabilities": (build(WithProbabilities, 4), "head.weight"),
    "hidden-first": (build(HiddenFirst, 4), "inner.weight"),
}


@pytest.mark.parametrize("metric", [Metric.KL, Metric.MSE])
@pytest.mark.parametrize("fixed", [None, 2])
@pytest.mark.parametrize("kind", LAST)
def test_last_weights_cost_what_they_cost(make_setup, kind, fixed, metric):
    """Sample by sample, whatever the signs."""
    (module, inputs), last = LAST[kind]
    case = make_setup(module, inputs, metric=metric, fixed=fixed)
    last = last or case.units[-1].info.name
    wanted = [entry for entry in case.wanted if entry[0] == last]
    prefixes = Prefixes(case.setup.program, case.setup.batches, memory_bytes=1 << 24)
    exact = torch.stack([found.costs for found in exact_costs(case.setup, wanted, prefixes)])
    assert float(exact.min()) > 0
    for probes in (1, 3):
        found = [values.weights for values in probe(case.setup, wanted, ProbeOptions(probes=probes))]
        torch.testing.assert_close(torch.stack(found).square().mean(0), exact, rtol=1e-9, atol=1e-15)


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


class Squared(nn.Module):
    """A product of a change with itself."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        y = self.inner(x)
        return self.head(y * y)


class FrozenFilter(nn.Module):
    """A convolution with a buffer between two units."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Conv1d(2, 3, 1), nn.Linear(3, 3)
        self.register_buffer("fixed", torch.randn(3, 3, 2, dtype=torch.double))

    def forward(self, x):
        y = functional.conv1d(torch.tanh(self.inner(x)), self.fixed)
        return self.head(y.mean(-1))


@pytest.mark.parametrize(
    ("kind", "shape", "steps", "end"),
    [
        (Squared, (4,), ["aten.mul.Tensor"], "aten.linear.default"),
        (FrozenFilter, (2, 6), ["aten.tanh.default"], "aten.conv1d.default"),
    ],
)
def test_what_is_not_linear_is_told_by_operands(make_setup, kind, shape, steps, end):
    found = reaches_of(make_setup(*build(kind, *shape)))["inner.weight"]
    assert [str(step.node.target) for step in found.steps] == steps
    assert [str(step.target) for step, _ in found.ends] == [end]


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        return self.first(h), self.second(h)


def test_outputs_laid_side_by_side_are_known_whole(make_setup):
    case = make_setup(*build(TwoHeads, 4))
    packed = pack_outputs(case.setup.program.model, ["0", "1"])
    program, flow, units = Program(packed), Dataflow.of(packed), find_units(packed).units
    uses = Uses.of(flow, units)
    found = Reaches.find(program, flow, uses, uses.at)
    whole = {node for node, reach in found.of.items() if reach.whole}
    assert {units[use.unit].info.name for node in whole for use in uses.at[node]} == {
        "first.weight",
        "second.weight",
    }


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
    for row, (name, candidate) in enumerate(case.wanted):
        if name != "first.weight" or candidate.bits > 3:
            continue
        for sample in range(5):
            x = inputs[0][sample : sample + 1]
            before = module.between(x).detach()
            after = call(module, "between", under(module, case, name, candidate), x).detach()
            expected = value_of(sample, module.head, (before,), (after,))
            assert float(values.weights[row, sample]) == pytest.approx(expected, rel=1e-8, abs=1e-12)


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


SMALL = {**models.CASES, "block": (Block, (4, 6)), "clipped": (Clipped, (2, 7, 7))}


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


def test_costs_of_outputs_with_and_without_positions(make_setup):
    """Alone, and as two outputs laid side by side."""
    classes, tokens = make_setup(*models.build("linear")), make_setup(*models.build("tokens"))
    draw = torch.Generator().manual_seed(3)
    outputs = [torch.randn(5, *shape, generator=draw, dtype=torch.double) for shape in ((3,), (7, 3))]
    after = [output + 0.1 for output in outputs]
    for one in after:
        one[..., 0] += 0.5
    masks = [torch.tensor([[1], [0], [1], [1], [1]]), torch.ones(5, 7)]
    masks[1][1] = 0
    masks[1][0, 2:] = 0
    expected = []
    for output, changed, mask in zip(outputs, after, masks, strict=True):
        rows = functional.kl_div(
            changed.log_softmax(-1), output.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        rows = rows.reshape(5, -1)
        expected.append((rows * mask).sum(1) / mask.sum(1).clamp_min(1))
    parts = (classes.setup.reference, tokens.setup.reference)
    for part, output, changed, mask, costs in zip(parts, outputs, after, masks, expected, strict=True):
        torch.testing.assert_close(costs_of(part, output, changed, mask), costs, rtol=1e-6, atol=1e-12)
    weighted = (
        WeightedOutput(name="0", weight=1.0, metric=Metric.KL),
        WeightedOutput(name="1", weight=0.25, metric=Metric.KL),
    )
    packing = Packing(outputs=weighted, shapes=((3,), (7, 3)))
    mixed = MixedReference(metric=Metric.KL, packing=packing, parts=parts, outputs=())
    before, changed = (torch.cat([one.reshape(5, -1) for one in pair], 1) for pair in (outputs, after))
    found = costs_of(mixed, before, changed, torch.cat(masks, 1))
    torch.testing.assert_close(found, expected[0] + 0.25 * expected[1], rtol=1e-6, atol=1e-12)


def test_an_estimate_is_not_taken_away_by_what_one_use_costs_less():
    totals = Totals(1, 2, 4)
    totals.weights += 2.0
    totals.know_part(0, torch.full((1, 4), 2.0), torch.full((4,), 3.0))  # 12 instead of 16
    totals.know_part(1, torch.full((1, 4), 3.0), torch.zeros(4))  # 36 less than 16 altogether
    (values,) = totals.each()
    assert values.weights.square().sum(1).tolist() == pytest.approx([12.0, 1.0])


def test_a_known_cost_that_no_probe_sees_is_not_lost():
    totals = Totals(2, 1, 2)
    totals.know(0, slice(0, 2), torch.tensor([0.25, 4.0]))
    assert torch.stack([values.weights for values in totals.each()]).tolist() == [[[0.5, 2.0]]] * 2


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
