"""Files on their way out of a request: uploaded as its body, or by reference."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Header, Query, Request
from fastapi.concurrency import contextmanager_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.arrivals import Arrived
from app.artifacts import ArtifactStore, Limits, announced_sha256, receive, reference
from app.errors import InvalidRequest, TruncatedUpload, UnsupportedMedia
from app.settings import Settings

_STREAMED, _REFERENCE = "application/octet-stream", "application/json"


class ByReference(BaseModel):
    """A file of the service's machine, inside one of the allowed locations."""

    model_config = ConfigDict(extra="forbid", strict=True)

    location: str = Field(min_length=1, max_length=4096, description="Absolute path.")
    sha256: str | None = Field(default=None, description="Hex; refused when the file has another one.")


ARRIVAL_BODY: dict[str, Any] = {
    "required": True,
    "description": "The file itself, or where it lies.",
    "content": {
        _STREAMED: {"schema": {"type": "string", "format": "binary"}},
        _REFERENCE: {
            "schema": ByReference.model_json_schema(),
            "example": {"location": "/srv/models/efficientnet_lite0.pt2"},
        },
    },
}
"""The request body of a route that takes files, for its OpenAPI description."""


@dataclass(frozen=True, kw_only=True)
class Announced:
    """What the client says of its file."""

    content_type: str
    length: int | None
    sha256: str | None


async def announced(
    request: Request,
    sha256: Annotated[str | None, Query(description="Expected SHA-256, hex.")] = None,
    x_content_sha256: Annotated[str | None, Header(description="Expected SHA-256, hex.")] = None,
    content_digest: Annotated[
        str | None, Header(description="Expected digest (RFC 9530): `sha-256=:…base64…:`.")
    ] = None,
) -> Announced:
    """Read what the headers and the query say of the body.

    Raises:
        InvalidRequest: A hash is malformed, or two of them differ.
        UnsupportedMedia: The body is neither a file nor a reference to one, or it is compressed on the way.
    """
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMedia(
            f"a body encoded as {encoding!r} is not read here",
            "Content-Encoding",
            encoding,
            "identity: the file as it is",
        )
    content_type = request.headers.get("Content-Type", _STREAMED)
    content_type = content_type.partition(";")[0].strip().lower()
    if content_type not in (_STREAMED, _REFERENCE):
        raise UnsupportedMedia(
            f"a body of type {content_type!r} is not read here",
            "Content-Type",
            content_type,
            "application/octet-stream with the file as body, or application/json with its location",
        )
    length = request.headers.get("Content-Length")
    return Announced(
        content_type=content_type,
        length=int(length) if length is not None and length.isascii() and length.isdigit() else None,
        sha256=announced_sha256(sha256, x_content_sha256, content_digest),
    )


@asynccontextmanager
async def arriving(
    request: Request, say: Announced, store: ArtifactStore, settings: Settings
) -> AsyncIterator[Arrived]:
    """The request's file, complete and as announced; nothing of it stays unless `place` was entered for it.

    Raises:
        TooLarge, TruncatedUpload, ChecksumMismatch, StorageFull, LocationRefused, InvalidRequest: See `app.artifacts`.
    """
    if say.content_type == _REFERENCE:
        yield await _referenced(request, say, settings)
        return
    limits = Limits(max_bytes=settings.max_upload_bytes, size_bytes=say.length, sha256=say.sha256)
    async with contextmanager_in_threadpool(store.incoming(limits)) as incoming:
        try:
            await receive(incoming, request.stream())
        except ClientDisconnect:
            raise TruncatedUpload(
                f"the connection ended after {incoming.size_bytes} bytes",
                "body",
                incoming.size_bytes,
                say.length or "the whole file",
            ) from None
        yield Arrived(
            path=incoming.path, sha256=incoming.sha256, size_bytes=incoming.size_bytes, incoming=incoming
        )


async def _referenced(request: Request, say: Announced, settings: Settings) -> Arrived:
    try:
        given = ByReference.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidRequest(
            first["msg"], field, first["input"], '{"location": "/path", "sha256"?: "…"}'
        ) from None
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "the body is no JSON", "body", None, '{"location": "/path", "sha256"?: "…"}'
        ) from None
    expected = announced_sha256(say.sha256, given.sha256, None)
    limits = Limits(max_bytes=settings.max_upload_bytes, sha256=expected)
    found = await run_in_threadpool(reference, Path(given.location), settings.allowed_locations, limits)
    return Arrived(
        path=found.path, sha256=found.sha256, size_bytes=found.size_bytes, location=str(found.path)
    )
