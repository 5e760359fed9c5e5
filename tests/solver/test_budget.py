import pickle

import pytest

from solver import BUDGET_FORMS, BudgetError, parse_budget


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("4 bits", 4000),
        ("4bits", 4000),
        ("1 bit", 1000),
        ("2.5 bits", 2500),
        ("  4   bits per weight ", 4000),
        (".5 bits", 500),
        ("123456 bits total", 123456),
        ("123456.9 bits total", 123456),  # whole bits, rounded down
        ("1 KB", 8000),
        ("1 kB", 8000),
        ("12 MB", 96_000_000),
        ("12MiB", 12 * 2**20 * 8),
        ("0.5 GiB", 2**32),
        ("100 B", 800),
        ("100 bytes", 800),
        ("3.5x", 9142),  # 32000 / 3.5 = 9142.86
        ("4 x", 8000),
        ("0.4 of float", 12800),
        (
            "0.1 of float",
            3200,
        ),  # decimal: binary 0.1 times 32000 would also floor to 3200, 0.3 below would not
        ("0.3 of float", 9600),
        ("1 of float", 32000),
    ],
)
def test_budget_forms(text, bits):
    budget = parse_budget(text, weights=1000, float_bits=32000)
    assert (budget.text, budget.bits) == (text, bits)


def test_ratio_is_decimal_not_binary():
    # 0.29 * 100 is 28.999999999999996 in binary floating point.
    assert parse_budget("0.29 of float", weights=1, float_bits=100).bits == 29


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4", "no unit"),
        ("", "not a number"),
        ("bits", "not a number"),
        ("-4 bits", "negative"),
        ("0 bits", "zero"),
        ("0.0x", "zero"),
        ("0.0001 bits total", "less than one bit"),
        ("12 mb", "ambiguous"),
        ("12 Mb", "ambiguous"),
        ("12 Mbit", "unknown unit"),
        ("12 parsecs", "unknown unit"),
        ("1,000 bits total", "unknown unit"),
        ("1e6 bits total", "unknown unit"),
        ("nan bits", "not a number"),
        ("4 bits 5", "unknown unit"),
        ("123456 bits", "bits total"),  # an average nobody means
        ("0.5x", "of float"),  # would double the model
        ("3.5 of float", "3.5x"),
        ("9999999999 TB", "2^62"),
        ("1" * 500 + " bits", "not a number"),
        ("٤ bits", "not a number"),  # other digits than ASCII
    ],
)
def test_refused_budgets(text, says):
    with pytest.raises(BudgetError, match="budget") as caught:
        parse_budget(text, weights=1000, float_bits=32000)
    assert says in str(caught.value)
    assert caught.value.allowed == BUDGET_FORMS
    assert caught.value.field == "budget"


def test_missing_unit_suggests_both_readings():
    with pytest.raises(BudgetError) as caught:
        parse_budget("4", weights=1000, float_bits=32000)
    assert '"4 bits"' in str(caught.value)
    assert '"4 MB"' in str(caught.value)


def test_numbers_are_not_budgets():
    with pytest.raises(BudgetError):
        parse_budget(4, weights=1000, float_bits=32000)  # type: ignore[arg-type]


def test_errors_survive_pickling():
    with pytest.raises(BudgetError) as caught:
        parse_budget("4", weights=1, float_bits=1)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.field, again.value, again.allowed, again.kind) == (
        str(caught.value),
        "budget",
        "4",
        BUDGET_FORMS,
        "budget-error",
    )
