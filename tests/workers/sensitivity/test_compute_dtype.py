"""Models of half precision measured in float32, or in their own type."""

from dataclasses import replace

import pytest
import torch

from workers.contracts import ComputeDtype, EstimateRequest, Metric, PlanRequest
from workers.quant import fake_quantize
from workers.sensitivity import metrics
from workers.sensitivity.engine import measure
from workers.sensitivity.estimators.run import estimate
from workers.sensitivity.session import load_model, prepare
from workers.verify.parts import PlanPart, measure_parts
from workers.verify.plan import measure_plan

from .conftest import SmallLm


def to_bfloat16(module):
    module.to(torch.bfloat16)


@pytest.fixture
def case(make_case):
    return make_case(SmallLm, edit=to_bfloat16)


def naive(case, unit, candidate, dtype):
    """The plain loop: eager modules of a type, divergences in float64."""
    module, (tokens,) = case.module, case.inputs
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        module.to(dtype)
        with torch.no_grad():
            reference = module(tokens)
            module.load_state_dict(kept)
            parameter = module.get_parameter(unit)
            weight = fake_quantize(
                parameter.to(dtype), candidate, output_channel_axis=0, group_axis=1, name=unit
            )
            parameter.data.copy_(weight)
            output = module(tokens)
        return float(metrics.kl(reference, output).mean())
    finally:
        module.to(torch.bfloat16)
        module.load_state_dict(kept)


@pytest.mark.parametrize(
    ("compute_dtype", "dtype"),
    [(ComputeDtype.FLOAT32, torch.float32), (ComputeDtype.MODEL, torch.bfloat16)],
)
def test_costs_are_those_of_the_plain_loop_in_that_type(case, compute_dtype, dtype):
    request = case.request(compute_dtype=compute_dtype, batch_size=None)
    loaded = load_model(request.model_path, "cpu", None, compute_dtype)
    assert {loaded.program.constant(unit.node).dtype for unit in loaded.table.units} == {dtype}
    assert prepare(request).reference.outputs[0].dtype == dtype
    for (unit, candidate), entry in zip(request.wanted, measure(request), strict=True):
        expected = naive(case, unit, candidate, dtype)
        # In bfloat16 eager layers fuse other steps than the exported ones.
        assert entry.mean == pytest.approx(expected, rel=1e-4 if dtype is torch.float32 else 0.5)


def test_the_types_are_not_taken_for_each_other(case):
    """A worker keeps both apart, whatever it was asked first."""
    costs = [
        [entry.mean for entry in measure(case.request(compute_dtype=dtype))]
        for dtype in (ComputeDtype.FLOAT32, ComputeDtype.MODEL, ComputeDtype.FLOAT32)
    ]
    assert costs[0] == costs[2] != costs[1]


def test_plans_and_probes_follow(case):
    request = case.request()
    choices = dict(request.wanted)
    plans, probes = [], []
    for dtype in ComputeDtype:
        plan = PlanRequest(
            model_path=case.model_path,
            data_path=case.calibration_path,
            choices=choices,
            compute_dtype=dtype,
        )
        plans.append(measure_plan(plan)["kl"].mean)
        values = estimate(
            EstimateRequest(
                model_path=case.model_path,
                calibration_path=case.calibration_path,
                metric=Metric.KL,
                estimator="probe",
                wanted=request.wanted,
                compute_dtype=dtype,
            )
        ).values
        probes.append((values**2).mean((0, 2)))
    assert plans[0] != plans[1]
    assert plans[0] == pytest.approx(plans[1], rel=0.5)
    assert (probes[0] != probes[1]).any()
    assert probes[0].sum() == pytest.approx(probes[1].sum(), rel=0.3)


@pytest.mark.parametrize("dtype", ComputeDtype)
def test_parts_of_samples_follow(case, dtype):
    choices = dict(case.request().wanted)
    plan = PlanRequest(
        model_path=case.model_path,
        data_path=case.calibration_path,
        choices=choices,
        compute_dtype=dtype,
    )
    samples = tuple(range(len(case.inputs[0])))
    (costs,) = measure_parts(plan, [PlanPart(choices=choices, positions=samples)])
    other = ComputeDtype.MODEL if dtype is ComputeDtype.FLOAT32 else ComputeDtype.FLOAT32
    assert float(costs.mean()) == pytest.approx(measure_plan(plan)["kl"].mean, rel=1e-6)
    assert float(costs.mean()) != measure_plan(replace(plan, compute_dtype=other))["kl"].mean
