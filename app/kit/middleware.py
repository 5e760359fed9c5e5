"""ASGI middleware: request ids, requests of other sites, and a limit for bodies that are read whole."""

import re
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import CrossSite, TooLarge

REQUEST_ID = "X-Request-ID"
request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request in hand; empty outside of one."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_GIVEN = re.compile(r"[\x21-\x7e]{1,128}")

Observe = Callable[[str, str, int, float], None]
"""Called with method, route template, status and seconds of each finished request."""
Defect = Callable[[Request, Exception], Awaitable[Response]]
"""Answers an exception that nobody expected."""


class RequestIds:
    """Takes over or makes a request id, gives it back, and reports each request when it ends.

    Args:
        app: What is within.
        observe: Told of each finished request.
        defect: Answers whatever exception nobody else has; here, so that the answer carries the id.
    """

    def __init__(self, app: ASGIApp, observe: Observe, defect: Defect) -> None:
        self.app = app
        self.observe = observe
        self.defect = defect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        name = given if _GIVEN.fullmatch(given) else uuid4().hex
        token = request_id.set(name)
        status, started, start = 500, False, time.perf_counter()

        async def tell(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        try:
            await self.app(scope, receive, tell)
        except Exception as error:
            if started:
                raise
            response = await self.defect(Request(scope), error)
            await response(scope, receive, tell)
        finally:
            self.observe(scope["method"], _template(scope), status, time.perf_counter() - start)
            request_id.reset(token)


def _template(scope: Scope) -> str:
    """The request's path with the names of its parameters in place of their values; few, whatever is asked for."""
    if "route" not in scope:
        return "unknown"
    segments: list[str] = scope["path"].split("/")
    names = {str(value): name for name, value in scope.get("path_params", {}).items()}
    return "/".join(f"{{{names[segment]}}}" if segment in names else segment for segment in segments)


class SameSite:
    """Refuses changes that a page of another site asks for: there is no login, so any page could ask the local service.

    Browsers say where a request comes from (``Sec-Fetch-Site``); other clients say nothing and are not concerned.
    """

    def __init__(self, app: ASGIApp, refuse: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self.app = app
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["method"] not in _SAFE_METHODS:
            origin = Headers(scope=scope).get("Sec-Fetch-Site", "none")
            if origin not in ("same-origin", "none"):
                error = CrossSite(
                    "a page of another site may not change anything here",
                    "Sec-Fetch-Site",
                    origin,
                    ["same-origin", "none"],
                )
                response = await self.refuse(Request(scope), error)
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


class JsonLimit:
    """Refuses JSON bodies above a limit, announced or not: they are read whole into memory."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not self._applies(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise TooLarge(
                    f"the body has {received} bytes or more",
                    "body",
                    received,
                    f"at most {self.max_bytes} bytes",
                    {"maximum_bytes": self.max_bytes},
                )
            return message

        await self.app(scope, count, send)

    @staticmethod
    def _applies(headers: Headers) -> bool:
        # Only files are streamed; everything else is held in memory.
        return "application/octet-stream" not in headers.get("content-type", "application/octet-stream")
