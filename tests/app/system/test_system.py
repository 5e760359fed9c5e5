"""Health, readiness, metrics, request ids, and what happens while the database is away."""

import logging
import re
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select, text

from app.db import get_database
from app.models import Lease
from app.settings import Settings


def metrics(api):
    found = {}
    for family in text_string_to_metric_families(api.get("/metrics").text):
        for sample in family.samples:
            found[(sample.name, *sorted(sample.labels.items()))] = sample.value
    return found


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_health_readiness_and_metrics_are_where_probes_and_clients_look(api, prefix):
    assert api.get(f"{prefix}/healthz").json() == {"status": "ok"}
    assert api.get(f"{prefix}/readyz").json()["status"] == "ready"
    assert "bitwright_jobs" in api.get(f"{prefix}/metrics").text


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_may_ask_without_a_body(api, path):
    answer = api.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_readiness_tells_each_check(api):
    checks = api.get("/readyz").json()["checks"]
    assert {name: c["ok"] for name, c in checks.items()} == {
        "database": True,
        "store": True,
        "dispatcher": False,
    }
    assert checks["dispatcher"]["required"] is False, "what is submitted waits for a dispatcher"


@pytest.mark.parametrize(("left_s", "ok"), [(2.0, True), (-5.0, True), (-60.0, False)])
def test_a_dispatcher_is_known_by_its_lease(api, world, left_s, ok):
    with world.database.write() as session:
        now = session.scalar(select(world.database.now()))
        session.add(Lease(name="dispatcher", holder="a", until=now + left_s))
    assert api.get("/readyz").json()["checks"]["dispatcher"]["ok"] is ok


def test_a_store_that_cannot_be_written_is_not_ready(serve, settings, tmp_path):
    # A file where the directory should be: also root cannot write there.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "artifacts").write_text("in the way")
    broken = Settings(data_dir=tmp_path / "data", database_url=settings.resolved_database_url)
    with serve(broken) as client:
        response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["checks"]["store"]["ok"] is False
    assert "retry-after" in response.headers


def test_a_database_of_another_version_is_not_ready(api, world):
    with world.database.write() as session:
        (revision,) = session.execute(text("SELECT version_num FROM alembic_version")).one()
        session.execute(text("UPDATE alembic_version SET version_num = 'other'"))
    try:
        response = api.get("/readyz")
        assert response.status_code == 503
        assert "schema" in response.json()["checks"]["database"]["detail"]
    finally:
        with world.database.write() as session:
            session.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": revision})


def test_metrics_count_jobs_tasks_and_measurements(api, world):
    first, second = world.job(), world.job()
    world.start(first)
    world.measure(first, 5)
    world.finish(second)

    found = metrics(api)

    assert found["bitwright_jobs", ("state", "running")] == 1
    assert found["bitwright_jobs", ("state", "done")] == 1
    assert found["bitwright_jobs", ("state", "failed")] == 0
    assert found["bitwright_measurements",] == 5
    assert (
        found["bitwright_tasks", ("kind", "measure"), ("state", "pending")] == found["bitwright_queue_depth",]
    )
    assert found["bitwright_queue_depth",] == world.rows()["tasks"]
    assert found["bitwright_database_up",] == 1


def test_requests_are_timed_by_route_not_by_path(api, world):
    def count(**labels):
        return metrics(api).get(("bitwright_http_request_duration_seconds_count", *sorted(labels.items())), 0)

    job = world.job()
    route = {"method": "GET", "route": "/v1/jobs/{job_id}", "status": "200"}
    lost = {"method": "GET", "route": "unknown", "status": "404"}
    before, lost_before = count(**route), count(**lost)
    api.get(f"/v1/jobs/{job.id}")
    api.get("/nowhere/at/all")
    api.request("BREW", "/v1/jobs")
    assert count(**route) == before + 1
    assert count(**lost) == lost_before + 1
    assert not any(job.id in str(key) or "BREW" in str(key) for key in metrics(api))


def test_a_request_id_is_taken_over_or_made(api):
    given = api.get("/healthz", headers={"X-Request-ID": "abc-123"}).headers["x-request-id"]
    made = [api.get("/healthz").headers["x-request-id"] for _ in range(2)]
    bad = api.get("/healthz", headers={"X-Request-ID": "a b" + "x" * 200}).headers["x-request-id"]
    assert given == "abc-123"
    assert made[0] != made[1]
    assert re.fullmatch(r"[0-9a-f]{32}", bad)


def test_a_defect_is_logged_with_its_request_and_told_without_the_inside(api, problem, monkeypatch, caplog):
    from app.jobs import service

    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("the secret is hunter2")

    monkeypatch.setattr(service, "list_jobs", broken)
    with caplog.at_level(logging.ERROR, "app.http"):
        response = api.get("/v1/jobs", headers={"X-Request-ID": "r-1"})
    told = problem(response, 500, "internal-error")
    assert response.headers["x-request-id"] == told["request_id"] == "r-1"
    assert "hunter2" not in response.text
    (record,) = [r for r in caplog.records if r.name == "app.http"]
    assert "request_id=r-1" in record.getMessage()
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/nothing", 404, "not-found"),
        ("PUT", "/v1/jobs", 405, "method-not-allowed"),
        ("DELETE", "/v1/models/mdl_0", 405, "method-not-allowed"),
    ],
)
def test_routes_that_are_none_are_answered_with_problems(api, problem, method, path, status, kind):
    problem(api.request(method, path), status, kind)


ROUTES = ["/v1/jobs", "/v1/models", "/v1/datasets", "/v1/jobs/job_0", "/v1/plans/pln_0"]


def check_away(api, problem):
    for route in ROUTES:
        response = api.get(route)
        told = problem(response, 503, "database-unavailable")
        assert int(response.headers["retry-after"]) >= 1
        assert "sqlite" not in told["detail"].lower()
        assert "postgres" not in told["detail"].lower()
    response = api.post("/v1/jobs", json={"model": "mdl_0", "dataset": "dat_0", "budgets": ["4 bits"]})
    problem(response, 503, "database-unavailable")
    assert api.get("/healthz").status_code == 200, "the process itself is well"
    ready = api.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["checks"]["database"]["ok"] is False
    assert metrics(api)["bitwright_database_up",] == 0


def test_postgresql_may_stop_and_come_back(own_postgres, serve, problem, tmp_path):
    url = own_postgres.create()
    with serve(Settings(data_dir=tmp_path, database_url=url)) as api:
        assert api.get("/v1/jobs").status_code == 200
        own_postgres.stop()
        check_away(api, problem)
        own_postgres.start()
        assert api.get("/v1/jobs").status_code == 200, "without a restart, at once"
        assert api.get("/readyz").status_code == 200


def test_a_stream_of_events_survives_the_database(own_postgres, serve, tmp_path, make_world):
    settings = Settings(data_dir=tmp_path, database_url=own_postgres.create())
    with serve(settings) as api:
        world = make_world(settings)
        job = world.job()
        with api.stream("GET", f"/v1/jobs/{job.id}/events") as response:
            lines = response.iter_lines()
            assert next(line for line in lines if line.startswith("event:")) == "event: state"
            own_postgres.stop()
            with httpx.Client(base_url=api.base_url, timeout=30) as other:
                assert other.get("/v1/jobs").status_code == 503
            own_postgres.start()
            world.finish(job)
            assert "event: done" in list(lines)


def test_a_sqlite_file_may_go_and_come_back(serve, problem, tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    path = tmp_path / "data" / "bitwright.db"
    with serve(settings) as api:
        assert api.get("/v1/jobs").status_code == 200
        database = get_database(settings.resolved_database_url)
        database.dispose()
        path.rename(tmp_path / "away.db")
        path.mkdir()
        check_away(api, problem)
        path.rmdir()
        (tmp_path / "away.db").rename(path)
        assert api.get("/v1/jobs").status_code == 200


def test_a_full_database_is_told_as_such(api, problem, monkeypatch):
    import sqlite3

    from sqlalchemy.exc import OperationalError

    from app.jobs import service

    def full(*_args, **_kwargs):
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr(service, "list_jobs", full)
    problem(api.get("/v1/jobs"), 507, "storage-full")


def test_a_statement_that_is_wrong_is_a_defect_not_an_outage(api, problem, monkeypatch):
    from sqlalchemy.exc import ProgrammingError

    from app.jobs import service

    def wrong(*_args, **_kwargs):
        raise ProgrammingError("SELEC 1", {}, RuntimeError("syntax error at hunter2"))

    monkeypatch.setattr(service, "list_jobs", wrong)
    response = api.get("/v1/jobs")
    problem(response, 500, "internal-error")
    assert "hunter2" not in response.text


def test_stopping_the_service_ends_open_streams(serve, settings, world):
    job = world.job()
    with serve(settings) as api, httpx.Client(base_url=api.base_url, timeout=30) as other:
        stream = other.stream("GET", f"/v1/jobs/{job.id}/events")
        response = stream.__enter__()
        next(response.iter_lines())
        start = time.monotonic()
    assert time.monotonic() - start < 10
    response.close()


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_may_not_change_anything(api, world, problem, site):
    job = world.job()
    before = world.rows()
    told = problem(
        api.post(f"/v1/jobs/{job.id}/cancel", headers={"Sec-Fetch-Site": site}),
        403,
        "cross-site-request",
        "Sec-Fetch-Site",
    )
    assert told["value"] == site
    problem(api.post("/v1/models", content=b"x", headers={"Sec-Fetch-Site": site}), 403, "cross-site-request")
    assert (world.rows(), world.files()) == (before, [])
    assert api.get(f"/v1/jobs/{job.id}", headers={"Sec-Fetch-Site": site}).json()["state"] == "queued"


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_our_own_pages_may(api, world, site):
    job = world.job()
    assert api.post(f"/v1/jobs/{job.id}/cancel", headers={"Sec-Fetch-Site": site}).status_code == 200
