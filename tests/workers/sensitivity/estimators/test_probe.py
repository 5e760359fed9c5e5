"""Probe values against forward-mode derivatives by `torch.func`, and the Fisher matrix written out."""

import importlib.util
from pathlib import Path

import pytest
import torch

from workers.sensitivity.estimators.changes import round_to_nearest
from workers.sensitivity.estimators.cotangents import random_signs
from workers.sensitivity.estimators.probe import ProbeOptions, probe


def sibling(name):
    spec = importlib.util.spec_from_file_location(f"estimators_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models = sibling("models")


def jacobian(module, inputs, sample, name):
    """Outputs of one sample, ``[positions, classes]``, and their derivatives by a unit's weight."""
    plain = models.twin(module)
    values = {key: value.detach() for key, value in plain.named_parameters()}

    def outputs(weight):
        sample_inputs = tuple(tensor[sample : sample + 1] for tensor in inputs)
        found = torch.func.functional_call(plain, values | {name: weight}, sample_inputs)
        return found[0].reshape(-1, found.shape[-1])

    return outputs(values[name]), torch.func.jacrev(outputs)(values[name])


def fisher_root(logits):
    """``R`` with ``R R' = diag(p) - p p'``, as a matrix."""
    p = torch.softmax(logits, -1)
    return torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())


def changes_of(case, unit):
    weight = case.setup.program.constant(unit.node)
    return torch.stack([round_to_nearest(unit, weight, candidate) - weight for candidate in case.candidates])


def expected_values(case, seed, probe_number, counted=None):
    """``s' R' J dW / sqrt(2 T)`` for every entry and sample; positions that do not count left out."""
    rows = []
    for unit in case.units:
        changes = changes_of(case, unit)
        columns = []
        for sample in range(len(case.inputs[0])):
            logits, derivative = jacobian(case.module, case.inputs, sample, unit.info.name)
            moved = torch.einsum("tc...,k...->ktc", derivative, changes)
            signs = random_signs(seed, probe_number, [sample], logits.numel()).double().reshape(logits.shape)
            kept = [t for t in range(len(logits)) if counted is None or counted[sample][t]]
            values = sum(moved[:, t] @ fisher_root(logits[t]) @ signs[t] for t in kept)
            columns.append(values / (2 * max(1, len(kept))) ** 0.5 + torch.zeros(len(changes)))
        rows.append(torch.stack(columns, 1))
    return torch.cat(rows).detach()


@pytest.mark.parametrize("name", models.CASES)
@pytest.mark.parametrize("fixed", [None, 2])
def test_values_are_the_products_of_the_fisher_root_with_the_linearised_change(make_setup, name, fixed):
    case = make_setup(*models.build(name), fixed=fixed)
    found = list(probe(case.setup, case.wanted, ProbeOptions(probes=2, seed=7)))
    for number, values in enumerate(found):
        expected = expected_values(case, 7, number)
        torch.testing.assert_close(
            values.weights, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
        )
