"""Static files: a few, kept in memory, under names that change with their content so that browsers may keep them."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache

from fastapi import APIRouter, Request, Response

from app.errors import NotFound
from app.report import library
from app.report.rendering import STATIC

router = APIRouter(include_in_schema=False)

_TYPES = {
    "bitwright.css": "text/css; charset=utf-8",
    "bitwright.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "plotly.min.js": "text/javascript; charset=utf-8",
}
_FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A static file. ``version`` is the beginning of its SHA-256."""

    name: str
    content: bytes
    version: str

    @property
    def url(self) -> str:
        """Where it is served; another content has another address."""
        return f"/assets/{self.version}/{self.name}"


@cache
def asset(name: str) -> Asset:
    """A static file by its name.

    Raises:
        NotFound: There is none.
    """
    if name not in _TYPES:
        raise NotFound(f"there is no file {name!r}", "name", name, sorted(_TYPES))
    content = library.script().encode() if name == "plotly.min.js" else (STATIC / name).read_bytes()
    return Asset(name=name, content=content, version=hashlib.sha256(content).hexdigest()[:12])


@cache
def _compressed(name: str) -> bytes:
    return gzip.compress(asset(name).content, 6, mtime=0)


def asset_url(name: str) -> str:
    """The address of a static file, for templates."""
    return asset(name).url


@router.get("/assets/{version}/{name}")
def read_asset(version: str, name: str, request: Request) -> Response:
    """A static file; an address of an older version gives today's, which is then not kept."""
    try:
        found = asset(name)
    except NotFound:
        return Response(status_code=404)
    zipped = "gzip" in request.headers.get("accept-encoding", "")
    headers = {
        "Cache-Control": _FOREVER if version == found.version else "no-cache",
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
    }
    if zipped:
        headers["Content-Encoding"] = "gzip"
    return Response(_compressed(name) if zipped else found.content, media_type=_TYPES[name], headers=headers)
