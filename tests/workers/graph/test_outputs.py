"""Choosing one of several outputs."""

import pytest
import torch
from torch import nn

from workers.errors import RequestRefused
from workers.graph.outputs import choose_output
from workers.graph.program import Program
from workers.graph.units import find_units

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


class Several(nn.Module):
    """The largest class, the logits, the mean over samples, the states."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        states = self.a(x).tanh()
        logits = self.b(states.mean(1))
        return logits.argmax(-1), logits, logits.mean(0), states


def run(model):
    return Program(model).run([X])[0]


def test_the_default_is_the_first_floating_point_output_of_samples(graph_of):
    module = Several().eval()
    model = graph_of(module, (X,))
    expected = module(X)
    torch.testing.assert_close(run(choose_output(model)), expected[1])
    torch.testing.assert_close(run(choose_output(model, "3")), expected[3])
    names = [node.name for node in model.graph.output_node().args[0]]
    torch.testing.assert_close(run(choose_output(model, names[3])), expected[3])
    chosen = choose_output(model, "3")
    assert len(Program(chosen).run([X])) == 4
    before, after = find_units(model).units, find_units(chosen).units
    assert [(u.info, u.first_step) for u in before] == [(u.info, u.first_step) for u in after]


@pytest.mark.parametrize("wanted", ["4", "-1", "logits?", "0", "2"])
def test_an_output_that_cannot_be_compared_is_refused_with_those_that_can(wanted, graph_of):
    model = graph_of(Several().eval(), (X,))
    with pytest.raises(RequestRefused) as caught:
        choose_output(model, wanted)
    assert caught.value.field == "output"
    assert [text[0] for text in caught.value.allowed] == ["1", "3"]


def test_a_single_output_is_left_alone(graph_of):
    model = graph_of(nn.Linear(8, 4), (X,))
    assert choose_output(model) is model
