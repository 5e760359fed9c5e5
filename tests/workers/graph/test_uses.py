"""What each operator multiplies its weight with, and how many multiply-accumulates that takes."""

import math

import pytest
import torch
from torch import nn

from workers.graph.describe import describe
from workers.graph.units import find_units


class Op(nn.Module):
    """A function of the input and one parameter."""

    def __init__(self, shape, function):
        super().__init__()
        self.w = nn.Parameter(torch.randn(*shape))
        self.function = function

    def forward(self, x):
        return self.function(x, self.w)


linear = nn.functional.linear
CONVOLUTION = ([2, 1], [0, 0], [1, 2])
X2, X3 = (5, 8), (5, 7, 8)

# Each is linear in its input and its weight. Nothing is padded or cropped, so that with ones for all numbers the sum of
# the outputs is the number of products that were added up.
OPERATORS = {
    "linear": (nn.Linear(8, 4, bias=False), X2),
    "linear, per position": (nn.Linear(8, 4, bias=False), X3),
    "conv1d": (nn.Conv1d(8, 6, 3, bias=False), (5, 8, 9)),
    "conv2d": (nn.Conv2d(8, 6, 3, stride=2, bias=False), (5, 8, 7, 9)),
    "conv2d, dilated": (nn.Conv2d(8, 6, 3, dilation=2, bias=False), (5, 8, 7, 9)),
    "conv2d, grouped": (nn.Conv2d(8, 6, 3, groups=2, bias=False), (5, 8, 7, 9)),
    "conv2d, depthwise": (nn.Conv2d(8, 8, 3, groups=8, bias=False), (5, 8, 7, 9)),
    "conv2d, depthwise with a multiplier": (nn.Conv2d(8, 16, 3, groups=8, bias=False), (5, 8, 7, 9)),
    "conv3d": (nn.Conv3d(8, 6, 2, bias=False), (5, 8, 4, 3, 5)),
    "conv_transpose1d": (nn.ConvTranspose1d(8, 6, 3, stride=2, bias=False), (5, 8, 9)),
    "conv_transpose2d": (nn.ConvTranspose2d(8, 6, 3, stride=2, bias=False), (5, 8, 7, 9)),
    "conv_transpose2d, grouped": (nn.ConvTranspose2d(8, 6, 3, groups=2, bias=False), (5, 8, 7, 9)),
    "conv_transpose2d, depthwise": (nn.ConvTranspose2d(8, 16, 3, groups=8, bias=False), (5, 8, 7, 9)),
    "conv_transpose3d": (nn.ConvTranspose3d(8, 6, 2, bias=False), (5, 8, 4, 3, 5)),
    "convolution": (
        Op((6, 8, 3, 3), lambda x, w: torch.convolution(x, w, None, *CONVOLUTION, False, [0, 0], 1)),
        (5, 8, 7, 9),
    ),
    "convolution, transposed": (
        Op((8, 3, 3, 3), lambda x, w: torch.convolution(x, w, None, *CONVOLUTION, True, [0, 0], 2)),
        (5, 8, 7, 9),
    ),
    "mm, weight right": (Op((8, 4), lambda x, w: x.mm(w)), X2),
    "mm, weight left": (Op((4, 8), lambda x, w: w.mm(x.t()).t()), X2),
    "addmm": (Op((8, 4), lambda x, w: torch.addmm(torch.zeros(4), x, w)), X2),
    "matmul, weight right": (Op((8, 4), lambda x, w: x @ w), X3),
    "matmul, weight left": (Op((4, 7), lambda x, w: w @ x), X3),
    "matmul, stacked": (Op((7, 8, 4), lambda x, w: x[:, :, None] @ w), X3),
    "matmul, weight left and stacked": (Op((7, 4, 8), lambda x, w: w @ x[..., None]), X3),
    "bmm, weight right": (Op((7, 8, 4), lambda x, w: x.transpose(0, 1).bmm(w).transpose(0, 1)), X3),
    "bmm, weight left": (Op((7, 4, 8), lambda x, w: w.bmm(x.permute(1, 2, 0)).permute(2, 0, 1)), X3),
    "bmm, expanded to the batch": (Op((8, 4), lambda x, w: x.bmm(w.expand(x.shape[0], 8, 4))), X3),
    "baddbmm": (
        Op((7, 8, 4), lambda x, w: torch.baddbmm(torch.zeros(1), x.transpose(0, 1), w).transpose(0, 1)),
        X3,
    ),
    "addbmm": (Op((7, 8, 4), lambda x, w: torch.addbmm(torch.zeros(1, 4), x.transpose(0, 1), w)), X3),
    "einsum": (Op((8, 3, 4), lambda x, w: torch.einsum("btd,dhk->bthk", x, w)), X3),
    "einsum, implicit": (Op((8, 4), lambda x, w: torch.einsum("bd,do", x, w)), X2),
    "einsum, ellipsis": (Op((8, 4), lambda x, w: torch.einsum("...d,do->...o", x, w)), X3),
    "einsum, shared axis": (Op((7, 8), lambda x, w: torch.einsum("btd,td->bt", x, w)), X3),
    "einsum, summed on its own": (Op((8, 3, 4), lambda x, w: torch.einsum("btd,dhk->bth", x, w)), X3),
    "split": (Op((12, 8), lambda x, w: sum(linear(x, part) for part in w.split([4, 4, 4]))), X2),
}


def ones(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
    return module


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("case", OPERATORS)
def test_macs_are_the_products_added_up(case, dynamic, exported_graph_of):
    module, shape = OPERATORS[case]
    (unit,) = describe(exported_graph_of(module, (torch.ones(shape),), dynamic=dynamic)).units
    with torch.no_grad():
        added = float(ones(module)(torch.ones(shape)).sum())
    assert unit.macs * shape[0] == added
    assert unit.activations == (3 if case == "split" else 1)


@pytest.mark.parametrize(
    ("padded", "plain"),
    [
        (nn.Conv2d(8, 6, 3, padding=1), (5, 8, 9, 11)),
        (nn.Conv2d(8, 6, 3, padding="same"), (5, 8, 9, 11)),
        (nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), (5, 8, 9, 11)),
    ],
)
def test_padding_counts(padded, plain, exported_graph_of):
    """As in everybody's counts: a kernel is multiplied with the padding as well."""
    (unit,) = describe(exported_graph_of(padded, (torch.ones(5, 8, 7, 9),))).units
    unpadded = nn.Conv2d(8, 6, 3, bias=False)
    with torch.no_grad():
        assert unit.macs * 5 == float(ones(unpadded)(torch.ones(plain)).sum())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)

    def forward(self, x):
        return self.embed(x) @ self.embed.weight.t()


class LookedUp(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)

    def forward(self, x):
        return self.embed(x)


class TwoWeights(nn.Module):
    """One operator, two weights, one input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(8, 4))

    def forward(self, x):
        return torch.einsum("bd,dr,de->bre", x, self.a, self.b)


class Residual(nn.Module):
    """The bias depends on the input as well; it is not multiplied."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return torch.addmm(x.tanh(), x.relu(), self.w)


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, x):
        return torch.ops.aten.bilinear.default(x, x.tanh(), self.w, None)


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(self.layer(x).relu())


INDICES = torch.zeros(5, 7, dtype=torch.int64)


@pytest.mark.parametrize(
    ("module", "inputs", "expected"),
    [
        (Tied(), INDICES, [("embed.weight", [("embedding", []), ("matmul", ["embedding"])])]),
        (LookedUp(), INDICES, [("embed.weight", [("embedding", [])])]),
        (
            TwoWeights(),
            torch.randn(5, 8),
            [("a", [("einsum", ["x"])]), ("b", [("einsum", ["x"])])],
        ),
        (Residual(), torch.randn(5, 8), [("w", [("addmm", ["relu"])])]),
        (Bilinear(), torch.randn(5, 8), [("w", [("bilinear", ["x", "tanh"])])]),
        (
            CalledTwice(),
            torch.randn(5, 8),
            [("layer.weight", [("linear", ["x"]), ("linear", ["relu"])])],
        ),
    ],
)
def test_inputs_of_uses(module, inputs, expected, graph_of):
    table = find_units(graph_of(module, (inputs,)))
    found = [
        (unit.info.name, [(use.operator, [node.name for node in use.inputs]) for use in unit.uses])
        for unit in table.units
    ]
    assert found == expected
    for unit in table.units:
        assert unit.info.activations == sum(len(use.inputs) for use in unit.uses)
        assert all(use.step >= unit.first_step for use in unit.uses)


def test_macs_of_several_weights(exported_graph_of):
    """``bd,dr,de->bre`` written out has b d r e terms, for each of its weights."""
    units = describe(exported_graph_of(TwoWeights(), (torch.randn(5, 8),))).units
    assert [unit.macs for unit in units] == [math.prod((8, 3, 4))] * 2
