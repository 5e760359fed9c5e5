"""How far changes are followed."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.workers.sensitivity.estimators import models
from tests.workers.sensitivity.estimators.layers import Block, build
from workers.graph.dataflow import Dataflow
from workers.graph.outputs import pack_outputs
from workers.graph.program import Program
from workers.graph.units import find_units
from workers.sensitivity.estimators.reaches import Reaches
from workers.sensitivity.estimators.uses import Uses


def reaches_of(case):
    flow = Dataflow.of(case.setup.program.model)
    uses = Uses.of(flow, case.units)
    found = Reaches.find(case.setup.program, flow, uses, uses.at)
    names = {use.unit: node for node, of_step in uses.at.items() for use in of_step}
    return {case.units[number].info.name: found.of.get(node) for number, node in names.items()}


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


class Eager(nn.Module):
    """Attention written out, each part with weights of its own."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        scores = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1)
        return self.out(scores @ self.v(x))


def test_products_with_other_values_are_linear(make_setup):
    found = reaches_of(make_setup(*build(Eager, 4, 6)))
    assert found["v.weight"] is None
    for name in ("q.weight", "k.weight"):
        assert any("softmax" in str(step.node.target) for step in found[name].steps)


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


class ThreeHeads(nn.Module):
    """Two make one output, side by side."""

    def __init__(self):
        super().__init__()
        self.inner, self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.third = nn.Linear(6, 4)

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        return torch.cat([self.first(h), self.second(h)], 1), self.third(h)


def test_outputs_laid_side_by_side_are_known_whole(make_setup):
    case = make_setup(*build(ThreeHeads, 4))
    packed = pack_outputs(case.setup.program.model, ["0", "1"])
    program, flow, units = Program(packed), Dataflow.of(packed), find_units(packed).units
    uses = Uses.of(flow, units)
    found = Reaches.find(program, flow, uses, uses.at)
    whole = {node for node, reach in found.of.items() if reach.whole}
    assert {units[use.unit].info.name for node in whole for use in uses.at[node]} == {
        "first.weight",
        "second.weight",
        "third.weight",
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
