"""A plan that another job has measured already is not measured again; one that differs in anything that counts is."""

import pytest

import workers.verify.plan
from app.dispatch.shard import DONE
from app.jobs.keys import MEASURE_VERSION
from app.models import Job, JobState, Plan, PlanRole, Stage, TaskKind, TaskState
from workers.contracts import Measured

from .rows import REQUEST, add_plan, add_task

CHOICES = {"unit0": {"bits": 4, "scheme": "channel-asymmetric"}}
SAMPLED = REQUEST | {"samples": 5}


@pytest.fixture
def verifying(monkeypatch):
    """Plays `measure_plan`; remembers the requests."""
    requests = []

    def measure_plan(request, progress=None):
        requests.append(request)
        return {"kl": Measured(mean=float(len(requests)), standard_error=0.1, samples=8)}

    monkeypatch.setattr(workers.verify.plan, "measure_plan", measure_plan)
    return requests


def planned(bench, job_id, **values):
    plan_id = bench.add_for(job_id, add_plan, PlanRole.REQUESTED)
    bench.set(Plan, plan_id, **{"choices": CHOICES, "size_bits": 64} | values)
    task_id = bench.add(add_task, TaskKind.VERIFY, job_id=job_id, plan_id=plan_id, state=TaskState.RUNNING)
    return plan_id, task_id


def sibling(bench, job_id, **values):
    """Another running job on the same files."""
    first = bench.get(Job, job_id)
    given = {
        "id": "job_other",
        "model_id": first.model_id,
        "dataset_id": first.dataset_id,
        "evaluation_dataset_id": first.evaluation_dataset_id,
        "request": SAMPLED,
        "state": JobState.RUNNING,
        "stage": Stage.VERIFY,
    }
    with bench.database.write() as session:
        session.add(Job(**given | values))
    return "job_other"


@pytest.fixture
def measured(bench, verifying):
    """A job with a plan that is measured."""
    job_id, _ = bench.job(evaluation=True, stage=Stage.VERIFY, request=SAMPLED)
    plan_id, task_id = planned(bench, job_id)
    assert bench.run(task_id) == DONE
    assert len(verifying) == 2
    return job_id, plan_id


@pytest.mark.parametrize(
    "ours",
    [
        SAMPLED,
        SAMPLED | {"metric": "probe", "budgets": ["3 bits"], "candidates": [4, 8], "probes": 2},
        SAMPLED | {"batch_size": 2, "memory_bytes": 1 << 20},
    ],
    ids=["the same", "costs come by otherwise", "in other batches"],
)
def test_an_equal_plan_of_another_job_is_taken_as_measured(bench, verifying, measured, ours):
    other = sibling(bench, measured[0], request=ours)
    bench.set(Job, measured[0], state=JobState.CANCELLED)
    plan_id, task_id = planned(bench, other)
    assert bench.run(task_id) == DONE
    assert len(verifying) == 2
    assert bench.get(Plan, plan_id).measured == bench.get(Plan, measured[1]).measured


@pytest.mark.parametrize(
    "ours",
    [
        SAMPLED | {"samples": 6},
        SAMPLED | {"seed": 1},
        SAMPLED | {"compare": "mse"},
        SAMPLED | {"output": "logits"},
    ],
    ids=lambda request: "/".join(sorted(k for k in request if request[k] != SAMPLED.get(k))),
)
def test_one_asked_for_otherwise_is_measured(bench, verifying, measured, ours):
    _, task_id = planned(bench, sibling(bench, measured[0], request=ours))
    assert bench.run(task_id) == DONE
    assert len(verifying) == 4


def test_so_is_one_on_other_data(bench, verifying, measured):
    _, task_id = planned(bench, sibling(bench, measured[0], evaluation_dataset_id=None))
    assert bench.run(task_id) == DONE
    assert len(verifying) == 3


@pytest.mark.parametrize("scheme", ["channel-symmetric", "channel-asymmetric-mse"])
def test_so_is_one_that_chooses_otherwise(bench, verifying, measured, scheme):
    choices = {"unit0": {"bits": 4, "scheme": scheme}}
    _, task_id = planned(bench, sibling(bench, measured[0]), choices=choices)
    assert bench.run(task_id) == DONE
    assert len(verifying) == 4


def test_so_is_one_that_an_older_release_measured(bench, verifying, measured):
    old = bench.get(Plan, measured[1]).measured | {"version": MEASURE_VERSION - 1}
    bench.set(Plan, measured[1], measured=old)
    _, task_id = planned(bench, sibling(bench, measured[0]))
    assert bench.run(task_id) == DONE
    assert len(verifying) == 4


def test_what_the_other_one_lacks_is_measured(bench, verifying, measured):
    half = {
        "values": {"kl": {"calibration": 9.0, "evaluation": None}},
        "standard_error": {"kl": {"calibration": 0.9, "evaluation": None}},
        "version": MEASURE_VERSION,
    }
    bench.set(Plan, measured[1], measured=half)
    plan_id, task_id = planned(bench, sibling(bench, measured[0]))
    assert bench.run(task_id) == DONE
    assert [r.data_path for r in verifying[2:]] == [str(bench.path("evaluation"))]
    assert bench.get(Plan, plan_id).measured["values"]["kl"] == {"calibration": 9.0, "evaluation": 3.0}
