"""Numbers as people read them."""

import math

import pytest

from app.report import quantities as q

THIN = "\u2009"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0012345, "0.00123"),
        (12.345, "12.3"),
        (1.0, "1.00"),
        (999.6, "1000"),  # rounding carries into the next digit
        (0.00099996, "0.00100"),
        (1234.56, "1230"),
        (12345.6, f"1.23{q.TIMES}10⁴"),
        (1.5e6, f"1.50{q.TIMES}10⁶"),
        (4.5678e-7, f"4.57{q.TIMES}10⁻⁷"),
        (-0.5, "\u22120.500"),
        (0.0, "0"),
        (-0.0, "0"),
        (None, q.NOTHING),
        (math.inf, "∞"),
        (-math.inf, "\u2212∞"),
        (math.nan, "not a number"),
    ],
)
def test_number(value, text):
    assert q.number(value) == text


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        (None, q.NOTHING),
        (0, "0 bits"),
        (7, "7 bits"),
        (8, "1 B"),
        (8 * 999, "999 B"),
        (8 * 1000, "1.00 kB"),
        (8 * 999_700, "1.00 MB"),  # never "1000 kB"
        (8 * 2_304_496, "2.30 MB"),
        (8 * 10**9, "1.00 GB"),
        (8 * 123_456 * 10**6, "123 GB"),
    ],
)
def test_size(bits, text):
    assert q.size(bits) == text.replace(" ", THIN)


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (None, q.NOTHING),
        (0.0, "0 %"),
        (0.003, "0.30 %"),
        (0.91249, "91.2 %"),
        (1.0, "100 %"),
        (-0.25, "\u221225 %"),
        (1e-6, "0.00010 %"),
    ],
)
def test_percent(fraction, text):
    assert q.percent(fraction) == text.replace(" ", THIN)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, q.NOTHING),
        (0.0041, "4.1_ms"),
        (0.085, "85_ms"),
        (4.24, "4.2_s"),
        (9.97, "10_s"),
        (59.4, "59_s"),
        (59.6, "1_min"),
        (73, "1_min 13_s"),
        (3600, "1_h"),
        (7500, "2_h 5_min"),
        (90_000, "1_d 1_h"),
        (-3, "0_ms"),
    ],
)
def test_duration(seconds, text):
    assert q.duration(seconds) == text.replace("_", THIN)


def test_values_carry_the_unit_of_their_metric():
    assert q.metric_value(0.0123, "kl") == f"0.0123{THIN}nats"
    assert q.metric_value(0.912, "top1_agreement") == f"91.2{THIN}%"
    assert q.metric_value(0.297, "float_top1_accuracy") == f"29.7{THIN}%"
    assert q.measure("float_top1_accuracy").title == "Top-1 accuracy, float model"
    assert q.metric_value(0.5, "some_new_metric") == "0.500"
    assert q.metric_value(None, "kl") == q.NOTHING
    assert q.measure("some_new_metric").title == "Some new metric"


def test_values_with_errors():
    assert q.metric_with_error(0.0123, 0.0011, "kl") == "0.0123 ± 0.0011"
    assert q.metric_with_error(-0.0123, None, "loss") == "\u22120.0123"
    assert q.metric_with_error(0.912, 0.021, "top1_agreement") == "91.2 ± 2.1"
    assert q.metric_with_error(None, 0.1, "kl") == q.NOTHING


def test_counts_ratios_and_shapes():
    assert q.count(4_652_008) == "4_652_008".replace("_", THIN)
    assert q.count(-1234) == f"\u22121{THIN}234"
    assert q.plural(1, "tensor") == "1 tensor"
    assert q.plural(50, "tensor") == "50 tensors"
    assert q.ratio(32, 4) == f"8{q.TIMES}"
    assert q.ratio(None, 4) == q.ratio(32, 0) == q.NOTHING
    assert q.shape([32, 3, 3, 3]) == "32 x 3 x 3 x 3".replace("x", q.TIMES)
    assert q.shape(()) == "scalar"
    assert q.average_bits(3.984) == f"3.98{THIN}bits"
