"""Errors of the service, told in its own words. How each becomes an HTTP answer is known to `app.problems` alone.

AppError
├── NotFound                 no such model, dataset, job or plan
├── InvalidRequest           a value that cannot be accepted; names field, value and what is allowed
│   ├── LocationRefused      a file by reference outside the allowed locations
│   ├── ChecksumMismatch     what arrived is not what was announced
│   └── KeyReused            an Idempotency-Key that came with another body before
├── TruncatedUpload          fewer bytes arrived than were announced
├── TooLarge                 more bytes than are accepted
├── UnsupportedMedia         a body of a type that is not read here
├── CrossSite                a page of another site asked for a change, through a user's browser
├── Conflict                 well-formed, but not possible as things stand
│   ├── ModelNotReady        the model is still being inspected, or was refused
│   ├── JobFinished          the job has already ended
│   ├── ResultNotReady       the job has not come that far
│   └── BudgetBelowMinimum   no plan is that small; ``extra`` holds the smallest
├── StorageFull              no room left for what arrived
└── Unavailable              something this service needs cannot be reached just now
    ├── DatabaseUnavailable  the database
    └── EngineUnavailable    the engine that runs the workers
"""

from typing import Any


class AppError(Exception):
    """Root of the service's errors.

    Args:
        message: What failed, in one or two sentences that let a user mend the request.
        field: The input at fault, e.g. ``"budgets.0"``.
        value: The value received; must be JSON-serialisable.
        allowed: What would be accepted, in words or as a JSON-serialisable value.
        extra: Further machine-readable members of the problem document, e.g. ``{"minimum_bits": 12}``.
    """

    kind = "error"

    def __init__(
        self,
        message: str,
        field: str | None = None,
        value: Any = None,
        allowed: Any = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        # Every argument goes to Exception: exceptions cross process borders by pickle.
        super().__init__(message, field, value, allowed, extra)
        self.message = message
        self.field = field
        self.value = value
        self.allowed = allowed
        self.extra = extra or {}

    def __str__(self) -> str:
        return self.message


class NotFound(AppError):
    """There is no such thing."""

    kind = "not-found"


class InvalidRequest(AppError):
    """A value cannot be accepted."""

    kind = "invalid-request"


class LocationRefused(InvalidRequest):
    """A file by reference lies outside the allowed locations, or is no file that can be read."""

    kind = "location-refused"


class ChecksumMismatch(InvalidRequest):
    """What arrived does not have the SHA-256 that was announced."""

    kind = "checksum-mismatch"


class KeyReused(InvalidRequest):
    """The Idempotency-Key came with another body before."""

    kind = "idempotency-key-reused"


class TruncatedUpload(AppError):
    """Fewer bytes arrived than were announced."""

    kind = "truncated-upload"


class TooLarge(AppError):
    """More bytes than are accepted."""

    kind = "too-large"


class UnsupportedMedia(AppError):
    """The body's media type is not read here."""

    kind = "unsupported-media-type"


class CrossSite(AppError):
    """A page of another site asked for a change, through a user's browser."""

    kind = "cross-site-request"


class Conflict(AppError):
    """Well-formed, but not possible as things stand."""

    kind = "conflict"


class ModelNotReady(Conflict):
    """The model is still being inspected, or was refused."""

    kind = "model-not-ready"


class JobFinished(Conflict):
    """The job has already ended."""

    kind = "job-finished"


class ResultNotReady(Conflict):
    """The job has not come that far yet."""

    kind = "result-not-ready"


class BudgetBelowMinimum(Conflict):
    """No plan is as small as the budget; ``extra`` holds the smallest size that is possible."""

    kind = "budget-below-minimum"


class StorageFull(AppError):
    """No room is left for what arrived."""

    kind = "storage-full"


class Unavailable(AppError):
    """Something this service needs cannot be reached just now."""

    kind = "unavailable"


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached just now."""

    kind = "database-unavailable"


class EngineUnavailable(Unavailable):
    """The engine that runs the workers cannot be reached just now."""

    kind = "engine-unavailable"
