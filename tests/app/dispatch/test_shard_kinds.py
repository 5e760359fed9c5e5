"""Inspections, solving, verification: what a worker does with the other kinds of task."""

import pytest
from sqlalchemy import select

import workers.graph.describe
import workers.intake.models
import workers.sensitivity.engine
import workers.verify.plan
from app.dispatch import shard
from app.dispatch.shard import DONE, FAILED, STOPPED
from app.jobs.keys import MEASURE_VERSION, split_samples
from app.models import (
    Job,
    JobState,
    Model,
    ModelState,
    Plan,
    PlanRole,
    Stage,
    Task,
    TaskKind,
    TaskState,
)
from workers.contracts import Measured, Metric, ModelDescription
from workers.errors import ModelRefused

from .rows import REQUEST, add_model, add_plan, add_task

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


# Inspection --------------------------------------------------------------------------------------------------------


@pytest.fixture
def inspection(bench):
    model_id = bench.add(add_model, sha256=bench.files["model"])
    task_id = bench.add(add_task, TaskKind.INSPECT, model_id=model_id, state=TaskState.RUNNING)
    return model_id, task_id


def play_inspection(monkeypatch, error=None):
    def read_model(_path):
        if error is not None:
            raise error
        return "a graph"

    monkeypatch.setattr(workers.intake.models, "read_model", read_model)
    monkeypatch.setattr(workers.graph.describe, "describe", lambda _model: DESCRIPTION)


def test_an_inspection_describes_the_model(bench, inspection, monkeypatch):
    model_id, task_id = inspection
    play_inspection(monkeypatch)
    assert bench.run(task_id) == DONE
    model = bench.get(Model, model_id)
    assert model.state is ModelState.READY
    assert ModelDescription.from_json(model.description) == DESCRIPTION
    assert bench.get(Task, task_id).state is TaskState.DONE


def test_an_inspection_that_refuses_has_done_its_work(bench, inspection, monkeypatch):
    model_id, task_id = inspection
    play_inspection(
        monkeypatch, ModelRefused("operator aten::x is not known", "graph", "aten::x", extra={"rule": "op"})
    )
    assert bench.run(task_id) == DONE
    model = bench.get(Model, model_id)
    assert model.state is ModelState.REFUSED
    assert model.problem["type"] == "urn:bitwright:problem:model-refused"
    assert (model.problem["field"], model.problem["rule"]) == ("graph", "op")
    assert model.problem["instance"] == f"/v1/models/{model_id}"
    assert bench.get(Task, task_id).state is TaskState.DONE


def test_an_inspection_that_breaks_is_tried_again_and_then_refuses(bench, inspection, monkeypatch):
    model_id, task_id = inspection
    play_inspection(monkeypatch, MemoryError())
    for attempt in range(3):
        bench.set(Task, task_id, state=TaskState.RUNNING)
        assert bench.run(task_id, attempt) == FAILED
    assert bench.get(Task, task_id).state is TaskState.FAILED
    model = bench.get(Model, model_id)
    assert model.state is ModelState.REFUSED
    assert model.problem["type"] == "urn:bitwright:problem:internal-error"


# Solving and verifying ----------------------------------------------------------------------------------------------


def test_solving_and_being_done_are_one_transaction(bench, monkeypatch):
    job_id, _ = bench.job()
    task_id = bench.add(add_task, TaskKind.SOLVE, job_id=job_id, state=TaskState.RUNNING)

    def store(session, solved, _plans):
        add_plan(session, session.get_one(Job, solved))
        if len(calls) == 0:
            calls.append(1)
            raise ZeroDivisionError("after it had written")

    calls = []
    monkeypatch.setattr(shard, "draft_job", lambda *_: [])
    monkeypatch.setattr(shard, "store_job_plans", store)
    assert bench.run(task_id) == FAILED
    with bench.database.read() as session:
        assert session.scalars(select(Plan)).all() == []
    bench.set(Task, task_id, state=TaskState.RUNNING)
    assert bench.run(task_id, 1) == DONE
    with bench.database.read() as session:
        assert len(session.scalars(select(Plan)).all()) == 1


@pytest.fixture
def verifying(monkeypatch):
    """Plays `measure_plan`: remembers the requests, answers with the number of the call."""
    requests = []

    def measure_plan(request, progress=None):
        requests.append(request)
        number = float(len(requests))
        return {
            "kl": Measured(mean=number, standard_error=number / 10, samples=8),
            "top1_agreement": Measured(mean=1.0, standard_error=None, samples=8),
        }

    monkeypatch.setattr(workers.verify.plan, "measure_plan", measure_plan)
    return requests


def verify_task(bench, job_id, role=PlanRole.REQUESTED, **values):
    choices = {"unit0": {"bits": 4, "scheme": "channel-asymmetric"}}
    plan_id = bench.add_for(job_id, add_plan, role, **values)
    bench.set(Plan, plan_id, choices=choices)
    return plan_id, bench.add(
        add_task, TaskKind.VERIFY, job_id=job_id, plan_id=plan_id, state=TaskState.RUNNING
    )


def test_a_plan_is_measured_on_calibration_and_evaluation_data(bench, verifying):
    job_id, _ = bench.job(evaluation=True, stage=Stage.VERIFY, request=REQUEST | {"samples": 5, "seed": 7})
    plan_id, task_id = verify_task(bench, job_id)
    assert bench.run(task_id) == DONE
    calibration, evaluation = verifying
    assert (calibration.data_path, evaluation.data_path) == (
        str(bench.path("calibration")),
        str(bench.path("evaluation")),
    )
    assert (calibration.samples, calibration.seed, evaluation.samples) == (5, 7, None)
    assert calibration.metrics == (Metric.KL,)
    assert {unit: candidate.bits for unit, candidate in calibration.choices.items()} == {"unit0": 4}
    assert bench.get(Plan, plan_id).measured == {
        "values": {
            "kl": {"calibration": 1.0, "evaluation": 2.0},
            "top1_agreement": {"calibration": 1.0, "evaluation": 1.0},
        },
        "standard_error": {
            "kl": {"calibration": 0.1, "evaluation": 0.2},
            "top1_agreement": {"calibration": None, "evaluation": None},
        },
        "version": MEASURE_VERSION,
    }


def test_without_evaluation_data_there_is_none(bench, verifying):
    job_id, _ = bench.job(stage=Stage.VERIFY)
    plan_id, task_id = verify_task(bench, job_id)
    assert bench.run(task_id) == DONE
    assert len(verifying) == 1
    assert bench.get(Plan, plan_id).measured["values"]["kl"] == {"calibration": 1.0, "evaluation": None}


def test_samples_held_out_are_measured_on_and_not_calibrated_on(bench, verifying, measuring):
    request = REQUEST | {"holdout": 0.25, "seed": 3}
    job_id, measure_id = bench.job(request=request)
    assert bench.run(measure_id) == DONE
    bench.set(Job, job_id, stage=Stage.VERIFY)
    _, task_id = verify_task(bench, job_id)
    assert bench.run(task_id) == DONE
    split = split_samples(8, 0.25, 3)
    calibration, evaluation = verifying
    assert measuring.requests[0].indices == calibration.indices == split.calibration
    assert evaluation.indices == split.evaluation
    assert evaluation.data_path == calibration.data_path
    assert set(split.calibration) | set(split.evaluation) == set(range(8))


def test_verification_goes_on_where_it_was(bench, verifying):
    job_id, _ = bench.job(evaluation=True, stage=Stage.VERIFY)
    plan_id, task_id = verify_task(bench, job_id)
    half = {
        "values": {"kl": {"calibration": 9.0, "evaluation": None}},
        "standard_error": {"kl": {"calibration": 0.9, "evaluation": None}},
    }
    bench.set(Plan, plan_id, measured=half)
    assert bench.run(task_id) == DONE
    assert [r.data_path for r in verifying] == [str(bench.path("evaluation"))]
    measured = bench.get(Plan, plan_id).measured
    assert measured["values"]["kl"] == {"calibration": 9.0, "evaluation": 1.0}
    assert measured["standard_error"]["kl"] == {"calibration": 0.9, "evaluation": 0.1}


def test_verification_stops_when_it_is_not_wanted_any_more(bench, verifying, monkeypatch):
    job_id, _ = bench.job(evaluation=True, stage=Stage.VERIFY)
    plan_id, task_id = verify_task(bench, job_id)
    measure_plan = workers.verify.plan.measure_plan

    def cancelled_meanwhile(request, progress):
        bench.set(Job, job_id, state=JobState.CANCELLED)
        return measure_plan(request, progress)

    monkeypatch.setattr(workers.verify.plan, "measure_plan", cancelled_meanwhile)
    assert bench.run(task_id) == STOPPED
    assert len(verifying) == 1
    assert bench.get(Plan, plan_id).measured is None


def test_a_plan_asked_for_later_is_measured_though_its_job_has_ended(bench, verifying):
    job_id, _ = bench.job(state=JobState.DONE)
    plan_id, task_id = verify_task(bench, job_id, PlanRole.ADHOC)
    assert bench.run(task_id) == DONE
    assert bench.get(Plan, plan_id).measured is not None
