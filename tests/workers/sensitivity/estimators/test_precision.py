"""Products in half precision: what is rounded, where that pays, and that nothing else changes."""

import pytest
import torch
from torch import nn

from workers.graph.dataflow import operator_name
from workers.sensitivity.estimators.gradients import find_gradients
from workers.sensitivity.estimators.layout import SampleLayout
from workers.sensitivity.estimators.precision import Precision, native_half
from workers.sensitivity.estimators.probe import ProbeOptions, probe
from workers.sensitivity.estimators.tape import Visit
from workers.sensitivity.estimators.visited import VisitedStep

CPU = torch.device("cpu")


class Attention(nn.Module):
    """Products by weights, and attention, norm and softmax between them."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 5), nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.mixed(self.norm(x)).chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))


@pytest.fixture
def attention(make_setup):
    torch.manual_seed(3)
    return make_setup(Attention(), (torch.randn(12, 6, 16),), batch_size=6)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, None),
        ({}, None),
    ],
)
def test_half_precision_is_for_processors_that_multiply_in_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert native_half(CPU) is expected


def test_other_devices_are_not_guessed_at():
    assert native_half(torch.device("meta")) is None


def test_only_products_are_rounded_and_results_keep_their_type(attention):
    program = attention.setup.program
    rounded, plain = Precision(device=CPU, products=torch.bfloat16), Precision(device=CPU)
    differ = {}

    def run(step, value):
        exact = plain.call(step, value)
        found = rounded.call(step, value)
        if isinstance(exact, torch.Tensor) and exact.is_floating_point():
            assert found.dtype is exact.dtype
            differ[operator_name(step.node)] = not torch.equal(found, exact)
        return exact

    program.advance_with(program.environment([torch.randn(4, 6, 16)]), run)
    assert {name for name, changed in differ.items() if changed} == {"linear"}
    assert {"linear", "layer_norm", "scaled_dot_product_attention", "mean"} <= set(differ)


def test_double_precision_is_left_alone(make_setup):
    case = make_setup(nn.Linear(8, 3).double(), (torch.randn(4, 8, dtype=torch.float64),), batch_size=4)
    (plain,) = probe(case.setup, case.wanted, ProbeOptions(probes=1))
    (half,) = probe(case.setup, case.wanted, ProbeOptions(probes=1, dtype=torch.bfloat16))
    assert torch.equal(plain.weights, half.weights)


def test_values_are_off_by_the_rounding_of_products_only(attention):
    (plain,) = probe(attention.setup, attention.wanted, ProbeOptions(probes=1))
    (half,) = probe(attention.setup, attention.wanted, ProbeOptions(probes=1, dtype=torch.bfloat16))
    scale = plain.weights.square().mean(1, keepdim=True).sqrt()
    off = (half.weights - plain.weights).abs() / scale
    assert 0 < float(off.max()) < 0.1
    assert float(off.mean()) < 0.01


def test_gradients_come_in_blocks_of_samples_and_elements_that_tile_the_weight(monkeypatch, attention):
    """Whatever fits at once, each sample's gradient is that of autograd."""
    program = attention.setup.program
    for elements, samples in ((1 << 21, 16), (100, 2), (7, 16)):
        monkeypatch.setattr("workers.sensitivity.estimators.gradients._BLOCK_ELEMENTS", elements)
        monkeypatch.setattr("workers.sensitivity.estimators.gradients._BLOCK_SAMPLES", samples)
        x = torch.randn(5, 6, 16)
        step = next(s for s in program.steps if operator_name(s.node) == "linear")
        source, operand = step.node.args[0], step.node.args[1]
        back = torch.randn(5, 6, 48)
        visited = VisitedStep(
            visit=Visit(step=step, values={source: x}, outputs=[{0: back}], sources=[{}]),
            constant=program.constant,
            layouts={0: SampleLayout(axis=0)},
            samples=5,
            precision=Precision(device=CPU),
        )
        found = torch.full((5, 48 * 16), torch.nan)
        for block in find_gradients(visited, operand).blocks(back):
            assert found[block.samples, block.elements].isnan().all()
            found[block.samples, block.elements] = block.values
            assert block.values.numel() <= max(elements, 16), "no more at a time, but for one row"
            if elements >= 100:  # changes of the weight are read once for several samples
                assert len(block.values) == min(samples, 5 - block.samples.start)
        torch.testing.assert_close(found.reshape(5, 48, 16), torch.einsum("npo,npi->noi", back, x))
