"""Prefix reuse on graphs of any shape: the plain pass's bits, within the bound, and no step that need not be run."""

import operator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.fx import Graph

from workers.contracts import InputInfo, Metric
from workers.graph.model import GraphModel
from workers.graph.program import Program
from workers.graph.reach import Reaches, run_part
from workers.graph.units import find_units
from workers.sensitivity.batches import Batches, Selection
from workers.sensitivity.exact import exact_costs
from workers.sensitivity.prefixes import Prefixes
from workers.sensitivity.session import prepare

aten = torch.ops.aten
WIDTH, SAMPLES = 4, 5


@st.composite
def models(draw):  # noqa: C901 - one branch for each kind of step
    """Layers (some of a shared weight), sums, products, splits and joins at random places; one or two inputs and outputs."""
    graph, tensors = Graph(), {}
    weights = [graph.placeholder(f"w{i}") for i in range(draw(st.integers(1, 5)))]
    made = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    for node in weights:
        node.meta = {"shape": (WIDTH, WIDTH), "dtype": torch.float32}
        tensors[node.name] = torch.randn(WIDTH, WIDTH, generator=made)
    inputs = [graph.placeholder(f"x{i}") for i in range(draw(st.integers(1, 2)))]
    rows = lambda symbols: symbols["s0"]  # noqa: E731 - a declared size

    def add(target, *args, width=WIDTH):
        node = graph.call_function(target, args)
        node.meta = {"shape": (rows, width), "dtype": torch.float32}
        return node

    for node in inputs:
        node.meta = {"shape": (rows, WIDTH), "dtype": torch.float32}
    values = list(inputs)
    pick = st.integers(0, 99).map(lambda number: values[-1 - number % min(4, len(values))])

    def layer(weight):
        values.append(add(aten.linear.default, draw(pick), weight))

    for weight in weights:  # every weight is used at least once
        layer(weight)
    for kind in draw(
        st.lists(st.sampled_from(["layer", "tanh", "sum", "product", "split", "join"]), max_size=12)
    ):
        if kind == "layer":
            layer(draw(st.sampled_from(weights)))
        elif kind == "tanh":
            values.append(add(aten.tanh.default, draw(pick)))
        elif kind in ("sum", "product"):
            target = aten.add.Tensor if kind == "sum" else aten.mul.Tensor
            values.append(add(target, draw(pick), draw(pick)))
        elif kind == "split":
            both = graph.call_function(aten.split.Tensor, (draw(pick), WIDTH // 2, 1))
            halves = [add(operator.getitem, both, part, width=WIDTH // 2) for part in range(2)]
            values.append(add(aten.cat.default, halves[::-1], 1))
        else:
            wide = add(aten.cat.default, [draw(pick), draw(pick)], 1, width=2 * WIDTH)
            values.append(add(aten.slice.Tensor, wide, 1, 1, 1 + WIDTH))
    outputs = [draw(st.sampled_from(values[len(inputs) :])) for _ in range(draw(st.integers(1, 2)))]
    graph.output(tuple(outputs))
    info = [InputInfo(name=node.name, dtype="float32", shape=(None, WIDTH)) for node in inputs]
    return GraphModel(
        graph=graph,
        tensors=tensors,
        qualified_names={name: name for name in tensors},
        parameters=frozenset(tensors),
        inputs=tuple(info),
        batch_size=None,
        symbols={"s0": (0, 0)},
    )


def batches_for(model, size):
    made = torch.Generator().manual_seed(7)
    inputs = [torch.randn(SAMPLES, WIDTH, generator=made) for _ in model.inputs]
    return Batches.of(inputs, None, Selection(samples=None, seed=0, batch_size=size), fixed_batch=None)


def overridden(program, unit):
    return program.override(unit.changes(program.constant(unit.node).round()))


quickly = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quickly
@given(models(), st.data())
def test_what_is_run_gives_the_bits_of_whole_passes(model, data):
    """In any order of the units, under any bound."""
    program = Program(model)
    batches = batches_for(model, data.draw(st.integers(1, SAMPLES), label="batch"))
    limit = data.draw(st.sampled_from([0, 100, 300, 1000, 1 << 20]), label="bound")
    prefixes = Prefixes(program, batches, memory_bytes=limit)
    units = find_units(model).units
    order = data.draw(st.permutations(units)) if data.draw(st.booleans()) else units
    for unit in order:
        reach = prefixes.reach(unit)
        prefixes.move_to(reach.cut, reach)
        assert prefixes.peak_bytes <= limit
        for batch in range(len(batches)):
            environment = prefixes.environment(batch)
            assert environment.keys() == reach.boundary
            for override in (overridden(program, unit), program.override({})):
                values = dict(environment)
                run_part(program, values, reach.affected, override)
                whole = program.run(batches.inputs_of(batch), override)
                assert torch.equal(program.outputs(values, override)[0], whole[0])


@quickly
@given(models())
def test_only_steps_between_the_weight_and_the_output_are_run(model):
    """Against paths that are followed one by one."""
    program = Program(model)
    reaches = Reaches(program)
    nodes = [step.node for step in program.steps]
    for unit in find_units(model).units:
        seeds = program.reading_steps([unit.node])
        users = [node for node in nodes if unit.node in node.all_input_nodes]
        behind, pending = set(users), list(users)
        while pending:
            for user in pending.pop().users:
                if user not in behind and user in nodes:
                    behind.add(user)
                    pending.append(user)
        layers = sum(node.target is aten.linear.default for node in behind)
        assert unit.info.reached_macs == layers * WIDTH * WIDTH
        before, pending = {program.first_output}, [program.first_output]
        while pending:
            for source in pending.pop().all_input_nodes:
                if source not in before:
                    before.add(source)
                    pending.append(source)
        reach = reaches.of(seeds)
        assert [nodes[index] for index in reach.affected.indices] == [
            node for node in nodes if node in behind and node in before
        ]
        ahead = [nodes[index] for index in reaches.ahead(reach, ()).indices]
        assert not behind.intersection(ahead)
        assert before.issuperset(ahead)


class Reread(torch.nn.Module):
    """What is computed ahead of the first layer is read by both what it reaches and what else is computed ahead."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

    def forward(self, a, b):
        first, second = self.first(a), self.second(b)
        return (first * second + second.tanh()).softmax(-1)


def test_values_ahead_are_kept_for_all_that_reads_them(make_case):
    case = make_case(Reread, samples=4)
    setup = prepare(case.request(metric=Metric.MSE, wanted=case.wanted(2), batch_size=4))
    unit = setup.table.units[0]
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=1 << 20)
    reach = prefixes.reach(unit)
    prefixes.move_to(reach.cut, reach)
    second, tanh = sorted(reach.ahead, key=lambda node: node.name)
    assert (second.name, tanh.name) == ("linear_1", "tanh")
    environment = prefixes.environment(0)
    assert environment.keys() == reach.boundary
    assert torch.equal(environment[second].tanh(), environment[tanh])


class Towers(torch.nn.Module):
    """Two inputs that meet at the end; in one tower parallel branches, in the other a skip."""

    def __init__(self):
        super().__init__()
        layers = [torch.nn.Linear(6, 6) for _ in range(8)]
        self.left, self.right = torch.nn.ModuleList(layers[:4]), torch.nn.ModuleList(layers[4:])

    def forward(self, a, b):
        for layer in self.left:
            a = layer(a).tanh()
        first, *branches, last = self.right
        b = first(b).tanh()
        b = b + sum(branch(b).relu() for branch in branches)
        return (a * last(b)).softmax(-1)


@pytest.mark.parametrize("memory_bytes", [1 << 20, 1500])
def test_branches_are_run_once_for_all_candidates(make_case, count_steps, memory_bytes):
    """What a unit does not reach is not run again for each of its candidates, whatever is kept."""
    case = make_case(Towers, samples=6)
    request = case.request(metric=Metric.MSE, wanted=case.wanted(2, 3, 4, 6), batch_size=3)
    setup = prepare(request)
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=memory_bytes)
    ran = count_steps()
    list(exact_costs(setup, request.wanted, prefixes))
    reaches = [prefixes.reach(setup.table.unit(name)) for name in case.units]
    reached = sum(4 * len(reach.affected) for reach in reaches)
    in_order = sum(4 * (len(setup.program) - reach.cut) for reach in reaches)
    assert reached < 0.6 * in_order
    floats = len(ran) - len(setup.batches) * reached
    once = sum(reach.cut + len(Reaches(setup.program).ahead(reach, ())) for reach in reaches)
    # Kept, no step is run more than twice: ahead of the cut, and when the cut gets there.
    most = 2 * len(setup.program) if memory_bytes == 1 << 20 else 2 * once
    assert 0 < floats <= len(setup.batches) * most
