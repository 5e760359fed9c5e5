"""Parts of HTTP: entity tags (RFC 9110), preferences (RFC 7240), problem responses, request ids, body limits."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from starlette.responses import JSONResponse

MAX_WAIT_S = 60.0
"""Longest time a request may be held back by ``Prefer: wait``."""

_WAIT = re.compile(r'wait\s*=\s*"?(\d{1,9}(?:\.\d{1,9})?)"?', re.ASCII)


class ProblemResponse(JSONResponse):
    """A problem document (RFC 9457)."""

    media_type = "application/problem+json"


def weak_etag(value: Any) -> str:
    """A weak entity tag of JSON values: equal tags mean that nothing of note has changed."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return f'W/"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Whether ``If-None-Match`` names the tag, by weak comparison."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    opaque = etag.removeprefix("W/")
    return any(tag.strip().removeprefix("W/") == opaque for tag in if_none_match.split(","))


def preferred_wait(prefer: Iterable[str]) -> float | None:
    """Seconds of ``Prefer: wait=N``, at most `MAX_WAIT_S`; ``None`` without one. Other preferences are passed over."""
    for header in prefer:
        for preference in header.split(","):
            match = _WAIT.fullmatch(preference.split(";")[0].strip())
            if match:
                return min(float(match[1]), MAX_WAIT_S)
    return None


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses=`` of a route: problem documents for these statuses, 422 and 503."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": _MEANING[status], "content": content}
        for status in sorted({*statuses, 422, 503})
    }


_MEANING = {
    400: "The request is incomplete or cannot be parsed.",
    404: "There is no such thing.",
    409: "Not possible as things stand.",
    413: "The body is larger than is accepted.",
    415: "The media type is not read here.",
    422: "A value cannot be accepted; the problem names field, value and what is allowed.",
    500: "A defect.",
    503: "The database or the engine is away; try again after `Retry-After` seconds.",
    507: "The storage is full.",
}
