"""Changes around a plan against derivatives of the quantized model by `torch.func`."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.workers.sensitivity.estimators import models
from workers.contracts import Candidate, Metric, Scheme
from workers.errors import RequestRefused
from workers.graph.program import NO_OVERRIDE
from workers.sensitivity.activations import observe
from workers.sensitivity.estimators.around import probe_around
from workers.sensitivity.estimators.changes import round_to_nearest
from workers.sensitivity.estimators.cotangents import random_signs
from workers.sensitivity.estimators.probe import ProbeOptions
from workers.sensitivity.exact import quantized

NAMES = ["convolutions", "transposed", "tied", "tokens", "sequence-first"]


def plan_of(case):
    """Another candidate for each unit in turn; the last unit stays in float where there are several."""
    names = [unit.info.name for unit in case.units]
    kept = names[:-1] or names
    return {name: case.candidates[i % len(case.candidates)] for i, name in enumerate(kept)}


class Explicit:
    """The quantized model as a function of its weights, in PyTorch itself."""

    def __init__(self, case, choices):
        self.case = case
        self.module = models.twin(case.module)
        floats = {key: value.detach().clone() for key, value in self.module.named_parameters()}
        self.floats = floats
        self.weights = dict(floats)
        for name, candidate in choices.items():
            self.weights[name] = self.quantized(name, candidate)

    def quantized(self, name, candidate):
        unit = self.case.setup.table.unit(name)
        return round_to_nearest(unit, self.case.setup.program.constant(unit.node), candidate).contiguous()

    def outputs(self, weights, sample):
        inputs = tuple(tensor[sample : sample + 1] for tensor in self.case.inputs)
        found = torch.func.functional_call(self.module, weights, inputs)
        return found[0].reshape(-1, found.shape[-1])

    def cost(self, weights, sample, counted):
        floats, found = self.outputs(self.floats, sample), self.outputs(weights, sample)
        kept = [t for t in range(len(floats)) if counted is None or counted[sample][t]]
        if self.case.setup.reference.metric is Metric.MSE:
            variance = self.case.setup.reference.variance
            return (found - floats)[kept].square().mean() / variance
        p = torch.softmax(floats, -1)
        each = (p * (torch.log_softmax(floats, -1) - torch.log_softmax(found, -1))).sum(-1)
        return each[kept].sum() / max(1, len(kept))

    def first_order(self, name, change, sample, counted=None):
        def cost(weight):
            return self.cost(self.weights | {name: weight}, sample, counted)

        return float((torch.func.grad(cost)(self.weights[name]) * change).sum())

    def second_order(self, name, change, sample, seed, number):
        """``s' R' J dW / sqrt(2 T)`` at the quantized weights."""

        def outputs(weight):
            return self.outputs(self.weights | {name: weight}, sample)

        logits = outputs(self.weights[name])
        moved = torch.einsum("tc...,...->tc", torch.func.jacrev(outputs)(self.weights[name]), change)
        return probed(logits, moved, random_signs(seed, number, [sample], logits.numel()))


def probed(logits, moved, signs):
    """``s' R' moved / sqrt(2 T)``, with R R' the Fisher information of the softmax at each of T positions."""
    total = 0.0
    for z, d, s in zip(logits, moved, signs.double().reshape(logits.shape), strict=True):
        p = torch.softmax(z, -1)
        total += float(d @ (torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())) @ s)
    return total / (2 * len(logits)) ** 0.5


def expected_rows(case, explicit, value):
    rows = []
    for name, candidate in case.wanted:
        change = explicit.quantized(name, candidate) - explicit.weights[name]
        rows.append([value(name, change, sample) for sample in range(len(case.inputs[0]))])
    return torch.tensor(rows, dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("metric", [Metric.KL, Metric.MSE])
def test_the_first_order_part_is_the_gradient_of_the_joint_cost_times_the_change(make_setup, name, metric):
    case = make_setup(*models.build(name), metric=metric)
    choices = plan_of(case)
    found = probe_around(case.setup, choices, case.wanted, ProbeOptions(probes=1))
    close(found.gradients, expected_rows(case, Explicit(case, choices), Explicit(case, choices).first_order))
    own = [row for row, (unit, candidate) in enumerate(case.wanted) if choices.get(unit) == candidate]
    assert own
    assert not found.gradients[own].any()
    assert not found.values[:, own].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_second_order_part_is_taken_at_the_quantized_model(make_setup, name):
    case = make_setup(*models.build(name))
    choices = plan_of(case)
    explicit = Explicit(case, choices)
    found = probe_around(case.setup, choices, case.wanted, ProbeOptions(probes=2, together=2, seed=3))
    for number, values in enumerate(found.values):
        close(
            values,
            expected_rows(case, explicit, lambda n, c, s, i=number: explicit.second_order(n, c, s, 3, i)),
        )


def test_both_parts_together_foretell_small_changes_of_the_joint_cost(make_setup):
    """Eight bits where there were six, one unit after the other: third order is far away."""
    case = make_setup(*models.build("convolutions"))
    scheme = Scheme.parse("channel-asymmetric")
    choices = {unit.info.name: Candidate(bits=6, scheme=scheme) for unit in case.units}
    wanted = [(unit.info.name, Candidate(bits=8, scheme=scheme)) for unit in case.units]
    found = probe_around(case.setup, choices, wanted, ProbeOptions(probes=64, together=8))
    explicit = Explicit(case, choices)
    foretold = found.gradients.mean(1) + found.values.square().mean((0, 2))
    for row, (name, candidate) in enumerate(wanted):
        changed = explicit.weights | {name: explicit.quantized(name, candidate)}
        exact = [
            float(explicit.cost(changed, s, None) - explicit.cost(explicit.weights, s, None))
            for s in range(len(case.inputs[0]))
        ]
        size = float(found.gradients[row].abs().mean() + found.values[:, row].square().mean())
        assert float(foretold[row]) == pytest.approx(sum(exact) / len(exact), abs=0.1 * size)


def test_positions_that_do_not_count_have_no_part_in_it(make_setup):
    case = make_setup(*models.build("tied"))
    choices = plan_of(case)
    counted = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]])
    options = ProbeOptions(probes=1, position_masks=lambda batch: counted[3 * batch : 3 * batch + 3])
    found = probe_around(case.setup, choices, case.wanted, options)
    explicit = Explicit(case, choices)
    close(
        found.gradients, expected_rows(case, explicit, lambda n, c, s: explicit.first_order(n, c, s, counted))
    )
    assert not found.gradients[:, 2].any()


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"fixed": 3}])
def test_batches_fillers_and_what_was_kept_of_the_float_model_do_not_matter(make_setup, options):
    plain, split = make_setup(*models.build("tied")), make_setup(*models.build("tied"), **options)
    choices = plan_of(plain)
    forgotten = replace(split.setup.reference, outputs=(None,) * len(split.setup.reference.outputs))
    expected = probe_around(plain.setup, choices, plain.wanted, ProbeOptions(probes=1))
    found = probe_around(
        replace(split.setup, reference=forgotten),
        choices,
        split.wanted,
        ProbeOptions(probes=1, changes_bytes=0),
    )
    close(found.gradients, expected.gradients)
    close(found.values, expected.values)


def test_around_the_float_model_there_is_no_first_order_part(make_setup):
    case = make_setup(*models.build("linear"))
    found = probe_around(case.setup, {}, case.wanted, ProbeOptions(probes=1))
    assert float(found.gradients.abs().max()) < 1e-12
    assert bool(found.values.any())


ACTIVATION_WIDTHS = (None, 4, 7)


def paired(case):
    """The case with observed inputs, and every candidate with every width of the inputs."""
    ranges = observe(case.setup.program, case.setup.table, case.setup.batches)
    wanted = [
        (name, replace(candidate, activation_bits=bits))
        for name, candidate in case.wanted
        for bits in ACTIVATION_WIDTHS
    ]
    return replace(case, setup=replace(case.setup, activations=ranges)), wanted


class ExplicitPairs(Explicit):
    """The same with quantized inputs: hooks before the modules, derivatives straight through, an offset to differentiate by."""

    def __init__(self, case, choices):
        super().__init__(case, {name: replace(c, activation_bits=None) for name, c in choices.items()})
        self.base = {name: candidate.activation_bits for name, candidate in choices.items()}
        self.offsets, self.raw, self.looking = {}, {}, False
        nodes = {unit.info.name: use.inputs[0].name for unit in case.units for use in unit.uses if use.inputs}
        for name, node in nodes.items():
            # The tied weight is read twice; an embedding has no input to quantize.
            reader = self.module.get_submodule(
                "head" if name == "embed.weight" else name.removesuffix(".weight")
            )
            reader.register_forward_pre_hook(lambda _, given, n=name, at=node: (self.seen(n, at, given[0]),))
        self.nodes = nodes

    def rounded(self, node, bits, values):
        """By the formula, from the ends of the represented range."""
        if bits is None:
            return values
        quantizer = self.case.setup.activations.quantizer(node, bits)
        low, high = min(quantizer.range_min, 0.0), max(quantizer.range_max, 0.0)
        scale = (high - low) / (2**bits - 1)
        zero = round(-low / scale)
        codes = torch.clamp(torch.round(values / scale) + zero, 0, 2**bits - 1)
        self.ends = scale * (0 - zero), scale * (2**bits - 1 - zero)
        return (codes - zero) * scale

    def seen(self, name, node, values):
        if not self.quantizing:
            return values
        if self.looking:
            self.raw[name] = values
        bits = self.base.get(name)
        if bits is not None:
            found = self.rounded(node, bits, values.detach())
            through = values * ((values >= self.ends[0]) & (values <= self.ends[1]))
            values = through + (found - through).detach()
        return values + self.offsets.get(name, 0.0)

    def outputs(self, weights, sample):
        self.quantizing = weights is not self.floats
        return super().outputs(weights, sample)

    def input_change(self, name, bits, sample):
        """What a width of the inputs makes of what the unit sees, per sample; ``None`` where it has no inputs."""
        if name not in self.nodes:
            return None
        self.looking = True
        with torch.no_grad():
            self.outputs(self.weights, sample)
        self.looking = False
        raw, node = self.raw[name], self.nodes[name]
        return self.rounded(node, bits, raw) - self.rounded(node, self.base.get(name), raw)

    def at(self, name, function, sample):
        """A function of the unit's weight and of an offset to its input, both to be differentiated by."""

        def run(weight, offset):
            self.offsets = {name: offset}
            try:
                return function(self.weights | {name: weight}, sample)
            finally:
                self.offsets = {}

        return run

    def both(self, name, candidate, sample, derivative):
        """Sum of what the weight's change and the input's change do, given how derivatives are taken."""
        found = derivative(
            0, self.quantized(name, replace(candidate, activation_bits=None)) - self.weights[name]
        )
        change = self.input_change(name, candidate.activation_bits, sample)
        return found if change is None else found + derivative(1, change)

    def gradient(self, name, candidate, sample):
        def derivative(argument, change):
            offset = torch.zeros_like(change) if argument else torch.zeros((), dtype=torch.double)
            run = self.at(name, lambda weights, s: self.cost(weights, s, None), sample)
            return float((torch.func.grad(run, argument)(self.weights[name], offset) * change).sum())

        return self.both(name, candidate, sample, derivative)

    def curvature(self, name, candidate, sample, seed, number):
        def derivative(argument, change):
            offset = torch.zeros_like(change) if argument else torch.zeros((), dtype=torch.double)
            run = self.at(name, self.outputs, sample)
            logits = run(self.weights[name], offset)
            jacobian = torch.func.jacrev(run, argument)(self.weights[name], offset)
            moved = torch.einsum("tc...,...->tc", jacobian, change)
            return probed(logits, moved, random_signs(seed, number, [sample], logits.numel()))

        return self.both(name, candidate, sample, derivative)


@pytest.mark.parametrize("name", ["linear", "convolutions", "transposed", "tied"])
@pytest.mark.parametrize("metric", [Metric.KL, Metric.MSE])
def test_widths_of_inputs_change_what_units_see_of_them(make_setup, name, metric):
    """Both orders, at plans that quantize some of the inputs and leave others in float."""
    module, inputs = models.build(name)
    case, wanted = paired(make_setup(copy.deepcopy(module), inputs, metric=metric))
    choices = {
        unit.info.name: replace(case.candidates[i % 3], activation_bits=(4, None, 7)[i % 3])
        for i, unit in enumerate(case.units)
    }
    explicit = ExplicitPairs(case, choices)
    found = probe_around(case.setup, choices, wanted, ProbeOptions(probes=1, seed=3))
    samples = range(len(inputs[0]))
    expected = [[explicit.gradient(unit, c, s) for s in samples] for unit, c in wanted]
    close(found.gradients, torch.tensor(expected, dtype=torch.float64))
    own = [row for row, (unit, candidate) in enumerate(wanted) if choices[unit] == candidate]
    assert not found.gradients[own].any()
    assert not found.values[:, own].any()
    if metric is Metric.KL:
        expected = [[explicit.curvature(unit, c, s, 3, 0) for s in samples] for unit, c in wanted]
        close(found.values[0], torch.tensor(expected, dtype=torch.float64))


def test_both_parts_together_foretell_what_finer_inputs_change(make_setup):
    """Eight bits where a unit's input had five. Inputs after it stay in float: derivatives do not tell of their rounding."""
    module, inputs = models.build("convolutions")
    case, _ = paired(make_setup(module, inputs))
    program, table, batches = case.setup.program, case.setup.table, case.setup.batches
    float_inputs, narrow, wide = (
        Candidate(bits=6, scheme=Scheme.parse("channel-asymmetric"), activation_bits=bits)
        for bits in (None, 5, 8)
    )

    def log_probabilities(override=NO_OVERRIDE):
        found = [program.run(batches.inputs_of(b), override)[0] for b in range(len(batches))]
        return torch.log_softmax(torch.cat(found), -1)

    def cost(choices):
        floats = log_probabilities()
        changed = log_probabilities(quantized(program, table, list(choices.items()), case.setup.activations))
        return float((floats.exp() * (floats - changed)).sum(-1).mean())

    names = [unit.info.name for unit in case.units]
    for name in names:
        base = dict.fromkeys(names, float_inputs) | {name: narrow}
        found = probe_around(case.setup, base, [(name, wide)], ProbeOptions(probes=64, together=8))
        foretold = float(found.gradients.mean() + found.values.square().mean((0, 2)))
        size = float(found.gradients.abs().mean() + found.values.square().mean())
        assert foretold == pytest.approx(cost(base | {name: wide}) - cost(base), abs=0.1 * size)


def test_ranges_of_inputs_have_to_be_observed(make_setup):
    case = make_setup(*models.build("linear"))
    name, candidate = case.wanted[0]
    wide = replace(candidate, activation_bits=8)
    with pytest.raises(RequestRefused, match="no samples are named on which to observe their range"):
        probe_around(case.setup, {name: wide}, case.wanted, ProbeOptions())
