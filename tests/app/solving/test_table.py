"""Tables from CSV and from records: the same values from both, and what is refused says where."""

import pytest

from app.errors import InvalidRequest
from app.solving.table import from_csv, from_records
from solver import TableError

CSV = """unit,candidate,cost,size_bits,latency_ms,note
conv1,4,0.5,400,0.25,small
conv1,8,-1e-3,800,0.5,
fc,4,0.2,4000,1,x
"""


def test_csv_and_records_give_the_same_table():
    records = [
        {"unit": "conv1", "candidate": 4, "cost": 0.5, "size_bits": 400, "latency_ms": 0.25, "note": "small"},
        {"unit": "conv1", "candidate": "8", "cost": -1e-3, "size_bits": 800, "latency_ms": 0.5},
        {"unit": "fc", "candidate": "4", "cost": 0.2, "size_bits": 4e3, "latency_ms": 1, "note": "x"},
    ]
    table = from_csv(CSV.splitlines())
    assert table == from_records(records)
    assert table.rows == (("conv1", "4", 0.5, 400), ("conv1", "8", -1e-3, 800), ("fc", "4", 0.2, 4000))
    assert table.column("latency_ms") == {("conv1", "4"): 0.25, ("conv1", "8"): 0.5, ("fc", "4"): 1.0}


def test_sizes_beyond_the_exact_floats_stay_whole():
    assert from_csv(["unit,candidate,cost,size_bits", f"a,x,1,{2**60 + 1}"]).rows[0][3] == 2**60 + 1


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["a,4,1,400", "a,8,0,800", "b,4,1,40"], 110),  # sizes are weights times bits
        (["a,4,1,400", "a,8,0,816"], None),  # scales are counted in: the sizes do not tell
        (["a,w4,1,400"], None),  # a name, not a width
        (["a,4,1,401"], None),
    ],
)
def test_the_number_of_weights_is_worked_out_where_sizes_tell_it(rows, expected):
    assert from_csv(["unit,candidate,cost,size_bits", *rows]).weights() == expected


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("", "header", "lacks"),  # nothing at all
        ("unit,candidate,cost\na,4,1", "header", "size_bits"),  # a column is missing
        ("unit,candidate,cost,size_bits,cost\n", "header", "twice"),
        ("unit,candidate,cost,size_bits\n", "rows", "no rows"),
        ("unit,candidate,cost,size_bits\na,4,nan,400", "cost", "'a'"),
        ("unit,candidate,cost,size_bits\na,4,inf,400", "cost", "'a'"),
        ("unit,candidate,cost,size_bits\na,4,much,400", "cost", "'a'"),
        ("unit,candidate,cost,size_bits\na,4,1,-400", "size_bits", "'a'"),
        ("unit,candidate,cost,size_bits\na,4,1,4.5", "size_bits", "'a'"),
        ("unit,candidate,cost,size_bits\n,4,1,4", "unit", "line 2"),
        ("unit,candidate,cost,size_bits\na,4,1", "line 2", "3 cells"),
        ('unit,candidate,cost,size_bits\n"a,4,1,4', "table", "CSV"),  # an open quotation
    ],
)
def test_a_bad_table_is_refused_by_place_and_reason(text, field, says):
    with pytest.raises(TableError) as refused:
        from_csv(text.splitlines())
    assert refused.value.field == field
    assert says in str(refused.value)


def test_a_limit_needs_a_number_in_every_row():
    table = from_csv(CSV.splitlines())
    with pytest.raises(TableError, match="'conv1', candidate '4'"):
        table.column("note")
    with pytest.raises(InvalidRequest, match="no column 'energy'") as refused:
        table.column("energy")
    assert refused.value.allowed == ["latency_ms", "note"]
