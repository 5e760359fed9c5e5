"""The API application: routes, error answers, what starts and stops with the process."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool

from app import dashboard, handlers
from app.artifacts import ArtifactStore
from app.datasets.endpoints import router as datasets_router
from app.db import get_database
from app.dependencies import Context
from app.dispatch import dispatcher
from app.jobs.endpoints import router as jobs_router
from app.jobs.watch import Watcher
from app.kit.middleware import JsonLimit, RequestIds, SameSite
from app.kit.openapi import describe
from app.migrate import upgrade
from app.modelfiles.endpoints import router as models_router
from app.plans.endpoints import router as plans_router
from app.sensitivities.endpoints import router as sensitivities_router
from app.settings import Settings
from app.solving.endpoints import router as solving_router
from app.system.endpoints import router as system_router
from app.system.metrics import Metrics

MAX_JSON_BYTES = 8 << 20
"""Largest JSON body; files are not bound by it."""

_logger = logging.getLogger("app.main")
_DESCRIPTION = """
Bitwright finds bit-widths: it measures what each quantization of each weight tensor costs, solves for the best plan
within a size budget, proves how good it is, and measures the result next to uniform quantization.

1. `POST /v1/models` with a `.pt2` file, 2. `POST /v1/datasets` with a safetensors file, 3. `POST /v1/jobs`,
4. `GET /v1/jobs/{id}/events` or `Prefer: wait=30` until it is done, 5. `GET /v1/jobs/{id}/result`.

Errors are problem documents (RFC 9457) that name the field, the value and what is allowed.
"""


def create_app(settings: Settings, *, dispatch: bool = True) -> FastAPI:
    """Build the application.

    Args:
        settings: Of the service.
        dispatch: Also run a dispatcher; several processes may, one of them works at a time.

    Returns:
        The application. Its start brings the database to the current schema.
    """
    database = get_database(settings.resolved_database_url)
    context = Context(
        settings=settings,
        database=database,
        store=ArtifactStore(settings.artifacts_dir),
        watcher=Watcher(database),
        metrics=Metrics(database),
    )
    app = FastAPI(
        title="Bitwright",
        version=version("bitwright"),
        summary="Mixed-precision bit-width search: measured sensitivities, proven plans.",
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=_lifespan(context, dispatch=dispatch),
    )
    app.state.context = context
    app.add_middleware(JsonLimit, max_bytes=MAX_JSON_BYTES)
    app.add_middleware(SameSite, refuse=handlers.own)
    app.add_middleware(RequestIds, observe=context.metrics.observe, defect=handlers.defect)
    handlers.install(app)
    _add_routes(app)
    describe(app)
    return app


def _add_routes(app: FastAPI) -> None:
    api = APIRouter(prefix="/v1")
    for router in (
        models_router,
        datasets_router,
        jobs_router,
        sensitivities_router,
        plans_router,
        solving_router,
    ):
        api.include_router(router)
    api.include_router(system_router, include_in_schema=False)
    app.include_router(api)
    app.include_router(system_router)
    dashboard.install(app)


def _lifespan(context: Context, *, dispatch: bool) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(_prepare, context)
        handle = await run_in_threadpool(dispatcher.start, context.settings) if dispatch else None
        try:
            yield
        finally:
            if handle is not None:
                await run_in_threadpool(handle.stop)
            context.database.dispose()

    return lifespan


def _prepare(context: Context) -> None:
    upgrade(context.settings.resolved_database_url)
    removed = context.store.sweep()
    if removed:
        _logger.info("uploads_swept number=%d", removed)
