"""Awkward models, exported and read back: the right units, and outputs equal to the eager model's."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils.parametrizations import weight_norm

from workers.errors import ModelRefused
from workers.graph.describe import describe
from workers.graph.outputs import choose_output
from workers.graph.program import Program
from workers.graph.reach import Reaches, run_part
from workers.graph.stacked import Mode, Stretch, Variants
from workers.graph.units import find_units


class TransposedLinear(nn.Module):
    """GPT-2's: weight [in, out]."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 32))
        self.bias = nn.Parameter(torch.zeros(32))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, 16), self.weight).view(*x.shape[:-1], 32)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 16, 8))
        self.router = nn.Linear(16, 4)

    def forward(self, x):
        each = torch.bmm(x[None].expand(4, -1, -1), self.w).transpose(0, 1)
        return torch.einsum("be,beo->bo", self.router(x).softmax(-1), each)


class TiedTransposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(50, 16)

    def forward(self, i):
        return self.e(i) @ self.e.weight.t()


class FusedInSlices(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(48, 16))

    def forward(self, x):
        q, k, v = self.qkv.chunk(3, 0)
        return linear(x, q) * linear(x, k) + linear(x, v)


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(16, 16)

    def forward(self, x):
        return self.l(self.l(x).relu())


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x).relu())


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = weight_norm(nn.Linear(16, 16))

    def forward(self, x):
        return self.l(self.l(x))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.a(x, x, x, need_weights=False)[0]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)

    def forward(self, x):
        return self.a(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.r = nn.LSTM(16, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.r(x)[0])


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(16, 16, 3, padding="same", groups=16)
        self.b = nn.ConvTranspose2d(16, 8, 2, 2)
        self.c = nn.Conv2d(8, 4, 1)
        self.d = nn.Conv1d(4, 4, 3)

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x))).flatten(2))


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 4, 8))

    def forward(self, x):
        return torch.einsum("btd,dhk->bthk", x, self.w)


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(16, 16).to(torch.bfloat16)

    def forward(self, x):
        return self.l(x.bfloat16()).float()


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 16))

    def forward(self, x):
        return linear(x, self.w * 0.25)


class Modulated(nn.Module):
    """A weight that depends on the input."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 16))
        self.m = nn.Linear(16, 16)

    def forward(self, x):
        return (x[:, None] @ (self.w[None] * self.m(x)[:, None])).squeeze(1)


FLAT, TOKENS = torch.randn(5, 16), torch.randn(5, 7, 16)
IMAGES, INDICES = torch.randn(5, 16, 8, 8), torch.randint(0, 50, (5, 7))

# module, input, units as (name, operator, output axis, input axis, MACs per sample, tied, derived), unsupported names
CASES = {
    "addmm": (TransposedLinear, TOKENS, [("weight", "addmm", 1, 0, 7 * 16 * 32, (), False)], []),
    "experts": (
        Experts,
        FLAT,
        [("w", "bmm", 2, 1, 4 * 16 * 8, (), False), ("router.weight", "linear", 0, 1, 64, (), False)],
        [],
    ),
    "tied transposed": (
        TiedTransposed,
        INDICES,
        [("e.weight", "embedding", 0, 1, 7 * 16 * 50, (), False)],
        [],
    ),
    "fused in slices": (FusedInSlices, FLAT, [("qkv", "linear", 0, 1, 48 * 16, (), False)], []),
    "called twice": (CalledTwice, FLAT, [("l.weight", "linear", 0, 1, 512, (), False)], []),
    "two names": (TwoNames, FLAT, [("a.weight", "linear", 0, 1, 512, ("b.weight",), False)], []),
    "weight norm": (Normed, FLAT, [("l.weight", "linear", 0, 1, 512, (), True)], []),
    "attention": (
        Attention,
        TOKENS,
        [
            ("a.in_proj_weight", "linear", 0, 1, 7 * 48 * 16, (), False),
            ("a.out_proj.weight", "linear", 0, 1, 7 * 16 * 16, (), False),
        ],
        [],
    ),
    "recurrent": (
        Recurrent,
        TOKENS,
        [
            ("r.weight_hh_l0", "lstm", 0, 1, 7 * 64 * 16, (), False),
            ("r.weight_ih_l0", "lstm", 0, 1, 7 * 64 * 16, (), False),
            ("head.weight", "linear", 0, 1, 7 * 48, (), False),
        ],
        [],
    ),
    "convolutions": (
        Convolutions,
        IMAGES,
        [
            ("a.weight", "conv2d", 0, 1, 64 * 16 * 9, (), False),
            ("b.weight", "conv_transpose2d", 1, 0, 64 * 16 * 8 * 4, (), False),
            ("c.weight", "conv2d", 0, 1, 256 * 4 * 8, (), False),
            ("d.weight", "conv1d", 0, 1, 254 * 4 * 4 * 3, (), False),
        ],
        [],
    ),
    "einsum": (Einsum, TOKENS, [("w", "einsum", 2, 0, 7 * 16 * 32, (), False)], []),
    "half": (Half, FLAT, [("l.weight", "linear", 0, 1, 256, (), False)], []),
    "scaled": (Scaled, FLAT, [("w", "linear", 0, 1, 256, (), True)], []),
    "modulated": (Modulated, FLAT, [("m.weight", "linear", 0, 1, 256, (), False)], ["w"]),
}


@pytest.mark.parametrize("case", CASES)
def test_units_and_outputs(case, graph_of):
    torch.manual_seed(0)
    make, inputs, units, unsupported = CASES[case]
    module = make()
    model = graph_of(module, (inputs,))
    table = find_units(model)
    found = [
        (u.name, u.operator, u.output_channel_axis, u.group_axis, u.macs, u.tied, u.derived)
        for u in (unit.info for unit in table.units)
    ]
    assert found == units
    assert [weight.name for weight in table.unsupported] == unsupported
    assert all(weight.reason for weight in table.unsupported)
    _assert_equal_to_eager(model, module, inputs)


def test_transformer_encoder(graph_of):
    module = Encoder()
    model = graph_of(module, (TOKENS,))
    names = [unit.info.name for unit in find_units(model).units]
    layer = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert names == [f"a.layers.{i}.{name}" for i in (0, 1) for name in layer]
    _assert_equal_to_eager(model, module, TOKENS)


def _assert_equal_to_eager(model, module, inputs):
    program = Program(model)
    for batch in (1, 3):
        with torch.no_grad():
            expected = module(inputs[:batch])
        torch.testing.assert_close(program.run([inputs[:batch]])[0], expected, rtol=1e-5, atol=1e-5)


def test_static_batch_counts_one_sample(graph_of):
    model = graph_of(nn.Linear(16, 4), (FLAT,), dynamic=False)
    assert model.batch_size == 5
    assert find_units(model).units[0].info.macs == 64


def test_a_model_without_units_is_refused_with_the_reasons(graph_of):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.randn(7, 16))
            self.norm = nn.LayerNorm((7, 16))

        def forward(self, x):
            return self.norm(x + self.position)

    with pytest.raises(ModelRefused, match="position: it is added") as caught:
        describe(graph_of(Table(), (TOKENS,)))
    assert caught.value.extra["rule"] == "no-units"
    assert [entry["name"] for entry in caught.value.extra["unsupported"]] == ["position"]


def overrides_of(program, unit, variants):
    """Some variants of a unit's weight."""
    weight = program.constant(unit.node)
    draw = torch.Generator().manual_seed(0)
    noises = [torch.randn(weight.shape, generator=draw).to(weight.dtype) for _ in range(variants)]
    return [program.override(unit.changes(weight + noise / 4)) for noise in noises]


def side_by_side(program, unit, inputs, variants):
    """Comparisons of a unit's steps, and first outputs of variants: compared, as far as possible together, and plain."""
    reach = Reaches(program).of(program.reading_steps(alias.node for alias in unit.aliases))
    overrides = overrides_of(program, unit, variants)
    environment = program.environment(inputs)
    program.advance(environment, 0, reach.cut)
    run_part(program, environment, Reaches(program).ahead(reach, ()))
    symbols = {name: inputs[index].shape[axis] for name, (index, axis) in program.model.symbols.items()}
    whole = range(len(reach.affected))

    def outputs(modes):
        ran = Variants(program, reach, environment, overrides=overrides, symbols=symbols)
        stretches = [Stretch(mode=mode, places=range(place, place + 1)) for place, mode in modes.items()]
        found = [
            program.outputs(values, override)[0]
            for values, override in zip(ran.run(stretches), overrides, strict=True)
        ]
        return found, ran.comparisons

    compared, comparisons = outputs(dict.fromkeys(whole, Mode.COMPARED))
    equal = {place for place, found in comparisons.items() if found.equal}
    together, _ = outputs({place: Mode.TOGETHER if place in equal else Mode.APART for place in whole})
    plain = [program.run(inputs, override)[0] for override in overrides]
    return comparisons, compared, together, plain


@pytest.mark.parametrize("case", CASES)
def test_variants_side_by_side(case, graph_of):
    """However samples lie and whatever operators do with them, outputs are those of plain passes bit for bit."""
    make, example, *_ = CASES[case]
    torch.manual_seed(0)
    program = Program(graph_of(make(), (example,)))
    for unit in find_units(program.model).units:
        _, compared, together, plain = side_by_side(program, unit, (example,), 3)
        assert not torch.allclose(plain[0], plain[1], rtol=1e-2, atol=1e-3)
        assert all(torch.equal(one, other) for one, other in zip(compared, plain, strict=True))
        assert all(torch.equal(one, other) for one, other in zip(together, plain, strict=True))


class Sizes(nn.Module):
    """Computes with the number of samples, and makes values from it alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        samples = x.shape[0]
        mask = torch.zeros(samples, 1, 1) + x[:, :, :1] * 0
        y = (self.a(x) + mask).view(samples * 7 * 2, 8).relu()
        left, right = torch.split(self.b(y.view(samples, 7, 16)), [4, 12], -1)
        return torch.cat([right, left], -1) * (x.mean((1, 2), keepdim=True) + 1) / 5


def test_variants_where_sizes_are_computed(graph_of):
    """Reshaping by the number of samples works for all variants together; what holds several values is run apart."""
    program = Program(graph_of(Sizes(), (TOKENS,)))
    for unit in find_units(program.model).units:
        comparisons, _, together, plain = side_by_side(program, unit, (TOKENS,), 4)
        reach = Reaches(program).of(program.reading_steps([unit.node]))
        names = [program.steps[index].node.name.split("_")[0] for index in reach.affected.indices]
        equal = {names[place] for place, found in comparisons.items() if found.equal}
        assert {"cat", "mul", "div"} <= equal
        assert "split" not in equal
        assert ("relu" in equal) == (unit.info.name == "a.weight")
        assert all(torch.equal(one, other) for one, other in zip(together, plain, strict=True))


class Mixed(nn.Module):
    """Samples meet each other."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 4)

    def forward(self, x):
        y = self.a(x)
        return (y @ y.t()).tanh(), (y - y.mean(0)).tanh()


@pytest.mark.parametrize("output", [0, 1])
def test_samples_that_meet_are_told_apart(output, graph_of):
    """Their operators either show it in the shapes, or give other values for more samples."""
    model = choose_output(graph_of(Mixed(), (FLAT,)), str(output))
    program = Program(model)
    (unit,) = find_units(program.model).units
    comparisons, compared, together, plain = side_by_side(program, unit, (FLAT,), 2)
    *first, last = comparisons.values()
    assert not any(comparison.equal for comparison in first if output == 0)
    assert last.equal == (output == 1)  # a difference that has its samples along one axis again
    for found in (compared, together):
        assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


class SecondOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x):
        return self.a(x), self.b(x)


def test_a_unit_that_does_not_reach_the_first_output(graph_of):
    program = Program(graph_of(SecondOutput(), (FLAT,)))
    *_, unit = find_units(program.model).units
    reach = Reaches(program).of(program.reading_steps([unit.node]))
    assert not reach.affected.indices
    assert reach.boundary == {program.first_output}
