"""A whole search for a deployment target, comparing one of several outputs: what is handed over is what was asked for."""

import pytest
import torch
from torch import nn

from app.client import JobUpdate
from app.export import export_model, write_dataset
from app.local import Files, search
from app.settings import Settings
from workers.contracts import Candidate, Scheme, UnitInfo
from workers.menus import Target, short_menu
from workers.quant import fake_quantize

SAMPLES = 12


class TwoHeads(nn.Module):
    """A distance first, then the classes; the stem's rows are no multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.trunk = nn.Linear(6, 32), nn.Linear(32, 32)
        self.distance, self.classes = nn.Linear(32, 1), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.trunk(self.stem(x).tanh()).tanh()
        return self.distance(states), self.classes(states)


@pytest.fixture(scope="module")
def net() -> TwoHeads:
    torch.manual_seed(0)
    return TwoHeads().eval()


@pytest.fixture(scope="module")
def data() -> torch.Tensor:
    return torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def document(
    net: TwoHeads, data: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("choices")
    model = export_model(net, data[:2], folder / "net.pt2")
    write_dataset(folder / "c.safetensors", {model.input_names[0]: data})
    request = {"budgets": ["4.5 bits"], "target": "gguf", "output": "1", "activation_candidates": [8]}

    def quiet(_update: JobUpdate) -> None: ...

    settings = Settings(data_dir=folder / "data", workers=1)
    return search(Files(model=model.path, calibration=folder / "c.safetensors"), request, settings, quiet)


def test_what_the_target_cannot_store_stays_in_float(document: dict[str, object]) -> None:
    assert document["left_in_float"] == ["stem.weight"]
    assert set(document["choices"]) == {"trunk.weight", "distance.weight", "classes.weight"}
    assert document["settings"]["candidates"] == [4, 5, 8]
    assert [plan["name"] for plan in document["baselines"]] == [
        "uniform 4 bits",
        "uniform 5 bits",
        "uniform 8 bits",
    ]


def test_candidates_are_the_menus(document: dict[str, object]) -> None:
    for unit in document["units"]:
        if unit["name"] == "stem.weight":
            continue
        info = UnitInfo(**{"group_axis": 1} | unit)
        known = [row for row in document["sensitivities"] if row["unit"] == unit["name"]]
        offered = short_menu(Target.GGUF, info, (4, 5, 8))
        assert [(r["bits"], r["scheme"]) for r in known] == [(c.bits, str(c.scheme)) for c in offered]
        assert {r["activation_bits"] for r in known} == {8}


def test_the_named_output_is_measured(document: dict[str, object], net: TwoHeads, data: torch.Tensor) -> None:
    assert document["settings"]["compare"] == "kl"
    for plan in document["baselines"]:
        # Inputs at 8 bits hardly matter beside weights of 4 and 5.
        expected = kl_of(net, data, plan["choices"])
        assert plan["measured"]["kl"]["calibration"] == pytest.approx(expected, rel=0.2, abs=2e-4)


def test_estimates_are_of_the_named_output(
    document: dict[str, object], net: TwoHeads, data: torch.Tensor
) -> None:
    """The head of the other output changes nothing; the others cost about what they cost alone."""
    costs = {(r["unit"], r["bits"], r["scheme"]): r["mean"] for r in document["sensitivities"]}
    assert all(cost == 0 for (unit, _, _), cost in costs.items() if unit == "distance.weight")
    for (unit, bits, scheme), cost in costs.items():
        if unit == "trunk.weight" and bits == 4:
            expected = kl_of(net, data, {unit: {"bits": bits, "scheme": scheme}})
            assert expected / 2.5 < cost < 2.5 * expected


def test_bit_operations_count_what_stays_in_float(document: dict[str, object]) -> None:
    macs = {unit["name"]: unit["macs"] for unit in document["units"]}
    for plan in (*document["plans"], *document["baselines"]):
        expected = macs["stem.weight"] * 32 * 32 + sum(
            macs[unit] * choice["bits"] * choice["activation_bits"]
            for unit, choice in plan["choices"].items()
        )
        assert plan["bit_operations"] == expected


def kl_of(net: TwoHeads, data: torch.Tensor, choices: dict[str, dict[str, object]]) -> float:
    weights = dict(net.named_parameters())
    for unit, choice in choices.items():
        candidate = Candidate(bits=choice["bits"], scheme=Scheme.parse(choice["scheme"]))
        changed = fake_quantize(
            weights[unit].detach(), candidate, output_channel_axis=0, group_axis=1, name=unit
        )
        weights = weights | {unit: changed}
    with torch.no_grad():
        reference = net(data)[1].double().log_softmax(-1)
        output = torch.func.functional_call(net, weights, (data,))[1].double().log_softmax(-1)
        return float((reference.exp() * (reference - output)).sum(-1).mean())
