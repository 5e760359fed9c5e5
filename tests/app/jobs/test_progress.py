"""Progress and time left: from finished work, not from counts."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.jobs.progress import measuring, probing, refining, verifying
from app.jobs.repository import PlanCounts, ProbeCounts, ShardCounts, TaskTimes
from app.models import Job, JobState, Stage, TaskKind, TaskState

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def job(state=JobState.RUNNING, stage=Stage.MEASURE, **times):
    return Job(state=state, stage=stage, **{"started_at": NOW - timedelta(seconds=60)} | times)


def ago(seconds):
    return NOW - timedelta(seconds=seconds)


def task(kind, state, started=None, finished=None, name="t", **told):
    """A task that began and ended so many seconds ago."""
    return TaskTimes(
        id=name,
        kind=kind,
        state=state,
        started_at=None if started is None else ago(started),
        finished_at=None if finished is None else ago(finished),
        **told,
    )


def shard(done, total, work=1.0, **fresh):
    """Entries of a task, all of the same work; ``fresh`` ones were measured since it began."""
    counts = ShardCounts(done=done, total=total, done_work=done * work, total_work=total * work)
    return replace(counts, **{"fresh_work": fresh.get("fresh", 0) * work} | fresh)


def running(name="t", started=60, kind=TaskKind.MEASURE, **told):
    return task(kind, TaskState.RUNNING, started, name=name, **told)


def test_progress_follows_from_work_not_from_the_number_of_entries():
    shards = {"a": shard(3, 3, 10.0), "b": shard(0, 7, 60.0 / 7)}
    progress = measuring(job(), shards, NOW)
    assert progress.fraction == pytest.approx(1 / 3)
    assert progress.elapsed_seconds == 60
    assert (progress.stage, progress.done, progress.total, progress.unit) == (Stage.MEASURE, 3, 10, "entries")


def test_what_was_measured_before_says_nothing_about_the_speed():
    # Two of work 1 in 8 s since the task began, six before: the other four take 16 s.
    times = {"fresh": 2, "fresh_seconds": 8.0, "first_at": ago(4), "last_at": ago(0)}
    progress = measuring(job(), {"t": shard(8, 12, **times)}, NOW, [running()])
    assert progress.fraction == pytest.approx(2 / 3)
    assert progress.eta_seconds == pytest.approx(16)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_comes_before_the_first_entries_does_not_slow_the_rest(workers):
    # 40 s of reading, then 15 entries on each worker, one a second, until half a second ago.
    times = {"fresh": 15, "fresh_seconds": 15.0, "first_at": ago(14.5), "last_at": ago(0.5)}
    names = [f"t{number}" for number in range(workers)]
    shards = {name: shard(15, 45, **times) for name in names}
    progress = measuring(job(), shards, NOW, [running(name) for name in names])
    assert progress.eta_seconds == pytest.approx(30 - 0.5)


def test_the_first_entry_tells_the_speed_by_its_own_seconds():
    times = {"fresh": 1, "fresh_seconds": 2.0, "first_at": ago(1), "last_at": ago(1)}
    progress = measuring(job(), {"t": shard(1, 6, **times)}, NOW, [running()])
    assert progress.eta_seconds == pytest.approx(5 * 2.0 - 1)


def test_entries_measured_together_are_finished_at_once():
    # Six that took 2 s each, stored within a moment.
    times = {"fresh": 6, "fresh_seconds": 12.0, "first_at": ago(0.1), "last_at": ago(0)}
    assert measuring(job(), {"t": shard(6, 12, **times)}, NOW, [running()]).eta_seconds == pytest.approx(12)


def test_short_entries_take_longer_to_store_than_to_measure():
    times = {"fresh": 6, "fresh_seconds": 0.006, "first_at": ago(3), "last_at": ago(0)}
    assert measuring(job(), {"t": shard(6, 12, **times)}, NOW, [running()]).eta_seconds == pytest.approx(3)


def test_an_entry_that_is_late_makes_the_others_no_shorter():
    times = {"fresh": 5, "fresh_seconds": 5.0, "first_at": ago(504), "last_at": ago(500)}
    progress = measuring(job(), {"t": shard(5, 8, **times)}, NOW, [running()])
    assert progress.eta_seconds == pytest.approx(2.0)


def test_at_the_end_not_all_workers_have_something_to_do():
    times = {"fresh": 11, "fresh_seconds": 11.0, "first_at": ago(10), "last_at": ago(0)}
    shards = {"a": shard(11, 21, **times), "b": shard(11, 12, **times), "c": shard(0, 30)}
    tasks = [running("a"), running("b"), task(TaskKind.MEASURE, TaskState.PENDING, name="c")]
    # One worker is busy for 10 s, the other for 1 s and then with all of c.
    assert measuring(job(), shards, NOW, tasks).eta_seconds == pytest.approx(1 + 30)


def test_nothing_is_known_before_the_first_entry():
    progress = measuring(job(), {"t": shard(6, 9)}, NOW, [running()])
    assert progress.eta_seconds is None


def test_a_queued_job_has_no_time_left_to_tell():
    progress = measuring(job(JobState.QUEUED, None, started_at=None), {"t": shard(3, 10)}, NOW)
    assert (progress.eta_seconds, progress.elapsed_seconds, progress.stage) == (None, 0.0, Stage.MEASURE)


def test_everything_measured_leaves_no_time_whatever_the_sums_round_to():
    counts = replace(shard(10, 10), done_work=89.99999999999999, total_work=90.0)
    progress = measuring(job(stage=Stage.SOLVE), {"t": counts}, NOW)
    assert (progress.fraction, progress.eta_seconds, progress.stage) == (1.0, 0.0, Stage.SOLVE)


def test_a_job_that_ended_while_it_was_verified_has_no_time_left():
    ended = job(JobState.CANCELLED, Stage.VERIFY, solved_at=NOW - timedelta(seconds=30), finished_at=NOW)
    progress = verifying(ended, PlanCounts(done=2, total=8), NOW)
    assert (progress.eta_seconds, progress.stage, progress.done) == (None, None, 2)


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_a_job_that_ended_early_tells_how_far_it_came(state):
    ended = job(state, stage=None, finished_at=NOW - timedelta(seconds=20))
    progress = measuring(ended, {"t": shard(3, 10)}, NOW)
    assert (progress.stage, progress.eta_seconds) == (None, None)
    assert progress.done == 3
    assert progress.elapsed_seconds == 40


def verify(state, started=None, finished=None, **told):
    return task(TaskKind.VERIFY, state, started, finished, **told)


def test_plans_take_as_long_as_those_before_where_nothing_is_told():
    done = [verify(TaskState.DONE, 30, 20), verify(TaskState.DONE, 20, 10)]
    others = [verify(TaskState.RUNNING, 4), verify(TaskState.RUNNING, 4)]
    waiting = [verify(TaskState.PENDING)] * 4
    other_kind = [task(TaskKind.MEASURE, TaskState.DONE, 500, 100)]
    progress = verifying(
        job(stage=Stage.VERIFY), PlanCounts(done=2, total=8), NOW, [*done, *others, *waiting, *other_kind]
    )
    assert (progress.done, progress.total, progress.unit, progress.fraction) == (2, 8, "plans", 0.25)
    assert progress.eta_seconds == pytest.approx(10 + 2 * 10)


def test_what_workers_tell_of_their_plans_moves_progress_between_them():
    half = {"fraction": 0.5, "pace_seconds": 6.0, "expected_at": NOW + timedelta(seconds=2)}
    tasks = [running(kind=TaskKind.VERIFY, **half), verify(TaskState.PENDING), verify(TaskState.PENDING)]
    progress = verifying(job(stage=Stage.VERIFY), PlanCounts(done=0, total=3), NOW, tasks)
    assert progress.fraction == pytest.approx(0.5 / 3)
    assert progress.eta_seconds == pytest.approx(2 + 6 + 6)


def test_a_worker_s_first_plan_is_longer_than_the_others():
    # 20 s of reading and running the float model come once; then 6 s a plan, and 1 s before each.
    told = {"pace_seconds": 6.0, "fraction": 1.0}
    tasks = [
        verify(TaskState.DONE, 33, 7, worker="h:1:a", **told),
        verify(TaskState.DONE, 7, 0, worker="h:1:b", name="u", **told),
        *[verify(TaskState.PENDING)] * 2,
    ]
    progress = verifying(job(stage=Stage.VERIFY), PlanCounts(done=2, total=4), NOW, tasks)
    assert progress.eta_seconds == pytest.approx(2 * (6 + 1))


def test_a_worker_between_two_tasks_counts():
    told = {"pace_seconds": 6.0, "fraction": 1.0}
    tasks = [
        verify(TaskState.DONE, 7, 0.2, worker="h:1:a", **told),
        running(kind=TaskKind.VERIFY, worker="h:2:b", started=6, expected_at=NOW, **told),
        *[verify(TaskState.PENDING)] * 2,
    ]
    progress = verifying(job(stage=Stage.VERIFY), PlanCounts(done=1, total=4), NOW, tasks)
    assert progress.eta_seconds == pytest.approx(6)


def test_a_worker_that_was_lost_is_soon_back_and_goes_on_with_its_task():
    told = {"pace_seconds": 6.0, "fraction": 0.5}
    tasks = [
        running(
            kind=TaskKind.VERIFY, worker="h:2:b", started=3, expected_at=NOW + timedelta(seconds=3), **told
        ),
        verify(TaskState.PENDING, started=4, fraction=0.4),
        verify(TaskState.PENDING),
    ]
    progress = verifying(job(stage=Stage.VERIFY), PlanCounts(done=0, total=3), NOW, tasks)
    assert progress.fraction == pytest.approx(0.9 / 3), "what was done does not fall"
    assert progress.eta_seconds == pytest.approx(3 + 6), "from the beginning, beside the other"


def test_verification_knows_nothing_before_the_first_plan():
    tasks = [running(kind=TaskKind.VERIFY)]
    progress = verifying(job(stage=Stage.VERIFY), PlanCounts(done=0, total=8), NOW, tasks)
    assert (progress.fraction, progress.eta_seconds) == (0.0, None)


def test_looking_around_plans_is_shown_as_a_stage_of_its_own():
    around = {"fraction": 0.25, "pace_seconds": 80.0, "expected_at": NOW + timedelta(seconds=60)}
    tasks = [
        verify(TaskState.DONE, 50, 40),
        running(kind=TaskKind.REFINE, **around),
        task(TaskKind.REFINE, TaskState.PENDING),
    ]
    progress = refining(job(stage=Stage.VERIFY), NOW, tasks)
    assert (progress.stage, progress.done, progress.total, progress.unit) == ("refine", 0, 2, "parts")
    assert (progress.fraction, progress.eta_seconds) == (pytest.approx(0.125), pytest.approx(60 + 80))


def test_parts_may_weigh_more_than_others():
    # 3 of 12 done in 6 s, and half of 4 more; 5 wait.
    tasks = [
        task(TaskKind.REFINE, TaskState.DONE, 10, 4, work=3.0),
        running(kind=TaskKind.REFINE, fraction=0.5, expected_at=NOW + timedelta(seconds=4), work=4.0),
        task(TaskKind.REFINE, TaskState.PENDING, work=5.0),
    ]
    progress = refining(job(stage=Stage.VERIFY), NOW, tasks)
    assert progress.fraction == pytest.approx((3 + 2) / 12)
    assert progress.eta_seconds == pytest.approx(4 + 5 * 6 / 3)


def test_what_is_likely_to_follow_is_work_to_be_done():
    # 3 of 12 done in 6 s; 4 wait, and 3 and 2 more will, one after the other on the only worker.
    tasks = [
        task(TaskKind.REFINE, TaskState.DONE, 10, 4, work=3.0),
        task(TaskKind.REFINE, TaskState.PENDING, work=4.0),
    ]
    progress = refining(job(stage=Stage.VERIFY), NOW, tasks, [3.0, 0.0, 2.0])
    assert (progress.done, progress.total) == (1, 2), "parts that are not there yet are not counted"
    assert progress.fraction == pytest.approx(3 / 12)
    assert progress.eta_seconds == pytest.approx((4 + 3 + 2) * 6 / 3)


def test_a_finished_job_is_done():
    progress = verifying(job(JobState.DONE, Stage.VERIFY, finished_at=NOW), PlanCounts(done=8, total=8), NOW)
    assert (progress.stage, progress.fraction, progress.eta_seconds) == (None, 1.0, 0.0)


def test_probes_are_counted_in_tasks_and_tell_how_far_they_are():
    told = {"pace_seconds": 10.0, "fraction": 1.0}
    parts = [
        task(TaskKind.PROBE, TaskState.DONE, 33 - 11 * n, 22 - 11 * n, f"t{n}", worker=f"h:1:{n}", **told)
        for n in range(2)
    ]
    parts.append(
        running(kind=TaskKind.PROBE, fraction=0.4, pace_seconds=10.0, expected_at=NOW + timedelta(seconds=6))
    )
    parts.append(task(TaskKind.PROBE, TaskState.PENDING))
    progress = probing(job(stage=Stage.PROBE), ProbeCounts(done=2, total=4), NOW, parts)
    assert (progress.stage, progress.done, progress.total, progress.unit) == (Stage.PROBE, 2, 4, "parts")
    assert progress.fraction == pytest.approx(0.6)
    # Each part begins with a second of other things.
    assert (progress.eta_seconds, progress.elapsed_seconds) == (pytest.approx(6 + 10 + 1), 60)


@pytest.mark.parametrize(
    ("row", "done"),
    [
        (job(stage=Stage.PROBE, stage_started_at=NOW - timedelta(seconds=9)), 0),
        (job(JobState.QUEUED, None, started_at=None), 0),
        (job(JobState.CANCELLED, Stage.PROBE, stage_started_at=NOW, finished_at=NOW), 3),
    ],
    ids=["nothing done", "not begun", "cancelled"],
)
def test_how_long_probing_takes_is_not_always_known(row, done):
    tasks = [running(kind=TaskKind.PROBE), *[task(TaskKind.PROBE, TaskState.PENDING)] * (3 - done)]
    progress = probing(row, ProbeCounts(done=done, total=4), NOW, tasks)
    assert (progress.eta_seconds, progress.stage) == (None, Stage.PROBE)
