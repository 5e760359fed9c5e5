import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from workers.errors import MeasurementFailed, ModelRefused
from workers.graph.program import NO_OVERRIDE, Program
from workers.graph.residency import resident_bytes
from workers.graph.units import find_units


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("offset", torch.arange(8.0))

    def forward(self, x):
        first = self.a(x).relu()
        parts = torch.split(first, [3, 5], -1)
        values, indices = torch.cat(parts[::-1], -1).max(-1, keepdim=True)
        size = x.shape[0]
        return self.b(first) + values / size + (self.offset * 2).exp(), indices


X = torch.randn(5, 8)


class Halved(Chain):
    """What `Chain` gives when its second layer alone sees half of its input."""

    def forward(self, x):
        first = self.a(x).relu()
        parts = torch.split(first, [3, 5], -1)
        values, indices = torch.cat(parts[::-1], -1).max(-1, keepdim=True)
        return self.b(first / 2) + values / x.shape[0] + (self.offset * 2).exp(), indices


def test_an_operand_is_changed_for_one_step_only(graph_of):
    module = Chain()
    model = graph_of(module, (X,))
    program = Program(model)
    (use,) = find_units(model).unit("b.weight").uses
    override = program.override({}, {use.step: {use.inputs[0]: lambda value: value / 2}})
    assert override.first_step == use.step
    halved = Halved()
    halved.load_state_dict(module.state_dict())
    with torch.no_grad():
        expected = halved(X)
    for cut in range(use.step + 1):
        environment = program.environment([X])
        program.advance(environment, 0, cut)
        program.advance(environment, cut, len(program), override)
        torch.testing.assert_close(program.outputs(environment, override)[0], expected[0])
    weight = program.constant(find_units(model).unit("a.weight").node)
    both = program.override({find_units(model).unit("a.weight").node: weight * 0}, override.operands)
    assert both.first_step == find_units(model).unit("a.weight").first_step


def test_a_failing_operand_names_its_step(graph_of):
    model = graph_of(Chain(), (X,))
    program = Program(model)
    (use,) = find_units(model).unit("b.weight").uses

    def fail(value):
        raise RuntimeError("no such value")

    with pytest.raises(MeasurementFailed, match=r"operator linear .* failed: no such value"):
        program.run([X], program.override({}, {use.step: {use.inputs[0]: fail}}))


def test_runs_in_parts_are_the_run(graph_of):
    module = Chain()
    program = Program(graph_of(module, (X,)))
    with torch.no_grad():
        expected = module(X[:3])
    for cut in range(len(program) + 1):
        environment = program.environment([X[:3]])
        program.advance(environment, 0, cut)
        fork = dict(environment)
        program.advance(fork, cut, len(program))
        program.advance(environment, cut, len(program))
        for values in (environment, fork):
            got = program.outputs(values)
            torch.testing.assert_close(got[0], expected[0])
            assert torch.equal(got[1], expected[1])


def test_constants_are_computed_once(graph_of):
    program = Program(graph_of(Chain(), (X,)))
    names = {step.node.name for step in program._steps}
    assert "exp" not in names
    assert not any(name.startswith("mul") for name in names)


def test_values_are_dropped_after_their_last_use(graph_of):
    """Of a deep chain no more than two values are alive at a time."""
    program = Program(graph_of(nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)]), (X,)))
    environment = program.environment([X])
    alive = []
    for step in range(len(program)):
        program.advance(environment, step, step + 1)
        (value,) = environment.values()
        alive.append(weakref.ref(value))
        del value
    gc.collect()
    assert [ref() is not None for ref in alive] == [False] * 5 + [True]
    assert resident_bytes(environment) == 5 * 8 * 4


def test_shared_memory_counts_once_and_inputs_do_not(graph_of):
    class Views(nn.Module):
        def forward(self, x):
            y = x + 1
            return y[:, :4].transpose(0, 1).exp() + y[:, 4:].transpose(0, 1).exp() + x[:, :4].t()

    program = Program(graph_of(Views(), (X,)))
    environment = program.environment([X])
    before = next(i for i, step in enumerate(program._steps) if step.node.name.startswith("exp"))
    program.advance(environment, 0, before)
    assert resident_bytes(environment, free=[X]) == 5 * 8 * 4


def test_an_override_changes_what_it_should_and_nothing_else(graph_of):
    module = Chain()
    model = graph_of(module, (X,))
    program = Program(model)
    units = {unit.info.name: unit for unit in find_units(model).units}
    override = program.override(units["b.weight"].changes(torch.zeros(8, 8)))
    plain = program.run([X])[0]
    with torch.no_grad():
        assert torch.equal(program.constant(units["b.weight"].node), module.b.weight)
        changed = copy.deepcopy(module)
        changed.b.weight.zero_()
        torch.testing.assert_close(program.run([X], override)[0], changed(X)[0])
    assert torch.equal(program.run([X], NO_OVERRIDE)[0], plain)


def test_what_is_computed_from_an_override_follows(graph_of):
    class Follows(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8, bias=False)

        def forward(self, x):
            return self.a(x) + self.a.weight.abs().sum(1).sqrt()

    module = Follows()
    model = graph_of(module, (X,))
    program, (unit,) = Program(model), find_units(model).units
    override = program.override(unit.changes(torch.ones(8, 8)))
    with torch.no_grad():
        module.a.weight.fill_(1.0)
        torch.testing.assert_close(program.run([X], override)[0], module(X))


def test_no_gradients_are_recorded_and_casts_are_off(graph_of):
    program = Program(graph_of(nn.Linear(8, 4), (X,)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = program.run([X])[0]
    assert output.dtype is torch.float32
    assert not output.requires_grad


def test_a_failing_operator_is_named(graph_of):
    program = Program(graph_of(nn.Linear(8, 4), (X,)))
    with pytest.raises(MeasurementFailed, match=r"operator linear \(node 'linear'\)"):
        program.run([torch.randn(5, 9)])


def test_constants_that_cannot_be_computed_are_refused(graph_of):
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            return x @ (self.w @ self.w)

    model = graph_of(Bad(), (X,))
    model.tensors[next(iter(model.parameters))] = torch.randn(8, 9)
    with pytest.raises(ModelRefused, match="cannot be computed") as caught:
        Program(model)
    assert caught.value.extra["rule"] == "constant"


def test_views_of_images_in_another_layout(graph_of):
    """Kernels have their channels last; the exported view is only possible where they come first."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.mix = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=2)

        def forward(self, x):
            x = self.mix(self.patch(x))
            return x.view(x.shape[0], 128).softmax(-1) * self.mix.weight.view(8, 36).sum()

    module, images = Tokens(), torch.randn(5, 3, 8, 8)
    model = graph_of(module, (images,))
    program = Program(model)
    with torch.no_grad():
        torch.testing.assert_close(program.run([images])[0], module(images))
    unit = find_units(model).unit("mix.weight")
    assert not program.constant(unit.node).is_contiguous()
    override = program.override(unit.changes(torch.ones(8, 4, 3, 3)))
    module = copy.deepcopy(module)
    with torch.no_grad():
        module.mix.weight.fill_(1.0)
        torch.testing.assert_close(program.run([images], override)[0], module(images))


def test_operators_that_write_are_refused(graph_of):
    model = graph_of(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), (X,))
    (relu,) = [node for node in model.graph.nodes if node.target is torch.ops.aten.relu.default]
    relu.target = torch.ops.aten.relu_.default
    with pytest.raises(ModelRefused, match="writes to its input"):
        Program(model)
