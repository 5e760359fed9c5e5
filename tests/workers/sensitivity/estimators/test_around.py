"""Changes around a plan against derivatives of the quantized model by `torch.func`."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workers.contracts import Candidate, Metric, Scheme
from workers.errors import RequestRefused
from workers.sensitivity.estimators.around import probe_around
from workers.sensitivity.estimators.changes import round_to_nearest
from workers.sensitivity.estimators.cotangents import random_signs
from workers.sensitivity.estimators.probe import ProbeOptions


def sibling(name):
    spec = importlib.util.spec_from_file_location(f"estimators_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models = sibling("models")
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
        signs = random_signs(seed, number, [sample], logits.numel()).double().reshape(logits.shape)
        total = 0.0
        for z, d, s in zip(logits, moved, signs, strict=True):
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


def test_quantized_activations_are_refused(make_setup):
    case = make_setup(*models.build("linear"))
    name, candidate = case.wanted[0]
    wide = replace(candidate, activation_bits=8)
    for choices, wanted in (({name: wide}, case.wanted), ({}, [(name, wide)])):
        with pytest.raises(RequestRefused, match="for weights only") as caught:
            probe_around(case.setup, choices, wanted, ProbeOptions())
        assert caught.value.field == "around"
