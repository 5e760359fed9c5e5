import io
import warnings
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workers.contracts import Candidate, MeasureRequest, Metric, Scheme
from workers.graph import program, reach, stacked
from workers.graph.describe import describe
from workers.intake.pt2 import read_model
from workers.sensitivity import session


class SmallCnn(nn.Module):
    """Convolutions, norms, a residual, a depthwise layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        x = torch.relu_(self.norm(self.stem(image)))
        x = x + self.point(torch.relu(self.deep(x)))
        return self.head(x.mean((2, 3)))


class SmallLm(nn.Module):
    """Tied embedding and head, so that its first unit is used at both ends; logits per token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.block(self.embed(tokens)))


class TwoTowers(nn.Module):
    """Two inputs, a module called twice, two outputs."""

    def __init__(self):
        super().__init__()
        self.shared, self.left, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, a, b):
        both = self.shared(a).tanh() * self.left(self.shared(b).tanh())
        return self.out(both), both


@dataclass(frozen=True)
class Case:
    """A model file, a data file, and what there is to measure."""

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    model_path: str
    calibration_path: str
    units: tuple[str, ...]

    def wanted(self, *bits):
        scheme = Scheme.parse("channel-asymmetric")
        return tuple((unit, Candidate(bits=b, scheme=scheme)) for unit in self.units for b in bits)

    def request(self, **changes):
        values = {
            "model_path": self.model_path,
            "calibration_path": self.calibration_path,
            "metric": Metric.KL,
            "wanted": self.wanted(2, 4),
            "batch_size": 3,
        }
        return MeasureRequest(**(values | changes))


def inputs_for(module, samples):
    draw = torch.Generator().manual_seed(1)
    if isinstance(module, SmallCnn):
        return (torch.randn(samples, 3, 8, 8, generator=draw),)
    if isinstance(module, SmallLm):
        return (torch.randint(0, 20, (samples, 5), generator=draw),)
    return tuple(torch.randn(samples, 6, generator=draw) for _ in range(2))


# Exporting is what takes the time: module and file by what they were made from.
_EXPORTED = {}


def export(kind, fixed_batch, seed, edit):
    torch.manual_seed(seed)
    module = kind().eval()
    if edit is not None:
        edit(module)
    inputs = inputs_for(module, fixed_batch or 2)
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes = None if fixed_batch else tuple({0: batch} for _ in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, inputs, dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    return module, file.getvalue()


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from more, and suffer on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_case(tmp_path):
    """Export a module and write data for it."""
    session.forget()

    def make(kind=SmallCnn, *, samples=8, fixed_batch=None, labels=None, seed=0, edit=None):
        made_from = (kind, fixed_batch, seed, edit)
        if made_from not in _EXPORTED:
            _EXPORTED[made_from] = export(*made_from)
        module, file = _EXPORTED[made_from]
        (tmp_path / "model.pt2").unlink(
            missing_ok=True
        )  # models map their files: these are not to be written to
        (tmp_path / "model.pt2").write_bytes(file)
        inputs = inputs_for(module, samples)
        model = read_model(tmp_path / "model.pt2")
        data = {info.name: tensor for info, tensor in zip(model.inputs, inputs, strict=True)}
        if labels is not None:
            data["labels"] = labels
        save_file(data, tmp_path / "data.safetensors")
        return Case(
            module=module,
            inputs=inputs,
            model_path=str(tmp_path / "model.pt2"),
            calibration_path=str(tmp_path / "data.safetensors"),
            units=tuple(unit.name for unit in describe(model).units),
        )

    yield make
    session.forget()


@pytest.fixture(params=[SmallCnn, SmallLm, TwoTowers])
def kind(request):
    return request.param


@pytest.fixture
def kinds():
    """All small models by name."""
    return {"cnn": SmallCnn, "lm": SmallLm, "towers": TwoTowers}


@pytest.fixture
def count_steps(monkeypatch):
    """Count the steps that are run from now on, in whatever way: a list that grows by their names."""

    def start():
        ran = []
        run = program.call

        def counted(step, value):
            ran.append(step.node.name)
            return run(step, value)

        for module in (program, reach, stacked):
            monkeypatch.setattr(module, "call", counted)
        return ran

    return start
