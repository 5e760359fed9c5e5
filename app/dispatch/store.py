"""The dispatcher's queries. Every change is conditional: it does nothing when the row has moved on meanwhile."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, exists, func, or_, select, update
from sqlalchemy.orm import Session

from app.dispatch.lifecycle import OPEN, GiveUp, JobView, PendingTask, Requeue, TaskView
from app.dispatch.rows import changed, job_wants_task, of_later_plan
from app.kit.ids import new_id
from app.models import (
    Job,
    JobState,
    Model,
    ModelState,
    Stage,
    Task,
    TaskKind,
    TaskState,
    utc_now,
)
from app.plans import steps

_ACTIVE = (JobState.QUEUED, JobState.RUNNING)
_BEFORE = {
    Stage.SOLVE: (Stage.PROBE, Stage.MEASURE),
    Stage.VERIFY: (Stage.SOLVE,),
}
_WORK_BEFORE = {
    Stage.SOLVE: (TaskKind.PROBE, TaskKind.MEASURE),
    Stage.VERIFY: (TaskKind.SOLVE,),
}


@dataclass(frozen=True, kw_only=True)
class RunningTask:
    """A task that an engine has, or had: running, or cancelled and not yet known to have stopped."""

    view: TaskView
    job_id: str | None
    owner: str


def active_jobs(session: Session) -> list[JobView]:
    """Jobs that may need a decision: those not ended, and ended ones with open tasks."""
    open_task = exists().where(Task.job_id == Job.id, Task.state.in_(OPEN), ~of_later_plan())
    jobs = session.execute(
        select(Job.id, Job.state, Job.stage, Job.request)
        .where(or_(Job.state.in_(_ACTIVE), open_task))
        .order_by(Job.created_at)
    ).all()
    counts: dict[str, dict[tuple[TaskKind, TaskState], int]] = defaultdict(dict)
    rows = session.execute(
        select(Task.job_id, Task.kind, Task.state, func.count())
        .join(Job, Job.id == Task.job_id)
        .where(or_(Job.state.in_(_ACTIVE), Task.state.in_(OPEN)), ~of_later_plan())
        .group_by(Task.job_id, Task.kind, Task.state)
    )
    for job_id, kind, state, number in rows:
        assert job_id is not None
        counts[job_id][kind, state] = number
    return [
        JobView(
            id=j.id,
            state=j.state,
            stage=j.stage,
            tasks=counts[j.id],
            refines=j.request.get("refine_rounds", 0) > 0,
        )
        for j in jobs
    ]


def running_tasks(session: Session) -> list[RunningTask]:
    """Tasks that an engine should know."""
    return _engine_tasks(session, Task.state == TaskState.RUNNING)


def stopping_tasks(session: Session) -> list[RunningTask]:
    """Tasks cancelled while they ran, whose worker has not been seen to stop."""
    return _engine_tasks(session, Task.state == TaskState.CANCELLED, Task.finished_at.is_(None))


def _engine_tasks(session: Session, *conditions: Any) -> list[RunningTask]:
    rows = session.execute(
        select(Task.id, Task.attempt, Task.failures, Task.job_id, func.coalesce(Job.owner, "").label("owner"))
        .outerjoin(Job, Job.id == Task.job_id)
        .where(*conditions)
    )
    return [
        RunningTask(
            view=TaskView(id=r.id, attempt=r.attempt, failures=r.failures), job_id=r.job_id, owner=r.owner
        )
        for r in rows
    ]


def pending_tasks(session: Session) -> list[PendingTask]:
    """Tasks that may start, were there room."""
    rows = session.execute(
        select(
            Task.id, Task.attempt, Task.job_id, Task.ordinal, Job.owner, Job.priority,
            func.coalesce(Job.created_at, Task.created_at, type_=Task.created_at.type).label("created_at"),
        )
        .outerjoin(Job, Job.id == Task.job_id)
        .where(Task.state == TaskState.PENDING, or_(Task.job_id.is_(None), Job.state.in_(_ACTIVE), of_later_plan()))
    )  # fmt: skip
    return [
        PendingTask(
            id=r.id, attempt=r.attempt, job_id=r.job_id, owner=r.owner or "", priority=r.priority or 0,
            created_at=r.created_at, ordinal=r.ordinal,
        )
        for r in rows
    ]  # fmt: skip


def start_task(session: Session, task: PendingTask) -> bool:
    """PENDING -> RUNNING, and its job with it when it is the first; whether both were still as expected."""
    if task.job_id is not None:
        start_job(session, task.job_id)
    waiting = update(Task).where(
        Task.id == task.id, Task.state == TaskState.PENDING, Task.attempt == task.attempt, job_wants_task()
    )
    values = {"state": TaskState.RUNNING, "started_at": utc_now(), "worker": None}
    return changed(session, waiting.values(values)) == 1


def start_job(session: Session, job_id: str) -> bool:
    """QUEUED -> RUNNING, in stage PROBE if there is anything to estimate first."""
    now = utc_now()
    probes = exists().where(Task.job_id == Job.id, Task.kind == TaskKind.PROBE)
    values = {
        "state": JobState.RUNNING,
        "stage": case((probes, Stage.PROBE), else_=Stage.MEASURE),
        "started_at": now,
        "stage_started_at": now,
    }
    queued = update(Job).where(Job.id == job_id, Job.state == JobState.QUEUED)
    return changed(session, queued.values(values)) == 1


def enter_stage(session: Session, job_id: str, stage: Stage) -> bool:
    """Go to the next stage, once no task of the one before is open; entering SOLVE makes its task.

    A job may be in a stage more than once, so that its name alone does not tell that an instruction comes late.
    """
    now = utc_now()
    open_before = exists().where(
        Task.job_id == Job.id, Task.kind.in_(_WORK_BEFORE[stage]), Task.state.in_(OPEN)
    )
    reached = "measured_at" if stage is Stage.SOLVE else "solved_at"
    values = {"stage": stage, "stage_started_at": now, reached: now}
    moved = changed(
        session,
        update(Job)
        .where(Job.id == job_id, Job.state == JobState.RUNNING, Job.stage.in_(_BEFORE[stage]), ~open_before)
        .values(values),
    )
    if moved and stage is Stage.SOLVE:
        session.add(Task(id=new_id("tsk"), kind=TaskKind.SOLVE, job_id=job_id))
        session.flush()
    return moved == 1


def refine_plans(session: Session, job_id: str) -> bool:
    """Begin to look around a job's verified plans, those of all budgets beside each other, unless that was begun before."""
    open_before = exists().where(
        Task.job_id == Job.id, Task.kind == TaskKind.VERIFY, Task.state.in_(OPEN), ~of_later_plan()
    )
    begun = exists().where(Task.job_id == Job.id, Task.kind == TaskKind.REFINE)
    verified = update(Job).where(
        Job.id == job_id, Job.state == JobState.RUNNING, Job.stage == Stage.VERIFY, ~open_before, ~begun
    )
    if changed(session, verified.values(stage=Stage.VERIFY)) != 1:
        return False
    budgets = session.get_one(Job, job_id).request["budgets"]
    for ordinal in range(len(budgets)):
        steps.begin(session, job_id, ordinal)
    return True


def finish_job(session: Session, job_id: str) -> bool:
    """RUNNING -> DONE."""
    return _end_job(session, job_id, JobState.DONE, None)


def fail_job(session: Session, job_id: str, problem: dict[str, Any] | None = None) -> bool:
    """Not ended -> FAILED, with a problem document, by default that of the job's first failed task."""
    found = problem or session.scalar(
        select(Task.problem)
        .where(Task.job_id == job_id, Task.state == TaskState.FAILED, ~of_later_plan())
        .order_by(Task.finished_at, Task.id)
        .limit(1)
    )
    return _end_job(session, job_id, JobState.FAILED, found)


def _end_job(session: Session, job_id: str, state: JobState, problem: dict[str, Any] | None) -> bool:
    values = {"state": state, "problem": problem, "finished_at": utc_now()}
    return changed(session, update(Job).where(Job.id == job_id, Job.state.in_(_ACTIVE)).values(values)) == 1


def cancel_tasks(session: Session, job_id: str) -> int:
    """Open tasks -> CANCELLED; how many there were. ``finished_at`` of running ones waits until they have stopped."""
    of_job = update(Task).where(Task.job_id == job_id, ~of_later_plan())
    waiting = changed(
        session,
        of_job.where(Task.state == TaskState.PENDING).values(
            state=TaskState.CANCELLED, finished_at=utc_now()
        ),
    )
    return waiting + changed(
        session, of_job.where(Task.state == TaskState.RUNNING).values(state=TaskState.CANCELLED)
    )


def settle(session: Session, task_id: str) -> bool:
    """A cancelled task is known to have stopped."""
    unsettled = update(Task).where(
        Task.id == task_id, Task.state == TaskState.CANCELLED, Task.finished_at.is_(None)
    )
    return changed(session, unsettled.values(finished_at=utc_now())) == 1


def requeue(session: Session, step: Requeue, problem: dict[str, Any] | None = None) -> bool:
    """RUNNING -> PENDING under the next attempt."""
    values: dict[str, Any] = {"state": TaskState.PENDING, "attempt": step.attempt + 1, "worker": None}
    if step.failed:
        values |= {"failures": Task.failures + 1, "problem": problem}
    return changed(session, _running(step.task_id, step.attempt).values(values)) == 1


def give_up(session: Session, step: GiveUp, problem: dict[str, Any]) -> bool:
    """RUNNING -> FAILED; a model whose inspection is given up is refused.

    What measures again around a plan is DONE instead: its steps are over, and the job has the plans that it had before.
    """
    task = session.get(Task, step.task_id)
    if task is None:
        return False
    refines = task.kind is TaskKind.REFINE
    values = {
        "state": TaskState.DONE if refines else TaskState.FAILED,
        "failures": Task.failures + 1,
        "problem": problem,
        "finished_at": utc_now(),
    }

    def given_up() -> bool:
        return changed(session, _running(step.task_id, step.attempt).values(values)) == 1

    if refines:
        return steps.abandoned(session, step.task_id, given_up, problem["detail"])
    if not given_up():
        return False
    if task.kind is TaskKind.INSPECT:
        inspected = update(Model).where(Model.id == task.model_id, Model.state == ModelState.INSPECTING)
        changed(session, inspected.values(state=ModelState.REFUSED, problem=problem))
    return True


def _running(task_id: str, attempt: int) -> Any:
    return update(Task).where(Task.id == task_id, Task.state == TaskState.RUNNING, Task.attempt == attempt)
