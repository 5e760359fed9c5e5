import math

import pytest
import torch

from workers.contracts import Candidate, Scheme
from workers.errors import RequestRefused
from workers.quant import (
    fake_quantize,
    predicted_sqnr_db,
    predicted_sqnr_for_range_db,
    quantization_parameters,
    sqnr_db,
)

SAMPLES = 500_000


def signals():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(SAMPLES, generator=generator).mul(2).sub(1)
    sine = torch.sin(torch.rand(SAMPLES, generator=generator) * 2 * math.pi)
    gaussian = torch.randn(SAMPLES, generator=generator).clamp(-4, 4)
    gaussian[:2] = torch.tensor([-4.0, 4.0])
    return {"uniform": uniform, "sine": sine, "gaussian": gaussian}


# MATH.md section 5: what each signal adds to 6.02 b.
OFFSETS = {"uniform": 0.0, "sine": 1.76, "gaussian": -7.27}


def eight_bits(signal):
    # Symmetric, because rounding a zero point shifts the range by half a step, and a sine dwells at its ends.
    candidate = Candidate(bits=8, scheme=Scheme.parse("tensor-symmetric"))
    axes = {"output_channel_axis": 0, "group_axis": 0, "name": "signal"}
    return fake_quantize(signal, candidate, **axes), quantization_parameters(signal, candidate, **axes)


@pytest.mark.parametrize("name", OFFSETS)
def test_measured_and_predicted_match_the_literature_at_8_bits(name):
    signal = signals()[name]
    quantized, parameters = eight_bits(signal)
    known = 6.02 * 8 + OFFSETS[name]
    assert sqnr_db(signal, quantized) == pytest.approx(known, abs=0.1)
    by_step = predicted_sqnr_db(mean_square=signal.square().mean().item(), step=parameters.scale.item())
    assert by_step == pytest.approx(known, abs=0.1)
    width = (signal.max() - signal.min()).item()
    by_range = predicted_sqnr_for_range_db(bits=8, width=width, standard_deviation=signal.std().item())
    assert by_range == pytest.approx(known, abs=0.1)


def test_prediction_is_the_general_formula():
    for bits, width, deviation in [(8, 2.0, 0.5), (12, 7.0, 1.0), (16, 1.0, 0.1)]:
        general = 6.02 * bits + 10.79 - 20 * math.log10(width / deviation)
        ours = predicted_sqnr_for_range_db(bits=bits, width=width, standard_deviation=deviation)
        assert ours == pytest.approx(general, abs=0.05)


def test_each_bit_is_worth_six_decibels():
    ours = [predicted_sqnr_for_range_db(bits=b, width=1, standard_deviation=0.3) for b in (10, 11)]
    assert ours[1] - ours[0] == pytest.approx(6.02, abs=0.01)


def test_sqnr_by_hand():
    assert sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(20.0)
    assert sqnr_db(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])) == pytest.approx(0.0)


def test_exact_results_are_infinite():
    assert sqnr_db(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) == math.inf
    assert sqnr_db(torch.zeros(3), torch.zeros(3)) == math.inf
    assert sqnr_db(torch.zeros(3), torch.ones(3)) == -math.inf


def test_sums_neither_overflow_nor_vanish(device):
    for size in (1e-30, 1e30):
        signal = torch.tensor([size, -size], device=device)
        assert sqnr_db(signal, signal * 0.9) == pytest.approx(20, abs=1e-4)
    half = torch.full((100_000,), 300.0, dtype=torch.float16, device=device)
    assert sqnr_db(half, half * 0) == 0


@pytest.mark.parametrize(
    ("reference", "quantized"),
    [
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(3, 1), torch.zeros(1, 3)),  # would broadcast
        (torch.zeros(0), torch.zeros(0)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(reference, quantized):
    with pytest.raises(RequestRefused, match="no SQNR"):
        sqnr_db(reference, quantized)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_predictions_need_positive_numbers(bad):
    with pytest.raises(RequestRefused, match="step"):
        predicted_sqnr_db(mean_square=1, step=bad)
    with pytest.raises(RequestRefused, match="width"):
        predicted_sqnr_for_range_db(bits=8, width=bad, standard_deviation=1)
