"""What is to happen next, decided from states alone. Nothing here reads a clock, a database or an engine.

A job goes QUEUED -> RUNNING -> DONE, or ends as FAILED or CANCELLED from anywhere before. While it runs its stages are
probe (only where estimates are asked for), measure, solve, verify. A SOLVE task that finds that its plans still need
entries adds tasks for them and sets the stage back to MEASURE itself, in one transaction. Once all plans are verified,
REFINE tasks may follow in the same stage, and have further plans verified.
A task goes PENDING -> RUNNING -> DONE, back to PENDING with a new attempt when it was lost or failed, and ends as
FAILED or CANCELLED. Each instruction names the states it starts from, and whoever carries it out changes a row
only while it still is in those states: an instruction that comes late does nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from app.dispatch.engine import Phase, Report
from app.models import JobState, Stage, TaskKind, TaskState

MAX_LOSSES = 100
"""How often a task may be lost by no fault of its own: a bound for what would otherwise go on for ever."""

OPEN = (TaskState.PENDING, TaskState.RUNNING)

_KIND_OF_STAGE = {
    Stage.PROBE: TaskKind.PROBE,
    Stage.MEASURE: TaskKind.MEASURE,
    Stage.SOLVE: TaskKind.SOLVE,
    Stage.VERIFY: TaskKind.VERIFY,
}
_NEXT_STAGE = {Stage.PROBE: Stage.SOLVE, Stage.MEASURE: Stage.SOLVE, Stage.SOLVE: Stage.VERIFY}
_BEGINNINGS = (TaskKind.PROBE, TaskKind.MEASURE)


@dataclass(frozen=True, kw_only=True)
class JobView:
    """What a decision about a job needs.

    ``tasks``: how many tasks there are of each kind in each state; ``refines``: whether plans are measured again around.
    """

    id: str
    state: JobState
    stage: Stage | None
    tasks: Mapping[tuple[TaskKind, TaskState], int] = field(default_factory=dict)
    refines: bool = False

    def count(self, states: Iterable[TaskState], kind: TaskKind | None = None) -> int:
        """Number of tasks in these states, of one kind or of any."""
        wanted = set(states)
        return sum(n for (k, s), n in self.tasks.items() if s in wanted and kind in (None, k))


@dataclass(frozen=True, kw_only=True)
class TaskView:
    """What a decision about a task needs."""

    id: str
    attempt: int
    failures: int


@dataclass(frozen=True, kw_only=True)
class StartJob:
    """QUEUED -> RUNNING, in its first stage."""

    job_id: str


@dataclass(frozen=True, kw_only=True)
class EnterStage:
    """A running job goes to ``stage`` from one that comes before it."""

    job_id: str
    stage: Stage


@dataclass(frozen=True, kw_only=True)
class RefinePlans:
    """Every plan is verified: look around them for better ones."""

    job_id: str


@dataclass(frozen=True, kw_only=True)
class ConcludeJob:
    """Every plan is verified: RUNNING -> DONE."""

    job_id: str


@dataclass(frozen=True, kw_only=True)
class FailJob:
    """A task failed for good: RUNNING -> FAILED with the task's problem."""

    job_id: str


@dataclass(frozen=True, kw_only=True)
class CancelTasks:
    """The job has ended: its open tasks become CANCELLED."""

    job_id: str


JobInstruction = StartJob | EnterStage | RefinePlans | ConcludeJob | FailJob | CancelTasks


@dataclass(frozen=True, kw_only=True)
class Requeue:
    """RUNNING at ``attempt`` -> PENDING at the next one; ``failed`` if the attempt itself went wrong."""

    task_id: str
    attempt: int
    failed: bool


@dataclass(frozen=True, kw_only=True)
class GiveUp:
    """RUNNING at ``attempt`` -> FAILED."""

    task_id: str
    attempt: int


TaskInstruction = Requeue | GiveUp


def decide(job: JobView) -> list[JobInstruction]:
    """What is to happen to a job.

    Args:
        job: Its state and its tasks, read at one moment.

    Returns:
        Instructions in the order in which they are to be carried out; empty when there is nothing to do but wait.
    """
    if job.state.final:
        return [CancelTasks(job_id=job.id)] if job.count(OPEN) else []
    if job.count([TaskState.FAILED]):
        return [FailJob(job_id=job.id), CancelTasks(job_id=job.id)]
    if job.state is JobState.QUEUED:
        # A job with work to measure starts when its first task does (`pick`).
        waits = any(job.count([TaskState.PENDING], kind) for kind in _BEGINNINGS)
        return [] if waits else [StartJob(job_id=job.id)]
    stage = job.stage or Stage.MEASURE
    if job.count(OPEN, _KIND_OF_STAGE[stage]) or job.count(OPEN, TaskKind.REFINE):
        return []
    if stage in _NEXT_STAGE:
        return [EnterStage(job_id=job.id, stage=_NEXT_STAGE[stage])]
    refine = job.refines and not job.count(TaskState, TaskKind.REFINE)
    return [RefinePlans(job_id=job.id) if refine else ConcludeJob(job_id=job.id)]


def judge(task: TaskView, report: Report, *, attempts: int) -> TaskInstruction | None:
    """What is to happen to a task that the database holds for RUNNING.

    Args:
        task: As read *before* the engine was asked.
        report: What the engine tells of its key.
        attempts: How many attempts may go wrong.

    Returns:
        ``None`` while it runs. A process that died counts as the task's failure: most often it took too much memory. A task
        that the engine forgot, or that stopped without having been marked done, is lost by no fault of its own.
    """
    if report.phase is Phase.RUNNING:
        return None
    if report.phase in (Phase.ERROR, Phase.LOST):
        return after_failure(task, permanent=False, attempts=attempts)
    losses = task.attempt - task.failures + 1
    if losses > MAX_LOSSES:
        return GiveUp(task_id=task.id, attempt=task.attempt)
    return Requeue(task_id=task.id, attempt=task.attempt, failed=False)


def after_failure(task: TaskView, *, permanent: bool, attempts: int) -> TaskInstruction:
    """What is to happen to a task whose attempt went wrong.

    Args:
        task: The task before this failure.
        permanent: Trying again cannot help: the input is refused.
        attempts: How many attempts may go wrong.
    """
    if permanent or task.failures + 1 >= attempts:
        return GiveUp(task_id=task.id, attempt=task.attempt)
    return Requeue(task_id=task.id, attempt=task.attempt, failed=True)


@dataclass(frozen=True, kw_only=True)
class PendingTask:
    """A task that waits. ``owner`` and ``priority`` are its job's; a model's inspection has no job."""

    id: str
    attempt: int
    job_id: str | None
    owner: str
    priority: int
    created_at: datetime
    ordinal: int


def pick(pending: Sequence[PendingTask], running_by_owner: Mapping[str, int], room: int) -> list[PendingTask]:
    """Choose the tasks that start now: a person waits for inspections; then priority, fewest running, age.

    Args:
        pending: All tasks that wait.
        running_by_owner: How many tasks each owner has running.
        room: How many may start.
    """
    running = dict(running_by_owner)
    queues: dict[tuple[bool, int, str], list[PendingTask]] = {}
    for task in sorted(pending, key=lambda t: (t.created_at, t.ordinal, t.id), reverse=True):
        queues.setdefault((task.job_id is None, task.priority, task.owner), []).append(task)
    chosen: list[PendingTask] = []
    while queues and len(chosen) < room:

        def rank(queue: tuple[bool, int, str]) -> tuple[bool, int, int, datetime, int, str]:
            inspection, priority, owner = queue
            head = queues[queue][-1]
            return (not inspection, -priority, running.get(owner, 0), head.created_at, head.ordinal, head.id)

        best = min(queues, key=rank)
        task = queues[best].pop()
        if not queues[best]:
            del queues[best]
        if task.job_id is not None:
            running[task.owner] = running.get(task.owner, 0) + 1
        chosen.append(task)
    return chosen
