"""Errors of the workers. Torch-free, so that the service can name them without loading torch.

WorkerError
├── InputRefused            a user's file or value is not acceptable
│   ├── ModelRefused        the model file breaks a rule; names the entry and the rule
│   ├── DatasetRefused      the data file does not fit the format or the model
│   └── RequestRefused      a measurement was asked for that this model or data cannot give
└── MeasurementFailed       a defect or a resource limit while computing
"""

from typing import Any


class WorkerError(Exception):
    """Root of the workers' errors.

    Args:
        message: What failed, for which layer or entry, in one or two sentences.
        field: The input at fault, e.g. ``"weights/conv1.weight"`` or ``"candidates"``.
        value: The value received; must be JSON-serialisable.
        allowed: What would be accepted, in words or as a JSON-serialisable value.
        extra: Further machine-readable members of the problem document, e.g. ``{"minimum_bits": 12}``.
    """

    kind = "worker-error"

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


class InputRefused(WorkerError):
    """A user's file or value is not acceptable."""

    kind = "input-refused"


class ModelRefused(InputRefused):
    """A model file breaks a rule of the reader; ``field`` names the entry, ``extra["rule"]`` the rule."""

    kind = "model-refused"


class DatasetRefused(InputRefused):
    """A data file breaks the format or does not fit the model's inputs."""

    kind = "dataset-refused"


class RequestRefused(InputRefused):
    """A measurement was asked for that this model or this data cannot give."""

    kind = "request-refused"


class MeasurementFailed(WorkerError):
    """Measuring stopped by a defect or by a resource limit."""

    kind = "measurement-failed"
