"""Several weighted outputs against plain loops over eager modules, NumPy and SciPy."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from safetensors.torch import save_file
from torch import nn

from workers.contracts import EstimateRequest, Metric, PlanRequest
from workers.errors import RequestRefused
from workers.mixtures import WeightedOutput, mixture_text, parse_mixture
from workers.quant import fake_quantize
from workers.sampling import SampleBlock, SketchForm, SketchRequest
from workers.sensitivity.engine import measure
from workers.sensitivity.estimators.run import estimate
from workers.sensitivity.estimators.starts import gradient_of
from workers.sensitivity.exact import quantized
from workers.sensitivity.naive import naive_costs
from workers.sensitivity.session import load_model, prepare
from workers.verify.parts import PlanPart, measure_parts
from workers.verify.plan import measure_plan

from .conftest import SmallLm, TwoTowers

# Of TwoTowers: output 0 has 3 numbers, output 1 has 6.
MIXTURES = {
    "kl and mse": "0=1.0:kl,1=0.25:mse",
    "the other way round": "1=2.0:kl,0=0.5:mse",
    "both squared": "0=3.0:mse,1=0.5:mse",
    "one": "1=2.0:kl",
}


def outputs_under(case, choices):
    """Of the eager module with some weights quantized."""
    module = case.module
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        with torch.no_grad():
            for unit, candidate in choices.items():
                parameter = module.get_parameter(unit)
                parameter.copy_(
                    fake_quantize(parameter, candidate, output_channel_axis=0, group_axis=1, name=unit)
                )
            found = module(*case.inputs)
    finally:
        module.load_state_dict(kept)
    return [output.double().numpy() for output in (found if isinstance(found, tuple) else (found,))]


def naive(case, choices, mixture, samples=slice(None)):
    """The weighted sum per sample; variances are those of all samples."""
    before, after = outputs_under(case, {}), outputs_under(case, choices)
    total = 0.0
    for output in parse_mixture(mixture):
        p, q = before[int(output.name)], after[int(output.name)]
        if output.metric is Metric.KL:
            log_p, log_q = scipy.special.log_softmax(p, -1), scipy.special.log_softmax(q, -1)
            costs = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        else:
            costs = ((p - q) ** 2).mean(-1) / p.var()
        total = total + output.weight * costs.reshape(len(costs), -1).mean(1)
    return total[samples]


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("fixed_batch", [None, 3])
def test_costs_are_the_weighted_sums_of_a_plain_loop(make_case, mixture, fixed_batch):
    case = make_case(TwoTowers, fixed_batch=fixed_batch)
    request = case.request(output=mixture, metric=Metric.KL)
    for (unit, candidate), entry in zip(request.wanted, measure(request), strict=True):
        costs = naive(case, {unit: candidate}, mixture)
        assert entry.mean == pytest.approx(costs.mean(), rel=1e-4, abs=1e-9)
        assert entry.standard_error == pytest.approx(
            costs.std(ddof=1) / len(costs) ** 0.5, rel=1e-3, abs=1e-9
        )
    setup = prepare(request)
    for entry, plain in zip(measure(request), naive_costs(setup, request.wanted), strict=True):
        assert entry.mean == pytest.approx(float(plain.mean()), rel=1e-12)


def test_blocks_add_up_to_the_whole(make_case):
    case = make_case(TwoTowers)
    mixture = MIXTURES["kl and mse"]
    whole = [entry.mean for entry in measure(case.request(output=mixture))]
    halves = [
        [e.mean for e in measure(case.request(output=mixture, block=SampleBlock(start=i, stop=i + 4)))]
        for i in (0, 4)
    ]
    # Fewer samples a pass: the outputs, of which costs are differences, round otherwise.
    assert np.mean(halves, axis=0) == pytest.approx(whole, rel=1e-5)


def test_memory_does_not_change_costs(make_case):
    case, mixture = make_case(TwoTowers), MIXTURES["both squared"]
    costs = [
        [entry.mean for entry in measure(case.request(output=mixture, memory_bytes=memory))]
        for memory in (1, 1 << 30)
    ]
    assert costs[0] == costs[1]


def test_plans_are_measured_alike(make_case):
    case = make_case(TwoTowers)
    choices = dict(case.wanted(3))
    for mixture in MIXTURES.values():
        plan = PlanRequest(
            model_path=case.model_path, data_path=case.calibration_path, choices=choices, output=mixture
        )
        found = measure_plan(plan)
        assert found["kl"].mean == pytest.approx(naive(case, choices, mixture).mean(), rel=1e-4)
    before, after = outputs_under(case, {}), outputs_under(case, choices)
    agreement = (before[1].argmax(-1) == after[1].argmax(-1)).mean()
    assert found["top1_agreement"].mean == pytest.approx(agreement)  # of the last mixture


@pytest.mark.parametrize("mixture", list(MIXTURES.values())[:3], ids=list(MIXTURES)[:3])
def test_inner_products_of_sketches_are_weighted_sums(make_case, mixture):
    """Tables this small are kept whole: squares are costs to second order, and of squared errors exactly."""
    case = make_case(TwoTowers)
    sketch = SketchRequest(columns=4096, form=SketchForm.HELLINGER)
    request = case.request(output=mixture, sketch=sketch, wanted=case.wanted(4, 8))
    for entry in measure(request):
        values = np.frombuffer(entry.sketch, "<f4").astype(float)
        exact = all(output.metric is Metric.MSE for output in parse_mixture(mixture))
        assert (values**2).sum() == pytest.approx(entry.mean, rel=1e-4 if exact else 0.2, abs=1e-9)


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_probes_expect_the_weighted_sum(make_case, mixture):
    case = make_case(TwoTowers)
    wanted = case.wanted(6, 8)
    found = estimate(
        EstimateRequest(
            model_path=case.model_path,
            calibration_path=case.calibration_path,
            metric=Metric.KL,
            estimator="probe",
            wanted=wanted,
            probes=400,
            output=mixture,
        )
    ).values
    squares = (found**2).mean(2)
    mean, error = squares.mean(0), squares.std(0) / len(squares) ** 0.5
    exact = np.array([naive(case, {unit: candidate}, mixture).mean() for unit, candidate in wanted])
    assert (np.abs(mean - exact) <= 4 * error + 0.1 * exact + 1e-12).all()


class Tagger(SmallLm):
    """Logits per token, and one vector per sample."""

    def __init__(self):
        super().__init__()
        self.pool = nn.Linear(8, 3)

    def forward(self, tokens):
        states = self.block(self.embed(tokens))
        return self.head(states), self.pool(states.mean(1))


def test_positions_that_do_not_count_do_not_count(make_case, tmp_path):
    case = make_case(Tagger)
    tensors = {"tokens": case.inputs[0], "position_mask": torch.ones(8, 5, dtype=torch.int64)}
    tensors["position_mask"][:, 3:] = 0
    save_file(tensors, case.calibration_path)
    mixture = "0=2.0:kl"
    request = case.request(output=mixture, wanted=case.wanted(4))
    before, wanted = outputs_under(case, {}), request.wanted
    for (unit, candidate), entry in zip(wanted, measure(request), strict=True):
        after = outputs_under(case, {unit: candidate})
        log_p, log_q = (scipy.special.log_softmax(o[0][:, :3], -1) for o in (before, after))
        expected = 2 * (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
        assert entry.mean == pytest.approx(expected, rel=1e-3)


def test_outputs_with_and_without_positions_are_mixed(make_case):
    case, mixture = make_case(Tagger), "0=1.0:kl,1=0.5:mse"
    request = case.request(output=mixture, wanted=case.wanted(4))
    for (unit, candidate), entry in zip(request.wanted, measure(request), strict=True):
        expected = naive(case, {unit: candidate}, mixture).mean()
        assert entry.mean == pytest.approx(expected, rel=1e-3)


def test_the_model_keeps_its_outputs_behind_the_packed_one(make_case):
    case = make_case(TwoTowers)
    loaded = load_model(case.model_path, "cpu", "1=1.0:kl,0=1.0:mse")
    packed, first, second = loaded.program.run(case.inputs)
    torch.testing.assert_close(packed, torch.cat([second, first], 1))
    override = quantized(loaded.program, loaded.table, case.wanted(2)[:1])
    changed = loaded.program.run(case.inputs, override)
    torch.testing.assert_close(changed[0], torch.cat([changed[2], changed[1]], 1))


@pytest.mark.parametrize(
    ("mixture", "field"),
    [("0=1.0:kl,9=1.0:mse", "output"), ("0=1.0:kl,0=2.0:mse", "outputs"), ("0=-1:kl", "outputs")],
)
def test_outputs_that_cannot_be_mixed_are_refused(make_case, mixture, field):
    with pytest.raises(RequestRefused) as refused:
        list(measure(make_case(TwoTowers).request(output=mixture)))
    assert refused.value.field == field


def test_estimators_of_one_output_are_refused(make_case):
    case = make_case(TwoTowers)
    with pytest.raises(RequestRefused, match="one output") as refused:
        estimate(
            EstimateRequest(
                model_path=case.model_path,
                calibration_path=case.calibration_path,
                metric=Metric.KL,
                estimator="hessian-trace",
                wanted=case.wanted(4),
                output=MIXTURES["one"],
            )
        )
    assert "probe" in refused.value.allowed


def test_the_text_form_is_one_form():
    outputs = (
        WeightedOutput(name="logits", weight=1.0, metric=Metric.KL),
        WeightedOutput(name="boxes", weight=1 / 3, metric=Metric.MSE),
    )
    assert parse_mixture(mixture_text(outputs)) == outputs
    assert parse_mixture(None) is None
    assert parse_mixture("logits") is None
    for wrong in ("a=1", "a=1:loss", "a=x:kl", "a=1:kl,", "=1:kl", "a=1:kl,a=2:kl"):
        with pytest.raises(RequestRefused) as refused:
            parse_mixture(wrong)
        assert refused.value.field == "outputs"
    for weight in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(RequestRefused):
            WeightedOutput(name="a", weight=weight, metric=Metric.KL)
    with pytest.raises(RequestRefused):
        WeightedOutput(name="a", weight=1.0, metric=Metric.LOSS)


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_parts_of_samples_are_compared_alike(make_case, mixture):
    case = make_case(TwoTowers)
    choices = dict(case.request().wanted)
    request = PlanRequest(
        model_path=case.model_path,
        data_path=case.calibration_path,
        choices={},
        metrics=(Metric.KL,),
        output=mixture,
        batch_size=3,
    )
    everything = tuple(range(len(case.inputs[0])))
    parts = [PlanPart(choices=choices, positions=everything), PlanPart(choices=choices, positions=(1, 4))]
    whole, some = measure_parts(request, parts)
    expected = naive(case, choices, mixture)
    assert whole.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-9)
    assert some.tolist() == pytest.approx(expected[[1, 4]].tolist(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_the_gradient_of_the_weighted_sum_is_that_of_automatic_differentiation(make_case, mixture):
    case = make_case(TwoTowers)
    reference = prepare(case.request(output=mixture, metric=Metric.KL)).reference
    before = torch.cat([output.cpu() for output in reference.outputs])
    after = (before + torch.randn(before.shape, generator=torch.Generator().manual_seed(5))).requires_grad_()
    total = torch.zeros(())
    parts = zip(reference.parts, reference.packing.weights, strict=True)
    split = reference.packing.split
    for (part, weight), p, q in zip(parts, split(before), split(after), strict=True):
        if part.metric is Metric.KL:
            log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
            costs = (log_p.exp() * (log_p - log_q)).sum(-1)
        else:
            costs = (p - q).square().mean(-1) / part.variance
        total = total + weight * costs.reshape(len(costs), -1).mean(1).sum()
    total.backward()
    found = gradient_of(reference, before, after.detach(), None)
    torch.testing.assert_close(found, after.grad, rtol=1e-4, atol=1e-6)
