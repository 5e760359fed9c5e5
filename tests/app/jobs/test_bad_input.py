"""Everything that can be wrong with a job's request: one row each, and nothing is half-created."""

import pytest

UNKNOWN_JOB = "job_00000000000000000000000000"

# what is wrong, the members that make it so, status, kind, field, value, what is allowed (a part of it)
REFUSED = [
    # Bit-widths are whole numbers from 2 to 16.
    ("a width below 2", {"candidates": [1, 4]}, 422, "request-refused", "candidates", 1, "from 2 to 16"),
    ("a width above 16", {"candidates": [4, 17]}, 422, "request-refused", "candidates", 17, "from 2 to 16"),
    ("no width", {"candidates": []}, 422, "invalid-request", "candidates", [], "from 2 to 16"),
    ("a width twice", {"candidates": [4, 4]}, 422, "invalid-request", "candidates", [4, 4], "once"),
    # Numbers are not guessed from other types.
    ("a width as text", {"candidates": ["4"]}, 422, "invalid-request", "candidates.0", "4", "integer"),
    ("a width as truth", {"candidates": [True]}, 422, "invalid-request", "candidates.0", True, "integer"),
    ("a fractional width", {"candidates": [4.5]}, 422, "invalid-request", "candidates.0", 4.5, "integer"),
    # Metrics are kl, mse and loss; loss needs labels.
    ("an unknown metric", {"metric": "psnr"}, 422, "invalid-request", "metric", "psnr", ["auto", "kl", "mse", "loss", "probe", "weight-mse", "weight-sqnr", "output-error", "output-hessian", "hessian-trace", "fisher", "fit"]),
    ("a Hessian trace of another metric", {"metric": "hessian-trace", "compare": "mse"}, 422, "invalid-request", "compare", "mse", ["kl"]),
    ("loss without labels", {"metric": "loss"}, 422, "invalid-request", "metric", "loss", "'labels'"),
    # A quantizer scheme follows its grammar.
    ("an unknown scheme", {"scheme": "row-symmetric"}, 422, "request-refused", "scheme", "row-symmetric", "tensor"),
    ("a group of one", {"scheme": "group:1-symmetric"}, 422, "request-refused", "scheme", "group:1-symmetric", "2"),
    # Budgets have a unit and are no smaller than the smallest plan.
    ("a budget without unit", {"budgets": ["4"]}, 422, "budget-error", "budgets.0", "4", "average per searched"),
    ("a budget of zero", {"budgets": ["0 bits"]}, 422, "budget-error", "budgets.0", "0 bits", "average"),
    ("a negative budget", {"budgets": ["-4 bits"]}, 422, "budget-error", "budgets.0", "-4 bits", "average"),
    ("a budget of bits or bytes", {"budgets": ["12 Mb"]}, 422, "budget-error", "budgets.0", "12 Mb", "average"),
    ("a budget below the minimum", {"budgets": ["1.9 bits"]}, 409, "budget-below-minimum", "budgets.0", "1.9 bits", "3248 bits"),
    ("the second below the minimum", {"budgets": ["4 bits", "20x"]}, 409, "budget-below-minimum", "budgets.1", "20x", "3248 bits"),
    ("no budget", {"budgets": []}, 422, "invalid-request", "budgets", [], "at least 1"),
    ("a budget twice", {"budgets": ["4 bits", " 4 bits"]}, 422, "invalid-request", "budgets.1", "4 bits", "once"),
    ("a budget as number", {"budgets": [4]}, 422, "invalid-request", "budgets.0", 4, "string"),
    ("a budget that binds nothing known", {"budget_counts": "ram"}, 422, "invalid-request", "budget_counts", "ram", ["weights", "file"]),
    ("a file budget below what is fixed", {"budget_counts": "file", "budgets": ["100 bits total"]}, 409, "budget-below-minimum", "budgets.0", "100 bits total", "6448 bits"),
    # Pins name units of the model and widths on offer.
    ("a pin of an unknown layer", {"pins": {"fc9.weight": 4}}, 422, "invalid-request", "pins.fc9.weight", "fc9.weight", "stem.weight"),
    ("a pin to a width not offered", {"pins": {"q.weight": 7}}, 422, "invalid-request", "pins.q.weight", 7, [2, 3, 4, 5, 6, 8]),
    ("pins that leave no room", {"pins": {"head.weight": 8, "q.weight": 8}}, 409, "budget-below-minimum", "budgets.0", "4 bits", "10160 bits"),
    ("a unit pinned and excluded", {"pins": {"q.weight": 4}, "exclude": ["q.weight"]}, 422, "invalid-request", "pins.q.weight", 4, "either"),
    # Ties hold units that could run as one fused weight.
    ("a tie of one", {"ties": [["q.weight"]]}, 422, "invalid-request", "ties.0", ["q.weight"], "two"),
    ("a tie of a unit with itself", {"ties": [["q.weight", "q.weight"]]}, 422, "invalid-request", "ties.0", ["q.weight", "q.weight"], "two"),
    ("a tie with an unknown layer", {"ties": [["q.weight", "v.weight"]]}, 422, "invalid-request", "ties.0.1", "v.weight", "k.weight"),
    ("a tie of other inner sizes", {"ties": [["q.weight", "head.weight"]]}, 422, "invalid-request", "ties.0", ["q.weight", "head.weight"], "output-channel axis"),
    ("a tie of other operators", {"ties": [["stem.weight", "k.weight"]]}, 422, "invalid-request", "ties.0", ["stem.weight", "k.weight"], "same operator"),
    ("a tie with an excluded unit", {"ties": [["q.weight", "k.weight"]], "exclude": ["k.weight"]}, 422, "invalid-request", "ties.0.1", "k.weight", "either"),
    ("a tie pinned to two widths", {"ties": [["q.weight", "k.weight"]], "pins": {"q.weight": 2, "k.weight": 3}}, 422, "invalid-request", "ties", ["k.weight", "q.weight"], "one bit-width"),
    # Exclusions name units and leave something to search.
    ("an unknown exclusion", {"exclude": ["v.weight"]}, 422, "invalid-request", "exclude.0", "v.weight", "q.weight"),
    ("everything excluded", {"exclude": ["stem.weight", "q.weight", "k.weight", "head.weight"]}, 422, "invalid-request", "exclude", ["stem.weight", "q.weight", "k.weight", "head.weight"], "fewer"),
    # Samples and holdout keep to what the dataset has.
    ("no samples", {"samples": 0}, 422, "invalid-request", "samples", 0, "from 1 to 40"),
    ("more samples than there are", {"samples": 41}, 422, "invalid-request", "samples", 41, "from 1 to 40"),
    ("more samples than are not held out", {"samples": 31, "holdout": 0.25}, 422, "invalid-request", "samples", 31, "from 1 to 30"),
    ("a holdout above 0.9", {"holdout": 0.95}, 422, "invalid-request", "holdout", 0.95, "0 to 0.9"),
    ("a negative holdout", {"holdout": -0.1}, 422, "invalid-request", "holdout", -0.1, "0 to 0.9"),
    # Unknown ids, well-formed or not.
    ("an unknown model", {"model": "mdl_00000000000000000000000000"}, 404, "not-found", "model", "mdl_00000000000000000000000000", None),
    ("a model id of another kind", {"model": "dat_1"}, 404, "not-found", "model", "dat_1", None),
    ("an unknown dataset", {"dataset": "dat_00000000000000000000000000"}, 404, "not-found", "dataset", "dat_00000000000000000000000000", None),
    ("an unknown evaluation dataset", {"evaluation_dataset": "dat_\x00"}, 404, "not-found", "evaluation_dataset", "dat_\x00", None),
    # What estimates rest on and how far they are refined.
    ("no regret at all", {"regret": 0}, 422, "invalid-request", "regret", 0, "greater than 0"),
    ("a negative regret", {"regret": -0.01}, 422, "invalid-request", "regret", -0.01, "greater than 0"),
    ("a regret above 1", {"regret": 1.01}, 422, "invalid-request", "regret", 1.01, "less than or equal to 1"),
    ("no pass at all", {"max_passes": 0}, 422, "invalid-request", "max_passes", 0, "greater than 0"),
    ("no pass to refine with", {"refine_passes": 0}, 422, "invalid-request", "refine_passes", 0, "greater than 0"),
    ("a regret as text", {"regret": "1%"}, 422, "invalid-request", "regret", "1%", "number"),
    ("a regret of what measures nothing", {"metric": "probe", "regret": 0.01}, 422, "invalid-request", "regret", 0.01, "auto"),
    ("passes of what measures nothing", {"metric": "fisher", "max_passes": 2.5}, 422, "invalid-request", "max_passes", 2.5, "auto"),
    ("passes of what measures everything", {"metric": "kl", "max_passes": 2.5}, 422, "invalid-request", "max_passes", 2.5, "regret"),
    ("no probes", {"probes": 0}, 422, "invalid-request", "probes", 0, "greater than or equal to 1"),
    ("too many probes", {"probes": 65}, 422, "invalid-request", "probes", 65, "64"),
    ("fractional probes", {"probes": 1.5}, 422, "invalid-request", "probes", 1.5, "integer"),
    ("a comparison that is none", {"metric": "auto", "compare": "cosine"}, 422, "invalid-request", "compare", "cosine", ["kl", "mse"]),
    ("an estimate of the loss", {"metric": "auto", "compare": "loss"}, 422, "invalid-request", "compare", "loss", ["kl", "mse"]),
    ("a comparison other than what is measured", {"metric": "kl", "compare": "mse"}, 422, "invalid-request", "compare", "mse", "'kl'"),
    # One scheme or several, each once.
    ("a scheme and schemes", {"scheme": "tensor-symmetric", "schemes": ["channel-symmetric"]}, 422, "invalid-request", "schemes", ["channel-symmetric"], "either"),
    ("a scheme twice", {"schemes": ["channel-symmetric", "channel-symmetric"]}, 422, "invalid-request", "schemes", ["channel-symmetric", "channel-symmetric"], "once"),
    ("an unknown scheme among several", {"schemes": ["channel-symmetric", "row-symmetric"]}, 422, "request-refused", "scheme", "row-symmetric", "tensor"),
    ("schemes as text", {"schemes": "channel-symmetric"}, 422, "invalid-request", "schemes", "channel-symmetric", "list"),
    # Widths of activations are whole numbers from 2 to 16, each once.
    ("an activation width below 2", {"activation_candidates": [8, 1]}, 422, "request-refused", "activation_candidates", 1, "from 2 to 16"),
    ("an activation width above 16", {"activation_candidates": [17]}, 422, "request-refused", "activation_candidates", 17, "from 2 to 16"),
    ("an activation width twice", {"activation_candidates": [8, 8]}, 422, "invalid-request", "activation_candidates", [8, 8], "once"),
    ("an activation width as text", {"activation_candidates": ["8"]}, 422, "invalid-request", "activation_candidates.0", "8", "integer"),
    # Limits are known ones, with quantities.
    ("an unknown limit", {"limits": {"latency": "3ms"}}, 422, "invalid-request", "limits.latency", "3ms", "bit_operations"),
    ("a limit that is no quantity", {"limits": {"bit_operations": "many"}}, 422, "request-refused", "bit_operations", "many", "1.2G"),
    ("a negative limit", {"limits": {"bit_operations": "-1G"}}, 422, "request-refused", "bit_operations", "-1G", "1.2G"),
    ("a limit as number", {"limits": {"bit_operations": 1000}}, 422, "invalid-request", "limits.bit_operations", 1000, "string"),
    ("limits that are no object", {"limits": ["bit_operations"]}, 422, "invalid-request", "limits", ["bit_operations"], "dictionary"),
    # Members of other types or out of range.
    ("an unknown member", {"budget": "4 bits"}, 422, "invalid-request", "budget", "4 bits", "documented"),
    ("a negative seed", {"seed": -1}, 422, "invalid-request", "seed", -1, "greater than or equal to 0"),
    ("a seed beyond 63 bits", {"seed": 2**63}, 422, "invalid-request", "seed", f"{hex(2**63)[:40]}…", "less than"),
    ("an empty batch", {"batch_size": 0}, 422, "invalid-request", "batch_size", 0, "greater than or equal to 1"),
    ("a priority out of range", {"priority": 101}, 422, "invalid-request", "priority", 101, "100"),
    ("a name with a NUL", {"name": "a\x00b"}, 422, "invalid-request", "name", "a\x00b", "match pattern"),
    ("a name that is too long", {"name": "x" * 256}, 422, "invalid-request", "name", "x" * 256, "at most 255"),
    ("pins that are no object", {"pins": ["q.weight"]}, 422, "invalid-request", "pins", ["q.weight"], "dictionary"),
]  # fmt: skip


@pytest.mark.parametrize("row", REFUSED, ids=[row[0] for row in REFUSED])
def test_a_bad_request_is_refused_by_name_and_creates_nothing(api, world, problem, row):
    _, members, status, kind, field, value, allowed = row
    body = world.body() | members
    before = world.rows()

    response = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})

    refused = problem(response, status, kind, field if allowed else None)
    assert refused["field"] == field
    assert refused["value"] == value
    assert refused["instance"] == "/v1/jobs"
    if isinstance(allowed, str):
        assert allowed in str(refused["allowed"])
    elif allowed is not None:
        assert refused["allowed"] == allowed
    assert world.rows() == before


def test_a_missing_member_is_named(api, world, problem):
    body = world.body()
    del body["budgets"]
    assert problem(api.post("/v1/jobs", json=body), 422, "invalid-request", "budgets")["value"] is None


def test_several_mistakes_are_told_at_once(api, problem):
    refused = problem(api.post("/v1/jobs", json={"seed": -1, "priority": 1.5}), 422, "invalid-request")
    assert {e["field"] for e in refused["errors"]} == {"model", "dataset", "budgets", "seed", "priority"}


def test_a_budget_below_the_minimum_is_answered_with_the_minimum(api, world, problem):
    refused = problem(
        api.post("/v1/jobs", json=world.body(budgets=["1 bits"])), 409, "budget-below-minimum", "budgets.0"
    )
    assert refused["minimum_bits"] == 2 * 1624
    assert refused["minimum"] == "3248 bits total"
    assert refused["budget_bits"] == 1624
    # And the minimum itself is accepted.
    assert api.post("/v1/jobs", json=world.body(budgets=[refused["minimum"]])).status_code == 202


def test_the_minimum_respects_pins_through_ties(api, world, problem):
    body = world.body(budgets=["1 bits"], pins={"k.weight": 8}, ties=[["q.weight", "k.weight"]])
    refused = problem(api.post("/v1/jobs", json=body), 409, "budget-below-minimum")
    assert refused["minimum_bits"] == 2 * (216 + 640) + 8 * (512 + 256)


def test_labels_beyond_the_classes_are_refused(api, world, problem):
    body = world.body(metric="loss", dataset=world.dataset(labels=11).id)
    refused = problem(api.post("/v1/jobs", json=body), 422, "dataset-refused", "labels")
    assert refused["value"] == 10
    assert "0 to 9" in refused["allowed"]
    assert (
        api.post("/v1/jobs", json=world.body(metric="loss", dataset=world.dataset(labels=10).id)).status_code
        == 202
    )


def test_loss_needs_labels_in_the_evaluation_data_too(api, world, problem):
    body = world.body(
        metric="loss", dataset=world.dataset(labels=10).id, evaluation_dataset=world.dataset().id
    )
    refused = problem(api.post("/v1/jobs", json=body), 422, "invalid-request", "metric")
    assert "evaluation_dataset" in refused["allowed"]


def test_a_distribution_metric_needs_a_distribution(api, world, problem):
    model = world.model(classes=1)
    refused = problem(
        api.post("/v1/jobs", json=world.body(model=model.id, metric="kl")), 422, "invalid-request", "metric"
    )
    assert refused["allowed"] == ["mse"]
    assert api.post("/v1/jobs", json=world.body(model=model.id, metric="mse")).status_code == 202


def test_a_dataset_that_does_not_fit_the_model_is_refused(api, world, problem):
    dataset = world.dataset()
    with world.database.write() as session:
        from app.models import Dataset

        row = session.get_one(Dataset, dataset.id)
        row.tensors = {"x": {"dtype": "float32", "shape": [40, 3, 5, 4]}}
    refused = problem(api.post("/v1/jobs", json=world.body(dataset=dataset.id)), 422, "dataset-refused", "x")
    assert refused["value"] == [40, 3, 5, 4]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b"null", b'"text"', b"[]", b"\xff\xfe", b'{"model": "\\ud800"}'],
    ids=["empty", "cut", "deep", "null", "text", "list", "not UTF-8", "a lone surrogate"],
)
def test_a_body_that_is_no_object_is_refused(api, body):
    response = api.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(api, world, number):
    text = '{"model": "m", "dataset": "d", "budgets": ["4 bits"], "holdout": ' + number + "}"
    response = api.post("/v1/jobs", content=text, headers={"Content-Type": "application/json"})
    assert response.status_code in (404, 422)
    assert response.json()


def test_a_holdout_that_is_no_number_is_refused(api, world, problem):
    import json

    text = json.dumps(world.body(holdout=float("nan")))
    response = api.post("/v1/jobs", content=text, headers={"Content-Type": "application/json"})
    assert problem(response, 422, "invalid-request", "holdout")["value"] == "nan"


def test_a_json_body_beyond_the_limit_is_refused_without_reading_it_all(api, problem):
    body = b'{"model": "' + b"x" * (9 << 20) + b'"}'
    refused = problem(
        api.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"}), 413, "too-large"
    )
    assert refused["maximum_bytes"] == 8 << 20


@pytest.mark.parametrize("key", ["", "x" * 256, "käse"])
def test_an_idempotency_key_is_short_and_plain(api, world, problem, key):
    before = world.rows()
    response = api.post("/v1/jobs", json=world.body(), headers={"Idempotency-Key": key.encode("latin-1")})
    problem(response, 422, "invalid-request", "idempotency-key")
    assert {t: n for t, n in world.rows().items() if t in ("jobs", "idempotency_keys")} == {
        t: n for t, n in before.items() if t in ("jobs", "idempotency_keys")
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/result"),
        ("GET", "/events"),
        ("GET", "/sensitivities"),
        ("GET", "/frontier"),
        ("GET", "/plans"),
        ("POST", "/plans"),
        ("POST", "/cancel"),
    ],
)
@pytest.mark.parametrize("job_id", [UNKNOWN_JOB, "job_%00", "mdl_0", "%F0%9F%A6%8A", "job_" + "0" * 500])
def test_an_unknown_job_is_not_found(api, problem, method, path, job_id):
    body = {"json": {"budget": "4 bits"}} if path == "/plans" and method == "POST" else {}
    refused = problem(api.request(method, f"/v1/jobs/{job_id}{path}", **body), 404, "not-found")
    assert refused["field"] == "job"


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"state": "asleep"}, "state"),
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "abc"}, "cursor"),
        ({"cursor": "WyJhIl0"}, "cursor"),
        ({"cursor": "é"}, "cursor"),
        ({"owner": "a\x00"}, "owner"),
        ({"model": "mdl_\x00"}, "model"),
        ({"status": "done"}, "status"),
    ],
    ids=str,
)
def test_a_bad_filter_is_named(api, problem, parameters, field):
    problem(api.get("/v1/jobs", params=parameters), 422, "invalid-request", field)
