"""A whole search over two weighted outputs, estimates, interactions and plans included."""

from pathlib import Path

import pytest
import torch
from torch import nn

from app.client import JobUpdate
from app.export import export_model, write_dataset
from app.local import Files, search
from app.settings import Settings
from workers.contracts import Candidate, Scheme
from workers.quant import fake_quantize


class TwoHeads(nn.Module):
    """A distance first, then the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.distance, self.classes = nn.Linear(6, 32), nn.Linear(32, 1), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.trunk(x).tanh()
        return self.distance(states)[:, 0], self.classes(states)


def cost_of(net: TwoHeads, data: torch.Tensor, choices: dict[str, dict[str, object]]) -> float:
    """``2 MSE / variance`` of the distance, and the divergence of the classes, with the chosen weights."""
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        before = [output.double() for output in net(data)]
        for unit, choice in choices.items():
            parameter = net.get_parameter(unit)
            candidate = Candidate(bits=int(str(choice["bits"])), scheme=Scheme.parse(str(choice["scheme"])))
            axes = {"output_channel_axis": 0, "group_axis": 1}
            parameter.copy_(fake_quantize(parameter, candidate, **axes, name=unit))
        after = [output.double() for output in net(data)]
        net.load_state_dict(kept)
    error = (before[0] - after[0]).square().mean() / before[0].var(correction=0)
    log_p, log_q = before[1].log_softmax(-1), after[1].log_softmax(-1)
    return float(2 * error + (log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_plans_are_measured_by_the_weighted_sum(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = TwoHeads().eval()
    data = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    model = export_model(net, data[:2], tmp_path / "net.pt2")
    write_dataset(tmp_path / "c.safetensors", {model.input_names[0]: data})
    request = {
        "budgets": ["4 bits", "3 bits"],
        "outputs": {"0": 2.0, "1": 1.0},
    }

    def quiet(_update: JobUpdate) -> None: ...

    settings = Settings(data_dir=tmp_path / "data", workers=1)
    document = search(
        Files(model=model.path, calibration=tmp_path / "c.safetensors"), request, settings, quiet
    )
    assert document["settings"]["output"].endswith("=1.0:kl")
    assert document["settings"]["compare"] == "kl"
    for plan in (*document["plans"], *document["baselines"]):
        expected = cost_of(net, data, plan["choices"])
        assert plan["measured"]["kl"]["calibration"] == pytest.approx(expected, rel=1e-3)
    for row in document["sensitivities"]:
        if row["source"] == "measured" and row["samples"] == len(data):
            choice = {row["unit"]: {"bits": row["bits"], "scheme": row["scheme"]}}
            assert row["mean"] == pytest.approx(cost_of(net, data, choice), rel=1e-3, abs=1e-9)
