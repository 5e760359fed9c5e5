"""From a template to an answer, with the headers every page carries; errors become pages too."""

import gzip
from collections.abc import Callable, Coroutine
from datetime import datetime
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool

from app import problems
from app.dashboard.assets import asset_url
from app.errors import AppError
from app.kit.sql import told
from app.models import utc_now
from app.report import quantities
from app.report.policy import page_policy
from app.report.rendering import environment

_HEADERS = {
    "Content-Security-Policy": page_policy(),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


_WORTH_COMPRESSING = 4096
"""Pages from this length on, in bytes; a job's page is mostly the numbers of its figures."""


def age(moment: datetime) -> str:
    """How long ago: ``just now``, ``5 min ago``."""
    seconds = (utc_now() - moment).total_seconds()
    # The larger unit is enough.
    return "just now" if seconds < 10 else f"{quantities.duration(seconds).split(' ')[0]} ago"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    env = environment()
    env.globals |= {"asset_url": asset_url, "version": version("bitwright")}
    env.filters |= {"age": age}
    return env


def page(template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A page, with the policy that keeps it to itself."""
    html = _environment().get_template(template).render(**context)
    return HTMLResponse(html, status_code=status, headers=_HEADERS)


def error_page(error: Exception) -> HTMLResponse:
    """An error as a page, in the words of its problem document."""
    document = problems.document(error)
    answer = page("error.html", status=document["status"], problem=document, title=document["title"])
    if document["status"] == 503:
        answer.headers["Retry-After"] = str(problems.RETRY_AFTER_S)
    return answer


def compressed(request: Request, answer: Response) -> Response:
    """The answer, compressed when it is long and the client can read it so."""
    if len(answer.body) < _WORTH_COMPRESSING or "gzip" not in request.headers.get("accept-encoding", ""):
        return answer
    answer.body = gzip.compress(answer.body, 5, mtime=0)
    answer.headers["Content-Length"] = str(len(answer.body))
    answer.headers["Content-Encoding"] = "gzip"
    answer.headers["Vary"] = "Accept-Encoding"
    return answer


class PageRoute(APIRoute):
    """A route whose errors are pages, where the API's are problem documents."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                answer = await handle(request)
                return await run_in_threadpool(compressed, request, answer)
            except AppError as error:
                return error_page(error)
            except (DBAPIError, PoolTimeout) as error:
                meaning = told(error)
                if meaning is None:
                    raise
                return error_page(meaning)

        return handler
