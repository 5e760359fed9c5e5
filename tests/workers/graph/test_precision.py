"""Half-precision models in float32: the module's own float32 results, ties and names kept."""

import pytest
import torch
from torch import nn

from workers.graph.precision import in_float32
from workers.graph.program import Program
from workers.graph.units import find_units

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    """One matrix used twice, a cast to the weights' type on the way, and a type given as an argument."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.b.weight = self.a.weight
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        states = self.norm(self.a(x)).float().softmax(-1).to(self.a.weight.dtype)
        return self.b(states) + torch.ones(8, dtype=self.a.weight.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_model_computes_as_its_float32_self(dtype, graph_of):
    torch.manual_seed(0)
    module = Tied().to(dtype).eval()
    model = graph_of(module, (X.to(dtype),))
    wide = in_float32(model)
    (found,) = Program(wide).run([X.to(dtype)])
    with torch.no_grad():
        expected = module.float()(X.to(dtype).float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    before, after = find_units(model), find_units(wide)
    assert [unit.info for unit in after.units] == [unit.info for unit in before.units]
    assert {tensor.dtype for tensor in model.tensors.values()} == {dtype}


def test_a_float32_model_is_taken_as_it_is(graph_of):
    model = graph_of(Tied().eval(), (X,))
    assert in_float32(model) is model
