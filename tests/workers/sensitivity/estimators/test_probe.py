"""Probe values against forward-mode derivatives by `torch.func`, and the Fisher matrix written out."""

import gc
import itertools
from collections import Counter

import pytest
import torch

from tests.workers.sensitivity.estimators import models
from workers.contracts import Metric
from workers.errors import MeasurementFailed, RequestRefused
from workers.sensitivity.estimators.changes import round_to_nearest
from workers.sensitivity.estimators.cotangents import random_signs
from workers.sensitivity.estimators.probe import ProbeOptions, probe
from workers.sensitivity.estimators.summary import summarize
from workers.sensitivity.exact import exact_costs
from workers.sensitivity.prefixes import Prefixes


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
    found = list(probe(case.setup, case.wanted, ProbeOptions(probes=2, seed=7, follow_bits=0)))
    for number, values in enumerate(found):
        expected = expected_values(case, 7, number)
        torch.testing.assert_close(
            values.weights, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
        )


def square_output_change(case, unit, change, sample):
    """``|R' J dW|^2 / (2 T)``, with the Fisher matrix itself."""
    logits, derivative = jacobian(case.module, case.inputs, sample, unit.info.name)
    moved = torch.einsum("tc...,...->tc", derivative, change)
    total = 0.0
    for z, d in zip(logits, moved, strict=True):
        p = torch.softmax(z, -1)
        total += float(d @ (torch.diag(p) - torch.outer(p, p)) @ d)
    return total / (2 * len(logits))


def test_the_mean_over_all_signs_is_the_gauss_newton_form(make_setup, monkeypatch):
    """Three classes, one position: eight patterns of signs, one per probe."""
    case = make_setup(*models.build("linear"))
    patterns = torch.tensor(list(itertools.product((-1, 1), repeat=3)), dtype=torch.int8)
    monkeypatch.setattr(
        "workers.sensitivity.estimators.probe.random_signs",
        lambda seed, number, samples, elements: patterns[number].expand(len(samples), elements),
    )
    values = [
        each.weights
        for each in probe(case.setup, case.wanted, ProbeOptions(probes=8, together=3, follow_bits=0))
    ]
    means = torch.stack(values).square().mean(0)
    for row, (name, _) in enumerate(case.wanted):
        unit = case.setup.table.unit(name)
        change = changes_of(case, unit)[row % len(case.candidates)]
        expected = [square_output_change(case, unit, change, n) for n in range(5)]
        assert means[row].tolist() == pytest.approx(expected, rel=1e-9)


def test_signs_are_fair_independent_and_their_own_for_seed_probe_and_sample():
    signs = torch.cat([random_signs(s, p, range(6), 4001) for s in (0, 1) for p in (0, 1)]).double()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    products = signs @ signs.T / signs.shape[1]
    assert float((products - torch.eye(len(signs))).abs().max()) < 5 / 4001**0.5
    assert float(signs.mean(1).abs().max()) < 5 / 4001**0.5


def test_regression_values_expect_the_normalised_squared_error(make_setup):
    case = make_setup(*models.build("tokens"), metric=Metric.MSE)
    reference = case.setup.reference
    (values,) = probe(case.setup, case.wanted, ProbeOptions(probes=1, seed=4, follow_bits=0))
    for row, (name, _) in enumerate(case.wanted):
        unit = case.setup.table.unit(name)
        change = changes_of(case, unit)[row % len(case.candidates)]
        for sample in range(5):
            logits, derivative = jacobian(case.module, case.inputs, sample, name)
            moved = torch.einsum("tc...,...->tc", derivative, change).flatten()
            signs = random_signs(4, 0, [sample], logits.numel())[0].double()
            expected = float(moved @ signs) / (moved.numel() * reference.variance) ** 0.5
            assert float(values.weights[row, sample]) == pytest.approx(expected, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 5}, {"fixed": 2}, {"fixed": 3}])
@pytest.mark.parametrize("name", ["tied", "sequence-first"])
def test_values_do_not_depend_on_batches_nor_on_fillers(make_setup, name, options):
    plain, split = make_setup(*models.build(name)), make_setup(*models.build(name), **options)
    (expected,) = probe(plain.setup, plain.wanted, ProbeOptions(probes=1))
    (found,) = probe(split.setup, split.wanted, ProbeOptions(probes=1))
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-9, atol=1e-14)


def test_values_do_not_depend_on_groups_memory_or_order(make_setup):
    case = make_setup(*models.build("tied"))
    expected = [each.weights for each in probe(case.setup, case.wanted, ProbeOptions(probes=3, together=3))]
    again = probe(case.setup, case.wanted[::-1], ProbeOptions(probes=3, together=2, changes_bytes=0))
    for one, other in zip(expected, again, strict=True):
        torch.testing.assert_close(one, other.weights.flip(0), rtol=1e-9, atol=1e-15)
    assert not torch.equal(expected[0], expected[1])


def test_positions_that_do_not_count_contribute_nothing(make_setup):
    case = make_setup(*models.build("tied"))
    counted = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]])
    options = ProbeOptions(
        probes=2, follow_bits=0, position_masks=lambda batch: counted[3 * batch : 3 * batch + 3]
    )
    found = list(probe(case.setup, case.wanted, options))
    for number, values in enumerate(found):
        expected = expected_values(case, 0, number, counted)
        torch.testing.assert_close(values.weights, expected, rtol=1e-9, atol=1e-12)
        assert values.counted.tolist() == [True, True, False, True, True]
    estimates = summarize(found).weights
    assert estimates.samples == 4
    squares = torch.stack([values.weights[:, values.counted] for values in found]).square()
    torch.testing.assert_close(estimates.mean, squares.mean((0, 2)))


def test_a_mask_of_another_shape_is_refused(make_setup):
    case = make_setup(*models.build("tied"))
    with pytest.raises(RequestRefused, match=r"mask of shape \(3, 9\)"):
        list(probe(case.setup, case.wanted, ProbeOptions(position_masks=lambda _: torch.ones(3, 9))))


def test_loss_has_no_estimate(make_setup):
    case = make_setup(*models.build("linear"), metric=Metric.LOSS, labels=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(RequestRefused, match="no estimate of the metric 'loss'"):
        list(probe(case.setup, case.wanted))


def test_input_changes_are_taken_through_the_units_own_uses(make_setup):
    """The shared layer has four uses; their inputs change together, each by itself, and the effects add up."""
    module, inputs = models.build("twice")
    case = make_setup(module, inputs)

    def rounded(unit, _node, x, seen):
        assert seen is x
        return torch.stack([(x * steps).round() / steps - x for steps in (2, 4)])

    (values,) = probe(case.setup, case.wanted, ProbeOptions(probes=1, activation_changes=rounded))
    for sample in range(5):
        a, b = (tensor[sample : sample + 1].clone() for tensor in inputs)

        def outputs(first, second, third, fourth, a=a, b=b):
            inner = torch.tanh(module.shared(b + first))
            x = torch.tanh(module.shared(a + second)) + module.shared(inner + third)
            y = (x + fourth) @ module.shared.weight
            return module.head(y)

        zeros = [torch.zeros_like(t, requires_grad=True) for t in (b, a, a, a)]
        logits = outputs(*zeros)
        signs = random_signs(0, 0, [sample], 3)[0].double()
        start = fisher_root(logits[0].detach()) @ signs / 2**0.5
        gradients = torch.autograd.grad(logits, zeros, start[None])
        with torch.no_grad():
            inner = torch.tanh(module.shared(b))
            x = torch.tanh(module.shared(a)) + module.shared(inner)
        for index, steps in enumerate((2, 4)):
            expected = sum(
                float((gradient * ((site * steps).round() / steps - site)).sum())
                for gradient, site in zip(gradients, (b, a, inner, x), strict=True)
            )
            assert float(values.activations["shared.weight"][index, sample]) == pytest.approx(
                expected, rel=1e-9
            )


def test_bfloat16_agrees_with_full_precision(make_setup):
    torch.manual_seed(1)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 64, 10),
    )
    case = make_setup(module, (torch.randn(24, 3, 8, 8),), batch_size=8)
    plain = summarize(probe(case.setup, case.wanted)).weights.mean
    half = summarize(probe(case.setup, case.wanted, ProbeOptions(dtype=torch.bfloat16))).weights.mean
    assert float((half / plain - 1).abs().max()) < 0.05


def test_estimates_follow_exact_costs(make_setup):
    torch.manual_seed(2)
    module = torch.nn.Sequential(
        *(layer for width in (0, 1, 2, 3) for layer in (torch.nn.Linear(16, 16), torch.nn.Tanh())),
        torch.nn.Linear(16, 8),
    )
    with torch.no_grad():  # units of very different importance
        for scale, layer in zip(
            (0.2, 1.0, 0.5, 2.0, 1.5), (m for m in module if hasattr(m, "weight")), strict=True
        ):
            layer.weight *= scale
    case = make_setup(module, (torch.randn(200, 16),), batch_size=50)
    estimates = summarize(probe(case.setup, case.wanted)).weights
    prefixes = Prefixes(case.setup.program, case.setup.batches, memory_bytes=1 << 24)
    exact = torch.stack([found.costs for found in exact_costs(case.setup, case.wanted, prefixes)]).mean(1)
    fine = slice(2, None, 3)  # 5 bits: errors small enough for a second-order form
    ratio = (estimates.mean / exact)[fine]
    assert float((ratio - 1).abs().max()) < 0.25
    assert bool((((estimates.mean - exact).abs() / estimates.sign_error)[fine] < 4).all())


def test_errors_of_the_mean_are_those_seen_over_seeds(make_setup):
    case = make_setup(*models.build("tokens"))
    runs = [
        summarize(probe(case.setup, case.wanted, ProbeOptions(probes=4, seed=s))).weights for s in range(60)
    ]
    seen = torch.stack([run.mean for run in runs]).std(0)
    said = torch.stack([run.sign_error.square() for run in runs]).mean(0).sqrt()
    last = [name == case.wanted[-1][0] for name, _ in case.wanted]
    inner = ~torch.tensor(last)
    assert float((said / seen - 1).abs()[inner].max()) < 0.35
    assert float(seen[~inner].max()) < 1e-12, "known exactly"


def test_one_sample_has_no_standard_error(make_setup):
    module, inputs = models.build("linear")
    case = make_setup(module, tuple(tensor[:1] for tensor in inputs), batch_size=1)
    estimates = summarize(probe(case.setup, case.wanted, ProbeOptions(probes=2))).weights
    assert estimates.measured(0).standard_error is None
    assert estimates.measured(0).samples == 1


class Mixing(torch.nn.Module):
    """Samples see each other: no axis is theirs alone."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)).cumsum(0))


def test_a_fixed_batch_that_mixes_samples_is_refused(make_setup):
    case = make_setup(Mixing(), (torch.randn(4, 4),), fixed=2)
    with pytest.raises(MeasurementFailed, match="mixes the samples"):
        list(probe(case.setup, case.wanted))


def test_a_batch_of_any_size_that_mixes_samples_is_fed_one_by_one(make_setup):
    torch.manual_seed(0)
    module, inputs = Mixing().double(), (torch.randn(5, 4, dtype=torch.double),)
    case = make_setup(module, inputs)
    (values,) = probe(case.setup, case.wanted, ProbeOptions(probes=1, follow_bits=0))
    expected = expected_values(case, 0, 0)
    torch.testing.assert_close(values.weights, expected, rtol=1e-9, atol=1e-12)


def test_gradients_are_freed_on_the_way(make_setup):
    """Twenty layers of 512 x 512: what is alive at a visit does not grow with their number."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(512, 512) for _ in range(20)]
    case = make_setup(torch.nn.Sequential(*layers), (torch.randn(4, 512),), batch_size=4)
    alive = []

    def quantize(unit, weight, candidate):
        held = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if type(t) is torch.Tensor
        }
        alive.append(sum(held.values()))
        return (weight * 8).round() / 8

    options = ProbeOptions(probes=1, quantize=quantize)
    list(probe(case.setup, [(unit.info.name, case.candidates[0]) for unit in case.units], options))
    assert len(alive) == 20
    assert max(alive) - min(alive) < 3 * 512 * 512 * 4


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({"batch_size": 3}, 1),
        ({"batch_size": 5, "together": 1}, 1),
        ({"batch_size": 3, "changes_bytes": 0}, 2),
    ],
)
def test_changes_are_made_once_where_they_are_walked_over_again(make_setup, changes, made):
    case = make_setup(*models.build("linear"), batch_size=changes.pop("batch_size"))
    asked = Counter()

    def quantize(unit, weight, candidate):
        asked[unit.info.name, candidate] += 1
        return (weight * 8).round() / 8

    list(probe(case.setup, case.wanted, ProbeOptions(**{"probes": 2, "quantize": quantize} | changes)))
    assert set(asked) == set(case.wanted)
    assert set(asked.values()) == {made}


def test_progress_reaches_its_end_step_by_step(make_setup):
    case = make_setup(*models.build("linear"))
    told = []
    options = ProbeOptions(probes=3, together=2, progress=lambda done, total: told.append((done, total)))
    list(probe(case.setup, case.wanted, options))
    done = [samples for samples, _ in told]
    assert {total for _, total in told} == {15}
    assert done == sorted(done), "never back"
    assert done[-1] == 15
    assert len({round(samples, 6) for samples in done}) == 4 * len(case.units), "after each unit of each walk"


@pytest.mark.parametrize("field", ["probes", "together"])
def test_less_than_one_probe_is_refused(field):
    with pytest.raises(RequestRefused, match=f"{field} is 0"):
        ProbeOptions(**{field: 0})


@pytest.mark.parametrize("name", models.CASES)
def test_both_routes_give_the_same_values(make_setup, monkeypatch, name):
    case = make_setup(*models.build(name))
    found = []
    for gradients in (True, False):
        monkeypatch.setattr(
            "workers.sensitivity.estimators.contraction._gradients_are_cheaper",
            lambda *_, answer=gradients: answer,
        )
        monkeypatch.setattr(
            "workers.sensitivity.estimators.gradients._BLOCK_ELEMENTS", 16 if gradients else 1 << 21
        )
        found += [values.weights for values in probe(case.setup, case.wanted, ProbeOptions(probes=1))]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9 * float(found[0].abs().max()))
    assert float(found[0].abs().max()) > 0
