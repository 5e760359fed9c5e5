"""The dispatcher: a thread that turns rows into running tasks and ended tasks into rows.

Every API process has one; the one that holds the lease works, the others wait. It keeps nothing that it could
not read again, apart from how long it has been waiting for cancelled tasks to stop.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app import problems
from app.db import Database, get_database
from app.dispatch import lease, run_files, store
from app.dispatch.engine import Engine, Phase, Report, engine_key
from app.dispatch.lifecycle import (
    CancelTasks,
    ConcludeJob,
    EnterStage,
    FailJob,
    GiveUp,
    JobInstruction,
    JobView,
    PendingTask,
    RefinePlans,
    Requeue,
    StartJob,
    decide,
    judge,
    pick,
)
from app.dispatch.logs import line
from app.dispatch.shard import run_task
from app.dispatch.store import RunningTask
from app.errors import EngineUnavailable
from app.plans.conclusion import conclude_job
from app.settings import Settings

logger = logging.getLogger(__name__)

Conclude = Callable[[Session, str], None]

_HASTY_ROUNDS = 4
"""So many rounds that move something follow each other at once: a job goes from stage to stage without waiting in between."""

CANCEL_GRACE_S = 30.0
"""How long a cancelled task may take to finish the entry in hand before its process is killed."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What one round has read: first the rows, then what the engine tells of them."""

    jobs: list[JobView]
    running: list[RunningTask]
    stopping: list[RunningTask]
    pending: list[PendingTask]
    reports: dict[str, Report] = field(default_factory=dict)
    """By task id."""


class Dispatcher:
    """One dispatcher.

    Args:
        settings: Lease, pace and number of attempts.
        engine: Where tasks run.
        conclude: What ends a job whose plans are verified, in the transaction that marks it done.
        holder: Its name in the lease; unique.
        cancel_grace_s: See `CANCEL_GRACE_S`.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        *,
        conclude: Conclude = conclude_job,
        holder: str | None = None,
        cancel_grace_s: float = CANCEL_GRACE_S,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._conclude_job = conclude
        self._database: Database = get_database(settings.resolved_database_url)
        self._holder = holder or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._grace_s = cancel_grace_s
        self._renewed_at = -float("inf")
        self.moved = False
        """Whether the last round moved a job or started a task, so that more may follow at once."""
        self._stopping_since: dict[str, float] = {}
        self._killed: set[str] = set()

    @property
    def leading(self) -> bool:
        """Whether the lease was this dispatcher's when it last looked, and cannot have run out since."""
        return time.monotonic() - self._renewed_at < self._settings.lease_ttl_s

    def tick(self) -> bool:
        """One round; whether this dispatcher leads.

        Raises:
            sqlalchemy.exc.DBAPIError: The database cannot be used just now.
        """
        self.moved = False
        if not self._lead():
            return False
        situation = self._look()
        started = self._act(situation)
        for task in started:
            self._submit(task)
        self._stop_cancelled(situation)
        return True

    def resign(self) -> None:
        """Give the lease back, so that another dispatcher leads at once."""
        with self._database.write() as session:
            lease.release(session, holder=self._holder)
        self._renewed_at = -float("inf")

    def _lead(self) -> bool:
        """Renew the lease in good time; reading the local clock *before* asking errs on the safe side."""
        now = time.monotonic()
        if now - self._renewed_at < self._settings.lease_ttl_s / 3:
            return True
        led = self.leading
        with self._database.write() as session:
            mine = self._acquire(session)
        self._renewed_at = now if mine else -float("inf")
        if mine and not led:
            self._stopping_since.clear()
            self._killed.clear()
            logger.info(line("lead", holder=self._holder))
        return mine

    def _acquire(self, session: Session) -> bool:
        ttl = self._settings.lease_ttl_s
        return lease.acquire(session, self._database, holder=self._holder, ttl_s=ttl)

    def _look(self) -> Situation:
        """Read the rows, then ask the engine: a task that ended in between is then seen as ended in its row."""
        with self._database.read() as session:
            situation = Situation(
                jobs=store.active_jobs(session),
                running=store.running_tasks(session),
                stopping=store.stopping_tasks(session),
                pending=store.pending_tasks(session),
            )
        for task in (*situation.running, *situation.stopping):
            report = self._engine.status(engine_key(task.view.id, task.view.attempt))
            situation.reports[task.view.id] = report
        return situation

    def _act(self, situation: Situation) -> list[PendingTask]:
        """Carry out what follows from the situation, in one transaction; which tasks are to be submitted."""
        steps = [(job, step) for job in situation.jobs for step in decide(job)]
        ended = [t for t in situation.running if situation.reports[t.view.id].phase is not Phase.RUNNING]
        settled = [t for t in situation.stopping if situation.reports[t.view.id].phase is not Phase.RUNNING]
        chosen = self._choose(situation, len(ended))
        if not (steps or ended or settled or chosen):
            return []
        concluding = [step for _, step in steps if isinstance(step, ConcludeJob)]
        with self._database.write() as session:
            if not self._acquire(session):
                return []
            for _, step in steps:
                if not isinstance(step, ConcludeJob):
                    _carry_out(session, step)
            for task in ended:
                self._judge(session, task, situation.reports[task.view.id])
            for task in settled:
                if store.settle(session, task.view.id):
                    logger.info(line("task_stopped", task_id=task.view.id, job_id=task.job_id))
            started = [task for task in chosen if store.start_task(session, task)]
        self.moved = bool(steps or started)
        for step in concluding:
            self._conclude(step.job_id)
        return started

    def _choose(self, situation: Situation, ended: int) -> list[PendingTask]:
        if not situation.pending:
            return []
        busy = (
            len(situation.running)
            - ended
            + sum(situation.reports[t.view.id].phase is Phase.RUNNING for t in situation.stopping)
        )
        running = Counter(t.owner for t in situation.running if t.job_id is not None)
        return pick(situation.pending, running, max(0, self._engine.capacity() - busy))

    def _judge(self, session: Session, task: RunningTask, report: Report) -> None:
        step = judge(task.view, report, attempts=self._settings.shard_attempts)
        ids = {"task_id": task.view.id, "job_id": task.job_id, "attempt": task.view.attempt}
        problem = _lost_problem(task, report)
        if isinstance(step, GiveUp) and store.give_up(session, step, problem):
            logger.error(line("task_failed", **ids, phase=report.phase, error=report.error))
        elif isinstance(step, Requeue) and store.requeue(session, step, problem if step.failed else None):
            logger.warning(line("task_requeued", **ids, phase=report.phase, error=report.error or None))

    def _conclude(self, job_id: str) -> None:
        """End a job whose plans are verified; one that cannot be concluded fails, and does not stop the others."""
        try:
            with self._database.write() as session:
                if self._acquire(session) and store.finish_job(session, job_id):
                    self._conclude_job(session, job_id)
                    logger.info(line("job_done", job_id=job_id))
        except DBAPIError:
            raise
        except Exception as error:
            logger.exception(line("job_conclusion_failed", job_id=job_id))
            with self._database.write() as session:
                store.fail_job(session, job_id, problems.document(error, f"/v1/jobs/{job_id}"))

    def _submit(self, task: PendingTask) -> None:
        """Hand a task over. If this fails, the engine will not know the key, and the next rounds see to it."""
        key = engine_key(task.id, task.attempt)
        try:
            self._engine.submit(key, task_id=task.id, attempt=task.attempt, priority=task.priority)
        except EngineUnavailable as error:
            logger.warning(line("submit_failed", task_id=task.id, job_id=task.job_id, error=error))
        else:
            logger.info(line("task_submitted", task_id=task.id, job_id=task.job_id, attempt=task.attempt))

    def _stop_cancelled(self, situation: Situation) -> None:
        """Kill what has not stopped by itself within the grace."""
        now = time.monotonic()
        still = {
            t.view.id: t for t in situation.stopping if situation.reports[t.view.id].phase is Phase.RUNNING
        }
        self._stopping_since = {i: self._stopping_since.get(i, now) for i in still}
        self._killed &= still.keys()
        for task_id, task in still.items():
            if task_id not in self._killed and now - self._stopping_since[task_id] >= self._grace_s:
                logger.warning(
                    line("task_killed", task_id=task_id, job_id=task.job_id, grace_s=self._grace_s)
                )
                self._engine.cancel(engine_key(task_id, task.view.attempt))
                self._killed.add(task_id)


def _carry_out(session: Session, step: JobInstruction) -> None:
    match step:
        case StartJob(job_id=job_id):
            done = store.start_job(session, job_id)
        case EnterStage(job_id=job_id, stage=stage):
            done = store.enter_stage(session, job_id, stage)
        case RefinePlans(job_id=job_id):
            done = store.refine_plans(session, job_id)
        case FailJob(job_id=job_id):
            done = store.fail_job(session, job_id)
        case CancelTasks(job_id=job_id):
            done = store.cancel_tasks(session, job_id) > 0
        case ConcludeJob():
            raise AssertionError("a conclusion has its own transaction")
    if done:
        logger.info(line(_ACTION[type(step)], job_id=step.job_id, stage=getattr(step, "stage", None)))


_ACTION: dict[type, str] = {
    StartJob: "job_started",
    EnterStage: "job_stage",
    RefinePlans: "plans_refined",
    FailJob: "job_failed",
    CancelTasks: "tasks_cancelled",
}


_DETAIL = {
    Phase.ERROR: "a worker failed at task {task}: {error}",
    Phase.LOST: "the process that ran task {task} died each time it was tried; most often it was killed for want of memory",
    Phase.UNKNOWN: "task {task} was lost again and again with the engine that ran it",
    Phase.FINISHED: "task {task} ended again and again without a result",
}


def _lost_problem(task: RunningTask, report: Report) -> dict[str, Any]:
    """The problem of a task that could not write down its own: its process died, or the engine gave up."""
    detail = _DETAIL[report.phase].format(task=task.view.id, error=report.error)
    instance = f"/v1/jobs/{task.job_id}" if task.job_id else None
    return problems.make("measurement-failed", HTTPStatus.INTERNAL_SERVER_ERROR, detail, instance=instance)


class DispatcherHandle:
    """A dispatcher in its thread."""

    def __init__(self, dispatcher: Dispatcher, engine: Engine, pause_s: float) -> None:
        self._dispatcher = dispatcher
        self._engine = engine
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._woken = threading.Event()
        engine.when_ended(self._woken.set)
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    @property
    def leading(self) -> bool:
        """Whether this process dispatches just now."""
        return self._dispatcher.leading

    def capacity(self) -> int:
        """How many tasks the engine can run at the same time; 0 while it cannot be reached."""
        return self._engine.capacity()

    def stop(self) -> None:
        """End the thread, give the lease back, let go of the engine. Running tasks go on."""
        self._stop.set()
        self._woken.set()
        self._thread.join()
        self._engine.close()

    def _run(self) -> None:
        trouble, hasty = False, 0
        while True:
            # What comes next need not wait for the end of the pause once a task has ended.
            self._woken.wait(self._pause_s if hasty in (0, _HASTY_ROUNDS) else 0.0)
            self._woken.clear()
            if self._stop.is_set():
                break
            try:
                self._dispatcher.tick()
                hasty = hasty % _HASTY_ROUNDS + 1 if self._dispatcher.moved else 0
            except DBAPIError as error:
                if not trouble:
                    logger.warning(line("database_unavailable", error=error.orig))
                trouble = True
                self._stop.wait(min(1.0, 10 * self._pause_s))
            except Exception:
                # A defect in one round must not end dispatching for good.
                logger.exception(line("round_failed"))
                self._stop.wait(1.0)
            else:
                trouble = False
        with suppress(DBAPIError):
            self._dispatcher.resign()


def start(settings: Settings, engine: Engine | None = None) -> DispatcherHandle:
    """Begin dispatching in the background; works, and waits, while engine or database are down.

    Args:
        settings: Database, lease, pace, the scheduler's address and certificates.
        engine: Where tasks run, closed with the handle; by default the scheduler's workers.
    """
    used = engine or _dask_engine(settings)
    return DispatcherHandle(Dispatcher(settings, used), used, settings.tick_s)


def _dask_engine(settings: Settings) -> Engine:
    from app.dispatch import dask_engine, tls  # noqa: PLC0415 - Dask is slow to import, and other engines need none

    return dask_engine.DaskEngine(
        run_task,
        settings.model_dump(mode="json"),
        address=lambda: run_files.scheduler_address(settings),
        security=tls.security(tls.ensure_tls(settings.resolved_tls_dir)),
    )
