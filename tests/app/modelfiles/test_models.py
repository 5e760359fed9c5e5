"""`/v1/models` over HTTP: uploads, references, lists."""

import base64
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from urllib.parse import urlsplit

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.models import Model, ModelState


def test_an_upload_is_inspected_before_it_is_answered(patient, world, model_file):
    response = patient.post("/v1/models", params={"name": "net"}, content=model_file)

    assert response.status_code == 201
    model = response.json()
    assert response.headers["location"] == f"/v1/models/{model['id']}"
    assert patient.get(response.headers["location"]).json() == model
    digest = sha256(model_file).hexdigest()
    assert (model["name"], model["state"], model["sha256"], model["size_bytes"]) == (
        "net",
        "ready",
        digest,
        len(model_file),
    )
    assert model["inputs"] == [{"name": "image", "dtype": "float32", "shape": [None, 1, 8, 8]}]
    assert [(u["name"], u["operator"], u["shape"], u["weights"], u["macs"]) for u in model["units"]] == [
        ("conv.weight", "conv2d", [4, 1, 3, 3], 36, 36 * 36),
        ("head.weight", "linear", [10, 144], 1440, 1440),
    ]
    assert model["weights"] == 1476
    assert world.files() == [f"{digest[:2]}/{digest}"]


def test_the_same_content_is_registered_once(patient, world, model_file):
    first = patient.post("/v1/models", params={"name": "one"}, content=model_file)
    before, files = world.rows(), world.files()
    second = patient.post("/v1/models", params={"name": "two"}, content=model_file)
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json() == first.json()
    assert (world.rows(), world.files()) == (before, files)


def test_the_same_content_at_the_same_time_is_registered_once(patient, world, model_file):
    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda _: patient.post("/v1/models", content=model_file), range(4)))
    assert sorted(r.status_code for r in responses) == [200, 200, 200, 201]
    assert len({r.json()["id"] for r in responses}) == 1
    assert len(world.files()) == 1


def test_without_a_worker_the_answer_is_that_it_was_accepted(api, world, model_file, inspect_now):
    response = api.post("/v1/models", content=model_file)
    assert response.status_code == 202
    model = response.json()
    assert (model["state"], model["units"], model["weights"]) == ("inspecting", [], None)
    assert model["name"] == model["sha256"][:12]

    assert inspect_now() == 1

    assert api.get(response.headers["location"]).json()["state"] == "ready"
    assert api.post("/v1/models", content=model_file).status_code == 200


def test_a_file_refused_after_the_answer_says_why_and_may_come_again(api, world, inspect_now):
    model = api.post("/v1/models", content=b"no zip").json()
    inspect_now()
    refused = api.get(f"/v1/models/{model['id']}").json()
    assert refused["state"] == "refused"
    assert refused["problem"]["rule"] == "not-a-zip"

    again = api.post("/v1/models", content=b"no zip")
    assert again.status_code == 202, "the rules may have changed: it is inspected again"
    assert (again.json()["id"], again.json()["state"]) == (model["id"], "inspecting")
    assert again.json()["problem"] is None
    assert world.rows()["tasks"] == 2


@pytest.mark.parametrize(
    "announce",
    [
        lambda d: {"params": {"sha256": d.hex()}},
        lambda d: {"headers": {"X-Content-SHA256": d.hex().upper()}},
        lambda d: {"headers": {"Content-Digest": f"sha-256=:{base64.b64encode(d).decode()}:"}},
    ],
    ids=["query", "header", "Content-Digest"],
)
def test_announced_hashes_are_checked(api, world, problem, model_file, announce):
    right = sha256(model_file).digest()
    wrong = sha256(b"other").digest()
    before = world.rows()

    refused = problem(
        api.post("/v1/models", content=model_file, **announce(wrong)), 422, "checksum-mismatch", "sha256"
    )

    assert (refused["value"], refused["allowed"]) == (wrong.hex(), right.hex())
    assert (world.rows(), world.files()) == (before, [])
    assert api.post("/v1/models", content=model_file, **announce(right)).status_code == 202


def test_a_hash_that_is_none_is_refused_before_anything_is_read(api, world, problem):
    before = world.rows()
    problem(api.post("/v1/models?sha256=abc", content=b"x"), 422, "invalid-request", "sha256")
    assert (world.rows(), world.files()) == (before, [])


def test_an_upload_above_the_limit_is_refused(api, world, problem, settings):
    def endless():
        for _ in range(1 << 6):
            yield b"x" * (1 << 16)

    before = world.rows()
    announced = problem(
        api.post("/v1/models", content=b"x" * (settings.max_upload_bytes + 1)), 413, "too-large", "body"
    )
    assert announced["maximum_bytes"] == settings.max_upload_bytes
    problem(api.post("/v1/models", content=endless()), 413, "too-large", "body")
    assert (world.rows(), world.files()) == (before, [])


def raw_request(api, head, body):
    """Send bytes as they are and close the connection; what came back."""
    address = urlsplit(str(api.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + body)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(65536)


def test_an_upload_that_breaks_off_leaves_nothing(api, world, model_file, settings):
    before = world.rows()
    half = len(model_file) // 2
    head = f"POST /v1/models HTTP/1.1\nHost: x\nContent-Type: application/octet-stream\nContent-Length: {len(model_file)}\n\n"
    raw_request(api, head, model_file[:half])
    # The connection is gone; the service may only now begin with what did arrive, and then finds that no more comes.
    arrived = settings.artifacts_dir / "incoming"
    deadline = time.monotonic() + 20
    while not arrived.is_dir() or world.files():
        assert time.monotonic() < deadline, (arrived.is_dir(), world.files())
        time.sleep(0.01)
    assert world.rows() == before


def test_chunks_of_unknown_length_are_taken(api, world, model_file):
    response = api.post("/v1/models", content=iter([model_file[:100], model_file[100:]]))
    assert response.status_code == 202
    assert response.json()["sha256"] == sha256(model_file).hexdigest()


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
)
def test_bodies_of_other_types_are_refused(api, world, problem, content_type):
    refused = problem(
        api.post("/v1/models", content=b"x", headers={"Content-Type": content_type}),
        415,
        "unsupported-media-type",
        "Content-Type",
    )
    assert "application/octet-stream" in refused["allowed"]
    assert world.files() == []


@pytest.mark.parametrize("collection", ["models", "datasets"])
def test_bodies_that_are_compressed_on_the_way_are_refused_as_such(api, world, problem, collection):
    refused = problem(
        api.post(f"/v1/{collection}", content=b"x", headers={"Content-Encoding": "gzip"}),
        415,
        "unsupported-media-type",
        "Content-Encoding",
    )
    assert (refused["value"], refused["allowed"]) == ("gzip", "identity: the file as it is")
    assert world.files() == []


def test_a_full_disk_is_told_and_leaves_nothing(api, world, problem, monkeypatch):
    import errno
    import os

    from app import artifacts

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = world.rows()
    monkeypatch.setattr(artifacts.os, "fsync", full)
    problem(api.post("/v1/models", content=b"x"), 507, "storage-full")
    monkeypatch.undo()
    assert (world.rows(), world.files()) == (before, [])
    assert api.post("/v1/models", content=b"x").status_code == 202


def test_a_database_that_fails_at_the_last_moment_leaves_no_file(api, world, problem):
    def fail(_session):
        raise OperationalError("COMMIT", {}, RuntimeError("connection lost"))

    event.listen(Session, "before_commit", fail)
    try:
        response = api.post("/v1/models", content=b"x")
    finally:
        event.remove(Session, "before_commit", fail)
    problem(response, 503, "database-unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert world.files() == []
    assert world.rows()["models"] == 0


class TestReference:
    """Files of the service's machine."""

    def test_a_file_in_an_allowed_location_stays_where_it_is(self, patient, world, settings, model_file):
        path = settings.allowed_locations[0] / "net.pt2"
        path.write_bytes(model_file)
        response = patient.post(
            "/v1/models", json={"location": str(path), "sha256": sha256(model_file).hexdigest()}
        )
        assert response.status_code == 201
        model = response.json()
        assert (model["state"], model["location"]) == ("ready", str(path))
        assert world.files() == []

        again = patient.post("/v1/models", json={"location": str(path)})
        assert (again.status_code, again.json()) == (200, model)

    def test_an_upload_of_the_same_content_makes_it_independent_of_the_file(
        self, patient, world, settings, model_file
    ):
        path = settings.allowed_locations[0] / "net.pt2"
        path.write_bytes(model_file)
        first = patient.post("/v1/models", json={"location": str(path)}).json()
        second = patient.post("/v1/models", content=model_file)
        assert second.status_code == 200
        assert second.json() == first | {"location": None}
        assert len(world.files()) == 1

    def test_a_file_elsewhere_is_refused(self, api, world, problem, settings, tmp_path):
        path = tmp_path / "net.pt2"
        path.write_bytes(b"x")
        before = world.rows()
        refused = problem(
            api.post("/v1/models", json={"location": str(path)}), 422, "location-refused", "location"
        )
        assert refused["allowed"] == [str(settings.allowed_locations[0])]
        assert world.rows() == before

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "location"),
            ({"location": 3}, "location"),
            ({"location": ""}, "location"),
            ({"location": "/x", "path": "/y"}, "path"),
            ({"location": "/x", "sha256": "abc"}, "X-Content-SHA256"),
            ([], "body"),
        ],
        ids=str,
    )
    def test_a_reference_that_is_none_is_refused(self, api, problem, body, field):
        problem(api.post("/v1/models", json=body), 422, "invalid-request", field)

    def test_a_body_that_is_no_json_is_refused(self, api, problem):
        response = api.post("/v1/models", content=b"{", headers={"Content-Type": "application/json"})
        problem(response, 422, "invalid-request", "body")


def test_models_are_listed_by_page_and_state(api, world):
    made = [world.model(name=f"m{i}").id for i in range(3)]
    waiting = world.model(state=ModelState.INSPECTING).id

    first = api.get("/v1/models", params={"limit": 2}).json()
    second = api.get("/v1/models", params={"limit": 2, "cursor": first["next_cursor"]}).json()

    assert [m["id"] for m in first["items"] + second["items"]] == [waiting, *reversed(made)]
    assert second["next_cursor"] is None
    assert [m["id"] for m in api.get("/v1/models?state=inspecting").json()["items"]] == [waiting]
    assert (second["items"][-1]["units"], second["items"][-1]["weights"]) == (4, 1624)


@pytest.mark.parametrize("collection", ["models", "datasets"])
def test_a_misspelt_filter_does_not_list_everything(api, problem, collection):
    problem(api.get(f"/v1/{collection}", params={"stat": "ready"}), 422, "invalid-request", "stat")


def test_an_unknown_model_is_not_found(api, problem):
    for model_id in ("mdl_00000000000000000000000000", "mdl_%00", "job_0"):
        assert problem(api.get(f"/v1/models/{model_id}"), 404, "not-found")["field"] == "model"


def test_waiting_for_an_inspection_ends_with_it(patient, world, model_file, database):
    # Another request's model: this one waits for the same inspection, and does not start its own.
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: patient.post("/v1/models", content=model_file), range(2))
    assert {first.status_code, second.status_code} == {200, 201}
    assert world.rows()["tasks"] == 1
    with database.read() as session:
        assert session.query(Model).one().state is ModelState.READY


def test_a_long_upload_does_not_hold_up_other_requests(api, world):
    started, go_on = threading.Event(), threading.Event()

    def slow():
        yield b"x" * 1000
        started.set()
        assert go_on.wait(20)
        yield b"y"

    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(api.post, "/v1/models", content=slow())
        assert started.wait(20)
        assert api.get("/healthz").status_code == 200
        assert api.get("/v1/jobs").status_code == 200
        go_on.set()
        assert upload.result().status_code == 202


def test_uploads_are_written_in_blocks(monkeypatch, api, world):
    written = []
    from app.artifacts import Incoming

    real = Incoming.write
    monkeypatch.setattr(Incoming, "write", lambda self, data: written.append(len(data)) or real(self, data))
    api.post("/v1/models", content=iter([b"x" * 1000] * 100))
    assert sum(written) == 100_000
    assert len(written) == 1
