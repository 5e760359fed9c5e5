"""A plan applied by the service against the eager model with its weights replaced by hand."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workers.contracts import Candidate, Metric, PlanRequest, Scheme
from workers.errors import DatasetRefused, RequestRefused
from workers.graph.program import Program
from workers.quant import fake_quantize
from workers.sensitivity import reference, session
from workers.sensitivity.reference import FloatOutputs
from workers.verify.plan import measure_plan


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(4, 6, 3)
        self.mix = nn.Linear(6, 6)
        self.table = nn.Parameter(torch.randn(6, 5))

    def forward(self, x):
        return self.mix(self.up(x).relu().mean(-1)).relu() @ self.table


AXES = {"up.weight": (1, 0), "mix.weight": (0, 1), "table": (1, 0)}
CHOICES = {
    "up.weight": Candidate(bits=3, scheme=Scheme.parse("channel-symmetric")),
    "mix.weight": Candidate(bits=2, scheme=Scheme.parse("group:4-asymmetric")),
    "table": Candidate(bits=4, scheme=Scheme.parse("channel-asymmetric")),
}
SAMPLES = 10


@pytest.fixture
def files(tmp_path):
    session.forget()
    torch.manual_seed(0)
    module = Model().eval()
    inputs = torch.randn(SAMPLES, 4, 7)
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (inputs[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    labels = torch.randint(0, 5, (SAMPLES,), generator=torch.Generator().manual_seed(1))
    save_file({"x": inputs, "labels": labels}, tmp_path / "labelled.safetensors")
    save_file({"x": inputs}, tmp_path / "data.safetensors")
    yield module, inputs, labels, tmp_path
    session.forget()


def request(folder, data="labelled", **changes):
    values = {
        "model_path": str(folder / "model.pt2"),
        "data_path": str(folder / f"{data}.safetensors"),
        "choices": CHOICES,
        "metrics": tuple(Metric),
        "batch_size": 4,
    }
    return PlanRequest(**(values | changes))


def replaced(module, choices):
    quantized = copy.deepcopy(module)
    for name, candidate in choices.items():
        parameter = dict(quantized.named_parameters())[name]
        output, group = AXES[name]
        with torch.no_grad():
            parameter.copy_(
                fake_quantize(
                    parameter.detach(), candidate, output_channel_axis=output, group_axis=group, name=name
                )
            )
    return quantized


@pytest.mark.parametrize("names", [tuple(CHOICES), ("mix.weight",), ()])
def test_measured_is_what_the_eager_model_gives(files, names):
    module, inputs, labels, folder = files
    choices = {name: CHOICES[name] for name in names}
    measured = measure_plan(request(folder, choices=choices))
    with torch.no_grad():
        reference, output = module(inputs).double(), replaced(module, choices)(inputs).double()
    p, q = reference.log_softmax(-1), output.log_softmax(-1)
    loss = nn.functional.cross_entropy
    expected = {
        "kl": (p.exp() * (p - q)).sum(-1),
        "mse": (output - reference).square().mean(-1) / reference.var(correction=0),
        "loss": loss(output, labels, reduction="none") - loss(reference, labels, reduction="none"),
        "top1_agreement": (output.argmax(-1) == reference.argmax(-1)).double(),
        "top1_accuracy": (output.argmax(-1) == labels).double(),
        "float_top1_accuracy": (reference.argmax(-1) == labels).double(),
    }
    assert measured.keys() == expected.keys()
    for name, values in expected.items():
        assert measured[name].samples == SAMPLES
        assert measured[name].mean == pytest.approx(float(values.mean()), rel=1e-4, abs=1e-9), name
        error = float(values.std()) / SAMPLES**0.5
        assert measured[name].standard_error == pytest.approx(error, rel=1e-4, abs=1e-9), name
    if names:
        assert measured["kl"].mean > 1e-4
    else:
        assert measured["kl"].mean == 0.0
        assert measured["top1_agreement"].mean == 1.0


def test_without_labels_there_is_no_accuracy(files):
    measured = measure_plan(request(files[3], "data", metrics=(Metric.KL,)))
    assert measured.keys() == {"kl", "top1_agreement"}


def test_the_largest_number_of_an_embedding_is_no_answer(files):
    """Squared errors alone compare no classes, unless labels say that there are some."""
    folder = files[3]
    unlabelled = measure_plan(request(folder, data="data", metrics=(Metric.MSE,)))
    assert unlabelled.keys() == {"mse"}
    both = measure_plan(request(folder, data="data", metrics=(Metric.MSE, Metric.KL)))
    assert both.keys() == {"mse", "kl", "top1_agreement"}
    labelled = measure_plan(request(folder, metrics=(Metric.MSE,)))
    assert labelled.keys() == {"mse", "top1_agreement", "top1_accuracy", "float_top1_accuracy"}


def test_a_subset_of_the_data(files):
    measured = measure_plan(request(files[3], samples=4, metrics=(Metric.KL,)))
    assert measured["kl"].samples == 4
    parts = [
        measure_plan(request(files[3], indices=part, metrics=(Metric.KL,)))["kl"].mean
        for part in (tuple(range(5)), tuple(range(5, 10)), None)
    ]
    assert sum(parts[:2]) / 2 == pytest.approx(parts[2])


def test_bad_requests(files):
    folder = files[3]
    with pytest.raises(RequestRefused, match="needs labels"):
        measure_plan(request(folder, "data"))
    with pytest.raises(RequestRefused, match="no unit 'other'"):
        measure_plan(request(folder, choices={"other": CHOICES["table"]}))
    save_file({"x": files[1], "labels": torch.full((SAMPLES,), 7)}, folder / "wrong.safetensors")
    with pytest.raises(DatasetRefused, match="7"):
        measure_plan(request(folder, "wrong"))


@pytest.mark.parametrize("mixture", [None, "0=1:kl"])
def test_progress_is_told_around_each_batch_and_float_outputs_come_before(files, monkeypatch, mixture):
    calls = []
    run = Program.run
    monkeypatch.setattr(Program, "run", lambda *a, **k: calls.append("run") or run(*a, **k))
    asked = request(files[3], "data", metrics=(Metric.KL,), output=mixture)
    found = measure_plan(asked, lambda done, total: calls.append((done, total)))
    batches = [(0, 3), "run", (1, 3), "run", (2, 3), "run", (3, 3)]
    assert calls == ["run"] * 3 + batches
    calls.clear()
    assert measure_plan(asked, lambda done, total: calls.append((done, total))) == found
    assert calls == batches
    assert measure_plan(asked) == found, "the same without"


def test_float_outputs_that_do_not_fit_are_not_run_ahead(files, monkeypatch):
    runs = []
    run = Program.run
    monkeypatch.setattr(Program, "run", lambda *a, **k: runs.append(1) or run(*a, **k))
    loaded = session.load_model(str(files[3] / "model.pt2"), "cpu")
    batches = session.load_batches(
        str(files[3] / "data.safetensors"), loaded, session.selection_of(request(files[3]))
    )
    monkeypatch.setattr(reference, "KEPT_OUTPUT_BYTES", 4 * 5 * 4)  # those of one batch
    floats = FloatOutputs(program=loaded.program, batches=batches)
    floats.keep()
    assert len(runs) == 1
    floats.keep()
    floats.of(0)
    assert len(runs) == 1
    floats.of(2)
    assert len(runs) == 2


def test_who_is_told_may_stop_it(files):
    def stop(done, _total):
        if done == 1:
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        measure_plan(request(files[3]), stop)
