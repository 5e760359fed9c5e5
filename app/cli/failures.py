"""From what went wrong to a problem document and an exit code."""

import errno
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from app.cli.output import Exit
from app.client import ApiProblem, Unreachable

_INFEASIBLE = frozenset({"budget-below-minimum", "infeasible"})
_USAGE = frozenset(
    {
        "bound-error",
        "budget-error",
        "idempotency-key-reused",
        "invalid-request",
        "location-refused",
        "not-found",
        "option-error",
        "pin-error",
        "problem-error",
        "request-refused",
        "row-error",
        "tie-error",
    }
)
"""Refusals of what stands on the command line itself; other refusals are about a file, or about how things stand."""


class MissingExtra(Exception):
    """A command needs a part of Bitwright that is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(extra, module)
        self.extra = extra
        self.module = module

    def __str__(self) -> str:
        return (
            f"this command needs the extra {self.extra!r} (module {self.module!r} is not installed): "
            f"pip install 'bitwright[{self.extra}]'"
        )


class Stopped(Exception):
    """The command ends with a problem document that it was given or made itself."""

    def __init__(self, document: Mapping[str, Any], code: Exit | None = None) -> None:
        super().__init__(document, code)
        self.document = dict(document)
        self.code = code if code is not None else exit_code(document)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the imports of a command: a missing module is told as the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"app", "workers", "solver", "migrations"}:
            raise  # ours: a defect, not a missing extra
        raise MissingExtra(extra, error.name or "?") from error


def require(extra: str, *modules: str) -> None:
    """Make sure that modules are installed which this process itself need not load.

    Raises:
        MissingExtra: One is not.
    """
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtra(extra, module)


def exit_code(document: Mapping[str, Any]) -> Exit:
    """The exit code that fits a problem document."""
    kind = str(document.get("type", "")).rpartition(":")[2]
    if kind in _INFEASIBLE:
        return Exit.INFEASIBLE
    if kind in _USAGE:
        return Exit.USAGE
    status = int(document.get("status") or 500)
    return Exit.REFUSED if 400 <= status < 500 else Exit.DEFECT


def problem_of(error: Exception) -> dict[str, Any] | None:
    """The problem document of an error that speaks for itself; ``None`` for a defect."""
    if isinstance(error, ApiProblem | Stopped):
        return error.document
    if hasattr(error, "kind"):
        from app import problems  # noqa: PLC0415 - needs numpy, as does whatever raised the error

        return problems.document(error)
    return _of_this_machine(error)


def _of_this_machine(error: Exception) -> dict[str, Any] | None:
    """What is missing here rather than wrong with a request."""
    if isinstance(error, Unreachable):
        return _local("unreachable", "The service cannot be reached", str(error), 503)
    if isinstance(error, MissingExtra):
        return _local("missing-extra", "A part of Bitwright is not installed", str(error), 500)
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) and error.filename:
        document = _local(
            "file-unreadable", "A file cannot be used", f"{error.filename}: {error.strerror}", 422
        )
        return document | {
            "field": "path",
            "value": str(error.filename),
            "allowed": "a file that can be read",
        }
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"{error.filename}: " if error.filename else ""
        return _local("storage-full", "No room is left", f"{where}{error.strerror}", 507)
    sqlalchemy = sys.modules.get("sqlalchemy.exc")
    if sqlalchemy is not None and isinstance(error, sqlalchemy.OperationalError):
        detail = f"the database cannot be used: {str(error.orig or error).strip()}"
        return _local("database-unavailable", "The database is not available just now", detail, 503)
    return None


def _local(kind: str, title: str, detail: str, status: int) -> dict[str, Any]:
    return {"type": f"urn:bitwright:problem:{kind}", "title": title, "status": status, "detail": detail}
