"""What a worker does with a task, on both databases. The computing itself is played; it has its own tests."""

import time
from types import SimpleNamespace

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from app.dispatch import work
from app.dispatch.shard import DONE, FAILED, STOPPED
from app.models import (
    Job,
    JobState,
    Measurement,
    Model,
    Stage,
    Task,
    TaskState,
)
from workers.contracts import ModelDescription
from workers.errors import DatasetRefused, MeasurementFailed

from .rows import REQUEST, add_job, add_measurement

DESCRIPTION = ModelDescription(
    inputs=(),
    batch_size=None,
    outputs=(),
    units=(),
    unsupported=(),
    weights=0,
    float_bits=0,
    unit_float_bits=0,
)


def test_a_shard_measures_stores_and_is_done(bench, measuring):
    job_id, task_id = bench.job()
    assert bench.run(task_id) == DONE
    assert bench.measured() == set(bench.keys(job_id))
    task = bench.get(Task, task_id)
    assert task.state is TaskState.DONE
    assert task.finished_at is not None
    request = measuring.requests[0]
    assert request.model_path == str(bench.path("model"))
    assert request.calibration_path == str(bench.path("calibration"))
    assert [(unit, candidate.bits) for unit, candidate in request.wanted] == [
        ("unit0", 2),
        ("unit0", 3),
        ("unit0", 4),
    ]
    assert request.indices is None
    with bench.database.read() as session:
        row = session.get_one(Measurement, bench.keys(job_id)[1])
    assert (row.unit, row.bits, row.metric, row.mean, row.storage_bits) == ("unit0", 3, "kl", 0.5, 9)
    assert row.model_sha256 == bench.files["model"]


def test_what_is_there_is_not_measured_again(bench, measuring):
    job_id, task_id = bench.job()
    with bench.database.write() as session:
        add_measurement(session, bench.keys(job_id)[1])
    assert bench.run(task_id) == DONE
    assert [candidate.bits for _, candidate in measuring.requests[0].wanted] == [2, 4]


def test_a_shard_with_nothing_left_does_not_even_load_the_model(bench, measuring):
    job_id, task_id = bench.job()
    with bench.database.write() as session:
        for key in bench.keys(job_id):
            add_measurement(session, key)
    assert bench.run(task_id) == DONE
    assert measuring.requests == []


NOT_WANTED = [
    # another attempt was started since, or this one is not started any more
    ({"attempt": 1}, {}),
    ({"state": TaskState.PENDING}, {}),
    # ended otherwise
    ({"state": TaskState.CANCELLED}, {}),
    ({"state": TaskState.DONE}, {}),
    ({"state": TaskState.FAILED}, {}),
    # the job has ended, and the dispatcher has not come round to its tasks yet
    ({}, {"state": JobState.CANCELLED}),
    ({}, {"state": JobState.FAILED}),
]


@pytest.mark.parametrize(("task", "job"), NOT_WANTED)
def test_fencing(bench, measuring, task, job):
    job_id, task_id = bench.job()
    bench.set(Task, task_id, **task)
    bench.set(Job, job_id, **job)
    before = bench.get(Task, task_id)
    assert bench.run(task_id) == STOPPED
    after = bench.get(Task, task_id)
    assert (after.state, after.attempt, after.worker) == (before.state, before.attempt, None)
    assert bench.measured() == set()


def test_an_unknown_task_is_not_wanted(bench):
    assert bench.run("tsk_none") == STOPPED


CHANGES = [
    ("job", Job, {"state": JobState.CANCELLED}),
    ("task", Task, {"state": TaskState.CANCELLED}),
    ("task", Task, {"attempt": 1}),
    # a worker that was thought dead: the same attempt runs on another one
    ("task", Task, {"worker": "another"}),
]


@pytest.mark.parametrize(("which", "kind", "change"), CHANGES)
def test_work_that_is_not_wanted_any_more_stops_after_the_entry_in_hand(
    bench, measuring, which, kind, change
):
    job_id, task_id = bench.job()
    row_id = {"job": job_id, "task": task_id}[which]
    measuring.between = lambda number: number == 1 and bench.set(kind, row_id, **change)
    assert bench.run(task_id) == STOPPED
    assert bench.measured() == set(bench.keys(job_id)[:2]), (
        "the entry in hand is kept, the next one not begun"
    )
    assert measuring.finished == 2
    assert bench.get(Task, task_id).state is not TaskState.DONE


def test_two_workers_on_the_same_entries_leave_one_row_each(bench, measuring, caplog):
    """Two jobs may want the same at the same time."""
    job_id, task_id = bench.job()

    def other_worker(number):
        with bench.database.write() as session:
            add_measurement(session, bench.keys(job_id)[number])

    measuring.between = other_worker
    caplog.set_level("INFO")
    assert bench.run(task_id) == DONE
    assert len(bench.measured()) == 3
    assert caplog.text.count("entry_was_there") == 3


def fail_with(error):
    def fail(_number):
        raise error

    return fail


def test_a_refused_input_fails_the_task_at_once(bench, measuring):
    _, task_id = bench.job()
    measuring.between = fail_with(DatasetRefused("label 12 of 10 classes", "labels", 12, "0 to 9"))
    assert bench.run(task_id) == FAILED
    task = bench.get(Task, task_id)
    assert (task.state, task.failures) == (TaskState.FAILED, 1)
    assert task.problem["type"] == "urn:bitwright:problem:dataset-refused"
    assert (task.problem["field"], task.problem["value"]) == ("labels", 12)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MeasurementFailed("conv2d failed at node a"), "measurement-failed", "conv2d failed"),
        (RuntimeError("secret path /x"), "internal-error", "An internal error"),
    ],
)
def test_a_failure_is_tried_again_as_often_as_allowed(bench, measuring, error, kind, words):
    _, task_id = bench.job()
    measuring.between = fail_with(error)
    for attempt in range(bench.settings.shard_attempts):
        bench.set(Task, task_id, state=TaskState.RUNNING)
        assert bench.run(task_id, attempt) == FAILED
    task = bench.get(Task, task_id)
    assert (task.state, task.failures, task.attempt) == (TaskState.FAILED, 3, 2)
    assert task.problem["type"] == f"urn:bitwright:problem:{kind}"
    assert words in task.problem["detail"]


def test_a_failure_keeps_what_was_finished_before(bench, measuring):
    job_id, task_id = bench.job()
    measuring.between = lambda number: number == 2 and fail_with(MeasurementFailed("boom"))(number)
    assert bench.run(task_id) == FAILED
    task = bench.get(Task, task_id)
    assert (task.state, task.attempt, task.failures) == (TaskState.PENDING, 1, 1)
    assert len(bench.measured()) == 2
    measuring.between = lambda _number: None
    bench.set(Task, task_id, state=TaskState.RUNNING)
    assert bench.run(task_id, 1) == DONE
    assert [candidate.bits for _, candidate in measuring.requests[1].wanted] == [4]
    assert len(bench.keys(job_id)) == 3


@pytest.mark.parametrize("attempt", [0, 1])
def test_a_failure_of_a_superseded_worker_changes_nothing(bench, measuring, attempt):
    """Another attempt, or the same one on another worker, does well meanwhile."""
    _, task_id = bench.job()

    def superseded(_number):
        bench.set(Task, task_id, attempt=attempt, worker="another")
        raise MeasurementFailed("too late to matter")

    measuring.between = superseded
    bench.run(task_id)
    task = bench.get(Task, task_id)
    assert (task.state, task.attempt, task.failures, task.problem) == (TaskState.RUNNING, attempt, 0, None)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"other content"), "has changed"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_not_what_was_registered_is_not_measured(bench, measuring, damage, words):
    _, task_id = bench.job()
    damage(bench.path("model"))
    assert bench.run(task_id) == FAILED
    assert measuring.requests == []
    problem = bench.get(Task, task_id).problem
    assert words in problem["detail"]
    assert str(bench.path("model")) in problem["detail"]


def test_a_file_by_reference_is_read_where_it_lies(bench, measuring, tmp_path):
    job_id, task_id = bench.job()
    elsewhere = tmp_path / "elsewhere.pt2"
    elsewhere.write_bytes(b"model")
    bench.set(Model, bench.get(Job, job_id).model_id, location=str(elsewhere))
    assert bench.run(task_id) == DONE
    assert measuring.requests[0].model_path == str(elsewhere)


def test_settings_and_request_bound_the_memory_together(bench, measuring):
    _, task_id = bench.job(request=REQUEST | {"memory_bytes": 1 << 20})
    bench.run(task_id)
    _, task_id = bench_again(bench)
    bench.run(task_id)
    assert [r.memory_bytes for r in measuring.requests] == [1 << 20, bench.settings.memory_bytes]


def bench_again(bench):
    """A second job on the same files."""
    with bench.database.write() as session:
        job = add_job(session, shards=1, entries=3, state=JobState.RUNNING, stage=Stage.MEASURE)
        first = session.scalars(select(Job).where(Job.id != job.id)).one()
        job.model_id, job.dataset_id = first.model_id, first.dataset_id
        job.request = REQUEST | {"memory_bytes": 1 << 50}
        task = session.scalars(select(Task).where(Task.job_id == job.id)).one()
        task.state = TaskState.RUNNING
        return job.id, task.id


# A database that goes away ------------------------------------------------------------------------------------------


def test_a_finished_entry_waits_for_the_database_to_come_back(bench, measuring, monkeypatch):
    job_id, task_id = bench.job()
    honest, outages = work.store_measurement, []

    def away_for_a_while(*arguments):
        if len(outages) < 2:
            outages.append(1)
            raise OperationalError("insert", {}, Exception("server closed the connection"))
        return honest(*arguments)

    monkeypatch.setattr(work, "store_measurement", away_for_a_while)
    monkeypatch.setattr(work, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _seconds: None))
    assert bench.run(task_id) == DONE
    assert measuring.finished == 3
    assert bench.measured() == set(bench.keys(job_id))


def test_a_database_that_stays_away_is_told_to_the_engine(bench, measuring, monkeypatch):
    _, task_id = bench.job()

    def away(*_arguments):
        raise OperationalError("insert", {}, Exception("server closed the connection"))

    monkeypatch.setattr(work, "store_measurement", away)
    monkeypatch.setattr(work, "DATABASE_PATIENCE_S", 0.0)
    with pytest.raises(OperationalError):
        bench.run(task_id)
    assert bench.get(Task, task_id).state is TaskState.RUNNING
