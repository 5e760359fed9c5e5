"""Server-sent events over a real connection."""

import json
import threading
import time

import pytest

from app.jobs import events
from app.models import JobState, Stage


class Stream:
    """Reads a stream of events in a thread."""

    def __init__(self, api, job, last_event_id=None):
        self.events, self.comments, self.retry = [], [], None
        self._api, self._url = api, f"/v1/jobs/{job.id}/events"
        self._headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        self.status = None
        self.headers = None
        self._thread = threading.Thread(target=self._read)
        self._stop = False
        self._thread.start()

    def _read(self):
        with self._api.stream("GET", self._url, headers=self._headers) as response:
            self.status, self.headers = response.status_code, response.headers
            event = {}
            for line in response.iter_lines():
                if self._stop:
                    return
                if line.startswith(":"):
                    self.comments.append(line)
                elif line.startswith("retry: "):
                    self.retry = int(line[7:])
                elif line:
                    name, _, value = line.partition(": ")
                    event[name] = value
                elif event:
                    self.events.append((event["event"], event["id"], json.loads(event["data"])))
                    event = {}

    def until(self, condition):
        deadline = time.monotonic() + 20
        while not condition(self):
            assert time.monotonic() < deadline, self.events
            time.sleep(0.005)

    def end(self):
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.events

    def leave(self):
        self._stop = True
        self._thread.join(20)


def test_a_job_is_followed_to_its_end(api, world):
    job = world.job()
    stream = Stream(api, job)
    stream.until(lambda s: len(s.events) == 2)
    world.start(job)
    stream.until(lambda s: s.events[-1][2]["state"] == "running")
    world.measure(job, 3)
    stream.until(lambda s: s.events[-1][2].get("done") == 3)
    world.measure(job)
    world.solve(job)
    world.start(job, Stage.VERIFY)
    stream.until(lambda s: s.events[-1][2]["progress"]["stage"] == "verify")
    world.finish(job)
    seen = stream.end()

    assert stream.status == 200
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["cache-control"] == "no-store"
    assert stream.retry == events.RETRY_MS
    assert [name for name, _, _ in seen[:4]] == ["state", "progress", "state", "progress"]
    assert [name for name, _, _ in seen].count("done") == 1
    name, _, data = seen[-1]
    assert (name, data["id"], data["state"]) == ("done", job.id, "done")
    for _, _, data in seen[:-1]:
        assert data["state"] in ("queued", "running")
        assert data["progress"] == {k: v for k, v in data.items() if k not in ("state", "progress")}
        assert set(data["progress"]) == {
            "stage",
            "done",
            "total",
            "unit",
            "fraction",
            "eta_seconds",
            "elapsed_seconds",
            "detail",
        }


def test_a_stream_that_broke_goes_on_where_it_was(api, world):
    job = world.job()
    world.start(job)
    world.measure(job, 1)
    first = Stream(api, job)
    first.until(lambda s: len(s.events) == 2)
    world.measure(job, 1)
    first.until(lambda s: len(s.events) == 3)
    assert first.events[-1][0] == "progress", "neither state nor stage has changed"

    again = Stream(api, job, last_event_id=first.events[-1][1])
    world.measure(job, 1)
    again.until(lambda s: s.events)
    world.finish(job, JobState.CANCELLED)
    first.end()
    seen = again.end()

    assert [data["done"] for name, _, data in seen if name == "progress"] == [3], (
        "what is known is not sent again"
    )
    assert seen[-1][0] == "done"


def test_a_missed_change_is_told_on_reconnection(api, world):
    job = world.job()
    world.start(job)
    stream = Stream(api, job, last_event_id="0" * 32)
    stream.until(lambda s: len(s.events) == 2)
    world.finish(job, JobState.FAILED)
    assert [name for name, _, _ in stream.end()] == ["state", "progress", "done"]


def test_the_end_is_told_once(api, world):
    job = world.job()
    world.finish(job, JobState.FAILED)
    (done,) = Stream(api, job).end()

    again = Stream(api, job, last_event_id=done[1])

    assert again.end() == []
    assert again.status == 204, "an EventSource stops connecting"


def test_a_quiet_stream_shows_that_it_lives(api, world, monkeypatch):
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.2)
    job = world.job()
    stream = Stream(api, job)
    stream.until(lambda s: len(s.comments) >= 2)
    world.finish(job)
    assert stream.end()[-1][0] == "done", "and goes on afterwards"


def test_many_followers_of_a_job_share_one_look_at_the_database(api, world, monkeypatch):
    from app.jobs import watch

    looks = []
    real = watch.snapshot
    monkeypatch.setattr(watch, "snapshot", lambda *a: looks.append(time.monotonic()) or real(*a))
    job = world.job()
    streams = [Stream(api, job) for _ in range(5)]
    for stream in streams:
        stream.until(lambda s: len(s.events) == 2)
    looks.clear()
    start = time.monotonic()
    world.measure(job, 1)
    for stream in streams:
        stream.until(lambda s: len(s.events) == 3)
    world.finish(job)
    for stream in streams:
        stream.end()
    assert len(looks) <= (time.monotonic() - start) / watch.POLL_S + 2


@pytest.mark.parametrize("state", [JobState.DONE, JobState.CANCELLED])
def test_a_client_that_leaves_leaves_nothing_behind(api, world, state):
    # The next request of the same connection pool is answered at once, and nothing is logged as failed.
    job = world.job()
    stream = Stream(api, job)
    stream.until(lambda s: len(s.events) == 2)
    world.measure(job, 1)
    stream.leave()
    world.finish(job, state)
    assert api.get(f"/v1/jobs/{job.id}").json()["state"] == state.value
