"""The client against a transport that plays the service; against the real one see tests/app/cli."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from app import client as module
from app.client import ApiProblem, Client, JobUpdate, Unreachable

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _seconds: None)
    )


def client(handler: Handler) -> Client:
    return Client("http://service", transport=httpx.MockTransport(handler))


def events(*documents: dict[str, object], tail: str = "") -> httpx.Response:
    text = "retry: 2000\n\n: hello\n\n"
    text += "".join(f"event: progress\nid: 1\ndata: {json.dumps(d)}\n\n" for d in documents)
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=text + tail)


def job(state: str, done: int = 0) -> dict[str, object]:
    return {"id": "job_1", "state": state, "progress": {"done": done, "fraction": done / 10}}


def script(*answers: httpx.Response | Exception) -> tuple[Handler, list[str]]:
    """Answers in turn; the paths asked for."""
    left: Iterator[httpx.Response | Exception] = iter(answers)
    asked: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle, asked


def test_upload_is_streamed_with_size_hash_and_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4)
    path = tmp_path / "my model.pt2"
    path.write_bytes(b"0123456789")
    seen: dict[str, object] = {}

    def handle(request: httpx.Request) -> httpx.Response:
        seen.update(
            path=request.url.path,
            name=request.url.params["name"],
            body=request.read(),
            length=request.headers["Content-Length"],
            sha256=request.headers["X-Content-SHA256"],
            chunked="Transfer-Encoding" in request.headers,
        )
        return httpx.Response(201, json={"id": "mdl_1", "state": "ready"})

    sent: list[int] = []
    with client(handle) as service:
        assert service.upload_model(path, progress=sent.append)["id"] == "mdl_1"
    assert seen == {
        "path": "/v1/models",
        "name": "my model.pt2",
        "body": b"0123456789",
        "length": "10",
        "sha256": hashlib.sha256(b"0123456789").hexdigest(),
        "chunked": False,
    }
    assert sent == [4, 8, 10]


def test_upload_of_a_model_waits_until_it_is_inspected(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(b"0")
    inspecting, ready = ({"id": "mdl_1", "state": state} for state in ("inspecting", "ready"))
    problem = {"title": "The model file was refused", "status": 422}
    refused = {"id": "mdl_1", "state": "refused", "problem": problem}
    handle, asked = script(*(httpx.Response(202, json=d) for d in (inspecting, inspecting, ready)))
    with client(handle) as service:
        assert service.upload_model(path) == ready
    assert asked == ["/v1/models", "/v1/models/mdl_1", "/v1/models/mdl_1"]
    handle, _ = script(*(httpx.Response(202, json=d) for d in (inspecting, refused)))
    with client(handle) as service, pytest.raises(ApiProblem) as caught:
        service.upload_model(path)
    assert caught.value.document == problem


def test_submit_sends_the_key(tmp_path: Path) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        assert request.headers["Idempotency-Key"] == "k"
        assert json.loads(request.read()) == {"model": "mdl_1"}
        return httpx.Response(202, json=job("queued"))

    with client(handle) as service:
        assert service.submit({"model": "mdl_1"}, idempotency_key="k")["state"] == "queued"


def test_problem_is_raised_with_its_document() -> None:
    document = {
        "type": "urn:bitwright:problem:not-found",
        "title": "Not found",
        "status": 404,
        "detail": "there is no job 'x'",
    }
    with (
        client(lambda _r: httpx.Response(404, json=document)) as service,
        pytest.raises(ApiProblem) as caught,
    ):
        service.job("x")
    assert caught.value.document == document
    assert (caught.value.kind, caught.value.status, str(caught.value)) == (
        "not-found",
        404,
        "there is no job 'x'",
    )


def test_refusal_by_a_proxy_becomes_a_problem_too() -> None:
    with (
        client(lambda _r: httpx.Response(413, text="<html>")) as service,
        pytest.raises(ApiProblem) as caught,
    ):
        service.job("x")
    assert caught.value.status == 413


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<html>"), httpx.Response(200, json=[1])])
def test_something_else_that_answers_is_told(answer: httpx.Response) -> None:
    with client(lambda _r: answer) as service, pytest.raises(Unreachable, match="JSON"):
        service.job("x")


def test_no_service_is_told_with_its_address() -> None:
    handle, _ = script(httpx.ConnectError("refused"))
    with client(handle) as service, pytest.raises(Unreachable, match="http://service"):
        service.jobs()


def test_watch_follows_the_stream_to_its_end() -> None:
    handle, asked = script(events(job("running", 1), job("running", 1), job("running", 2), job("done", 10)))
    with client(handle) as service:
        updates = list(service.watch("job_1"))
    assert [(u.state, u.progress and u.progress["done"]) for u in updates] == [
        ("running", 1),
        ("running", 2),
        ("done", 10),
    ]
    assert asked == ["/v1/jobs/job_1/events"]


def test_watch_opens_a_broken_stream_again() -> None:
    broken = events(job("running", 1), tail="data: {half of an event")
    handle, asked = script(broken, httpx.Response(200, json=job("running", 2)), events(job("done", 10)))
    with client(handle) as service:
        updates = list(service.watch("job_1"))
    assert [u.state for u in updates] == ["running", "running", "done"]
    assert asked == ["/v1/jobs/job_1/events", "/v1/jobs/job_1", "/v1/jobs/job_1/events"]


def test_watch_survives_a_service_that_restarts() -> None:
    handle, _ = script(
        httpx.ConnectError("refused"),
        httpx.ConnectError("refused"),
        httpx.Response(503, json={"title": "Not available", "status": 503}),
        httpx.Response(503, json={"title": "Not available", "status": 503}),
        events(job("done", 10)),
    )
    with client(handle) as service:
        assert [u.state for u in service.watch("job_1")] == ["done"]


def test_watch_polls_where_streams_do_not_come_through() -> None:
    no_stream = httpx.Response(200, headers={"Content-Type": "text/html"}, text="buffered")
    handle, _ = script(
        no_stream,
        httpx.Response(200, json=job("running", 1)),
        no_stream,
        httpx.Response(200, json=job("done", 10)),
    )
    with client(handle) as service:
        assert list(service.watch("job_1"))[-1] == JobUpdate(
            state="done", progress={"done": 10, "fraction": 1.0}
        )


def test_watch_gives_up_after_its_patience() -> None:
    def handle(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with client(handle) as service, pytest.raises(Unreachable):
        list(service.watch("job_1", patience_s=0.0))


def test_watch_of_an_unknown_job_is_refused_at_once() -> None:
    problem = httpx.Response(404, json={"title": "Not found", "status": 404})
    handle, asked = script(problem, problem)
    with client(handle) as service, pytest.raises(ApiProblem):
        list(service.watch("job_1"))
    assert len(asked) == 2


@pytest.mark.parametrize("identifier", ["", ".", ".."])
def test_an_id_that_was_not_set_is_no_list_of_everything(identifier: str) -> None:
    handle, asked = script()
    with client(handle) as service, pytest.raises(ApiProblem) as caught:
        service.job(identifier)
    assert caught.value.document["type"] == "urn:bitwright:problem:not-found"
    assert asked == []


def test_an_id_stays_one_segment_of_the_path() -> None:
    asked: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path.decode())
        return httpx.Response(200, json={})

    with client(handle) as service:
        service.job("a/../b?c#d\n")
    assert asked == ["/v1/jobs/a%2F..%2Fb%3Fc%23d%0A"]


@pytest.mark.parametrize(
    "given", ["http://service", "http://service/", "http://service/v1", "http://service/v1/"]
)
def test_the_address_may_be_that_of_the_interface(given: str) -> None:
    handle, asked = script(httpx.Response(200, json={"id": "job_1"}))
    with Client(given, transport=httpx.MockTransport(handle)) as service:
        assert service.base_url == "http://service"
        service.job("job_1")
    assert asked == ["/v1/jobs/job_1"]


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(Unreachable, match="is no address"):
        Client("http://host:port")
