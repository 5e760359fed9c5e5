"""`/v1/jobs` over HTTP, on SQLite and PostgreSQL."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.models import JobState, ModelState, Stage


def test_a_job_is_accepted_with_all_defaults_filled_in(api, world):
    body = world.body(pins={"stem.weight": 8}, name="first", owner="ada", priority=3)

    response = api.post("/v1/jobs", json=body)

    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["stage"], job["name"], job["owner"], job["priority"]) == (
        "queued",
        None,
        "first",
        "ada",
        3,
    )
    assert job["request"] == {
        "candidates": [2, 3, 4, 5, 6, 8],
        "scheme": "channel-asymmetric",
        "schemes": ["channel-asymmetric"],
        "activation_candidates": [],
        "limits": {},
        "metric": "kl",
        "compare": "kl",
        "predicts": "kl",
        "budgets": ["4 bits"],
        "budget_counts": "weights",
        "pins": {"stem.weight": 8},
        "ties": [],
        "exclude": [],
        "seed": 0,
        "samples": None,
        "holdout": 0.0,
        "batch_size": None,
        "refine_rounds": 3,
        "memory_bytes": world.settings.memory_bytes,
    }
    assert job["progress"] == {
        "stage": "measure",
        "done": 0,
        "total": 24,
        "unit": "entries",
        "fraction": 0.0,
        "eta_seconds": None,
        "elapsed_seconds": 0.0,
        "detail": None,
    }
    read = api.get(response.headers["location"])
    assert read.json() == job
    assert read.headers["etag"] == response.headers["etag"]


def test_entries_cover_every_unit_and_candidate_in_contiguous_shards(api, world):
    response = api.post("/v1/jobs", json=world.body(candidates=[8, 2], exclude=["q.weight"]))

    from sqlalchemy import select

    from app.models import JobEntry, Task

    with world.database.read() as session:
        query = select(JobEntry).where(JobEntry.job_id == response.json()["id"]).order_by(JobEntry.ordinal)
        entries = session.scalars(query).all()
        tasks = session.scalars(select(Task).order_by(Task.ordinal)).all()
    assert [(e.unit, e.bits) for e in entries] == [
        (unit, bits) for unit in ("stem.weight", "k.weight", "head.weight") for bits in (2, 8)
    ]
    assert [e.task_id for e in entries] == sorted(
        (e.task_id for e in entries), key=[t.id for t in tasks].index
    )
    assert {t.id for t in tasks} == {e.task_id for e in entries}
    assert len(tasks) <= 3, "at most one shard for each unit"
    assert len({e.key for e in entries}) == 6
    assert all(e.work > 0 for e in entries)


def test_jobs_that_ask_for_the_same_share_what_is_measured(api, world):
    model, dataset = world.model(), world.dataset()
    first = world.job(model=model.id, dataset=dataset.id)
    world.measure(first)

    again = api.post(
        "/v1/jobs", json=world.body(model=model.id, dataset=dataset.id, budgets=["3 bits"], seed=7)
    ).json()
    other_samples = api.post(
        "/v1/jobs", json=world.body(model=model.id, dataset=dataset.id, samples=39)
    ).json()
    other_split = api.post(
        "/v1/jobs", json=world.body(model=model.id, dataset=dataset.id, holdout=0.25)
    ).json()

    assert again["progress"]["done"] == 24, "the seed chooses nothing when all samples are used"
    assert again["progress"]["fraction"] == 1.0
    assert other_samples["progress"]["done"] == 0
    assert other_split["progress"]["done"] == 0


def test_the_same_idempotency_key_and_body_give_the_same_job(api, world):
    body = world.body()
    headers = {"Idempotency-Key": "8e03978e-40d5"}

    first = api.post("/v1/jobs", json=body, headers=headers)
    before = world.rows()
    second = api.post("/v1/jobs", json=dict(reversed(body.items())), headers=headers)

    assert (first.status_code, second.status_code) == (202, 202)
    assert second.json() == first.json()
    assert second.headers["location"] == first.headers["location"]
    assert world.rows() == before


def test_the_same_idempotency_key_with_another_body_is_refused(api, world, problem):
    body = world.body()
    headers = {"Idempotency-Key": "k"}
    first = api.post("/v1/jobs", json=body, headers=headers).json()
    before = world.rows()

    refused = problem(
        api.post("/v1/jobs", json=body | {"seed": 1}, headers=headers),
        422,
        "idempotency-key-reused",
        "Idempotency-Key",
    )

    assert refused["job"] == first["id"]
    assert world.rows() == before


def test_a_refused_request_leaves_its_key_unused(api, world):
    body = world.body()
    headers = {"Idempotency-Key": "k"}
    assert api.post("/v1/jobs", json=body | {"metric": "psnr"}, headers=headers).status_code == 422
    assert api.post("/v1/jobs", json=body, headers=headers).status_code == 202


def test_requests_with_one_key_at_the_same_time_make_one_job(api, world):
    body = world.body()
    barrier = threading.Barrier(8)

    def post(_):
        barrier.wait()
        return api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(post, range(8)))

    assert {r.status_code for r in responses} == {202}
    assert len({r.json()["id"] for r in responses}) == 1
    assert world.rows()["jobs"] == 1


def test_pages_go_on_where_the_last_one_ended_while_jobs_are_added(api, world):
    model, dataset = world.model(), world.dataset()
    made = [world.job(model=model.id, dataset=dataset.id).id for _ in range(5)]

    first = api.get("/v1/jobs", params={"limit": 2}).json()
    world.job(model=model.id, dataset=dataset.id)
    second = api.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    third = api.get("/v1/jobs", params={"limit": 2, "cursor": second["next_cursor"]}).json()

    seen = [job["id"] for page in (first, second, third) for job in page["items"]]
    assert seen == list(reversed(made))
    assert third["next_cursor"] is None


def test_jobs_of_one_moment_are_told_apart_by_their_ids(api, world):
    from sqlalchemy import update

    from app.models import Job, utc_now

    model, dataset = world.model(), world.dataset()
    made = sorted(world.job(model=model.id, dataset=dataset.id).id for _ in range(3))
    with world.database.write() as session:
        session.execute(update(Job).values(created_at=utc_now()))

    seen, cursor = [], None
    while True:
        page = api.get("/v1/jobs", params={"limit": 1} | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["id"] for job in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert seen == list(reversed(made))


def test_lists_are_filtered_by_state_model_and_owner(api, world):
    mine = world.job(owner="ada")
    other = world.job(owner="bob")
    world.start(other)

    def ids(**params):
        return [job["id"] for job in api.get("/v1/jobs", params=params).json()["items"]]

    assert ids(state="running") == [other.id]
    assert ids(owner="ada") == [mine.id]
    assert ids(model=other.model_id) == [other.id]
    assert ids(state="running", owner="ada") == []


def test_an_unchanged_job_is_not_sent_again(api, world):
    job = world.job()
    url = f"/v1/jobs/{job.id}"
    etag = api.get(url).headers["etag"]

    unchanged = api.get(url, headers={"If-None-Match": f'"other", {etag}'})
    world.start(job)
    changed = api.get(url, headers={"If-None-Match": etag})

    assert unchanged.status_code == 304
    assert unchanged.headers["etag"] == etag
    assert unchanged.content == b""
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


def test_every_finished_entry_changes_the_tag_and_mere_time_does_not(api, world):
    job = world.job()
    world.start(job)
    url = f"/v1/jobs/{job.id}"
    first = api.get(url)
    world.measure(job, 1)
    second, third = api.get(url), api.get(url)

    assert first.headers["etag"] != second.headers["etag"]
    assert second.headers["etag"] == third.headers["etag"]
    assert third.json()["progress"]["elapsed_seconds"] > second.json()["progress"]["elapsed_seconds"]


def test_a_long_poll_answers_as_soon_as_something_changes(api, world):
    job = world.job()
    world.start(job)
    url = f"/v1/jobs/{job.id}"
    etag = api.get(url).headers["etag"]
    timer = threading.Timer(0.3, world.measure, (job, 1))
    timer.start()

    start = time.monotonic()
    response = api.get(url, headers={"If-None-Match": etag, "Prefer": "respond-async, wait=20"})

    timer.join()
    assert response.status_code == 200
    assert response.json()["progress"]["done"] == 1
    assert 0.2 < time.monotonic() - start < 5
    assert response.headers["preference-applied"] == "wait=20"
    assert "Prefer" in response.headers["vary"]


def test_a_long_poll_without_a_tag_waits_for_the_end(api, world):
    job = world.job()
    world.start(job)
    timers = [threading.Timer(0.2, world.measure, (job, 1)), threading.Timer(0.5, world.finish, (job,))]
    for timer in timers:
        timer.start()

    response = api.get(f"/v1/jobs/{job.id}", headers={"Prefer": "wait=20"})

    for timer in timers:
        timer.join()
    assert response.json()["state"] == "done"


def test_a_long_poll_ends_when_its_time_is_over(api, world):
    job = world.job()
    url = f"/v1/jobs/{job.id}"
    etag = api.get(url).headers["etag"]

    start = time.monotonic()
    known = api.get(url, headers={"If-None-Match": etag, "Prefer": "wait=0.4"})
    unknown = api.get(url, headers={"If-None-Match": '"stale"', "Prefer": "wait=30"})

    assert known.status_code == 304
    assert known.headers["preference-applied"] == "wait=0.4"
    assert unknown.status_code == 200, "what the client knows is out of date: nothing to wait for"
    assert 0.35 < time.monotonic() - start < 10


def test_waiting_is_capped(api, world):
    job = world.job()
    world.finish(job, JobState.FAILED)
    response = api.get(f"/v1/jobs/{job.id}", headers={"Prefer": "wait=86400"})
    assert response.headers["preference-applied"] == "wait=60"


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
def test_a_job_is_cancelled_and_keeps_what_it_measured(api, world, state):
    job = world.job()
    if state is JobState.RUNNING:
        world.start(job)
    world.measure(job, 2)

    response = api.post(f"/v1/jobs/{job.id}/cancel")

    assert response.status_code == 200
    assert response.json()["state"] == "cancelled"
    assert response.json()["finished_at"] is not None
    assert response.json()["progress"]["done"] == 2
    assert response.json()["progress"]["eta_seconds"] is None


@pytest.mark.parametrize("state", [JobState.DONE, JobState.FAILED, JobState.CANCELLED])
def test_a_finished_job_cannot_be_cancelled(api, world, problem, state):
    job = world.job()
    world.finish(job, state)
    before = api.get(f"/v1/jobs/{job.id}").json()

    refused = problem(api.post(f"/v1/jobs/{job.id}/cancel"), 409, "job-finished", "state")

    assert refused["value"] == state.value
    assert api.get(f"/v1/jobs/{job.id}").json() == before


@pytest.mark.parametrize("state", [ModelState.INSPECTING, ModelState.REFUSED])
def test_a_model_that_is_not_ready_cannot_be_searched(api, world, problem, state):
    model = world.model(state=state)
    refused = problem(api.post("/v1/jobs", json=world.body(model=model.id)), 409, "model-not-ready", "model")
    assert refused["state"] == state.value


def test_the_result_grows_with_the_job(api, world):
    job = world.job(budgets=["4 bits", "3 bits"])
    url = f"/v1/jobs/{job.id}/result"
    empty = api.get(url).json()
    world.start(job)
    world.measure(job, 5)
    partial = api.get(url).json()
    world.measure(job)
    world.solve(job)
    world.start(job, Stage.VERIFY)
    solved = api.get(url).json()
    world.verify(job, lambda plan: plan.objective)
    world.conclude(job)
    world.finish(job)
    done = api.get(url).json()

    assert (empty["plans"], empty["baselines"], empty["sensitivities"], empty["frontier"]) == ([], [], [], [])
    assert "choices" not in empty
    assert [(s["unit"], s["bits"]) for s in partial["sensitivities"]] == [
        ("stem.weight", bits) for bits in (2, 3, 4, 5, 6)
    ]
    assert solved["measured"] == {}
    assert solved["frontier"]
    assert done["state"] == "done"
    assert [p["budget"] for p in done["plans"]] == ["4 bits", "3 bits"]
    assert [p["name"] for p in done["baselines"]] == [f"uniform {b} bits" for b in (2, 3, 4, 5, 6, 8)]
    for key in ("budget", "status", "objective", "lower_bound", "relative_gap", "size_bits", "choices"):
        assert done[key] == done["plans"][0][key]
    assert done["measured"] == {"kl": {"calibration": 2 * done["objective"], "evaluation": done["objective"]}}
    assert done["measured_standard_error"] == {"kl": {"calibration": 0.1, "evaluation": 0.2}}
    assert done["predicted"] == {"kl": done["objective"]}
    assert done["size_bits"] == sum(u["weights"] * done["choices"][u["name"]]["bits"] for u in done["units"])
    assert done["size_bits"] <= done["budget_bits"] == 4 * done["model"]["weights"]
    assert done["average_bits"] == done["size_bits"] / done["model"]["weights"]
    # Four units store 100 bits of scales each; 3200 bits belong to no unit.
    assert done["file_size_bits"] == done["size_bits"] + 400 + 3200
    assert set(done["seconds"]) == {"measure", "solve", "verify", "total"}
    assert all(isinstance(s, float) for s in done["seconds"].values())


def test_the_result_tells_how_many_samples_were_for_what(api, world):
    held = world.job(holdout=0.25, samples=10)
    other = world.job(evaluation_dataset=world.dataset(12).id)
    none = world.job()

    def samples(job):
        result = api.get(f"/v1/jobs/{job.id}/result").json()
        return result["calibration"]["samples"], (result["evaluation"] or {}).get("samples")

    assert samples(held) == (10, 10)
    assert samples(other) == (40, 12)
    assert samples(none) == (40, None)
