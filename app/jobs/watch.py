"""A job as clients see it, and waiting until that changes."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from app.db import Database
from app.jobs import service
from app.jobs.progress import progress_of
from app.jobs.schemas import JobRead, ProgressRead
from app.kit.http import weak_etag
from app.models import Job

POLL_S = 0.2
"""How often the database is asked about a job that someone waits for, however many wait."""
_KEPT = 1000


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A job at one moment. ``etag`` changes with state and progress, not with mere time."""

    job: JobRead
    etag: str

    @property
    def final(self) -> bool:
        """Nothing happens to the job any more."""
        return self.job.state.final


def job_read(job: Job, progress: dict[str, Any]) -> JobRead:
    """A job as clients see it."""
    return JobRead(
        id=job.id,
        name=job.name,
        owner=job.owner,
        priority=job.priority,
        state=job.state,
        stage=job.stage,
        model=job.model_id,
        dataset=job.dataset_id,
        evaluation_dataset=job.evaluation_dataset_id,
        request=job.request,
        progress=ProgressRead.model_validate(progress),
        problem=job.problem,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def snapshot(database: Database, job_id: str) -> Snapshot:
    """A job as it stands.

    Raises:
        NotFound: There is none.
    """
    with database.read() as session:
        job = service.get_job(session, job_id)
        read = job_read(job, progress_of(session, job).to_json())
    progress = read.progress
    counts = [progress.done, progress.total, round(progress.fraction, 3), progress.detail]
    return Snapshot(job=read, etag=weak_etag([read.id, read.state, read.stage, progress.stage, *counts]))


@dataclass(kw_only=True)
class _Slot:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    taken_at: float = -1.0
    snapshot: Snapshot | None = None


class Watcher:
    """Shares one look at the database between all that wait for the same job."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._slots: OrderedDict[str, _Slot] = OrderedDict()

    async def look(self, job_id: str) -> Snapshot:
        """The job as it was at most `POLL_S` ago.

        Raises:
            NotFound: There is none.
        """
        slot = self._slots.setdefault(job_id, _Slot())
        self._slots.move_to_end(job_id)
        while len(self._slots) > _KEPT:
            self._slots.popitem(last=False)
        async with slot.lock:
            if slot.snapshot is None or time.monotonic() - slot.taken_at >= POLL_S:
                slot.snapshot = await run_in_threadpool(snapshot, self._database, job_id)
                slot.taken_at = time.monotonic()
            return slot.snapshot

    async def wait(self, job_id: str, known: str | None, timeout_s: float) -> Snapshot:
        """The job once it differs from the known tag (without one: once it is final), or when the time is over.

        Raises:
            NotFound: There is none.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            seen = await self.look(job_id)
            left = deadline - time.monotonic()
            if seen.final or left <= 0 or (known is not None and seen.etag != known):
                return seen
            await asyncio.sleep(min(POLL_S, left))
