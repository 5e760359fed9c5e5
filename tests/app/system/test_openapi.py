"""The description of the API, and a search for requests that make it fail."""

import re

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from app.main import create_app
from app.settings import Settings


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("openapi")), dispatch=False)
    return app.openapi()


def operations(schema):
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_every_route_of_the_issue_is_described(schema):
    described = {name for name, _ in operations(schema)}
    assert described >= {
        "POST /v1/models",
        "GET /v1/models",
        "GET /v1/models/{model_id}",
        "POST /v1/datasets",
        "GET /v1/datasets",
        "GET /v1/datasets/{dataset_id}",
        "POST /v1/jobs",
        "GET /v1/jobs",
        "GET /v1/jobs/{job_id}",
        "POST /v1/jobs/{job_id}/cancel",
        "GET /v1/jobs/{job_id}/events",
        "GET /v1/jobs/{job_id}/result",
        "GET /v1/jobs/{job_id}/sensitivities",
        "GET /v1/jobs/{job_id}/frontier",
        "POST /v1/jobs/{job_id}/plans",
        "GET /v1/jobs/{job_id}/plans",
        "GET /v1/plans/{plan_id}",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    }


def test_every_operation_says_what_it_does_and_how_it_fails(schema):
    for name, operation in operations(schema):
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name
        assert len([s for s in operation["responses"] if s.startswith("2")]) >= 1
        if "/v1/" not in name:
            continue
        assert {"422", "503"} <= set(operation["responses"]), name
        if "{" in name:
            assert "404" in operation["responses"], name
        for status, response in operation["responses"].items():
            assert response["description"], (name, status)
            if status >= "400":
                assert list(response["content"]) == ["application/problem+json"], (name, status)


def test_bodies_have_examples_that_are_accepted_by_their_schema(schema):
    from app.jobs.schemas import JobCreate
    from app.plans.schemas import PlanCreate

    for model in (JobCreate, PlanCreate):
        examples = schema["components"]["schemas"][model.__name__]["examples"]
        assert examples
        for example in examples:
            model.model_validate(example)


def test_references_lead_somewhere(schema):
    references = set(re.findall(r"#/components/schemas/([A-Za-z_0-9]+)", str(schema)))
    assert references <= set(schema["components"]["schemas"])
    assert "Problem" in references
    assert "HTTPValidationError" not in references


def test_the_problem_that_is_shown_is_one_that_is_given(schema, api, world):
    body = world.body(budgets=["1 bits"])
    given = api.post("/v1/jobs", json=body).json()
    (shown,) = schema["components"]["schemas"]["Problem"]["examples"]
    assert set(shown) <= set(given)
    assert {k: shown[k] for k in ("type", "title", "status", "instance", "field")} == {
        k: given[k] for k in ("type", "title", "status", "instance", "field")
    }


_BOUNDED = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
_NOT_ATTACKED = {"GET /v1/jobs/{job_id}/events"}  # does not end while a job runs


def attack(operation, base_url, known):
    """Send generated requests; the statuses of the answers."""
    seen = set()

    @_BOUNDED
    @given(
        case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)),
        reach=st.booleans(),
    )
    def send(case, reach):
        assume(len(str(case.query)) < 10_000)  # longer request lines are the server's to refuse
        if reach:  # what lies behind a known id
            given_ids = case.path_parameters or {}
            case.path_parameters = {name: known.get(name, value) for name, value in given_ids.items()}
        case.headers = {k: v for k, v in (case.headers or {}).items() if k.lower() != "prefer"}
        response = case.call(base_url=base_url)
        seen.add(response.status_code)
        assert response.status_code < 500, (case.as_curl_command(), response.text)
        if response.status_code >= 400:
            assert response.json()["detail"]

    send()
    return seen


def test_no_request_makes_the_service_fail(api, world, schema):
    """Generated requests, fitting the description and not, for known ids and unknown: none meets a defect."""
    job = world.done_job()
    plan = api.get(f"/v1/jobs/{job.id}/plans").json()["items"][0]["id"]
    known = {"job_id": job.id, "model_id": job.model_id, "dataset_id": job.dataset_id, "plan_id": plan}
    seen = {}
    for operation in (result.ok() for result in schemathesis.openapi.from_dict(schema).get_all_operations()):
        if operation.label not in _NOT_ATTACKED:
            seen[operation.label] = attack(operation, str(api.base_url), known)
    assert {status for found in seen.values() for status in found} >= {200, 404, 422}
    assert 200 in seen["GET /v1/jobs/{job_id}/result"]
