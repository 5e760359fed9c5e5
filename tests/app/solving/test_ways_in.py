"""Python, HTTP (JSON and CSV) and the command line: the same plan, the same certificate, the best of all plans."""

import itertools
import json
import random
import subprocess
import sys

import pytest

from solver import Problem, Row, solve

UNITS, WIDTHS, LIMIT = 6, (2, 4, 8), 9.5
SAME = (
    "status",
    "objective",
    "lower_bound",
    "relative_gap",
    "size_bits",
    "choices",
    "proof",
    "backend",
    "rows",
)


def _rows():
    dice = random.Random(5)
    rows = []
    for i in range(UNITS):
        weights, latency = dice.randint(10, 400), dice.uniform(0.1, 0.5)
        for bits in WIDTHS:
            cost = dice.uniform(0.5, 2) * 4.0**-bits
            rows.append((f"layer{i}.weight", str(bits), cost, weights * bits, round(latency * bits, 3)))
    return rows


ROWS = _rows()
CSV = "unit,candidate,cost,size_bits,latency_ms\n" + "".join(",".join(map(str, row)) + "\n" for row in ROWS)
BUDGET = sum(row[3] for row in ROWS if row[1] == "4")


def _best(*, limited):
    groups = [ROWS[i : i + len(WIDTHS)] for i in range(0, len(ROWS), len(WIDTHS))]
    fitting = (
        sum(row[2] for row in plan)
        for plan in itertools.product(*groups)
        if sum(row[3] for row in plan) <= BUDGET and (not limited or sum(row[4] for row in plan) <= LIMIT)
    )
    return min(fitting)


def _command(*arguments, table):
    return subprocess.run(
        [sys.executable, "-m", "app.cli", "solve", str(table), *map(str, arguments)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(CSV)
    return path


@pytest.mark.parametrize("limited", [False, True])
def test_all_ways_in_give_the_same_plan_and_certificate(api, table, limited):
    rows = [row[:4] for row in ROWS]
    values = {(unit, candidate): latency for unit, candidate, _, _, latency in ROWS}
    limits = [Row(name="latency_ms", values=values, limit=LIMIT)] if limited else []
    python = solve(Problem.from_rows(rows, budget=BUDGET, limits=limits)).to_json()
    assert python["status"] == "optimal"
    assert python["objective"] == pytest.approx(_best(limited=limited), rel=1e-12)

    asked = {"latency_ms": LIMIT} if limited else {}
    members = ("unit", "candidate", "cost", "size_bits", "latency_ms")
    body = {"rows": [dict(zip(members, row, strict=True)) for row in ROWS]}
    body |= {"budgets": [f"{BUDGET} bits total"], "limits": asked}
    parameters = {"budget": f"{BUDGET} bits total", **({"limit": f"latency_ms={LIMIT}"} if limited else {})}
    by_json = api.post("/v1/solve", json=body)
    by_csv = api.post("/v1/solve", content=CSV, params=parameters, headers={"Content-Type": "text/csv"})
    limit = ("--limit", f"latency_ms={LIMIT}") if limited else ()
    by_command = _command("--budget", f"{BUDGET} bits total", *limit, "--json", table=table)
    assert (by_json.status_code, by_csv.status_code, by_command.returncode) == (200, 200, 0), (
        by_command.stderr
    )
    for answer in (by_json.json(), by_csv.json(), json.loads(by_command.stdout)):
        assert {name: answer[name] for name in SAME} == {name: python[name] for name in SAME}
        assert answer["seconds"] >= 0


def test_averages_and_ratios_use_the_weights_that_the_sizes_tell(api):
    answer = api.post(
        "/v1/solve", content=CSV, params={"budget": ["4 bits", "8x"]}, headers={"Content-Type": "text/csv"}
    ).json()
    assert [plan["budget_bits"] for plan in answer["plans"]] == [BUDGET, BUDGET]  # 32 bits a weight / 8
    assert answer["plans"][0]["choices"] == answer["choices"]


def test_an_average_without_weights_is_a_clear_error(api):
    table = "unit,candidate,cost,size_bits\na,small,1,400\na,large,0,900\n"
    headers = {"Content-Type": "text/csv"}
    refused = api.post("/v1/solve", content=table, params={"budget": "4 bits"}, headers=headers)
    assert (refused.status_code, refused.json()["field"]) == (422, "weights")
    told = api.post("/v1/solve", content=table, params={"budget": "4 bits", "weights": 100}, headers=headers)
    assert told.json()["choices"] == {"a": "small"}


def test_the_frontier_rebuilds_every_plan(api):
    answer = api.post(
        "/v1/solve", content=CSV, params={"frontier": True}, headers={"Content-Type": "text/csv"}
    ).json()
    size = {(unit, candidate): bits for unit, candidate, _, bits, _ in ROWS}
    cost = {(unit, candidate): value for unit, candidate, value, _, _ in ROWS}
    plan = {}
    for point in answer["frontier"]:
        plan |= point["changes"]
        assert sum(size[choice] for choice in plan.items()) == point["size_bits"]
        assert sum(cost[choice] for choice in plan.items()) == pytest.approx(point["objective"], rel=1e-12)
    assert len(answer["frontier"]) > 2
    assert len(plan) == UNITS


def test_an_infeasible_budget_ends_with_code_4_and_the_smallest_size(table):
    done = _command("--budget", "100 bits total", "--json", table=table)
    answer = json.loads(done.stdout)
    assert done.returncode == 4
    assert answer["status"] == "infeasible"
    assert answer["choices"] == {}
    assert answer["smallest_feasible_bits"] == sum(row[3] for row in ROWS if row[1] == "2")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rows": []}, "rows"),
        ({"rows": [{"unit": "a", "candidate": "4", "size_bits": 4}]}, "rows.0.cost"),
        ({"rows": [{"unit": "a", "candidate": "4", "cost": 1, "size_bits": -1}]}, "rows.0.size_bits"),
        ({"rows": [{"unit": "a", "candidate": "4", "cost": 1, "size_bits": 4}], "budgets": ["4"]}, "budget"),
        (
            {"rows": [{"unit": "a", "candidate": "4", "cost": 1, "size_bits": 4}], "limits": {"ms": 1}},
            "limits.ms",
        ),
        (
            {"rows": [{"unit": "a", "candidate": "4", "cost": 1, "size_bits": 4}], "time_limit_s": 1e9},
            "time_limit_s",
        ),
    ],
)
def test_a_bad_request_names_its_field(api, body, field):
    refused = api.post("/v1/solve", json=body)
    assert refused.status_code == 422
    problem = refused.json()
    assert problem["field"] == field
    assert problem["allowed"]


def test_another_media_type_is_refused(api):
    refused = api.post("/v1/solve", content="<xml/>", headers={"Content-Type": "application/xml"})
    assert refused.status_code == 415
    assert refused.json()["allowed"] == ["application/json", "text/csv"]


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("unit,candidate,cost,size_bits\nlayer1,4,nan,400\n", 3, "layer1"),  # the file is at fault
        ("unit,candidate,cost,size_bits\nlayer1,4,1,400\nlayer1,4,2,400\n", 3, "layer1"),  # a candidate twice
        ("unit,candidate,cost,size_bits\nlayer1,4,1,400\n", 2, "layer9"),  # the command line is: no such unit
    ],
)
def test_refusals_end_with_the_code_of_what_is_at_fault(tmp_path, text, code, says):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    done = _command("--budget", "1 MB", *(("--pin", "layer9=4") if code == 2 else ()), "--json", table=path)
    assert done.returncode == code
    assert says in json.loads(done.stdout)["detail"]


def test_people_read_a_table(table):
    done = _command("--budget", f"{BUDGET} bits total", "--frontier", table=table)
    assert done.returncode == 0
    assert "layer0.weight" in done.stdout
    assert "lower bound" in done.stdout
