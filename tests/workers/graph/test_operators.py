"""Every operator with a per-channel quantized weight, against the eager module whose weight is replaced by hand.

The wrong axis, or a use that is missed, gives other outputs: 3 bits are coarse, and each channel has its own
magnitude.
"""

import copy

import pytest
import torch
from torch import nn

from workers.contracts import Candidate, Scheme
from workers.graph.program import Program
from workers.graph.units import find_units
from workers.quant import fake_quantize

CANDIDATE = Candidate(bits=3, scheme=Scheme.parse("channel-symmetric"))


class Op(nn.Module):
    """A function of the input and one parameter."""

    def __init__(self, shape, function):
        super().__init__()
        self.w = nn.Parameter(uneven(*shape))
        self.function = function

    def forward(self, x):
        return self.function(x, self.w)


def uneven(*shape):
    """A weight whose slices along each axis have different magnitudes."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    for axis, size in enumerate(shape):
        weight = weight * torch.linspace(0.3, 2.0, size).reshape(
            [-1 if a == axis else 1 for a in range(len(shape))]
        )
    return weight


def by_hand(weight, axis):
    """Symmetric min-max at 3 bits, one scale per index on ``axis``."""
    others = [a for a in range(weight.dim()) if a != axis]
    scale = weight.abs().amax(others, keepdim=True) / 3
    return torch.round(weight / scale).clamp(-3, 3) * scale


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


X2, X3, SEQUENCE, IMAGE, VOLUME = (
    rows(5, 8),
    rows(5, 7, 8),
    rows(5, 8, 9),
    rows(5, 8, 6, 6),
    rows(5, 8, 4, 4, 4),
)
INDEX = torch.randint(0, 12, (5, 7), generator=torch.Generator().manual_seed(2))
CONVOLUTION = ([1, 1], [1, 1], [1, 1])

# module, input, parameter, output-channel axis, input axis
CASES = {
    "linear": (nn.Linear(8, 4), X2, "weight", 0, 1),
    "linear to one output": (nn.Linear(8, 1), X2, "weight", 0, 1),
    "conv1d": (nn.Conv1d(8, 6, 3), SEQUENCE, "weight", 0, 1),
    "conv2d": (nn.Conv2d(8, 6, 3, stride=2), IMAGE, "weight", 0, 1),
    "conv2d, padding by name": (nn.Conv2d(8, 6, 3, padding="same"), IMAGE, "weight", 0, 1),
    "conv2d, reflected": (nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), IMAGE, "weight", 0, 1),
    "conv2d, grouped": (nn.Conv2d(8, 6, 3, groups=2), IMAGE, "weight", 0, 1),
    "conv2d, depthwise": (nn.Conv2d(8, 8, 3, groups=8), IMAGE, "weight", 0, 1),
    "conv3d": (nn.Conv3d(8, 6, 2), VOLUME, "weight", 0, 1),
    "conv_transpose1d": (nn.ConvTranspose1d(8, 6, 3), SEQUENCE, "weight", 1, 0),
    "conv_transpose2d": (nn.ConvTranspose2d(8, 6, 3, stride=2), IMAGE, "weight", 1, 0),
    "conv_transpose3d": (nn.ConvTranspose3d(8, 6, 2), VOLUME, "weight", 1, 0),
    "conv_transpose2d, grouped": (nn.ConvTranspose2d(8, 6, 3, groups=2), IMAGE, "weight", 1, 0),
    "conv_transpose2d, depthwise": (nn.ConvTranspose2d(8, 16, 3, groups=8), IMAGE, "weight", 0, 1),
    "convolution": (
        Op((6, 8, 3, 3), lambda x, w: torch.convolution(x, w, None, *CONVOLUTION, False, [0, 0], 1)),
        IMAGE,
        "w",
        0,
        1,
    ),
    "convolution, transposed": (
        Op((8, 6, 3, 3), lambda x, w: torch.convolution(x, w, None, *CONVOLUTION, True, [0, 0], 1)),
        IMAGE,
        "w",
        1,
        0,
    ),
    "embedding": (nn.Embedding(12, 8), INDEX, "weight", 0, 1),
    "addmm, weight right": (Op((8, 4), lambda x, w: torch.addmm(torch.ones(4), x, w)), X2, "w", 1, 0),
    "addmm, weight left": (Op((4, 8), lambda x, w: torch.addmm(torch.ones(1), w, x.t()).t()), X2, "w", 0, 1),
    "mm, weight right": (Op((8, 4), lambda x, w: x.mm(w)), X2, "w", 1, 0),
    "mm, weight left": (Op((4, 8), lambda x, w: w.mm(x.t()).t()), X2, "w", 0, 1),
    "matmul, weight right": (Op((8, 4), lambda x, w: x @ w), X3, "w", 1, 0),
    "matmul, weight left": (Op((4, 7), lambda x, w: w @ x), X3, "w", 0, 1),
    "matmul, stacked": (Op((7, 8, 4), lambda x, w: x[:, :, None] @ w), X3, "w", 2, 1),
    "bmm, weight right": (
        Op((7, 8, 4), lambda x, w: x.transpose(0, 1).bmm(w).transpose(0, 1)),
        X3,
        "w",
        2,
        1,
    ),
    "bmm, weight left": (
        Op((7, 4, 8), lambda x, w: w.bmm(x.permute(1, 2, 0)).permute(2, 0, 1)),
        X3,
        "w",
        1,
        2,
    ),
    "bmm, expanded to the batch": (Op((8, 4), lambda x, w: x.bmm(w.expand(x.shape[0], 8, 4))), X3, "w", 1, 0),
    "baddbmm": (
        Op((7, 8, 4), lambda x, w: torch.baddbmm(torch.ones(1), x.transpose(0, 1), w).transpose(0, 1)),
        X3,
        "w",
        2,
        1,
    ),
    "addbmm": (
        Op((7, 8, 4), lambda x, w: torch.addbmm(torch.ones(1, 4), x.transpose(0, 1), w)),
        X3,
        "w",
        2,
        1,
    ),
    "einsum": (Op((8, 3, 4), lambda x, w: torch.einsum("btd,dhk->bthk", x, w)), X3, "w", 2, 0),
    "einsum, weight first": (Op((4, 8), lambda x, w: torch.einsum("od,bd->bo", w, x)), X2, "w", 0, 1),
    "einsum, implicit": (Op((8, 4), lambda x, w: torch.einsum("bd,do", x, w)), X2, "w", 1, 0),
    "einsum, ellipsis": (Op((8, 4), lambda x, w: torch.einsum("...d,do->...o", x, w)), X3, "w", 1, 0),
    "einsum, shared axis": (Op((7, 8), lambda x, w: torch.einsum("btd,td->bt", x, w)), X3, "w", 0, 1),
    "bilinear": (
        Op((4, 8, 8), lambda x, w: torch.ops.aten.bilinear.default(x, x.tanh(), w, None)),
        X2,
        "w",
        0,
        2,
    ),
    "transposed view": (Op((4, 8), lambda x, w: x @ w.t()), X2, "w", 0, 1),
    "reshaped view": (Op((4, 2, 4), lambda x, w: nn.functional.linear(x, w.reshape(4, 8))), X2, "w", 0, 2),
    "permuted copy": (
        Op((8, 2, 2), lambda x, w: nn.functional.linear(x, w.permute(1, 2, 0).reshape(4, 8)[:2])),
        X2,
        "w",
        2,
        0,
    ),
    "flipped": (Op((6, 8, 3), lambda x, w: nn.functional.conv1d(x, w.flip(2))), SEQUENCE, "w", 0, 1),
    "split": (
        Op((12, 8), lambda x, w: sum(nn.functional.linear(x, part) for part in w.split([4, 4, 4]))),
        X2,
        "w",
        0,
        1,
    ),
    "stacked layers": (
        Op((3, 8, 8), lambda x, w: nn.functional.linear(nn.functional.linear(x, w[0]).tanh(), w[2])),
        X2,
        "w",
        1,
        2,
    ),
    "converted": (
        Op((4, 8), lambda x, w: nn.functional.linear(x.double(), w.double()).float()),
        X2,
        "w",
        0,
        1,
    ),
    # More elements than a bfloat16 can number.
    "converted to less precision": (
        Op((600, 3), lambda x, w: nn.functional.linear(x[:, :3].bfloat16(), w.bfloat16()).float()),
        X2,
        "w",
        0,
        1,
    ),
    "used as a weight and added": (
        Op((5, 8), lambda x, w: nn.functional.linear(x, w) + w.sum(1)),
        X2,
        "w",
        0,
        1,
    ),
}


# The reader refuses these in files (their kernels do not check indices); other sources of graphs may have them.
REFUSED_IN_FILES = {"embedding_bag": (nn.EmbeddingBag(12, 8), INDEX, "weight", 0, 1)}


@pytest.mark.parametrize("case", CASES)
def test_per_channel_against_eager(case, graph_of):
    assert_equal_to_eager(CASES[case], graph_of)


@pytest.mark.parametrize("case", REFUSED_IN_FILES)
def test_per_channel_without_a_file(case, exported_graph_of):
    assert_equal_to_eager(REFUSED_IN_FILES[case], exported_graph_of)


def assert_equal_to_eager(case, graph_of):
    module, inputs, parameter, output_axis, group_axis = case
    model = graph_of(module, (inputs,))
    table = find_units(model)
    assert [unit.info.name for unit in table.units] == [parameter]
    assert not table.unsupported
    (unit,) = table.units
    assert (unit.info.output_channel_axis, unit.info.group_axis) == (output_axis, group_axis)
    assert not unit.info.derived
    assert unit.info.shape == tuple(dict(module.named_parameters())[parameter].shape)
    reference = copy.deepcopy(module)
    with torch.no_grad():
        weight = dict(reference.named_parameters())[parameter]
        weight.copy_(by_hand(weight, output_axis))
        expected = reference(inputs)
    got = quantized_run(model, unit, inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert (expected - module(inputs)).abs().max() > 1e-2, "the case does not discriminate"


def quantized_run(model, unit, *inputs):
    program = Program(model)
    weight = fake_quantize(
        program.constant(unit.node),
        CANDIDATE,
        output_channel_axis=unit.info.output_channel_axis,
        group_axis=unit.info.group_axis,
        name=unit.info.name,
    )
    override = program.override(unit.changes(weight))
    assert override.first_step == unit.first_step
    return program.run(list(inputs), override)[0]


class Computed(nn.Module):
    """Weights that are computed from parameters; ``quantize`` stands for what is to happen to them."""

    quantize = staticmethod(lambda weight: weight)

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(uneven(4, 8))
        self.register_buffer("mask", (torch.arange(32).reshape(4, 8) % 3 > 0).float())


class Scaled(Computed):
    def forward(self, x):
        return nn.functional.linear(x, self.quantize(self.w * 0.25))


class Masked(Computed):
    def forward(self, x):
        return nn.functional.linear(x, self.quantize(self.w * self.mask))


class ScaledTransposed(Computed):
    def forward(self, x):
        return x @ self.quantize(self.w * 0.25).t()


class Joined(Computed):
    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(uneven(3, 8))

    def forward(self, x):
        return nn.functional.linear(x, self.quantize(torch.cat([self.w, self.v])))


class Symmetrical(Computed):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(uneven(8, 8))

    def forward(self, x):
        weight = self.quantize(self.w.triu() + self.w.triu(1).t())
        return nn.functional.linear(x, weight)


class FlatStorage(Computed):
    """A vector that is used as a matrix: the matrix is what has channels."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(uneven(32))

    def forward(self, x):
        return nn.functional.linear(x, self.quantize(self.w.view(4, 8)))


@pytest.mark.parametrize("kind", [Scaled, Masked, ScaledTransposed, Joined, Symmetrical, FlatStorage])
def test_computed_weights_are_quantized_as_computed(kind, graph_of):
    module = kind()
    model = graph_of(module, (X2,))
    table = find_units(model)
    (unit,) = table.units
    assert (unit.info.name, unit.info.derived, unit.info.output_channel_axis) == ("w", True, 0)
    assert not table.unsupported
    got = quantized_run(model, unit, X2)
    module.quantize = lambda weight: by_hand(weight, 0)
    with torch.no_grad():
        torch.testing.assert_close(got, module(X2), rtol=1e-5, atol=1e-5)


class Both(nn.Module):
    """A parameter used as it is and in a computation: the computation follows the parameter."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(uneven(8, 8))

    def forward(self, x):
        return nn.functional.linear(nn.functional.linear(x, self.w * 0.5).tanh(), self.w)


class SharedStorage(nn.Module):
    """Two parameters that are transposes of each other in memory."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 4, bias=False)
        self.a.weight = nn.Parameter(uneven(4, 8))
        self.b = nn.Linear(4, 8, bias=False)
        self.b.weight = nn.Parameter(self.a.weight.detach().t())

    def forward(self, x):
        return self.b(self.a(x).tanh())


class Contained(nn.Module):
    """A parameter that is the second half of another one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)
        self.a.weight = nn.Parameter(uneven(8, 8))
        self.b.weight = nn.Parameter(self.a.weight.detach()[4:])

    def forward(self, x):
        return self.b(x) * self.a(x)[:, :4]


class Disagreeing(nn.Module):
    """The first use keeps axis 0, the second axis 1: the first decides."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(uneven(8, 8))

    def forward(self, x):
        return nn.functional.linear(x, self.w).tanh() @ self.w


@pytest.mark.parametrize(
    ("kind", "name", "tied"),
    [
        (Both, "w", ()),
        (SharedStorage, "a.weight", ("b.weight",)),
        (Contained, "a.weight", ("b.weight",)),
        (Disagreeing, "w", ()),
    ],
)
def test_one_unit_for_all_uses(kind, name, tied, graph_of):
    module = kind()
    model = graph_of(module, (X2,))
    (unit,) = find_units(model).units
    assert (unit.info.name, unit.info.tied, unit.info.derived) == (name, tied, False)
    assert unit.info.output_channel_axis == 0
    got = quantized_run(model, unit, X2)
    with torch.no_grad():
        weight = dict(module.named_parameters())[name]
        weight.copy_(by_hand(weight, 0))
        torch.testing.assert_close(got, module(X2), rtol=1e-5, atol=1e-5)
