"""What the client raises."""

from typing import Any

Document = dict[str, Any]


class ClientError(Exception):
    """Root of the client's errors.

    ClientError
    ├── ApiProblem    the service answered with a problem document
    └── Unreachable   the service could not be reached, or answered with something else
    """


class ApiProblem(ClientError):
    """The service refused a request.

    Args:
        document: The problem document: type, title, status, detail, and where they apply field, value, allowed.
    """

    def __init__(self, document: Document) -> None:
        super().__init__(document)
        self.document = document

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.document.get("status", 500))

    @property
    def kind(self) -> str:
        """The last part of the problem's type, e.g. ``not-found``."""
        return str(self.document.get("type", "")).rpartition(":")[2]

    def __str__(self) -> str:
        return str(self.document.get("detail") or self.document.get("title") or self.document)


class Unreachable(ClientError):
    """The service could not be reached, or what answered is not the service."""
