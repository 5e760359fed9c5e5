"""LSTM, GRU and plain recurrent layers: every matrix is a unit, and a changed one reaches the right step."""

import pytest
import torch
from torch import nn

from workers.contracts import Candidate, MeasureRequest, Metric, Scheme
from workers.graph.program import Program
from workers.graph.units import find_units
from workers.quant import fake_quantize
from workers.sensitivity import naive, session
from workers.sensitivity.engine import measure

STEPS, SIZE, HIDDEN = 5, 6, 4
X = torch.randn(3, STEPS, SIZE, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    def __init__(self, kind, *, batch_first=True, **options):
        super().__init__()
        self.layer = kind(SIZE, HIDDEN, batch_first=batch_first, **options)
        self.batch_first = batch_first

    def forward(self, x):
        if self.batch_first:
            return self.layer(x)[0]
        return self.layer(x.transpose(0, 1))[0].transpose(0, 1)


class Cells(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(SIZE, HIDDEN)

    def forward(self, x):
        state = self.layer(x[:, 0])
        state = self.layer(x[:, 1], state)
        return state[0] if isinstance(state, tuple) else state


CASES = {
    "lstm": lambda: Layer(nn.LSTM),
    "lstm, two layers, both ways": lambda: Layer(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm, projected": lambda: Layer(nn.LSTM, proj_size=3),
    "lstm, no biases": lambda: Layer(nn.LSTM, bias=False),
    "lstm, time first": lambda: Layer(nn.LSTM, batch_first=False),
    "gru": lambda: Layer(nn.GRU),
    "gru, both ways": lambda: Layer(nn.GRU, bidirectional=True),
    "tanh": lambda: Layer(nn.RNN),
    "relu": lambda: Layer(nn.RNN, nonlinearity="relu"),
    "lstm cell": lambda: Cells(nn.LSTMCell),
    "gru cell": lambda: Cells(nn.GRUCell),
}


@pytest.mark.parametrize("case", CASES)
def test_each_matrix_is_a_unit_that_can_be_quantized_alone(case, graph_of):
    torch.manual_seed(1)
    module = CASES[case]().eval()
    model = graph_of(module, (X,))
    program, table = Program(model), find_units(model)
    matrices = {name: p for name, p in module.named_parameters() if p.dim() == 2}
    assert {unit.info.name for unit in table.units} == set(matrices)
    assert table.unsupported == ()
    uses = 2 if case.endswith("cell") else STEPS
    for unit in table.units:
        info = unit.info
        assert (info.output_channel_axis, info.group_axis) == (0, 1)
        assert info.macs in (uses * info.weights, (uses - 1) * info.weights)
        quantized = fake_quantize(
            program.constant(unit.node),
            Candidate(bits=2, scheme=Scheme.parse("channel-symmetric")),
            output_channel_axis=0,
            group_axis=1,
            name=info.name,
        )
        (found,) = program.run([X], program.override(unit.changes(quantized)))
        with torch.no_grad():
            before = matrices[info.name].clone()
            matrices[info.name].copy_(quantized)
            expected = module(X)
            matrices[info.name].copy_(before)
            assert not torch.allclose(expected, module(X), atol=1e-4)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_recurrent_units_are_measured_like_any_other(graph_of, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = graph_of(CASES["lstm, two layers, both ways"]().eval(), (X,))
    monkeypatch.setattr(session, "read_model", lambda _path: model)
    (tmp_path / "model").write_bytes(b"x")
    save_file({model.inputs[0].name: X}, tmp_path / "data")
    candidates = [Candidate(bits=bits, scheme=Scheme.parse("channel-asymmetric")) for bits in (2, 3, 4, 8)]
    wanted = tuple((unit.info.name, c) for unit in find_units(model).units for c in candidates)
    request = MeasureRequest(
        model_path=str(tmp_path / "model"),
        calibration_path=str(tmp_path / "data"),
        metric=Metric.MSE,
        wanted=wanted,
        batch_size=2,
    )
    session.forget()
    found = [entry.mean for entry in measure(request)]
    expected = [float(costs.mean()) for costs in naive.naive_costs(session.prepare(request), wanted)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert min(found) > 0
    session.forget()
