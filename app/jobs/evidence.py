"""What tasks and entries tell of how fast a job goes: from rows to `app.jobs.forecast`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from app.jobs.forecast import Part
from app.jobs.repository import ShardCounts, TaskTimes
from app.models import TaskKind, TaskState

OPEN = (TaskState.PENDING, TaskState.RUNNING)

_NEVER = datetime.max.replace(tzinfo=UTC)
_BETWEEN_TASKS_S = 5.0
"""A worker that ended a task so recently is about to get the next one."""


def workers(times: Sequence[TaskTimes], now: datetime) -> int:
    """How many workers share a job's work: those that have a task of it, just had one, or were lost with one.

    A lost worker is most often soon back, and a lost task is the next one that is begun.
    """
    busy = [task for task in times if task.state is TaskState.RUNNING]
    lost = [task for task in times if task.state is TaskState.PENDING and task.started_at is not None]
    between = [
        task
        for task in times
        if task.finished_at is not None and _seconds(task.finished_at, now) < _BETWEEN_TASKS_S
    ]
    known = {_process(task) for task in [*busy, *between]} - {None}
    return max(len(busy), len(known), 1) + len(lost)


def of_entries(times: Sequence[TaskTimes], shards: Mapping[str, ShardCounts], now: datetime) -> list[Part]:
    """Tasks that measure entries; what they tell are the entries."""
    measuring = [task for task in times if task.kind is TaskKind.MEASURE and task.id in shards]
    firsts = _firsts(measuring)
    return [_shard(task, shards[task.id], now, first=task.id in firsts) for task in measuring]


def _shard(task: TaskTimes, counts: ShardCounts, now: datetime, *, first: bool) -> Part:
    timed_seconds, lead = 0.0, None
    if counts.first_at is not None and counts.last_at is not None:
        # Entries that were measured together are finished at once; short ones take longer to store than to measure.
        timed_seconds = max(counts.fresh_seconds, _seconds(counts.first_at, counts.last_at))
        if not first and task.started_at is not None:
            lead = max(_seconds(task.started_at, counts.last_at) - timed_seconds, 0.0)
    started, last = task.started_at or now, counts.last_at or now
    return Part(
        work=counts.total_work,
        # Sums of the same numbers may differ by rounding.
        left=max(counts.total_work - counts.done_work, 0.0) if counts.done < counts.total else 0.0,
        running=task.state is TaskState.RUNNING,
        timed_work=counts.fresh_work,
        timed_seconds=timed_seconds,
        ago_seconds=_seconds(last, now),
        pieces_left=counts.total - counts.done,
        begun=counts.fresh > 0,
        age_seconds=_seconds(started, now),
        lead_seconds=lead,
    )


def of_tasks(alike: Sequence[TaskTimes], now: datetime) -> list[Part]:
    """Tasks that are alike; what their workers tell, and where these tell nothing, how long they took."""
    firsts = _firsts(alike)
    told = any(task.pace_seconds is not None for task in alike)
    return [_alike(task, now, first=task.id in firsts, told=told) for task in alike]


def _alike(task: TaskTimes, now: datetime, *, first: bool, told: bool) -> Part:
    started, finished = task.started_at or now, task.finished_at or now
    length, pace = _seconds(started, finished), task.pace_seconds
    done, running = task.state is TaskState.DONE, task.state is TaskState.RUNNING
    timed_work, timed_seconds, lead = 0.0, 0.0, None
    if pace is not None:
        share = 1.0 if done else task.fraction
        timed_work, timed_seconds = share * task.work, share * pace
        lead = max(length - pace, 0.0) if done and not first else None
    elif done and not told:
        timed_work, timed_seconds = task.work, length
    expected = None if task.expected_at is None else _seconds(now, task.expected_at)
    return Part(
        work=task.work,
        left=task.work if task.state in OPEN else 0.0,
        running=running,
        timed_work=timed_work,
        timed_seconds=timed_seconds,
        ago_seconds=_seconds(finished, now),
        age_seconds=_seconds(started, now),
        expected_seconds=expected if running else None,
        lead_seconds=lead,
    )


def _firsts(alike: Sequence[TaskTimes]) -> set[str]:
    """The tasks that were their worker's first, or whose worker is not known: what it does once comes before them."""
    found: set[str] = set()
    seen: set[str] = set()
    for task in sorted(alike, key=lambda task: task.started_at or _NEVER):
        process = _process(task)
        if process is None or process not in seen:
            found.add(task.id)
        if process is not None:
            seen.add(process)
    return found


def _process(task: TaskTimes) -> str | None:
    """The process of a task's worker: its name without the part that is new for each attempt."""
    return None if task.worker is None else task.worker.rpartition(":")[0]


def _seconds(start: datetime, stop: datetime) -> float:
    return max((stop - start).total_seconds(), 0.0)
