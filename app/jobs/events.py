"""A job's server-sent events (the HTML standard's event streams)."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from app.errors import NotFound
from app.jobs.watch import POLL_S, Snapshot, Watcher
from app.kit.sql import AWAY

HEARTBEAT_S = 15.0
"""A comment this often keeps proxies from taking a quiet stream for a dead one."""
RETRY_MS = 2000
"""How long a client waits before it connects again."""
AWAY_S = 1.0
"""Pause between two attempts while the database is away."""


async def job_events(watcher: Watcher, first: Snapshot, last_event_id: str | None) -> AsyncIterator[str]:
    """The events of a job from now on until it is final.

    ``progress`` whenever something was finished, ``state`` whenever state or stage changed, ``done`` once, last. Each
    carries ``state`` and ``progress``. The id of an event is what it tells in short, so that a client that connects
    again with ``Last-Event-ID`` is not told the same twice.

    Args:
        watcher: Where the job is looked at.
        first: The job as it stands.
        last_event_id: What the client knows already.
    """
    yield f"retry: {RETRY_MS}\n\n"
    known = last_event_id
    told: tuple[Any, Any] | None = None
    seen = first
    quiet_since = time.monotonic()
    while True:
        tag = _event_id(seen)
        state = (seen.job.state, seen.job.stage)
        if tag != known and not seen.final:
            if state != told:
                yield _event("state", tag, _brief(seen))
            yield _event("progress", tag, _brief(seen))
            quiet_since = time.monotonic()
        if seen.final:
            yield _event("done", tag, seen.job.model_dump(mode="json"))
            return
        known, told = tag, state
        if time.monotonic() - quiet_since >= HEARTBEAT_S:
            yield ": still there\n\n"
            quiet_since = time.monotonic()
        await asyncio.sleep(POLL_S)
        try:
            seen = await watcher.look(seen.job.id)
        except NotFound:
            return
        except AWAY:
            yield ": the database is away\n\n"
            await asyncio.sleep(AWAY_S)


def already_done(first: Snapshot, last_event_id: str | None) -> bool:
    """Whether the client has been told the end already and should not connect again."""
    return first.final and last_event_id == _event_id(first)


def _event_id(seen: Snapshot) -> str:
    return seen.etag.removeprefix("W/").strip('"')


def _brief(seen: Snapshot) -> dict[str, Any]:
    """State and progress; the progress is also spread out, for readers of nothing else."""
    progress = seen.job.progress.model_dump(mode="json")
    return {**progress, "state": seen.job.state.value, "progress": progress}


def _event(name: str, event_id: str, data: dict[str, Any]) -> str:
    return f"event: {name}\nid: {event_id}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
