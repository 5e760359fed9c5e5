"""What the last weights cost is known, and takes the place of its estimate."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.workers.sensitivity.estimators import models
from tests.workers.sensitivity.estimators.layers import Saturated, build, start, under
from workers.contracts import Metric
from workers.mixtures import WeightedOutput
from workers.sensitivity.estimators.probe import ProbeOptions, probe
from workers.sensitivity.estimators.starts import costs_of
from workers.sensitivity.estimators.totals import Totals
from workers.sensitivity.exact import exact_costs
from workers.sensitivity.mixture import MixedReference, Packing
from workers.sensitivity.prefixes import Prefixes


class WithProbabilities(nn.Module):
    """Logits, and what is made of them beside: nothing that is compared."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        logits = self.head(torch.tanh(self.inner(x)))
        return logits, logits.softmax(-1)


class HiddenFirst(nn.Module):
    """What is compared is read by further weights."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        hidden = torch.tanh(self.inner(x))
        return hidden, self.head(hidden)


LAST = {
    "tokens": (models.build("tokens"), "2.weight"),
    "convolutions": (models.build("convolutions"), None),
    "saturated": (build(Saturated, 4), "head.weight"),
    "with-probabilities": (build(WithProbabilities, 4), "head.weight"),
    "hidden-first": (build(HiddenFirst, 4), "inner.weight"),
}


@pytest.mark.parametrize("metric", [Metric.KL, Metric.MSE])
@pytest.mark.parametrize("fixed", [None, 2])
@pytest.mark.parametrize("kind", LAST)
def test_last_weights_cost_what_they_cost(make_setup, kind, fixed, metric):
    """Sample by sample, whatever the signs."""
    (module, inputs), last = LAST[kind]
    case = make_setup(module, inputs, metric=metric, fixed=fixed)
    last = last or case.units[-1].info.name
    wanted = [entry for entry in case.wanted if entry[0] == last]
    prefixes = Prefixes(case.setup.program, case.setup.batches, memory_bytes=1 << 24)
    exact = torch.stack([found.costs for found in exact_costs(case.setup, wanted, prefixes)])
    assert float(exact.min()) > 0
    for probes in (1, 3):
        found = [values.weights for values in probe(case.setup, wanted, ProbeOptions(probes=probes))]
        torch.testing.assert_close(torch.stack(found).square().mean(0), exact, rtol=1e-9, atol=1e-15)


def test_of_tied_weights_the_outputs_part_is_exact(make_setup):
    """The head's own cost takes the place of its estimate; what the embedding adds stays one."""
    module, inputs = models.build("tied")
    case = make_setup(module, inputs)
    name = "embed.weight"
    wanted = [entry for entry in case.wanted if entry[0] == name]
    assert wanted
    (linear,) = probe(case.setup, wanted, ProbeOptions(probes=1, follow_bits=0))
    options = ProbeOptions(probes=1)
    (values,) = probe(case.setup, wanted, options)
    words = inputs[0]
    for row, (_, candidate) in enumerate(wanted):
        if candidate.bits <= 3:
            continue  # its other use is followed too
        table = under(module, case, name, candidate)[name].detach()
        total, seen = 0.0, 0.0
        for sample in range(5):
            with torch.no_grad():
                x = module.embed(words[sample : sample + 1])
                h = x + torch.tanh(module.inner(x))
                logits, after = h @ module.head.weight.T, h @ table.T
                costs = functional.kl_div(
                    after.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="none"
                )
                by_head = float((start(logits, sample) * (after - logits)).sum())
            total += float(costs.sum(-1).mean()) - by_head**2
            seen += float(linear.weights[row, sample]) ** 2
        expected = linear.weights[row] * (1 + total / seen) ** 0.5
        torch.testing.assert_close(values.weights[row], expected, rtol=1e-8, atol=1e-14)


def test_positions_that_do_not_count_have_no_cost(make_setup):
    case = make_setup(*models.build("tokens"))
    counted = torch.ones(5, 7)
    counted[0, 3:] = 0
    counted[2] = 0
    masks = ProbeOptions(probes=1, position_masks=lambda batch: counted[3 * batch : 3 * batch + 3])
    last = [entry for entry in case.wanted if entry[0] == case.wanted[-1][0]]
    (values,) = probe(case.setup, last, masks)
    for row, (name, candidate) in enumerate(last):
        with torch.no_grad():
            logits = case.module(case.inputs[0])
            after = torch.func.functional_call(
                case.module, under(case.module, case, name, candidate), case.inputs
            )
            costs = functional.kl_div(
                after.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="none"
            ).sum(-1)
        expected = (costs * counted).sum(1) / counted.sum(1).clamp_min(1)
        assert float(values.weights[row].square().sum()) == pytest.approx(float(expected.sum()), rel=1e-9)


def test_costs_of_outputs_with_and_without_positions(make_setup):
    """Alone, and as two outputs laid side by side."""
    classes, tokens = make_setup(*models.build("linear")), make_setup(*models.build("tokens"))
    draw = torch.Generator().manual_seed(3)
    outputs = [torch.randn(5, *shape, generator=draw, dtype=torch.double) for shape in ((3,), (7, 3))]
    after = [output + 0.1 for output in outputs]
    for one in after:
        one[..., 0] += 0.5
    masks = [torch.tensor([[1], [0], [1], [1], [1]]), torch.ones(5, 7)]
    masks[1][1] = 0
    masks[1][0, 2:] = 0
    expected = []
    for output, changed, mask in zip(outputs, after, masks, strict=True):
        rows = functional.kl_div(
            changed.log_softmax(-1), output.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        rows = rows.reshape(5, -1)
        expected.append((rows * mask).sum(1) / mask.sum(1).clamp_min(1))
    parts = (classes.setup.reference, tokens.setup.reference)
    for part, output, changed, mask, costs in zip(parts, outputs, after, masks, expected, strict=True):
        torch.testing.assert_close(costs_of(part, output, changed, mask), costs, rtol=1e-6, atol=1e-12)
    squares = make_setup(*models.build("tokens"), metric=Metric.MSE).setup.reference
    differences = (after[1] - outputs[1]).square().mean(-1) * masks[1]
    mean = differences.sum(1) / masks[1].sum(1).clamp_min(1) / squares.variance
    torch.testing.assert_close(costs_of(squares, outputs[1], after[1], masks[1]), mean, rtol=1e-9, atol=0.0)
    weighted = (
        WeightedOutput(name="0", weight=1.0, metric=Metric.KL),
        WeightedOutput(name="1", weight=0.25, metric=Metric.KL),
    )
    packing = Packing(outputs=weighted, shapes=((3,), (7, 3)))
    mixed = MixedReference(metric=Metric.KL, packing=packing, parts=parts, outputs=())
    before, changed = (torch.cat([one.reshape(5, -1) for one in pair], 1) for pair in (outputs, after))
    found = costs_of(mixed, before, changed, torch.cat(masks, 1))
    torch.testing.assert_close(found, expected[0] + 0.25 * expected[1], rtol=1e-6, atol=1e-12)


def test_an_estimate_is_not_taken_away_by_what_one_use_costs_less():
    totals = Totals(1, 2, 4)
    totals.weights += 2.0
    totals.know_part(0, torch.full((1, 4), 2.0), torch.full((4,), 3.0))  # 12 instead of 16
    totals.know_part(1, torch.full((1, 4), 3.0), torch.zeros(4))  # 36 less than 16 altogether
    (values,) = totals.each()
    assert values.weights.square().sum(1).tolist() == pytest.approx([12.0, 1.0])


def test_a_known_cost_that_no_probe_sees_is_not_lost():
    totals = Totals(2, 1, 2)
    totals.know(0, slice(0, 2), torch.tensor([0.25, 4.0]))
    assert torch.stack([values.weights for values in totals.each()]).tolist() == [[[0.5, 2.0]]] * 2
