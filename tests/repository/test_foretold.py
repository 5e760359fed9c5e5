"""The benchmarks' judge of foretold times."""

import importlib.util
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "foretold.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("foretold", SOURCE)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["foretold"] = loaded  # data classes look up their module
    spec.loader.exec_module(loaded)
    yield loaded
    del sys.modules["foretold"]


def told(module, documents, end):
    """Errors for documents ``(second, stage, fraction, time left)``; ``end`` closes the last stage."""
    moments = iter([*(document[0] for document in documents), end])
    foretold = module.Foretold(clock=lambda: next(moments))
    for _, stage, fraction, left in documents:
        foretold.update({"stage": stage, "fraction": fraction, "eta_seconds": left})
    return foretold.close()


def test_times_are_judged_by_what_the_stage_took_after_its_first_tenth(module):
    early = (5.0, "measure", 0.01, 900.0)
    documents = [
        (0.0, "measure", 0.0, None),
        early,
        (20.0, "measure", 0.2, 100.0),
        (60.0, "measure", 0.6, 40.0),
    ]
    (error,) = told(module, documents, 100.0)
    # Until second 20 the stage was to take 905.
    assert (error.stage, error.seconds, error.told) == ("measure", 100.0, 3)
    assert error.largest == pytest.approx(8.05)
    assert error.median == pytest.approx(0.2), "for 40 of 90 seconds, and 0 for the last 40"


def test_what_was_told_only_in_the_first_tenth_is_not_judged(module):
    documents = [(0.0, "measure", 0.0, 900.0), (9.9, "measure", 0.1, 900.0), (10.0, "measure", 0.1, 90.0)]
    (error,) = told(module, documents, 100.0)
    assert (error.told, error.largest, error.silent) == (1, 0.0, 0.0)


def test_every_stage_has_its_own_error_and_one_that_told_nothing_has_none(module):
    documents = [
        (0.0, "probe", 0.0, None),
        (10.0, "measure", 0.0, None),
        (12.0, "measure", 0.2, 8.0),
        (20.0, "solve", 1.0, 0.0),
        (30.0, "measure", 0.5, None),
        (33.0, "measure", 0.7, 8.0),
        (40.0, "verify", 0.0, None),
        (43.0, "verify", 0.5, 7.0),
    ]
    errors = told(module, documents, 50.0)
    assert [(e.stage, e.largest) for e in errors] == [
        ("measure", 0.0),
        ("measure", pytest.approx(0.1)),
        ("verify", 0.0),
    ]
    assert [e.silent for e in errors] == pytest.approx([1 / 9, 2 / 9, 2 / 9])


def test_a_stage_of_a_few_seconds_is_not_judged(module):
    assert told(module, [(0.0, "verify", 0.0, 60.0)], module.SHORTEST_S - 0.1) == []
    assert len(told(module, [(0.0, "verify", 0.0, 60.0)], module.SHORTEST_S)) == 1


def test_a_stage_that_is_over_at_once_has_no_error(module):
    assert told(module, [(5.0, "solve", 0.5, 1.0)], 5.0) == []


def test_a_round_that_asks_for_more_entries_is_a_stage_of_its_own(module):
    """Plans were made in between, too fast to be seen."""
    moments = iter([0.0, 20.0, 40.0, 60.0, 100.0])
    foretold = module.Foretold(clock=lambda: next(moments))
    for total, left in ((50, 40.0), (50, 20.0), (80, 60.0), (80, 40.0)):
        foretold.update({"stage": "measure", "fraction": 0.5, "eta_seconds": left, "total": total})
    first, second = foretold.close()
    assert (first.seconds, first.largest) == (40.0, 0.0)
    assert (second.seconds, second.largest) == (60.0, 0.0)
