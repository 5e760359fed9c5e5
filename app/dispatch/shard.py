"""What runs on a worker: one attempt at one task, from its rows to its rows.

Any of it may be killed at any moment, or run twice. What is finished is in the database at once, and what is there
is not computed again.
"""

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app import problems
from app.db import Database, get_database
from app.dispatch import store, work
from app.dispatch.files import verified_path
from app.dispatch.heartbeat import Heartbeat, NotWanted, Progress
from app.dispatch.lifecycle import GiveUp, TaskView, after_failure
from app.dispatch.logs import line
from app.dispatch.refine import refine
from app.dispatch.requests import (
    CALIBRATION,
    EVALUATION,
    estimate_request,
    measure_request,
    plan_requests,
    sample_counts,
    samples_within,
)
from app.dispatch.work import Claim, JobFiles, ProbeTask, ProbeValues, WantedEntry, patiently
from app.jobs.keys import MEASURE_VERSION
from app.jobs.tasks import Block, ProbePart
from app.models import TaskKind
from app.plans.rounds import further_entries, measure_further
from app.plans.service import draft_job, store_job_plans
from app.settings import Settings
from solver import Problem, solve
from workers.contracts import (
    Entry,
    Measured,
    PlanRequest,
)
from workers.errors import InputRefused

logger = logging.getLogger(__name__)

DONE, STOPPED, FAILED = "done", "stopped", "failed"


@dataclass(frozen=True, kw_only=True)
class _Context:
    settings: Settings
    database: Database
    claim: Claim

    @property
    def ids(self) -> dict[str, object]:
        return {"task_id": self.claim.task_id, "job_id": self.claim.job_id, "attempt": self.claim.attempt}


def run_task(settings_values: dict[str, Any], task_id: str, attempt: int) -> str:
    """Do a task, if this attempt is wanted.

    Args:
        settings_values: `Settings` as JSON values.
        task_id: Which.
        attempt: The attempt this is; another one makes it stop.

    Returns:
        ``"done"``; ``"stopped"`` if the task is not, or no longer, wanted; ``"failed"`` if it went wrong and that is
        written down.

    Raises:
        sqlalchemy.exc.DBAPIError: The database stays away, so that nothing can be written down.
    """
    settings = Settings(**settings_values)
    database = get_database(settings.resolved_database_url)
    worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    claim = patiently(database, lambda session: work.claim(session, task_id, attempt, worker))
    if claim is None:
        logger.info(line("task_not_wanted", task_id=task_id, attempt=attempt))
        return STOPPED
    context = _Context(settings=settings, database=database, claim=claim)
    logger.info(line("task_started", kind=claim.kind, worker=worker, **context.ids))
    try:
        finished = _RUN[claim.kind](context)
    except DBAPIError:
        raise
    except NotWanted:
        finished = False
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the task's outcome
        return _write_down(context, error)
    logger.info(line("task_done" if finished else "task_stopped", **context.ids))
    return DONE if finished else STOPPED


def _write_down(context: _Context, error: Exception) -> str:
    """Make an error the task's outcome, and decide whether to try again."""
    claim = context.claim
    permanent = problems.status_of(error) < HTTPStatus.INTERNAL_SERVER_ERROR  # the request's fault, not ours
    instance = f"/v1/jobs/{claim.job_id}" if claim.job_id else f"/v1/models/{claim.model_id}"
    problem = problems.document(error, instance)
    log = logger.warning if permanent else logger.exception
    log(line("task_error", error=f"{type(error).__name__}: {error}", permanent=permanent, **context.ids))
    if claim.kind is TaskKind.INSPECT and isinstance(error, InputRefused):
        patiently(context.database, lambda s: work.store_description(s, claim, None, problem))
        return DONE
    view = TaskView(id=claim.task_id, attempt=claim.attempt, failures=claim.failures)
    step = after_failure(view, permanent=permanent, attempts=context.settings.shard_attempts)

    def write(session: Session) -> bool:
        if not work.holds(session, claim):
            return False  # somebody else's by now, failures included
        if isinstance(step, GiveUp):
            return store.give_up(session, step, problem)
        return store.requeue(session, step, problem)

    patiently(context.database, write)
    return FAILED


def _inspect(context: _Context) -> bool:
    from workers.graph.describe import describe  # noqa: PLC0415 - torch is for workers only
    from workers.intake.models import read_model  # noqa: PLC0415

    _limit_threads(context.settings)
    assert context.claim.model_id is not None
    with context.database.read() as session:
        ref = work.model_file(session, context.claim.model_id)
    description = describe(read_model(verified_path(context.settings, ref))).to_json()
    return patiently(context.database, lambda s: work.store_description(s, context.claim, description, None))


def _measure(context: _Context) -> bool:
    assert context.claim.job_id is not None
    with context.database.read() as session:
        files = work.job_files(session, context.claim.job_id)
        wanted = work.missing_entries(session, context.claim.task_id)
    if wanted and not _measure_entries(context, files, wanted):
        return False
    return patiently(context.database, lambda session: work.finish(session, context.claim))


def _measure_entries(context: _Context, files: JobFiles, wanted: list[WantedEntry]) -> bool:
    """Measure entries and store each as soon as it is finished; whether all of them were wanted to the end."""
    from workers.sensitivity.engine import measure  # noqa: PLC0415 - torch is for workers only

    _limit_threads(context.settings)
    by_block: dict[tuple[int, int], list[WantedEntry]] = {}
    for entry in wanted:
        by_block.setdefault(entry.block, []).append(entry)
    for entries in by_block.values():
        request = measure_request(context.settings, files, entries)
        for entry, measured in zip(entries, measure(request), strict=True):
            if not _record(context, files.model.sha256, entry, measured):
                return False
    return True


def _record(context: _Context, model_sha256: str, wanted: WantedEntry, entry: Entry) -> bool:
    """Store an entry and look whether the task is still wanted, in one short transaction."""

    def write(session: Session) -> tuple[bool, bool]:
        new = work.store_measurement(session, wanted, model_sha256, entry)
        return new, work.holds(session, context.claim)

    new, still_wanted = patiently(context.database, write)
    what = {
        "unit": entry.unit,
        "candidate": str(wanted.candidate),
        "seconds": entry.seconds,
        "key": wanted.key,
    }
    logger.info(line("entry_measured" if new else "entry_was_there", **what, **context.ids))
    return still_wanted


def _probe(context: _Context) -> bool:
    """All probes on some parts of the samples, those of one batch at a time."""
    assert context.claim.job_id is not None
    with context.database.read() as session:
        files = work.job_files(session, context.claim.job_id)
        task = work.probe_task(session, context.claim)
    heartbeat = Heartbeat(context.database, context.claim)
    samples, done = sum(part.block[1] - part.block[0] for part in task.parts), 0
    for parts in _in_batches(context.settings, files, task):
        start, stop = parts[0].block[0], parts[-1].block[1]
        progress = heartbeat.part(done / samples, (stop - start) / samples)
        found = _estimate(context.settings, files, task, (start, stop), progress)
        done += stop - start
        for part in parts:
            # Estimators that know no single samples come in one part.
            own = found if len(parts) == 1 else found.of(samples_within(files, part.block, (start, stop)))
            patiently(context.database, partial(_store_probe, part, files.model.sha256, own))
    return patiently(context.database, lambda session: work.finish(session, context.claim))


def _store_probe(part: ProbePart, model_sha256: str, found: ProbeValues, session: Session) -> bool:
    return work.store_probe(session, part, model_sha256, found)


def _in_batches(settings: Settings, files: JobFiles, task: ProbeTask) -> Iterator[Sequence[ProbePart]]:
    """Neighbouring parts that fit into a batch together: what is done once for all samples is then not done for each."""
    from workers.sensitivity.estimators.run import batch_size_of  # noqa: PLC0415 - torch is for workers only

    if len(task.parts) < 2:
        yield from ([part] for part in task.parts)
        return
    size = batch_size_of(estimate_request(settings, files, task, task.parts[0].block))
    together: list[ProbePart] = []
    for part in task.parts:
        if together and (
            part.block[0] != together[-1].block[1] or part.block[1] - together[0].block[0] > size
        ):
            yield together
            together = []
        together.append(part)
    yield together


def _estimate(
    settings: Settings, files: JobFiles, task: ProbeTask, block: Block, progress: Progress
) -> ProbeValues:
    from workers.sensitivity.estimators.run import estimate  # noqa: PLC0415 - torch is for workers only

    _limit_threads(settings)
    started = time.perf_counter()
    found = estimate(estimate_request(settings, files, task, block), progress)
    seconds = time.perf_counter() - started
    return ProbeValues(values=found.values, storage_bits=found.storage_bits, seconds=seconds)


def _solve(context: _Context) -> bool:
    """Make the job's plans, or have measured what they still need. Searching holds no transaction for writing."""
    job_id = context.claim.job_id
    assert job_id is not None
    with context.database.read() as session:
        further = further_entries(session, job_id)
        plans = [] if further else draft_job(session, job_id)

    def write(session: Session) -> bool:
        if not work.holds(session, context.claim):
            return False
        if further:
            measure_further(session, job_id, further, context.settings)
        else:
            store_job_plans(session, job_id, plans)
        return work.finish(session, context.claim)

    return patiently(context.database, write)


def _verify(context: _Context) -> bool:
    """Measure a plan on the calibration data, then on the evaluation data.

    What is measured is not measured again, be it of this plan or of an equal one of any job.
    """
    claim = context.claim
    assert claim.job_id is not None
    assert claim.plan_id is not None
    with context.database.read() as session:
        files = work.job_files(session, claim.job_id)
        plan = work.plan_view(session, claim.plan_id)
    measured = plan.measured or plan.equal
    if plan.equal is not None and not _store_measured(context, plan.equal):
        return False
    heartbeat, counts, begin = Heartbeat(context.database, claim), sample_counts(files), 0.0
    for role, request in plan_requests(context.settings, files, plan.choices).items():
        share = counts[role] / sum(counts.values())
        progress = heartbeat.part(begin, share)
        begin += share
        if _has(measured, role):
            continue
        measured = _measure_plan(context.settings, request, measured, role, progress)
        if not _store_measured(context, measured):
            return False
        logger.info(line("plan_measured", plan_id=claim.plan_id, data=role, **context.ids))
    return patiently(context.database, lambda session: work.finish(session, claim))


def _refine(context: _Context) -> bool:
    """One part of a step around a verified plan."""
    _limit_threads(context.settings)
    return refine(context.settings, context.database, context.claim)


def _store_measured(context: _Context, measured: dict[str, Any]) -> bool:
    return patiently(context.database, lambda session: work.store_measured(session, context.claim, measured))


def _measure_plan(
    settings: Settings, request: PlanRequest, measured: dict[str, Any] | None, role: str, progress: Progress
) -> dict[str, Any]:
    """Measure, and add the result to what was measured before."""
    from workers.verify.plan import measure_plan  # noqa: PLC0415 - torch is for workers only

    _limit_threads(settings)
    return _add(measured, role, measure_plan(request, progress))


def _has(measured: dict[str, Any] | None, role: str) -> bool:
    values = (measured or {}).get("values", {})
    return bool(values) and all(by_role[role] is not None for by_role in values.values())


def _add(measured: dict[str, Any] | None, role: str, results: Mapping[str, Measured]) -> dict[str, Any]:
    """The plan's ``measured`` member: ``{"values": {metric: {role: mean}}, "standard_error": {...}, "version": ...}``."""
    table: dict[str, Any] = {"values": {}, "standard_error": {}, "version": MEASURE_VERSION}
    for metric, result in results.items():
        for name, number in (("values", result.mean), ("standard_error", result.standard_error)):
            before = (measured or table)[name].get(metric, {CALIBRATION: None, EVALUATION: None})
            table[name][str(metric)] = before | {role: number}
    return table


def preload(threads: int) -> None:
    """Import what tasks need, in a worker that has no task yet: it takes seconds."""
    import torch  # noqa: PLC0415 - torch is for workers only

    import workers.graph.describe  # noqa: PLC0415
    import workers.intake.models  # noqa: PLC0415
    import workers.quant.acceleration  # noqa: PLC0415
    import workers.sensitivity.acceleration  # noqa: PLC0415
    import workers.sensitivity.engine  # noqa: PLC0415
    import workers.sensitivity.estimators.run  # noqa: PLC0415
    import workers.verify.plan  # noqa: PLC0415

    torch.set_num_threads(threads)
    torch.empty(1, device="meta").add(1)  # the first operator without data imports hundreds of modules
    workers.quant.acceleration.warm_up()
    workers.sensitivity.acceleration.warm_up()
    solve(Problem.from_arrays(np.ones((1, 1)), np.ones((1, 1), np.int64), budget=1))


def _limit_threads(settings: Settings) -> None:
    import torch  # noqa: PLC0415 - torch is for workers only

    torch.set_num_threads(settings.worker_threads)


_RUN: dict[TaskKind, Callable[[_Context], bool]] = {
    TaskKind.INSPECT: _inspect,
    TaskKind.PROBE: _probe,
    TaskKind.MEASURE: _measure,
    TaskKind.SOLVE: _solve,
    TaskKind.VERIFY: _verify,
    TaskKind.REFINE: _refine,
}
