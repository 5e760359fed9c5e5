"""A search without a server: the service's own services, database and dispatcher, with processes of this machine.

Files, jobs and measurements go into the data directory, so that a search that was interrupted goes on where it was, and
one that was finished answers at once. A service that runs on the same data directory does the work if there is one.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from app import migrate, problems
from app.arrivals import Arrived
from app.artifacts import ArtifactStore, Limits
from app.client import JobUpdate
from app.datasets import service as datasets
from app.db import Database, get_database
from app.dispatch import dispatcher
from app.dispatch.local_engine import LocalEngine
from app.dispatch.shard import preload, run_task
from app.dispatch.supervisor import MAX_DEFAULT_WORKERS
from app.errors import InvalidRequest
from app.jobs import service as jobs
from app.jobs.schemas import JobCreate
from app.jobs.watch import snapshot
from app.kit.ids import content_sha256
from app.modelfiles import service as models
from app.models import JobState, ModelState, TaskState
from app.plans import repository as plan_rows
from app.plans import service as plans
from app.plans.service import PlanChange
from app.results import VERSION, job_result, plan_json
from app.settings import Settings
from workers.intake.packing import packed

OnUpdate = Callable[[JobUpdate], None]

_BLOCK = 1 << 20
_LOOK_S = 0.1
"""Pause between two looks at the job, in seconds, at least."""
_PAUSES = 20.0
_LONGEST_PAUSE_S = 1.0


class SearchProblem(Exception):
    """The search ended without a result; ``document`` says why (RFC 9457)."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(document)
        self.document = document


class Stop(Exception):
    """Raised by ``on_update`` to end a search: its job is cancelled, what is measured is kept."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a search reads."""

    model: Path
    calibration: Path
    evaluation: Path | None = None


def search(
    files: Files,
    request: dict[str, Any],
    settings: Settings,
    on_update: OnUpdate,
    engine: "Engine | None" = None,
) -> dict[str, Any]:
    """Search bit-widths for a model.

    Args:
        files: Model and data.
        request: The members of a job's request, without model and data.
        settings: Data directory, number of workers and their threads.
        on_update: Called whenever there is news.
        engine: Does the work; one of its own when not given.

    Returns:
        The result document.

    Raises:
        SearchProblem: The model was refused, or the job failed or was cancelled.
        Stop: ``on_update`` did.
        AppError, WorkerError, SolverError: A file or a value was refused.
        OSError: A file cannot be read.
    """
    migrate.upgrade(settings.resolved_database_url)
    database = get_database(settings.resolved_database_url)
    store = ArtifactStore(settings.artifacts_dir)
    with nullcontext(engine) if engine else Engine(settings) as working:
        ids = {"dataset": _register_data(database, store, settings, files.calibration)}
        if files.evaluation is not None:
            ids["evaluation_dataset"] = _register_data(database, store, settings, files.evaluation)
        ids["model"] = _register_model(database, store, settings, files.model)
        _await_model(database, store, ids["model"], working, on_update)
        job_id = _submit(database, settings, {**request, **ids})
        _await_job(database, job_id, working, on_update)
    with database.read() as session:
        return job_result(session, jobs.get_job(session, job_id))


def measure_plans(
    job_id: str,
    changes: Sequence[PlanChange],
    settings: Settings,
    on_update: OnUpdate,
    engine: "Engine | None" = None,
) -> list[dict[str, Any]]:
    """Make further plans of a job that `search` has done, and measure them. Those that are there are taken as they are.

    Args:
        job_id: Which job.
        changes: What each plan is to keep to.
        settings: As of the search.
        on_update: Called whenever there is news. If it raises, plans not measured yet are left to whoever works next.
        engine: As of the search.

    Returns:
        The plans as result documents show them, in the order asked for.

    Raises:
        SearchProblem: A plan could not be measured.
        AppError, SolverError: A change was refused.
    """
    database = get_database(settings.resolved_database_url)
    wanted = [replace(change, measure=True) for change in changes]
    ids = [plans.create_plan(database, job_id, change).plan.id for change in wanted]
    with nullcontext(engine) if engine else Engine(settings) as working:
        _await_plans(database, ids, working, on_update)
    with database.read() as session:
        description = plans.job_description(session, jobs.get_job(session, job_id))
        return [plan_json(plans.get_plan(session, plan_id), description) for plan_id in ids]


class Engine:
    """Dispatcher and processes, started when they are needed first.

    Who searches several times keeps one open and hands it to each search: processes keep models and data that they have read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._handle: dispatcher.DispatcherHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._handle is not None:
            self._handle.stop()

    def need(self) -> None:
        """Make sure that somebody works."""
        if self._handle is not None:
            return
        engine = LocalEngine(
            run_task,
            self._settings.model_dump(mode="json"),
            processes=self._settings.workers or min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS),
            threads=self._settings.worker_threads,
            prepare=preload,
        )
        self._handle = dispatcher.start(self._settings, engine)


@contextmanager
def _arrived(store: ArtifactStore, settings: Settings, path: Path) -> Iterator[Arrived]:
    """A copy of a file, on its way into the store."""
    limits = Limits(max_bytes=settings.max_upload_bytes, size_bytes=path.stat().st_size)
    with path.open("rb") as source, store.incoming(limits) as incoming:
        while block := source.read(_BLOCK):
            incoming.write(block)
        incoming.finish()
        yield Arrived(
            path=incoming.path, sha256=incoming.sha256, size_bytes=incoming.size_bytes, incoming=incoming
        )


def _register_model(database: Database, store: ArtifactStore, settings: Settings, path: Path) -> str:
    with packed(path) as file, _arrived(store, settings, file) as arrived:
        return models.register(database, store, arrived, path.name).id


def _register_data(database: Database, store: ArtifactStore, settings: Settings, path: Path) -> str:
    with _arrived(store, settings, path) as arrived:
        return datasets.register(database, store, arrived, path.name).id


def _await_model(
    database: Database, store: ArtifactStore, model_id: str, engine: Engine, on_update: OnUpdate
) -> None:
    """Wait until a worker has read the model."""
    while True:
        with database.read() as session:
            model = models.get_model(session, model_id)
        if model.state is ModelState.READY:
            return
        if model.state is ModelState.REFUSED:
            problem = models.drop_refused(database, store, model_id) or model.problem
            assert problem is not None
            raise SearchProblem(problem)
        on_update(JobUpdate(state="reading the model", progress=None))
        engine.need()
        time.sleep(_LOOK_S)


def _submit(database: Database, settings: Settings, request: dict[str, Any]) -> str:
    """The job for a request: one that is done or under way if there is one, else a new one."""
    try:
        create = JobCreate.model_validate(request)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        allowed = first["msg"].removeprefix("Input should be ")
        raise InvalidRequest(f"{field}: {first['msg']}", field, first["input"], allowed) from None
    digest = content_sha256({"version": VERSION, "request": create.model_dump(mode="json")})
    number = 0
    while True:
        with database.write() as session:
            job = jobs.create_job(session, create, settings, f"local search {number} {digest}")
        if job.state not in (JobState.FAILED, JobState.CANCELLED):
            return job.id
        number += 1


def _await_job(database: Database, job_id: str, engine: Engine, on_update: OnUpdate) -> None:
    """Wait until a job is done; an interruption cancels it, what is measured is kept."""
    last: JobUpdate | None = None
    try:
        while True:
            started = time.perf_counter()
            job = snapshot(database, job_id).job
            update = JobUpdate(state=job.state.value, progress=job.progress.model_dump(mode="json"))
            if update != last:
                last = update
                on_update(update)
            if job.state is JobState.DONE:
                return
            if job.state.final:
                raise SearchProblem(job.problem or _cancelled(job_id))
            engine.need()
            time.sleep(_pause_after(time.perf_counter() - started))
    except (KeyboardInterrupt, Stop):
        with database.write() as session:
            if not jobs.get_job(session, job_id).state.final:
                jobs.cancel_job(session, job_id)
        raise


def _pause_after(look_s: float) -> float:
    """Seconds until the next look at a job: one of thousands of entries takes time that the workers may need."""
    return max(_LOOK_S, min(_PAUSES * look_s, _LONGEST_PAUSE_S))


def _await_plans(database: Database, ids: Sequence[str], engine: Engine, on_update: OnUpdate) -> None:
    """Wait until plans are measured."""
    while True:
        with database.read() as session:
            tasks = [task for plan_id in ids for task in plan_rows.tasks(session, plan_id)]
        failed = next((task.problem for task in tasks if task.state is TaskState.FAILED), None)
        if failed is not None:
            raise SearchProblem(failed)
        left = sum(task.state is not TaskState.DONE for task in tasks)
        if not left:
            return
        on_update(JobUpdate(state=f"measuring {left} plans", progress=None))
        engine.need()
        time.sleep(_LOOK_S)


def _cancelled(job_id: str) -> dict[str, Any]:
    return problems.make(
        "conflict", HTTPStatus.CONFLICT, f"job {job_id} was cancelled before it had a result"
    )
