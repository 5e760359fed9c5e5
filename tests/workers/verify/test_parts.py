"""Plans measured on some samples each, against each sample fed alone."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workers.contracts import Candidate, Metric, Observation, PlanRequest, Scheme
from workers.errors import RequestRefused
from workers.graph.program import NO_OVERRIDE, Program
from workers.sensitivity import reference, session
from workers.verify.parts import PlanPart, measure_parts
from workers.verify.plan import measure_plan

SAMPLES = 10
ROUGH = {"0.weight": Candidate(bits=2, scheme=Scheme.parse("channel-asymmetric"))}
FINE = {
    "0.weight": Candidate(bits=4, scheme=Scheme.parse("channel-symmetric")),
    "2.weight": Candidate(bits=3, scheme=Scheme.parse("channel-asymmetric")),
}


@pytest.fixture(params=[None, 4], ids=["any batch", "batch of four"])
def request_for(tmp_path, request):
    session.forget()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    inputs = torch.randn(SAMPLES, 6)
    shapes = None if request.param else ({0: torch.export.Dim("batch", min=1, max=64)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (inputs[: request.param or 2],), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    save_file({"input": inputs}, tmp_path / "data.safetensors")

    def make(metric, choices=None, **values):
        return PlanRequest(
            model_path=str(tmp_path / "model.pt2"),
            data_path=str(tmp_path / "data.safetensors"),
            choices=choices or {},
            metrics=(metric,),
            batch_size=3,
            **values,
        )

    yield make
    session.forget()


@pytest.mark.parametrize("metric", [Metric.KL, Metric.MSE])
def test_parts_are_the_samples_of_the_whole(request_for, metric):
    everything = tuple(range(SAMPLES))
    parts = [
        PlanPart(choices=ROUGH, positions=everything),
        PlanPart(choices=ROUGH, positions=(1, 4, 5, 9)),
        PlanPart(choices=FINE, positions=(0, 2)),
        PlanPart(choices=FINE, positions=everything),
    ]
    rough, some, few, fine = measure_parts(request_for(metric), parts)
    assert rough.shape == fine.shape == (SAMPLES,)
    assert some.tolist() == pytest.approx(rough[[1, 4, 5, 9]].tolist(), rel=1e-5)
    assert few.tolist() == pytest.approx(fine[[0, 2]].tolist(), rel=1e-5)
    for choices, costs in ((ROUGH, rough), (FINE, fine)):
        measured = measure_plan(request_for(metric, choices))[metric.value]
        assert float(costs.mean()) == pytest.approx(measured.mean, rel=1e-6)
        error = float(costs.std(ddof=1)) / math.sqrt(SAMPLES)
        assert error == pytest.approx(measured.standard_error, rel=1e-6)


def test_inputs_are_quantized_where_plans_say_so(request_for):
    """By ranges of all samples, whatever part is measured, beside plans that leave inputs in float."""
    narrow = {name: replace(candidate, activation_bits=3) for name, candidate in FINE.items()}
    request = request_for(Metric.KL)
    observed = {"observation": Observation(path=request.data_path)}
    parts = [
        PlanPart(choices=FINE, positions=tuple(range(SAMPLES))),
        PlanPart(choices=narrow, positions=tuple(range(SAMPLES))),
        PlanPart(choices=narrow, positions=(2, 3)),
    ]
    floats, whole, some = measure_parts(request_for(Metric.KL, **observed), parts)
    assert some.tolist() == pytest.approx(whole[[2, 3]].tolist(), rel=1e-5)
    for choices, costs in ((FINE, floats), (narrow, whole)):
        measured = measure_plan(request_for(Metric.KL, choices, **observed))["kl"]
        assert float(costs.mean()) == pytest.approx(measured.mean, rel=1e-6)
    assert float(whole.mean()) > 1.05 * float(floats.mean())
    with pytest.raises(RequestRefused, match="no samples are named on which to observe their range"):
        measure_parts(request, parts)


def test_progress_counts_the_samples_of_all_parts(request_for):
    parts = [
        PlanPart(choices=ROUGH, positions=tuple(range(SAMPLES))),
        PlanPart(choices=FINE, positions=(0, 2)),
    ]
    told = []
    found = measure_parts(request_for(Metric.KL), parts, lambda done, total: told.append((done, total)))
    done = [samples for samples, _ in told]
    assert {total for _, total in told} == {SAMPLES + 2}
    assert done == sorted(set(done))
    assert {0, SAMPLES} < set(done)
    assert done[-1] == SAMPLES + 2
    for costs, again in zip(found, measure_parts(request_for(Metric.KL), parts), strict=True):
        assert costs.tolist() == again.tolist()


def test_positions_are_among_the_samples_that_are_chosen(request_for):
    chosen = request_for(Metric.KL, indices=(2, 3, 5, 7, 8))
    (costs,) = measure_parts(chosen, [PlanPart(choices=ROUGH, positions=(0, 3))])
    (whole,) = measure_parts(
        request_for(Metric.KL), [PlanPart(choices=ROUGH, positions=tuple(range(SAMPLES)))]
    )
    assert costs.tolist() == pytest.approx(whole[[2, 7]].tolist(), rel=1e-5)


FOLDS = [PlanPart(choices=ROUGH, positions=tuple(range(i, SAMPLES, 4))) for i in range(4)]


@pytest.mark.parametrize("kept", [0, 130, 10_000], ids=["nothing", "the first batches", "everything"])
def test_outputs_that_are_not_kept_are_computed_for_the_samples_at_hand_alone(request_for, monkeypatch, kept):
    """Whatever is kept and asked for first: the same costs, and no more of the float model than that takes."""
    everything = PlanPart(choices=ROUGH, positions=tuple(range(SAMPLES)))
    (expected,) = measure_parts(request_for(Metric.KL), [everything])
    session.forget()
    monkeypatch.setattr(reference, "KEPT_OUTPUT_BYTES", kept)
    floats = []
    run = Program.run

    def counting(program, inputs, override=NO_OVERRIDE):
        if override is NO_OVERRIDE:
            floats.append(len(inputs[0]))
        return run(program, inputs, override)

    monkeypatch.setattr(Program, "run", counting)
    found = measure_parts(request_for(Metric.KL), FOLDS)
    for part, costs in zip(FOLDS, found, strict=True):
        assert costs.tolist() == pytest.approx(expected[list(part.positions)].tolist(), rel=1e-5)
    calls = len(floats)
    session.forget()
    other_way = measure_parts(request_for(Metric.KL), FOLDS[::-1])
    assert [costs.tolist() for costs in other_way[::-1]] == [costs.tolist() for costs in found]
    assert calls <= {0: 1 + len(FOLDS), 130: 2 + len(FOLDS), 10_000: math.ceil(SAMPLES / 3)}[kept]
