"""Estimating: what a worker does with one part of a job's probes, whatever happens to it meanwhile."""

import numpy as np
import pytest
from sqlalchemy import select

import workers.sensitivity.estimators.run
from app.dispatch import work
from app.dispatch.shard import DONE, FAILED, STOPPED
from app.models import Dataset, Job, JobState, Model, ProbeResult, Stage, Task, TaskKind, TaskState
from workers.contracts import Candidate, Metric, ModelDescription, UnitInfo
from workers.errors import RequestRefused
from workers.sampling import SampleBlock
from workers.sensitivity.blocks import positions_of

from .rows import REQUEST, add_task

PROBING = REQUEST | {"metric": "auto", "estimator": "probe", "probes": 2, "regret": 0.01}
UNITS = tuple(
    UnitInfo(
        name=f"unit{i}",
        operator="linear",
        shape=(2, 3),
        weights=6,
        output_channel_axis=0,
        group_axis=1,
        macs=6,
    )
    for i in range(2)
)
DESCRIPTION = ModelDescription(
    inputs=(),
    batch_size=None,
    outputs=(),
    units=UNITS,
    unsupported=(),
    weights=12,
    float_bits=400,
    unit_float_bits=384,
)
OFFER = tuple((u.name, Candidate.parse(f"{b}:channel-asymmetric")) for u in UNITS for b in (2, 4))


@pytest.fixture
def probing(bench):
    """A job with running PROBE tasks that share four parts of two samples each."""

    def make(tasks=4, **request):
        job_id, measure_id = bench.job(stage=Stage.PROBE, request=PROBING | request)
        bench.set(Task, measure_id, state=TaskState.CANCELLED)
        job = bench.get(Job, job_id)
        bench.set(Model, job.model_id, description=DESCRIPTION.to_json())
        ids = [
            bench.add(add_task, TaskKind.PROBE, job_id=job_id, ordinal=i, state=TaskState.RUNNING)
            for i in range(tasks)
        ]
        return job_id, ids

    return make


@pytest.fixture
def estimating(monkeypatch):
    """Plays `estimate`: remembers the requests, answers with their number."""

    class Played:
        def __init__(self):
            self.requests = []
            self.before = lambda: None
            self.tell_samples = False

        def estimate(self, request, progress=None):
            self.requests.append(request)
            self.before()
            samples = request.block.stop - request.block.start if request.block else 8
            values = np.full((request.probes, len(request.wanted), samples), float(len(self.requests)))
            if self.tell_samples:  # in the order of the file, as measuring has them
                block = request.block or SampleBlock(start=0, stop=8)
                values[:] = positions_of(block, 8, request.seed)
            return workers.sensitivity.estimators.run.Estimated(values=values, storage_bits=(1, 2, 3, 4))

    played = Played()
    monkeypatch.setattr(workers.sensitivity.estimators.run, "estimate", played.estimate)
    return played


def results(bench):
    with bench.database.read() as session:
        return session.scalars(select(ProbeResult).order_by(ProbeResult.created_at)).all()


def test_each_task_estimates_all_entries_on_its_part_of_the_samples(bench, probing, estimating):
    _, ids = probing(seed=5, batch_size=3, compare="mse", memory_bytes=1 << 21)
    for task_id in ids:
        assert bench.run(task_id) == DONE
        assert bench.get(Task, task_id).state is TaskState.DONE
    assert [r.block for r in estimating.requests] == [SampleBlock(start=i, stop=i + 2) for i in (0, 2, 4, 6)]
    first = estimating.requests[0]
    assert (first.wanted, first.probes, first.seed, first.batch_size) == (OFFER, 2, 5, 3)
    assert (first.metric, first.estimator, first.memory_bytes) == (Metric.MSE, "probe", 1 << 21)
    assert (first.model_path, first.calibration_path) == (
        str(bench.path("model")),
        str(bench.path("calibration")),
    )
    assert first.observation.path == str(bench.path("calibration"))
    found = results(bench)
    assert len({r.key for r in found}) == 4
    assert [(r.probes, r.entries, r.samples, r.storage_bits) for r in found] == [(2, 4, 2, [1, 2, 3, 4])] * 4
    assert [np.frombuffer(r.values, "<f4").tolist() for r in found] == [[float(i)] * 16 for i in (1, 2, 3, 4)]


def test_one_that_is_there_is_not_estimated_again(bench, probing, estimating):
    _, ids = probing()
    assert bench.run(ids[0]) == DONE
    before = results(bench)
    bench.set(Task, ids[0], state=TaskState.RUNNING, attempt=1)
    assert bench.run(ids[0], 1) == DONE
    assert len(estimating.requests) == 1
    assert [(r.key, r.created_at) for r in results(bench)] == [(r.key, r.created_at) for r in before]


@pytest.mark.parametrize(
    ("batch", "blocks"),
    [
        (1, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        (3, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        (4, [(0, 4), (4, 8)]),
        (7, [(0, 6), (6, 8)]),
        (32, [None]),
    ],
)
def test_neighbouring_parts_are_estimated_together_if_a_batch_holds_them(
    bench, probing, estimating, monkeypatch, batch, blocks
):
    """And each is stored by itself, with the samples that are its own."""
    monkeypatch.setattr(workers.sensitivity.estimators.run, "batch_size_of", lambda _: batch)
    estimating.tell_samples = True
    _, (task_id,) = probing(tasks=1, seed=3)
    assert bench.run(task_id) == DONE
    asked = [r.block and (r.block.start, r.block.stop) for r in estimating.requests]
    assert asked == blocks
    found = results(bench)
    assert [r.samples for r in found] == [2] * 4
    for part, result in enumerate(found):
        own = positions_of(SampleBlock(start=2 * part, stop=2 * part + 2), 8, 3)
        assert np.frombuffer(result.values, "<f4").reshape(2, 4, 2).tolist() == [[own.tolist()] * 4] * 2


def test_whoever_takes_over_estimates_only_the_parts_that_are_missing(
    bench, probing, estimating, monkeypatch
):
    monkeypatch.setattr(workers.sensitivity.estimators.run, "batch_size_of", lambda _: 4)
    _, (task_id,) = probing(tasks=1)

    def killed():
        if len(estimating.requests) == 2:
            raise KeyboardInterrupt

    estimating.before = killed
    with pytest.raises(KeyboardInterrupt):
        bench.run(task_id)
    assert len(results(bench)) == 2
    estimating.before = lambda: None
    bench.set(Task, task_id, attempt=1)
    assert bench.run(task_id, 1) == DONE
    assert [(r.block.start, r.block.stop) for r in estimating.requests] == [(0, 4), (4, 8), (4, 8)]
    assert len(results(bench)) == 4


def test_only_neighbours_are_estimated_together(bench, probing, estimating, monkeypatch):
    """Two parts are missing, with one between them that is there: a block of samples has no holes."""
    monkeypatch.setattr(workers.sensitivity.estimators.run, "batch_size_of", lambda _: 32)
    estimating.tell_samples = True
    _, (task_id,) = probing(tasks=1, seed=3)
    assert bench.run(task_id) == DONE
    expected = {r.key: r.values for r in results(bench)}
    first, _, third, _ = (r.key for r in results(bench))
    with bench.database.write() as session:
        for key in (first, third):
            session.delete(session.get_one(ProbeResult, key))
    bench.set(Task, task_id, state=TaskState.RUNNING, attempt=1)
    assert bench.run(task_id, 1) == DONE
    assert [(r.block.start, r.block.stop) for r in estimating.requests[1:]] == [(0, 2), (4, 6)]
    assert {r.key: r.values for r in results(bench)} == expected


def test_two_tasks_share_the_parts(bench, probing, estimating, monkeypatch):
    monkeypatch.setattr(workers.sensitivity.estimators.run, "batch_size_of", lambda _: 32)
    _, ids = probing(tasks=2)
    for task_id in reversed(ids):
        assert bench.run(task_id) == DONE
    assert [(r.block.start, r.block.stop) for r in estimating.requests] == [(4, 8), (0, 4)]
    assert len(results(bench)) == 4


def test_another_job_that_asks_the_same_is_answered_and_one_that_asks_more_is_not(bench, probing, estimating):
    job_id, ids = probing()
    assert bench.run(ids[0]) == DONE
    job = bench.get(Job, job_id)
    for request, asked in (
        ({"regret": 0.5, "budgets": ["3 bits"]}, 1),
        ({"probes": 3}, 2),
        ({"candidates": [2, 4, 8]}, 3),
    ):
        bench.set(Job, job_id, request=PROBING | request)
        again = bench.add(add_task, TaskKind.PROBE, job_id=job.id, ordinal=0, state=TaskState.RUNNING)
        assert bench.run(again) == DONE
        assert len(estimating.requests) == asked


def test_the_same_part_run_twice_at_once_is_kept_once(bench, probing, estimating):
    _, ids = probing()

    def another_is_faster():
        estimating.before = lambda: None
        assert bench.run(ids[0]) == DONE

    estimating.before = another_is_faster
    assert bench.run(ids[0]) == STOPPED, "its claim is the other's"
    assert len(estimating.requests) == 2
    (kept,) = results(bench)
    assert np.frombuffer(kept.values, "<f4")[0] == 2.0, "the first to be stored stays"
    assert bench.get(Task, ids[0]).state is TaskState.DONE


NOT_WANTED = [({"attempt": 1}, {}), ({"state": TaskState.CANCELLED}, {}), ({}, {"state": JobState.CANCELLED})]


@pytest.mark.parametrize(("task", "job"), NOT_WANTED)
def test_one_that_is_not_wanted_is_not_begun(bench, probing, estimating, task, job):
    job_id, ids = probing()
    bench.set(Task, ids[0], **task)
    bench.set(Job, job_id, **job)
    assert bench.run(ids[0]) == STOPPED
    assert estimating.requests == []


@pytest.mark.parametrize(("task", "job"), NOT_WANTED)
def test_one_that_is_not_wanted_any_more_is_not_done(bench, probing, estimating, task, job):
    job_id, ids = probing()

    def meanwhile():
        bench.set(Task, ids[0], **task)
        bench.set(Job, job_id, **job)

    estimating.before = meanwhile
    bench.run(ids[0])
    row = bench.get(Task, ids[0])
    if task:
        assert (row.state, row.attempt) == (task.get("state", TaskState.RUNNING), task.get("attempt", 0))
    assert len(results(bench)) == 1, "what is estimated is of use to others"


def test_one_that_is_killed_leaves_nothing_and_is_done_by_the_next(bench, probing, estimating):
    _, ids = probing()

    class Killed(BaseException):
        pass

    def killed():
        raise Killed

    estimating.before = killed
    with pytest.raises(Killed):
        bench.run(ids[0])
    assert results(bench) == []
    assert bench.get(Task, ids[0]).state is TaskState.RUNNING
    bench.set(Task, ids[0], attempt=1)
    estimating.before = lambda: None
    assert bench.run(ids[0], 1) == DONE
    assert len(results(bench)) == 1


def test_one_killed_between_its_result_and_its_end_is_not_estimated_again(
    bench, probing, estimating, monkeypatch
):
    _, ids = probing()
    finish = work.finish
    monkeypatch.setattr(work, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bench.run(ids[0])
    monkeypatch.setattr(work, "finish", finish)
    assert bench.run(ids[0]) == DONE
    assert len(estimating.requests) == len(results(bench)) == 1


def test_a_refusal_is_final(bench, probing, estimating):
    _, ids = probing()

    def refuse():
        raise RequestRefused("no", "metric", "kl", "mse")

    estimating.before = refuse
    assert bench.run(ids[0]) == FAILED
    row = bench.get(Task, ids[0])
    assert (row.state, row.problem["field"]) == (TaskState.FAILED, "metric")


def test_an_estimator_whose_scores_do_not_add_up_sees_all_samples_at_once(bench, probing, estimating):
    _, ids = probing(metric="fisher", estimator="fisher", predicts="fisher")
    assert bench.run(ids[0]) == DONE
    assert (estimating.requests[0].block, estimating.requests[0].estimator) == (None, "fisher")


def test_samples_held_out_are_not_estimated_on(bench, probing, estimating):
    job_id, ids = probing(holdout=0.25)
    bench.set(Dataset, bench.get(Job, job_id).dataset_id, samples=8)
    for task_id in ids:
        assert bench.run(task_id) == DONE
    assert {len(r.indices) for r in estimating.requests} == {6}
    assert [(r.block.start, r.block.stop) for r in estimating.requests] == [(0, 1), (1, 3), (3, 4), (4, 6)]
