"""Graphs that ask for too much: refused by rule and node before anything is allocated."""

import pytest
import torch

from tests.workers.intake.graphs import BATCH, HUGE, LONG, RELU, SHAPED, node, sym, tensor
from workers.intake.limits import GIB, Limits
from workers.intake.pt2 import read_model


def test_the_plain_graph_is_accepted(build, execute):
    model = read_model(build([RELU], SHAPED))
    assert torch.equal(execute(model, -torch.ones(3, 4))[0], torch.zeros(3, 4))


TOO_LARGE = [
    # operator, arguments, declared shape, rule
    ("full.default", {"size": [1 << 20, 1 << 20], "fill_value": 1.0}, (1 << 20, 1 << 20), "value-too-large"),
    ("full.default", {"size": [HUGE, HUGE], "fill_value": 1.0}, (HUGE, HUGE), "invalid-arguments"),
    ("zeros.default", {"size": [1 << 62]}, (4,), "invalid-arguments"),
    ("ones.default", {"size": [1 << 31]}, (1 << 31,), "value-too-large"),
    ("empty.memory_format", {"size": [1 << 31]}, (1 << 31,), "value-too-large"),
    ("arange.default", {"end": HUGE}, (HUGE,), "value-too-large"),
    ("arange.start_step", {"start": 0, "end": 1, "step": 1e-12}, (10**12,), "value-too-large"),
    ("eye.default", {"n": 1 << 20}, (1 << 20, 1 << 20), "value-too-large"),
    ("linspace.default", {"start": 0, "end": 1, "steps": HUGE}, (HUGE,), "value-too-large"),
    ("repeat.default", {"self": "x", "repeats": [1 << 20, 1 << 20]}, (1 << 20, 1 << 22), "value-too-large"),
    ("tile.default", {"self": "x", "dims": [1 << 36]}, (1, 1 << 38), "value-too-large"),
    ("expand.default", {"self": "x", "size": [HUGE, -1, -1]}, (HUGE, BATCH, 4), "value-too-large"),
    ("one_hot.default", {"self": "i", "num_classes": HUGE}, (BATCH, 4, HUGE), "value-too-large"),
    ("constant_pad_nd.default", {"self": "x", "pad": [0, HUGE]}, (BATCH, HUGE + 4), "value-too-large"),
    ("pad.default", {"self": "x", "pad": [0, HUGE]}, (BATCH, HUGE + 4), "value-too-large"),
    ("repeat_interleave.self_int", {"self": "x", "repeats": HUGE}, (1,), "value-too-large"),
    ("upsample_nearest1d.vec", {"input": "u", "output_size": [HUGE], "scale_factors": None}, (BATCH, 1, HUGE), "value-too-large"),
    ("as_strided.default", {"self": "x", "size": [HUGE], "stride": [0]}, (HUGE,), "unknown-operator"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "arguments", "shape", "rule"), TOO_LARGE)
def test_values_too_large(build, refused, target, arguments, shape, rule):
    before = [
        node("to.dtype", {"self": "x", "dtype": {"as_scalar_type": LONG}}, "i"),
        node("unsqueeze.default", {"self": "x", "dim": 1}, "u"),
    ]
    values = {"i": ((BATCH, 4), LONG), "u": ((BATCH, 1, 4),), "y": (shape,)}
    path = build([*before, node(target, arguments, "y")], values)
    assert refused(path, rule).field == "y"


def test_values_that_double(build, refused):
    nodes = [
        node("cat.default", {"tensors": [f"v{i}"] * 2, "dim": {"as_int": 1}}, f"v{i + 1}") for i in range(40)
    ]
    nodes.insert(0, node("relu.default", {"self": "x"}, "v0"))
    values = {f"v{i}": ((BATCH, 4 << i),) for i in range(41)}
    error = refused(build(nodes, values, result="v40"), "value-too-large")
    assert error.field == "v29"


def test_many_values_at_a_time(build, refused):
    """Each value is within its limit, together they are not; those that are not needed any more do not count."""
    count = 40
    make = [node("full.default", {"size": [GIB // 4], "fill_value": 1.0}, f"v{i}") for i in range(count)]
    values = {f"v{i}": ((GIB // 4,),) for i in range(count)} | {f"s{i}": ((),) for i in range(count)} | SHAPED
    values |= {f"t{i}": ((BATCH, 4),) for i in range(count)}
    sums = [node("sum.default", {"self": f"v{i}"}, f"s{i}") for i in range(count)]
    adds = [
        node("add.Tensor", {"self": f"t{i - 1}" if i else "x", "other": f"s{i}"}, f"t{i}")
        for i in range(count)
    ]
    assert (
        refused(build([*make, *sums, *adds], values, result=f"t{count - 1}"), "too-much-memory").field
        == "v11"
    )
    interleaved = [n for three in zip(make, sums, adds, strict=True) for n in three]
    read_model(build(interleaved, values, result=f"t{count - 1}"))


def test_many_nodes_that_nobody_uses(build, execute):
    """A value that does not reach the result is never computed, whatever its size."""
    model = read_model(
        build([node("zeros.default", {"size": [1 << 50]}, "z"), RELU], {"z": ((1 << 50,),)} | SHAPED)
    )
    assert execute(model, torch.ones(1, 4))[0].shape == (1, 4)


TOO_LONG = [
    ("unbind.int", {"self": "z", "dim": 0}),
    ("unbind.int", {"self": "t", "dim": -1}),
    ("chunk.default", {"self": "z", "chunks": 1 << 30, "dim": 0}),
    ("split.Tensor", {"self": "z", "split_size": 1, "dim": 0}),
    ("tensor_split.sections", {"self": "z", "sections": 1 << 30, "dim": 0}),
]


@pytest.mark.parametrize(("target", "arguments"), TOO_LONG)
def test_lists_too_long(build, refused, target, arguments):
    nodes = [
        node("zeros.default", {"size": [1 << 28, 4]}, "z"),
        node("t.default", {"self": "z"}, "t"),
        node(target, arguments, "pieces", {"as_tensors": [{"name": "a"}]}),
        node("mul.Tensor", {"self": "x", "other": "a"}, "y"),
    ]
    values = {"z": ((1 << 28, 4),), "t": ((4, 1 << 28),), "a": ((4,),)} | SHAPED
    assert refused(build(nodes, values), "too-many-steps").field == "pieces"


def test_too_many_time_steps(build, refused):
    steps = 1 << 24
    nodes = [
        node("zeros.default", {"size": [steps, 1, 4]}, "z"),
        node("zeros.default", {"size": [1, 1, 4]}, "h"),
        node(
            "rnn_tanh.input",
            {"input": "z", "hx": "h", "params": ["w", "w"], "has_biases": False, "num_layers": 1,
             "dropout": 0.0, "train": False, "bidirectional": False, "batch_first": False},
            "rnn", tensor("o"), tensor("last"),
        ),
        node("sum.default", {"self": "o"}, "s"),
        node("add.Tensor", {"self": "x", "other": "s"}, "y"),
    ]  # fmt: skip
    values = {
        "z": ((steps, 1, 4),),
        "h": ((1, 1, 4),),
        "o": ((steps, 1, 4),),
        "last": ((1, 1, 4),),
        "s": ((),),
    }
    assert refused(build(nodes, values | SHAPED), "too-many-steps").field == "rnn"


def test_intermediate_values_too_large(build, refused):
    """Operands and result are small, what lies between them is not."""
    text = {"as_string": "ai,bi,ci,di->i"}
    wide = [node("repeat.default", {"self": "w", "repeats": [1 << 10, 1]}, f"v{i}") for i in range(4)]
    values = (
        {f"v{i}": ((1 << 12, 4),) for i in range(4)}
        | {"e": ((4,),), "m": ((1 << 14, 4, 4),), "s": ((),)}
        | SHAPED
    )
    values |= {"n": ((1 << 14, 4, 1 << 15),), "l": ((1 << 14, 1 << 15, 4),)}
    add = node("add.Tensor", {"self": "x", "other": "e"}, "y")
    # labels that nobody needs later are summed first: no large value
    read_model(
        build(
            [*wide, node("einsum.default", {"equation": text, "tensors": list(values)[:4]}, "e"), add], values
        )
    )
    text = {"as_string": "ai,bi,ab->i"}
    pair = [node("zeros.default", {"size": [1 << 17, 4]}, f"v{i}") for i in range(2)]
    values |= {"v0": ((1 << 17, 4),), "v1": ((1 << 17, 4),), "q": ((1, 1),), "p": ((1 << 17, 1 << 17),)}
    pair += [
        node("zeros.default", {"size": [1, 1]}, "q"),
        node("expand.default", {"self": "q", "size": [1 << 15, 1 << 15]}, "p"),
        node("einsum.default", {"equation": text, "tensors": ["v0", "v1", "p"]}, "e"),
        add,
    ]
    error = refused(build(pair, values), "value-too-large", Limits(max_value_bytes=GIB))
    assert error.field == "p"


def test_products_that_copy_an_operand(build, refused):
    """A small matrix multiplied with a batch of rows is copied for every row."""
    nodes = [
        node("zeros.default", {"size": [1 << 16, 1, 256]}, "rows"),
        node("zeros.default", {"size": [1, 256, 256]}, "square"),
        node("matmul.default", {"self": "rows", "other": "square"}, "product"),
        node("sum.default", {"self": "product"}, "s"),
        node("add.Tensor", {"self": "x", "other": "s"}, "y"),
    ]
    values = {
        "rows": ((1 << 16, 1, 256),),
        "square": ((1, 256, 256),),
        "product": ((1 << 16, 1, 256),),
        "s": ((),),
    }
    assert refused(build(nodes, values | SHAPED), "too-much-memory").field == "product"


ONES = node("ones.default", {"size": [1000, 4]}, "v")
UNCHECKED = [
    # what a kernel takes for granted: it would read beyond a tensor, or divide where the processor cannot
    [
        node("ones.default", {"size": [1]}, "g"),
        node("_weight_norm.default", {"v": "v", "g": "g", "dim": 0}, "r"),
    ],
    [
        node("ones.default", {"size": [4, 4]}, "g"),
        node("scaled_dot_product_attention.default", {"query": "v", "key": "v", "value": "g"}, "r"),
    ],
    *(
        [
            node(
                "full_like.default", {"self": "v", "fill_value": -1, "dtype": {"as_scalar_type": LONG}}, "g"
            ),
            node(target, {"self": "g", "other": other, "rounding_mode": {"as_string": "trunc"}}, "r"),
        ]
        for target, other in (("div.Scalar_mode", -1), ("div.Tensor_mode", "g"))
    ),
]


@pytest.mark.parametrize("nodes", UNCHECKED)
def test_what_kernels_do_not_check(build, refused, nodes):
    nodes = [
        ONES,
        *nodes,
        node("sum.default", {"self": "r"}, "s"),
        node("add.Tensor", {"self": "x", "other": "s"}, "y"),
    ]
    values = {"v": ((1000, 4),), "g": ((1000, 4), LONG), "r": ((1000, 4),), "s": ((),)} | SHAPED
    for small in ((1,), (4, 4)):
        if {"as_ints": list(small)} in [i["arg"] for i in nodes[1]["inputs"]]:
            values["g"] = (small,)
    assert refused(build(nodes, values), "invalid-arguments").field == "r"


def powers(steps):
    first = [node("sym_size.int", {"self": "x", "dim": 0}, "n0", sym("n0"))]
    return first + [
        node("_operator.mul", {"a": f"#n{i}", "b": f"#n{i}"}, f"n{i + 1}", sym(f"n{i + 1}"))
        for i in range(steps)
    ]


def test_numbers_that_square(build, refused):
    nodes = [*powers(12), node("mul.Scalar", {"self": "x", "other": "#n12"}, "y")]
    assert refused(build(nodes, SHAPED), "value-too-large").field == "n6"


@pytest.mark.parametrize("exponent", ["#n0", 9, -1, True, 2.0])
def test_powers(build, refused, exponent):
    nodes = [*powers(0), node("_operator.pow", {"a": "#n0", "b": exponent}, "p", sym("p"))]
    file = build([*nodes, node("mul.Scalar", {"self": "x", "other": "#p"}, "y")], SHAPED)
    assert refused(file, "invalid-arguments").field == "p"
