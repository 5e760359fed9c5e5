"""Turns exceptions into responses. What each error means in HTTP is `app.problems`' to say."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app import problems
from app.errors import AppError
from app.kit.http import ProblemResponse
from app.kit.middleware import request_id
from app.kit.sql import told
from solver import SolverError
from workers.errors import WorkerError

_logger = logging.getLogger("app.http")
_KINDS = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 415: "unsupported-media-type"}


def install(app: FastAPI) -> None:
    """Have the exceptions that are expected answered with problem documents; `defect` answers the others."""
    for kind in (AppError, WorkerError, SolverError):
        app.add_exception_handler(kind, own)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(PoolTimeout, _database)


async def own(request: Request, error: Exception) -> Response:
    """Answer with an error's own words."""
    return _answer(request, error)


async def _database(request: Request, error: Exception) -> Response:
    assert isinstance(error, DBAPIError | PoolTimeout)
    meaning = told(error)
    if meaning is None:
        return await defect(request, error)
    # The statement and its parameters stay out of the log; the driver's words say what is wrong.
    _logger.warning(
        "database_unavailable request_id=%s error=%s", request_id.get(), getattr(error, "orig", error)
    )
    return _answer(request, meaning)


async def defect(request: Request, error: Exception) -> Response:
    """Log an exception that nobody expected, and answer with nothing of it."""
    _logger.error(
        "request_failed request_id=%s method=%s path=%s",
        request_id.get(),
        request.method,
        request.url.path,
        exc_info=error,
    )
    return _answer(request, error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, AppError):  # raised while a body was read
        return _answer(request, error.__cause__)
    status = HTTPStatus(error.status_code)
    body = problems.make(
        _KINDS.get(status, "bad-request" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "internal-error"),
        status,
        str(error.detail),
        instance=request.url.path,
    )
    return _respond(body, error.headers)


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [_field_error(one) for one in error.errors()[:20]]
    first = found[0]
    body = problems.make(
        "invalid-request",
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f"{first['field']}: {first['detail']}",
        instance=request.url.path,
        field=first["field"],
        value=first["value"],
        allowed=first["allowed"],
        extra={"errors": found} if len(found) > 1 else None,
    )
    return _respond(body)


def _field_error(error: Mapping[str, Any]) -> dict[str, Any]:
    """One complaint of the schema, in the words of a problem document."""
    place, *path = error["loc"]
    message = str(error["msg"])
    kind = error["type"]
    if kind == "json_invalid":
        return {"field": "body", "value": None, "allowed": "JSON", "detail": message}
    allowed = {"missing": "a value", "extra_forbidden": "only the documented fields"}.get(kind)
    if allowed is None:
        allowed = message.removeprefix("Input should be ").removeprefix("String should ")
    field = ".".join(str(part) for part in path) or str(place)
    value = None if kind == "missing" else error.get("input")
    return {"field": field, "value": value, "allowed": allowed, "detail": message}


def _answer(request: Request, error: Exception) -> Response:
    return _respond(problems.document(error, instance=request.url.path))


def _respond(body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    more = dict(headers or {})
    if body["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
        more["Retry-After"] = str(problems.RETRY_AFTER_S)
    if body["status"] >= HTTPStatus.INTERNAL_SERVER_ERROR and (known := request_id.get()):
        body = {**body, "request_id": known}
    return ProblemResponse(body, status_code=body["status"], headers=more)
