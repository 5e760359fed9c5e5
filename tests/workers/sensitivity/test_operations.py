"""Bit operations against hand counts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from workers.contracts import Candidate
from workers.errors import RequestRefused
from workers.graph.describe import describe
from workers.intake.pt2 import read_model
from workers.sensitivity.operations import (
    bit_operation_values,
    float_width,
    parse_bit_operations,
    plan_bit_operations,
)

# SmallCnn, 8 x 8 pixels: products per pixel times pixels; the head sees one pixel.
MACS = {
    "stem.weight": 64 * 8 * 3 * 9,
    "deep.weight": 64 * 8 * 1 * 9,
    "point.weight": 64 * 8 * 8,
    "head.weight": 8 * 5,
}


@pytest.fixture
def description(make_case):
    return describe(read_model(Path(make_case().model_path)))


def candidate(text):
    return Candidate.parse(f"{text}:channel-asymmetric")


def test_values_for_a_row(description):
    wanted = [(name, candidate(text)) for name in MACS for text in ("4a8", "2a4", "3")]
    values = bit_operation_values(description, wanted)
    for name, macs in MACS.items():
        assert values[name, "4a8:channel-asymmetric"] == macs * 32
        assert values[name, "2a4:channel-asymmetric"] == macs * 8
        assert values[name, "3:channel-asymmetric"] == macs * 3 * 32
    assert len(values) == len(wanted)


def test_of_a_plan(description):
    choices = {"stem.weight": candidate("4a8"), "head.weight": candidate("8")}
    expected = MACS["stem.weight"] * 32 + MACS["head.weight"] * 8 * 32
    expected += (MACS["deep.weight"] + MACS["point.weight"]) * 32 * 32
    assert plan_bit_operations(description, choices) == expected
    assert plan_bit_operations(description, {}) == sum(MACS.values()) * 1024


def test_lookups_cost_nothing(make_case):
    class Looked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 4)

        def forward(self, a, b):
            return self.out(self.embed(a.abs().long()) + self.embed(b.abs().long()))

    units = {u.name: u for u in describe(read_model(Path(make_case(Looked).model_path))).units}
    assert (units["embed.weight"].macs, units["embed.weight"].activations) == (0, 0)
    assert units["out.weight"].activations == 1


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 32), (torch.float16, 16), (torch.float64, 64)])
def test_float_width(description, dtype, width):
    bits = description.weights * torch.finfo(dtype).bits
    assert float_width(replace(description, unit_float_bits=bits)) == width


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("12", 12),
        ("1.2G", 1_200_000_000),
        ("0.1 K", 100),
        (" 3T ", 3 * 10**12),
        ("1.0000000000000009P", 10**15),
        ("9999999999999999.5", 9999999999999999),
    ],
)
def test_parse(text, value):
    assert parse_bit_operations(text) == value


@pytest.mark.parametrize("text", ["", "G", "-1", "1e9", "1.2g", "1,2G", "nan", "1.2GB", ".5G", "9" * 65, "٣"])
def test_parse_refuses(text):
    with pytest.raises(RequestRefused, match="no number of bit operations"):
        parse_bit_operations(text)


def test_unknown_units(description):
    with pytest.raises(RequestRefused, match="no unit 'other'"):
        bit_operation_values(description, [("other", candidate("4a8"))])
    with pytest.raises(RequestRefused, match="no unit 'other'"):
        plan_bit_operations(description, {"other": candidate("4a8")})
