"""The command line's fixed interfaces, held against references that share no code with the implementation.

A small convolutional network is exported by torch itself, searched by the installed command, and every number
of the answer is computed again: sizes by hand, sensitivities and plans by NumPy quantization of the eager
model's weights, the optimum by trying all plans.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

BITS = (2, 4, 8)
UNITS = ("conv.weight", "depthwise.weight", "head.weight")


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, groups=8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, image):
        hidden = torch.relu(self.depthwise(torch.relu(self.conv(image))))
        return self.head(hidden.mean((2, 3)))


def _run(*arguments, **kwargs):
    command = [sys.executable, "-m", "app.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, **kwargs)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interface")
    torch.manual_seed(7)
    model = Small().eval()
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (torch.randn(2, 3, 10, 10),), dynamic_shapes={"image": {0: batch}})
    torch.export.save(exported, folder / "small.pt2")
    data = {name: torch.randn(n, 3, 10, 10) for name, n in (("calibration", 24), ("evaluation", 16))}
    for name, images in data.items():
        save_file({"image": images, "labels": model(images).argmax(1)}, folder / f"{name}.safetensors")
    return folder, model, data


@pytest.fixture(scope="module")
def document(files):
    folder, _, _ = files
    done = _run(
        "search", folder / "small.pt2",
        "--calibration", folder / "calibration.safetensors", "--evaluation", folder / "evaluation.safetensors",
        "--budget", "4 bits", "--candidates", "2,4,8", "--scheme", "channel-symmetric", "--metric", "kl",
        "--data-dir", folder / "data", "--json", folder / "out.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text())


def _quantized(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Per output channel (axis 0 in all three units), symmetric, narrow range, half to even: NumPy only."""
    values = weight.detach().numpy().astype(np.float32)
    top = 2 ** (bits - 1) - 1
    rows = values.reshape(values.shape[0], -1)
    scale = (np.abs(rows).max(1, keepdims=True) / np.float32(top)).astype(np.float32)
    return torch.from_numpy((np.clip(np.rint(rows / scale), -top, top) * scale).reshape(values.shape))


def _divergence(model: Small, images: torch.Tensor, choices: dict[str, int]) -> np.ndarray:
    with torch.no_grad():
        reference = model(images).double().log_softmax(-1)
        weights = dict(model.named_parameters())
        replaced = {name: _quantized(weights[name], bits) for name, bits in choices.items()}
        other = torch.func.functional_call(model, replaced, (images,)).double().log_softmax(-1)
    return (reference.exp() * (reference - other)).sum(-1).numpy()


def test_every_promised_field_is_there(document):
    promised = "budget status objective lower_bound relative_gap size_bits choices predicted measured baselines sensitivities seconds"
    assert set(promised.split()) <= set(document)
    assert document["budget"] == "4 bits"
    assert document["status"] in {"optimal", "feasible"}
    assert set(document["choices"]) == set(UNITS)
    assert all(choice["scheme"] == "channel-symmetric" for choice in document["choices"].values())
    assert all(value >= 0 for value in document["seconds"].values())


def test_sensitivities_equal_an_independent_computation(document, files):
    _, model, data = files
    rows = {(row["unit"], row["bits"]): row for row in document["sensitivities"]}
    assert set(rows) == set(itertools.product(UNITS, BITS))
    for (unit, bits), row in rows.items():
        values = _divergence(model, data["calibration"], {unit: bits})
        assert row["samples"] == 24
        assert row["mean"] == pytest.approx(values.mean(), rel=2e-3, abs=1e-10)
        assert row["standard_error"] == pytest.approx(values.std(ddof=1) / 24**0.5, rel=2e-3, abs=1e-10)
        assert row["size_bits"] == bits * dict(model.named_parameters())[unit].numel()


def test_the_plan_is_the_best_of_all_plans(document, files):
    _, model, _ = files
    weights = [dict(model.named_parameters())[unit].numel() for unit in UNITS]
    cost = {(row["unit"], row["bits"]): row["mean"] for row in document["sensitivities"]}
    limit = 4 * sum(weights)
    fitting = [
        plan
        for plan in itertools.product(BITS, repeat=3)
        if sum(w * b for w, b in zip(weights, plan, strict=True)) <= limit
    ]
    best = min(sum(cost[unit, bits] for unit, bits in zip(UNITS, plan, strict=True)) for plan in fitting)
    searched = (
        document["objective"] if document["origin"] == "search" else document["solver"]["search"]["objective"]
    )
    assert searched == pytest.approx(best, rel=1e-12)
    assert document["lower_bound"] <= best * (1 + 1e-12)
    chosen = {unit: choice["bits"] for unit, choice in document["choices"].items()}
    assert (
        document["size_bits"]
        == sum(w * chosen[unit] for w, unit in zip(weights, UNITS, strict=True))
        <= limit
    )


def test_what_is_called_measured_was_measured_jointly(document, files):
    _, model, data = files
    for plan in [document, *document["baselines"]]:
        chosen = {unit: choice["bits"] for unit, choice in plan["choices"].items()}
        for split, images in data.items():
            expected = _divergence(model, images, chosen).mean()
            assert plan["measured"]["kl"][split] == pytest.approx(expected, rel=2e-3, abs=1e-10)


def test_the_plan_is_never_worse_than_a_uniform_plan_that_fits(document):
    assert {plan["size_bits"] // 1 for plan in document["baselines"]}
    fitting = [plan for plan in document["baselines"] if plan["size_bits"] <= document["budget_bits"]]
    assert fitting
    best = min(plan["measured"]["kl"]["evaluation"] for plan in fitting)
    assert document["measured"]["kl"]["evaluation"] <= best


def test_the_same_search_again_reuses_every_measurement(document, files):
    folder, _, _ = files
    done = _run(
        "search", folder / "small.pt2",
        "--calibration", folder / "calibration.safetensors", "--evaluation", folder / "evaluation.safetensors",
        "--budget", "2000 bits total", "--budget", "3.5x", "--candidates", "2,4,8", "--scheme", "channel-symmetric", "--metric", "kl",
        "--data-dir", folder / "data", "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["sensitivities"] == document["sensitivities"]
    assert [plan["budget"] for plan in again["plans"]] == ["2000 bits total", "3.5x"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ("--budget", "1 bits"),
            4,
            "minimum",
        ),  # below two bits everywhere: infeasible, the answer is the minimum
        (("--budget", "4"), 2, "bits"),  # without a unit
        (("--budget", "0 bits"), 2, "budget"),
        (("--budget", "4 bits", "--candidates", "1,4"), 2, "16"),
        (("--budget", "4 bits", "--metric", "psnr"), 2, "kl"),
        (("--budget", "4 bits", "--pin", "nothing.weight=4"), 2, "nothing.weight"),
        (("--budget", "4 bits", "--pin", "head.weight=5"), 2, "head.weight"),
    ],
)
def test_bad_requests_end_with_the_promised_exit_code(files, arguments, code, says):
    folder, _, _ = files
    base = (
        "search",
        folder / "small.pt2",
        "--calibration",
        folder / "calibration.safetensors",
        "--data-dir",
        folder / "data",
    )
    candidates = () if "--candidates" in arguments else ("--candidates", "2,4,8")
    done = _run(*base, *candidates, *arguments, "--json", "-")
    assert done.returncode == code, (done.stdout, done.stderr)
    assert says in done.stdout + done.stderr


def test_inspect_lists_the_units(files):
    folder, _, _ = files
    done = _run("inspect", folder / "small.pt2", "--json")
    assert done.returncode == 0, done.stderr
    units = {unit["name"]: unit for unit in json.loads(done.stdout)["units"]}
    assert list(units) == list(UNITS)
    assert units["depthwise.weight"]["shape"] == [8, 1, 3, 3]
    assert units["head.weight"]["operator"] == "linear"
    assert units["conv.weight"]["weights"] == 216
    assert {unit["output_channel_axis"] for unit in units.values()} == {0}
    assert units["conv.weight"]["macs"] == 216 * 100
    assert units["head.weight"]["macs"] == 40


def test_a_refused_file_ends_with_code_3_and_a_problem(tmp_path: Path):
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.zeros(3)}, path)
    done = _run("inspect", path, "--json")
    assert done.returncode == 3
    problem = json.loads(done.stdout)
    assert problem["type"].startswith("urn:bitwright:problem:")
    assert problem["detail"]
