"""The decisions, by table: each row is a state of the world and what follows from it."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from app.dispatch.engine import Phase, Report
from app.dispatch.lifecycle import (
    MAX_LOSSES,
    CancelTasks,
    ConcludeJob,
    EnterStage,
    FailJob,
    GiveUp,
    JobView,
    PendingTask,
    RefinePlans,
    Requeue,
    StartJob,
    TaskView,
    after_failure,
    decide,
    judge,
    pick,
)
from app.models import JobState as J
from app.models import Stage
from app.models import TaskKind as K
from app.models import TaskState as T

START = datetime(2026, 1, 1, tzinfo=UTC)
FAIL = [FailJob(job_id="j"), CancelTasks(job_id="j")]

DECISIONS = [
    # a job with work to measure waits until its first task is picked
    (J.QUEUED, None, {(K.MEASURE, T.PENDING): 3}, []),
    # everything was measured before: there is nothing to wait for
    (J.QUEUED, None, {}, [StartJob(job_id="j")]),
    (J.QUEUED, None, {(K.MEASURE, T.DONE): 1}, [StartJob(job_id="j")]),
    # measuring goes on
    (J.RUNNING, Stage.MEASURE, {(K.MEASURE, T.DONE): 2, (K.MEASURE, T.RUNNING): 1}, []),
    (J.RUNNING, Stage.MEASURE, {(K.MEASURE, T.DONE): 2, (K.MEASURE, T.PENDING): 1}, []),
    # measured; also when there was nothing to measure
    (J.RUNNING, Stage.MEASURE, {(K.MEASURE, T.DONE): 3}, [EnterStage(job_id="j", stage=Stage.SOLVE)]),
    (J.RUNNING, Stage.MEASURE, {}, [EnterStage(job_id="j", stage=Stage.SOLVE)]),
    # solving goes on
    (J.RUNNING, Stage.SOLVE, {(K.MEASURE, T.DONE): 3, (K.SOLVE, T.PENDING): 1}, []),
    # the plans' tasks are there before the solving task ends, and do not matter yet
    (J.RUNNING, Stage.SOLVE, {(K.SOLVE, T.RUNNING): 1, (K.VERIFY, T.PENDING): 4}, []),
    (J.RUNNING, Stage.SOLVE, {(K.SOLVE, T.DONE): 1, (K.VERIFY, T.PENDING): 4}, [EnterStage(job_id="j", stage=Stage.VERIFY)]),
    (J.RUNNING, Stage.VERIFY, {(K.SOLVE, T.DONE): 1, (K.VERIFY, T.RUNNING): 1}, []),
    (J.RUNNING, Stage.VERIFY, {(K.SOLVE, T.DONE): 1, (K.VERIFY, T.DONE): 4}, [ConcludeJob(job_id="j")]),
    # no budget could be met: no plan to verify, and that is a result
    (J.RUNNING, Stage.VERIFY, {(K.SOLVE, T.DONE): 1}, [ConcludeJob(job_id="j")]),
    # estimating comes first where there is anything to estimate; what may still be measured follows from it
    (J.QUEUED, None, {(K.PROBE, T.PENDING): 4}, []),
    (J.QUEUED, None, {(K.PROBE, T.DONE): 4}, [StartJob(job_id="j")]),
    (J.RUNNING, Stage.PROBE, {(K.PROBE, T.DONE): 3, (K.PROBE, T.RUNNING): 1}, []),
    (J.RUNNING, Stage.PROBE, {(K.PROBE, T.DONE): 3, (K.PROBE, T.PENDING): 1}, []),
    (J.RUNNING, Stage.PROBE, {(K.PROBE, T.DONE): 4}, [EnterStage(job_id="j", stage=Stage.SOLVE)]),
    # a solving task has sent the job back to measuring, once or more
    (J.RUNNING, Stage.MEASURE, {(K.PROBE, T.DONE): 4, (K.SOLVE, T.DONE): 1, (K.MEASURE, T.PENDING): 2}, []),
    (J.RUNNING, Stage.MEASURE, {(K.PROBE, T.DONE): 4, (K.SOLVE, T.DONE): 1, (K.MEASURE, T.DONE): 2}, [EnterStage(job_id="j", stage=Stage.SOLVE)]),
    (J.RUNNING, Stage.SOLVE, {(K.SOLVE, T.DONE): 1, (K.SOLVE, T.RUNNING): 1, (K.MEASURE, T.DONE): 2}, []),
    (J.RUNNING, Stage.SOLVE, {(K.SOLVE, T.DONE): 2, (K.MEASURE, T.DONE): 2, (K.VERIFY, T.PENDING): 1}, [EnterStage(job_id="j", stage=Stage.VERIFY)]),
    (J.RUNNING, Stage.PROBE, {(K.PROBE, T.FAILED): 1, (K.PROBE, T.RUNNING): 1}, FAIL),
    (J.CANCELLED, Stage.PROBE, {(K.PROBE, T.RUNNING): 1}, [CancelTasks(job_id="j")]),
    # one task failed for good: the job fails at once, whatever else runs
    (J.RUNNING, Stage.MEASURE, {(K.MEASURE, T.FAILED): 1, (K.MEASURE, T.RUNNING): 1}, FAIL),
    (J.RUNNING, Stage.SOLVE, {(K.SOLVE, T.FAILED): 1}, FAIL),
    (J.RUNNING, Stage.VERIFY, {(K.VERIFY, T.FAILED): 1, (K.VERIFY, T.DONE): 3}, FAIL),
    # the end is the end; what still runs is to stop
    (J.CANCELLED, Stage.MEASURE, {(K.MEASURE, T.RUNNING): 1, (K.MEASURE, T.PENDING): 1}, [CancelTasks(job_id="j")]),
    (J.FAILED, Stage.MEASURE, {(K.MEASURE, T.RUNNING): 1, (K.MEASURE, T.FAILED): 1}, [CancelTasks(job_id="j")]),
    (J.CANCELLED, Stage.MEASURE, {(K.MEASURE, T.CANCELLED): 2}, []),
    (J.DONE, Stage.VERIFY, {(K.VERIFY, T.DONE): 2}, []),
    (J.FAILED, Stage.SOLVE, {(K.SOLVE, T.FAILED): 1}, []),
]  # fmt: skip


REFINED = [
    # plans are looked around once, when all of them are verified
    (Stage.SOLVE, {(K.SOLVE, T.DONE): 1}, [EnterStage(job_id="j", stage=Stage.VERIFY)]),
    (Stage.VERIFY, {(K.VERIFY, T.RUNNING): 1, (K.VERIFY, T.DONE): 3}, []),
    (Stage.VERIFY, {(K.VERIFY, T.DONE): 4}, [RefinePlans(job_id="j")]),
    (Stage.VERIFY, {}, [RefinePlans(job_id="j")]),
    (Stage.VERIFY, {(K.VERIFY, T.DONE): 4, (K.REFINE, T.PENDING): 1, (K.REFINE, T.DONE): 1}, []),
    (Stage.VERIFY, {(K.VERIFY, T.DONE): 4, (K.REFINE, T.RUNNING): 1}, []),
    # what was found is verified too
    (Stage.VERIFY, {(K.VERIFY, T.PENDING): 1, (K.REFINE, T.DONE): 2}, []),
    (Stage.VERIFY, {(K.VERIFY, T.DONE): 5, (K.REFINE, T.DONE): 2}, [ConcludeJob(job_id="j")]),
    (Stage.VERIFY, {(K.VERIFY, T.DONE): 5, (K.REFINE, T.FAILED): 1}, FAIL),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "tasks", "expected"), REFINED)
def test_jobs_that_measure_again_around_their_plans(stage, tasks, expected):
    assert decide(JobView(id="j", state=J.RUNNING, stage=stage, tasks=tasks, refines=True)) == expected


@pytest.mark.parametrize(("state", "stage", "tasks", "expected"), DECISIONS)
def test_decide(state, stage, tasks, expected):
    assert decide(JobView(id="j", state=state, stage=stage, tasks=tasks)) == expected


def requeue(attempt: int, *, failed: bool) -> Requeue:
    return Requeue(task_id="t", attempt=attempt, failed=failed)


JUDGEMENTS = [
    # no news is good news
    (0, 0, Phase.RUNNING, None),
    # unknown to a new scheduler, or stopped early: once more under a new key
    (4, 1, Phase.UNKNOWN, requeue(4, failed=False)),
    (2, 0, Phase.FINISHED, requeue(2, failed=False)),
    # errors count, and so do processes that died of the task
    (0, 0, Phase.ERROR, requeue(0, failed=True)),
    (7, 1, Phase.ERROR, requeue(7, failed=True)),
    (7, 2, Phase.ERROR, GiveUp(task_id="t", attempt=7)),
    (0, 0, Phase.LOST, requeue(0, failed=True)),
    (2, 2, Phase.LOST, GiveUp(task_id="t", attempt=2)),
    # nothing goes on for ever
    (MAX_LOSSES - 1, 0, Phase.UNKNOWN, requeue(MAX_LOSSES - 1, failed=False)),
    (MAX_LOSSES, 0, Phase.FINISHED, GiveUp(task_id="t", attempt=MAX_LOSSES)),
    (MAX_LOSSES, 1, Phase.UNKNOWN, requeue(MAX_LOSSES, failed=False)),
]


@pytest.mark.parametrize(("attempt", "failures", "phase", "expected"), JUDGEMENTS)
def test_judge(attempt, failures, phase, expected):
    task = TaskView(id="t", attempt=attempt, failures=failures)
    assert judge(task, Report(phase=phase), attempts=3) == expected


@pytest.mark.parametrize(
    ("failures", "permanent", "attempts", "gives_up"),
    [
        (0, False, 3, False),
        (1, False, 3, False),
        (2, False, 3, True),
        (0, True, 3, True),
        (0, False, 1, True),
    ],
)
def test_after_failure(failures, permanent, attempts, gives_up):
    step = after_failure(
        TaskView(id="t", attempt=5, failures=failures), permanent=permanent, attempts=attempts
    )
    assert isinstance(step, GiveUp) is gives_up


def pending(
    name: str, owner: str = "", priority: int = 0, age: int = 0, ordinal: int = 0, job: str | None = "j"
):
    return PendingTask(
        id=name, attempt=0, job_id=job, owner=owner, priority=priority,
        created_at=START + timedelta(seconds=age), ordinal=ordinal,
    )  # fmt: skip


def names(tasks):
    return [t.id for t in tasks]


def test_pick_takes_no_more_than_there_is_room_for():
    tasks = [pending("a"), pending("b", ordinal=1)]
    assert names(pick(tasks, {}, 0)) == []
    assert names(pick(tasks, {}, 1)) == ["a"]
    assert names(pick(tasks, {}, 5)) == ["a", "b"]


def test_pick_goes_by_priority_then_by_fewest_running_then_by_age():
    tasks = [
        pending("alice-old", "alice", age=0),
        pending("alice-old-2", "alice", age=0, ordinal=1),
        pending("bob-new", "bob", age=100),
        pending("carol-urgent", "carol", priority=5, age=200),
        pending("dave-low", "dave", priority=-1, age=-50),
    ]
    running = {"alice": 2, "carol": 9}
    assert names(pick(tasks, running, 5)) == [
        "carol-urgent",
        "bob-new",
        "alice-old",
        "alice-old-2",
        "dave-low",
    ]


def test_pick_shares_workers_between_owners():
    tasks = [
        pending(f"{owner}{i}", owner, age=age, ordinal=i) for age, owner in enumerate("ab") for i in range(6)
    ]
    chosen = pick(tasks, {}, 6)
    assert Counter(t.owner for t in chosen) == {"a": 3, "b": 3}
    assert names(chosen) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_person_waits_for_an_inspection():
    tasks = [pending("urgent", "a", priority=100), pending("inspect", job=None, age=1000)]
    assert names(pick(tasks, {}, 1)) == ["inspect"]
