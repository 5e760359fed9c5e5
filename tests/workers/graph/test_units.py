"""What becomes a unit, what is listed as unsupported, and the sizes that follow."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils.parametrizations import weight_norm

from workers.contracts import ModelDescription
from workers.errors import ModelRefused, RequestRefused
from workers.graph.describe import describe
from workers.graph.units import find_units
from workers.intake.pt2 import read_model

X = torch.randn(5, 7, 8)
FLOAT = 32


class WithHead(nn.Module):
    """Something unusual in front of an ordinary layer."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.unusual(x))


class Table(WithHead):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.randn(7, 8))

    def unusual(self, x):
        return x + self.p


class Gate(Table):
    def unusual(self, x):
        return x * self.p


class LookUp(WithHead):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.randn(10, 8))

    def unusual(self, x):
        return self.p[(x[..., 0] > 0).long()]


class Query(WithHead):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.randn(3, 8))

    def unusual(self, x):
        query = self.p.expand(x.shape[0], 3, 8)
        return nn.functional.scaled_dot_product_attention(query, x, x)


class Constant(Table):
    """The table is projected, but the projection never sees an input."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.randn(8, 8))
        self.register_buffer("positions", torch.randn(7, 8))

    def unusual(self, x):
        return x + linear(self.positions, self.p)


class LowRank(WithHead):
    """A weight larger than the two it is computed from: storing it would undo the saving."""

    def __init__(self):
        super().__init__()
        self.p, self.q = nn.Parameter(torch.randn(8, 1)), nn.Parameter(torch.randn(1, 8))

    def unusual(self, x):
        return linear(x, self.p @ self.q)


class Kernel(WithHead):
    def __init__(self):
        super().__init__()
        self.register_buffer("p", torch.randn(8, 8))

    def unusual(self, x):
        return x @ self.p


class Contracted(WithHead):
    """No axis of the weight reaches the output."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.randn(7, 8))

    def unusual(self, x):
        return x * torch.einsum("btd,td->b", x, self.p)[:, None, None]


class Overlapping(WithHead):
    """Two parameters that share some rows."""

    def __init__(self):
        super().__init__()
        rows = torch.randn(10, 8)
        self.p, self.q = nn.Parameter(rows[:8]), nn.Parameter(rows[2:])

    def unusual(self, x):
        return linear(linear(x, self.p), self.q)


# module, unsupported name -> part of the reason
UNSUPPORTED = {
    "added table": (Table, {"p": "added to a value"}),
    "gate": (Gate, {"p": "scaled element by element"}),
    "looked up": (LookUp, {"p": "looked up by an index"}),
    "learned query": (Query, {"p": "attention"}),
    "never meets an input": (Constant, {"p": "do not depend on the input are computed from it (by linear)"}),
    "buffer": (Kernel, {"p": "a buffer, not a parameter"}),
    "contracted": (Contracted, {"p": "sums over every axis"}),
    "overlapping": (Overlapping, {"p": "a part of its memory", "q": "a part of its memory"}),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_cannot_be_quantized_is_listed_with_the_reason(case, graph_of):
    make, expected = UNSUPPORTED[case]
    table = find_units(graph_of(make(), (X,)))
    assert [unit.info.name for unit in table.units] == ["head.weight"]
    assert [weight.name for weight in table.unsupported] == list(expected)
    for weight, reason in zip(table.unsupported, expected.values(), strict=True):
        assert reason in weight.reason
        assert weight.weights == torch.Size(weight.shape).numel()


def test_factors_that_are_multiplied_out_beforehand(graph_of):
    """Vectors are no weights to list, but here they stand for one."""
    table = find_units(graph_of(LowRank(), (X,)))
    assert [unit.info.name for unit in table.units] == ["head.weight"]
    assert {weight.name for weight in table.unsupported} == {"p", "q"}
    assert all("larger than what it is computed from" in weight.reason for weight in table.unsupported)


def test_biases_norms_and_scales_are_not_listed(graph_of):
    class Ordinary(WithHead):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm((7, 8))
            self.scale = nn.Parameter(torch.ones(1, 1, 8))
            self.token = nn.Parameter(torch.zeros(1, 1, 8))
            self.act = nn.PReLU()

        def unusual(self, x):
            return self.act(torch.cat([self.token.expand(x.shape[0], 1, 8), self.scale * self.norm(x)], 1))

    assert find_units(graph_of(Ordinary(), (X,))).unsupported == ()


def test_expanded_copies_are_not_made_to_find_axes(graph_of):
    """A weight repeated 50 times and copied: nothing of that size is made to find its axes; it is listed."""

    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 4))

        def forward(self, x):
            return torch.bmm(x, self.w.expand(x.shape[0], 50, 8, 4).contiguous()[:, 0])

    model = graph_of(Repeated(), (X,))
    table = find_units(model)
    assert not table.units
    assert [weight.reason for weight in table.unsupported] == [
        "it is used reshaped, so that no axis of it is the output-channel axis"
    ]


def test_several_units_of_one_parameter_have_different_names(graph_of):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            return linear(linear(x, self.w * 0.5), self.w * 0.25)

    units = find_units(graph_of(Twice(), (X,))).units
    assert [unit.info.name for unit in units] == ["w", "w[1]"]
    assert all(unit.info.derived for unit in units)


def test_units_are_found_by_any_of_their_names(graph_of):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    table = find_units(graph_of(Tied(), (X,)))
    assert table.unit("a.weight") is table.unit("b.weight")
    with pytest.raises(RequestRefused, match="no unit 'c'") as caught:
        table.unit("c")
    assert caught.value.allowed == ["a.weight"]


class Sized(nn.Module):
    """Every kind of tensor that counts: 64 + 24 in units, 8 + 3 + 56 besides; the tied one once."""

    def __init__(self):
        super().__init__()
        self.a, self.again = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.again.weight = self.a.weight
        self.table = nn.Parameter(torch.randn(7, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.again(self.a(x)) + self.table)


def test_description(graph_of):
    found = describe(graph_of(Sized(), (X,)))
    assert found.weights == 64 + 24
    assert found.unit_float_bits == FLOAT * (64 + 24)
    assert found.float_bits == FLOAT * (64 + 24 + 8 + 3 + 56)
    assert [(i.dtype, i.shape) for i in found.inputs] == [("float32", (None, 7, 8))]
    assert [(o.dtype, o.shape) for o in found.outputs] == [("float32", (None, 7, 3))]
    assert found.batch_size is None
    assert [weight.name for weight in found.unsupported] == ["table"]
    assert ModelDescription.from_json(found.to_json()) == found


def test_description_of_a_fixed_batch(graph_of):
    found = describe(graph_of(Sized(), (X,), dynamic=False))
    assert found.batch_size == 5
    assert found.outputs[0].shape == (5, 7, 3)
    assert [unit.macs for unit in found.units] == [2 * 7 * 64, 7 * 24]


def test_the_parameters_of_a_computed_weight_are_not_stored_beside_it(graph_of):
    """Weight norm keeps a direction (64) and magnitudes (8): the computed weight (64) stands for both."""
    module = nn.Sequential(weight_norm(nn.Linear(8, 8, bias=False)))
    found = describe(graph_of(module, (X,)))
    assert found.weights == 64
    assert found.float_bits == found.unit_float_bits == FLOAT * 72


def test_a_parameter_needed_elsewhere_stays(graph_of):
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            return linear(x, self.w * 0.5) + self.w.sum(0)

    found = describe(graph_of(Kept(), (X,)))
    assert found.unit_float_bits == 0
    assert found.float_bits == FLOAT * 64


def test_half_precision_is_sized_as_stored(graph_of):
    found = describe(graph_of(nn.Linear(8, 8, bias=False).bfloat16(), (X.bfloat16(),)))
    assert found.float_bits == found.unit_float_bits == 16 * 64


def test_nothing_to_quantize(graph_of):
    with pytest.raises(ModelRefused, match="no weight that can be quantized") as caught:
        describe(graph_of(nn.LayerNorm(8), (X,)))
    assert caught.value.extra == {"rule": "no-units", "unsupported": []}


def test_symbolic_image_sizes_count_at_the_smallest_that_works(tmp_path):
    """Two layers of stride 2 without padding: 8 is the smallest power of two that leaves something."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 5, 3, 2))
    batch, side = torch.export.Dim("batch", max=64), torch.export.Dim("side", min=16, max=64)
    shapes = ({0: batch, 2: side, 3: side},)
    program = torch.export.export(module, (torch.randn(2, 3, 33, 33),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "images.pt2")
    found = describe(read_model(tmp_path / "images.pt2"))
    # 8 -> 3 -> 1
    assert [unit.macs for unit in found.units] == [9 * 4 * 27, 1 * 5 * 36]


def test_a_symbolic_length_counts_as_one_token(graph_of, tmp_path):
    class PerToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(8, 4)

        def forward(self, x):
            return self.l(x)

    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=64)
    program = torch.export.export(PerToken(), (X,), dynamic_shapes=({0: batch, 1: length},))
    torch.export.save(program, tmp_path / "tokens.pt2")
    found = describe(read_model(tmp_path / "tokens.pt2"))
    assert found.units[0].macs == 32
    assert found.outputs[0].shape == (None, None, 4)
