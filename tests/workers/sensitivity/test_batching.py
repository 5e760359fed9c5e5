"""The number of samples in a batch that nobody chose."""

from pathlib import Path

import pytest

from workers.intake.pt2 import read_model
from workers.sensitivity import batching
from workers.sensitivity.batching import batch_size_for
from workers.sensitivity.session import prepare


def test_small_models_take_the_most(make_case, kind):
    case = make_case(kind)
    assert batch_size_for(read_model(Path(case.model_path)), case.inputs) == 32


@pytest.mark.parametrize(("room", "expected"), [(4095, 1), (4096, 2), (8 * 2048, 8), (16 * 2048 - 1, 8)])
def test_the_widest_value_decides(make_case, monkeypatch, room, expected):
    """8 channels of 8 x 8 numbers of 4 bytes are the widest of a sample: 2048 bytes."""
    monkeypatch.setattr(batching, "_WIDEST_BYTES", room)
    case = make_case()
    assert batch_size_for(read_model(Path(case.model_path)), case.inputs) == expected


def test_it_is_used_where_no_batch_is_asked_for(make_case, monkeypatch):
    monkeypatch.setattr(batching, "_WIDEST_BYTES", 4 * 2048)
    assert prepare(make_case().request(batch_size=None)).batches.size == 4
    assert prepare(make_case().request(batch_size=5)).batches.size == 5
    assert prepare(make_case(fixed_batch=3).request(batch_size=None)).batches.size == 3
