"""Python, HTTP (JSON and CSV) and the command line: the same plan, the same certificate, the best of all plans."""

import itertools
import json
import random
import subprocess
import sys

import pytest

from solver import (
    Problem,
    Row,
    WidthCount,
    choice_probabilities,
    shadow_prices,
    smallest_size,
    solve,
)

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
    "stopped",
    "multipliers",
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


def test_the_share_of_float_is_the_same_budget_everywhere(api, table):
    weights = sum(row[3] // int(row[1]) for row in ROWS if row[1] == "2")
    text, bits = "0.125 of float", 32 * weights // 8
    headers = {"Content-Type": "text/csv"}
    by_csv = api.post("/v1/solve", content=CSV, params={"budget": text}, headers=headers).json()
    by_command = json.loads(_command("--budget", text, "--json", table=table).stdout)
    python = solve(Problem.from_rows([row[:4] for row in ROWS], budget=bits)).to_json()
    assert by_csv["budget_bits"] == by_command["budget_bits"] == bits
    assert by_csv["choices"] == by_command["choices"] == python["choices"]


ERRORS = CSV.replace("latency_ms", "error")
"""The last column read as the costs' standard errors: far larger than the costs."""


def test_prices_target_cost_and_probabilities_have_all_ways_in(api, tmp_path):
    path = tmp_path / "errors.csv"
    path.write_text(ERRORS)
    problem = Problem.from_rows([row[:4] for row in ROWS], budget=BUDGET)
    target = 1.1 * solve(problem).objective
    budget = f"{BUDGET} bits total"
    asked = {"prices": True, "target_cost": target, "standard_errors": "error"}
    by_csv = api.post(
        "/v1/solve",
        content=ERRORS,
        params={"budget": budget, **asked},
        headers={"Content-Type": "text/csv"},
    )
    members = ("unit", "candidate", "cost", "size_bits", "error")
    body = {"rows": [dict(zip(members, row, strict=True)) for row in ROWS], "budgets": [budget], **asked}
    by_json = api.post("/v1/solve", json=body)
    options = ("--prices", "--target-cost", repr(target), "--standard-errors", "error", "--json")
    by_command = _command("--budget", budget, *options, table=path)
    assert (by_csv.status_code, by_json.status_code, by_command.returncode) == (200, 200, 0), by_csv.text
    errors = {row[:2]: row[4] for row in ROWS}
    prices, smallest = shadow_prices(problem), smallest_size(problem, target)
    sure = choice_probabilities(problem, errors).of(solve(problem).choice_indices).tolist()
    for answer in (by_csv.json(), by_json.json(), json.loads(by_command.stdout)):
        assert answer["prices"]["per_kilobyte"] == prices.buys(8000)
        assert answer["prices"]["next_budget_bits"] == prices.next_budget_bits
        assert answer["prices"]["switches"] == {
            unit: [
                {"budget_bits": switch.budget_bits, "candidate": switch.label}
                for switch in prices.switches(i)
            ]
            for i, unit in enumerate(problem.units)
        }
        assert answer["smallest"]["status"] == "optimal"
        assert answer["smallest"]["size_bits"] == smallest.size_bits
        assert answer["smallest"]["choices"] == smallest.solution.named_choices
        assert list(answer["probabilities"].values()) == sure
        assert answer["plans"][0]["prices"] == answer["prices"]


def test_rules_about_widths_have_their_ways_in(api, table):
    rules = {"bounds": {"layer0.weight": (4, None)}, "max_widths": 2}
    counts = [WidthCount(width=8, minimum=1, maximum=3)]
    rows = [row[:4] for row in ROWS]
    python = solve(Problem.from_rows(rows, budget=BUDGET, width_counts=counts, **rules)).to_json()
    assert python["status"] == "optimal"
    body = {
        "rows": [dict(zip(("unit", "candidate", "cost", "size_bits"), row, strict=True)) for row in rows],
        "budgets": [f"{BUDGET} bits total"],
        "width_counts": [{"width": 8, "minimum": 1, "maximum": 3}],
        **rules,
    }
    by_json = api.post("/v1/solve", json=body)
    assert by_json.status_code == 200, by_json.text
    options = ("--bound", "layer0.weight=4..", "--count", "8=1..3", "--max-widths", 2)
    by_command = _command("--budget", f"{BUDGET} bits total", *options, "--json", table=table)
    for answer in (by_json.json(), json.loads(by_command.stdout)):
        assert {name: answer[name] for name in SAME} == {name: python[name] for name in SAME}
    assert python["choices"]["layer0.weight"] != "2"
    assert 1 <= list(python["choices"].values()).count("8") <= 3
    assert len(set(python["choices"].values())) <= 2


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"risk": 1.0}, "standard_errors"),  # of which column?
        ({"prices": True}, "budgets"),  # at which budget?
        ({"budget": "1 MB", "standard_errors": "nothing"}, "standard_errors"),  # no such column
        ({"budget": "1 MB", "limit": "latency_ms=9", "target_cost": 1.0}, "limits"),  # sizes only
        ({"budgets": "1 MB"}, "budgets"),  # CSV has `budget`
    ],
)
def test_questions_that_lack_something_are_refused(api, parameters, field):
    refused = api.post("/v1/solve", content=CSV, params=parameters, headers={"Content-Type": "text/csv"})
    assert (refused.status_code, refused.json()["field"]) == (422, field), refused.text


def test_a_risk_shifts_the_costs_by_their_errors(api):
    table = "unit,candidate,cost,size_bits,error\na,known,1,4,0.01\na,unknown,0.9,4,0.5\n"
    headers = {"Content-Type": "text/csv"}
    parameters = {"budget": "4 bits total", "standard_errors": "error", "risk": 1.0}
    answer = api.post("/v1/solve", content=table, params=parameters, headers=headers).json()
    assert answer["choices"] == {"a": "known"}
    assert answer["objective"] == pytest.approx(1.01)


@pytest.mark.parametrize(
    "option", [("--bound", "layer0.weight=4"), ("--bound", "layer0.weight"), ("--count", "x=1..2")]
)
def test_malformed_ranges_are_usage_errors(table, option):
    done = _command("--budget", "1 MB", *option, "--json", table=table)
    assert done.returncode == 2


def test_people_read_prices_probabilities_and_the_smallest_size(tmp_path):
    path = tmp_path / "errors.csv"
    path.write_text(ERRORS)
    done = _command(
        "--budget", f"{BUDGET} bits total", "--prices", "--standard-errors", "error", "--target-cost", 1e-9, table=path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "one more KB would save" in done.stdout
    assert "probability" in done.stdout
    assert "no plan keeps cost 1e-09" in done.stdout
