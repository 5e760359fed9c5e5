"""Errors of starting and running the service's processes. They are told on a terminal, never over HTTP."""

from app.errors import AppError


class StartRefused(AppError):
    """A process of the service cannot start as it was asked to."""

    kind = "start-refused"
