"""How errors become answers: the only place that maps an error to an HTTP status and a problem document (RFC 9457).

Free of any web framework, so that workers and the command line write the same documents.
"""

import math
from http import HTTPStatus
from typing import Any

from app import errors as app_errors
from solver.errors import BackendError, SolverError
from workers import errors as worker_errors

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:bitwright:problem:"
RETRY_AFTER_S = 2
"""What an answer 503 asks the client to wait, in seconds."""

_MAX_TEXT = 2000
_MAX_ITEMS = 50
_RESERVED = frozenset({"type", "title", "status", "detail", "instance", "field", "value", "allowed"})

STATUS: dict[type[Exception], HTTPStatus] = {
    app_errors.AppError: HTTPStatus.INTERNAL_SERVER_ERROR,
    app_errors.NotFound: HTTPStatus.NOT_FOUND,
    app_errors.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    app_errors.TruncatedUpload: HTTPStatus.BAD_REQUEST,
    app_errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    app_errors.UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    app_errors.CrossSite: HTTPStatus.FORBIDDEN,
    app_errors.Conflict: HTTPStatus.CONFLICT,
    app_errors.StorageFull: HTTPStatus.INSUFFICIENT_STORAGE,
    app_errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    worker_errors.WorkerError: HTTPStatus.INTERNAL_SERVER_ERROR,
    worker_errors.InputRefused: HTTPStatus.UNPROCESSABLE_ENTITY,
    worker_errors.MeasurementFailed: HTTPStatus.INTERNAL_SERVER_ERROR,
    SolverError: HTTPStatus.UNPROCESSABLE_ENTITY,
    BackendError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""By class; a subclass that is not listed takes its nearest listed parent's."""

TITLES: dict[str, str] = {
    "error": "The request failed",
    "not-found": "Not found",
    "invalid-request": "A value cannot be accepted",
    "location-refused": "The location is not allowed",
    "checksum-mismatch": "The checksum does not match",
    "idempotency-key-reused": "The Idempotency-Key was used with another body",
    "truncated-upload": "The upload is incomplete",
    "too-large": "The body is too large",
    "unsupported-media-type": "The media type is not supported",
    "cross-site-request": "A request from another site",
    "conflict": "Not possible as things stand",
    "model-not-ready": "The model is not ready",
    "job-finished": "The job has already finished",
    "result-not-ready": "The job has not come that far yet",
    "budget-below-minimum": "The budget is below the smallest possible plan",
    "storage-full": "The storage is full",
    "unavailable": "Not available just now",
    "database-unavailable": "The database is not available just now",
    "engine-unavailable": "The engine is not available just now",
    "worker-error": "The computation failed",
    "input-refused": "The input was refused",
    "model-refused": "The model file was refused",
    "dataset-refused": "The data file was refused",
    "request-refused": "The request was refused",
    "measurement-failed": "The measurement failed",
    "solver-error": "The search failed",
    "problem-error": "The search problem is not acceptable",
    "table-error": "A cost or size is not acceptable",
    "budget-error": "The budget is not acceptable",
    "pin-error": "A pin is not acceptable",
    "tie-error": "A tie is not acceptable",
    "bound-error": "A bound is not acceptable",
    "row-error": "A further budget is not acceptable",
    "option-error": "An option is out of range",
    "backend-error": "The solver failed",
    "internal-error": "Internal error",
}


def status_of(error: Exception) -> HTTPStatus:
    """The HTTP status of an error; 500 for one that belongs to none of the three trees."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def document(error: Exception, instance: str | None = None) -> dict[str, Any]:
    """The problem document of an error.

    Defects (status 500 of a class without a message for users) tell nothing of the inside.

    Args:
        error: Any exception; those of `AppError`, `WorkerError` and `SolverError` speak for themselves.
        instance: The resource or request path at fault.

    Returns:
        JSON-serialisable: type, title, status, detail, instance, and where they apply field, value, allowed and
        the error's extra members.
    """
    status = status_of(error)
    if not _tells(error):
        return make(
            "internal-error", status, "An internal error occurred; it has been logged.", instance=instance
        )
    assert isinstance(error, app_errors.AppError | worker_errors.WorkerError | SolverError)
    return make(
        error.kind,
        status,
        error.message,
        instance=instance,
        field=error.field,
        value=error.value,
        allowed=error.allowed,
        extra=error.extra,
    )


def make(  # noqa: PLR0913 - one keyword for each member of the document
    kind: str,
    status: HTTPStatus,
    detail: str,
    *,
    instance: str | None = None,
    field: str | None = None,
    value: Any = None,
    allowed: Any = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A problem document from its parts; values are made safe to print and to serialise."""
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + kind,
        "title": TITLES.get(kind, status.phrase),
        "status": int(status),
        "detail": printable(detail),
    }
    if instance is not None:
        body["instance"] = printable(instance)
    if field is not None:
        body |= {"field": printable(field), "value": printable(value)}
        if allowed is not None:
            body["allowed"] = printable(allowed)
    for name, member in (extra or {}).items():
        if name not in _RESERVED:
            body[name] = printable(member)
    return body


def printable(value: Any, depth: int = 4) -> Any:  # noqa: PLR0911 - one for each kind of JSON value
    """A copy that always serialises to JSON: bounded in length and depth, finite, without lone surrogates."""
    if isinstance(value, str):
        safe = value.encode("utf-8", "backslashreplace").decode()
        return safe if len(safe) <= _MAX_TEXT else safe[:_MAX_TEXT] + "…"
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else f"{str(hex(value))[:40]}…"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth == 0:
        return "…"
    if isinstance(value, dict):
        items = list(value.items())[:_MAX_ITEMS]
        return {printable(str(k)): printable(v, depth - 1) for k, v in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [printable(v, depth - 1) for v in list(value)[:_MAX_ITEMS]]
    return printable(str(value))


def _tells(error: Exception) -> bool:
    """Whether the error's own words are meant for users."""
    if isinstance(error, app_errors.AppError | worker_errors.WorkerError):
        return True
    return isinstance(error, SolverError)
