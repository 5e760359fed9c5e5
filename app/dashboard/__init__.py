"""The dashboard: pages rendered here, from the services that the API uses; no build step, nothing from elsewhere."""

from fastapi import FastAPI

from app.dashboard.pages import router

__all__ = ["install", "router"]


def install(app: FastAPI) -> None:
    """Add the pages and their static files. The application's state must hold its `app.dependencies.Context`."""
    app.include_router(router)
