"""What endpoints get from the application."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.artifacts import ArtifactStore
from app.db import Database
from app.jobs.watch import Watcher
from app.settings import Settings
from app.system.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Context:
    """The parts of one running API process."""

    settings: Settings
    database: Database
    store: ArtifactStore
    watcher: Watcher
    metrics: Metrics


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(_context)]
"""An endpoint's parameter of this type is the process's `Context`."""
