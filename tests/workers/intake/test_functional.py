"""Writes into values become new values; results stay bit for bit what the module computes."""

import pytest
import torch
from torch import nn

from workers.errors import ModelRefused
from workers.intake.operators import IN_PLACE
from workers.intake.pt2 import read_model


class Function(nn.Module):
    """A module around one function of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("buffer", torch.arange(4.0))

    def forward(self, x):
        return self.function(self, x)


def residual(_, x):
    y = x * 2
    y += x
    y.relu_()
    return y + y.clamp_(max=1.5)


def slices(_, x):
    z = torch.zeros(x.shape[0], 3, 4)
    z[:, 0] = x
    z[:, 1:] += x[:, None]
    z[:, :, 2].mul_(3.0)
    return z.transpose(1, 2).contiguous(), z


def earlier_view(_, x):
    y = x + 1
    view = y[:, 1:3]
    other = y.view(-1)
    y.mul_(2)
    return view + 1, other * 2, y


def write_through_two_views(_, x):
    y = x + 1
    first = y.unsqueeze(1).transpose(1, 2)
    second = y.view(-1, 2, 2).permute(0, 2, 1)
    first.add_(1)
    second[:, 0] = 7.0
    return y * 1, first * 2, second * 3


def result_of_a_write(_, x):
    y = x.clone()
    z = y.add_(1)
    z.mul_(2)
    return y + z


def type_is_kept(_, x):
    y = x.half()
    y += x.double()
    codes = torch.arange(4)
    codes[1:] = 9
    flags = x.clone()
    flags.gt_(0)
    return y, codes * x, flags


def chunks_used_up(_, x):
    left, right = (x * 2).chunk(2, 1)
    return left.sigmoid_() if right is None else torch.tanh_(left)


def masked(_, x):
    y = x.clone()
    y.masked_fill_(y > 0, -1.0)
    y[..., 0].fill_(5)
    y.index_fill_(1, torch.tensor([2]), 3.0)
    return y.zero_() + 1, y


def dropout_in_place(_, x):
    return nn.functional.dropout(x * 2, 0.5, training=False, inplace=True).relu_()


def two_results(_, x):
    values, indices = x.max(1)
    values.add_(1)
    return values, indices


def input_itself(_, x):
    x.mul_(2)
    return x + 1


@pytest.mark.parametrize(
    "function",
    [
        residual, slices, earlier_view, write_through_two_views, result_of_a_write, type_is_kept, chunks_used_up,
        masked, dropout_in_place, two_results, input_itself,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_equals_the_module(export, execute, function):
    torch.manual_seed(0)
    module = Function(function)
    model = read_model(export(module, [torch.randn(3, 4)]))
    assert not any(node.target in IN_PLACE for node in model.graph.nodes)
    for samples in (1, 3, 5):
        x = torch.randn(samples, 4)
        given = x.clone()
        expected = module(x.clone())
        expected = expected if isinstance(expected, tuple) else (expected,)
        results = execute(model, given)
        for ours, theirs in zip(results, expected, strict=True):
            assert ours.dtype is theirs.dtype
            assert torch.equal(ours, theirs)
        assert torch.equal(given, x), "an input was changed"
        assert all(torch.equal(a, b) for a, b in zip(execute(model, given), results, strict=True))


def test_no_value_changes_after_it_was_computed(export):
    """The property the executor relies on, watched on the values themselves."""
    from torch.fx.node import map_arg

    model = read_model(export(Function(slices), [torch.randn(3, 4)]))
    values, copies = {}, {}
    for node in model.graph.nodes:
        if node.op == "placeholder":
            values[node] = model.tensors.get(node.name, torch.randn(3, 4))
        elif node.op == "call_function":
            args, kwargs = (map_arg(a, values.__getitem__) for a in (node.args, node.kwargs))
            values[node] = node.target(*args, **kwargs)
        if isinstance(values.get(node), torch.Tensor):
            copies[node] = values[node].clone()
    assert len(copies) > 10
    assert all(torch.equal(values[node], copy) for node, copy in copies.items())


def mutated_buffer(module, x):
    module.buffer.add_(1)
    return x + module.buffer


def maybe_view(_, x):
    y = x * 2
    z = y.reshape(-1, 2, 2)
    z.add_(1)
    return y + z.flatten(1)


def one_chunk_of_two(_, x):
    left, right = (x * 2).chunk(2, 1)
    left.add_(1)
    return left + right


@pytest.mark.parametrize(
    ("function", "rule"),
    [
        (mutated_buffer, "training-mode"),
        (maybe_view, "aliased-mutation"),
        (one_chunk_of_two, "aliased-mutation"),
    ],
    ids=lambda f: getattr(f, "__name__", f),
)
def test_refused(export, function, rule):
    with pytest.raises(ModelRefused) as caught:
        read_model(export(Function(function), [torch.randn(3, 4)]))
    assert caught.value.extra["rule"] == rule
    assert caught.value.field
