"""How the reader says no: one shape for every refusal. Torch-free."""

import math
import reprlib
from typing import Any

from workers.errors import ModelRefused

_LONGEST_VALUE = 120


def refuse(rule: str, message: str, *, field: str, value: Any = None, allowed: Any = None) -> ModelRefused:
    """Build the refusal of a model file.

    Args:
        rule: Slug of the rule that was broken, e.g. ``"pickled-weights"``.
        message: What failed and what to do, in one or two sentences.
        field: The entry, tensor or node at fault.
        value: The value received; shortened text stands in for anything that is not a short JSON scalar.
        allowed: What would be accepted.

    Returns:
        The exception, to be raised by the caller.
    """
    return ModelRefused(message, shorten(field), shorten(value), allowed, {"rule": rule})


def shorten(value: Any) -> Any:
    """A short, JSON-serialisable stand-in for a value that came out of an untrusted file."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else "an integer beyond 64 bits"
    text = value if isinstance(value, str) else reprlib.repr(value)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."
