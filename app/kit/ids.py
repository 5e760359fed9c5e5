"""Identifiers and content hashes."""

import hashlib
import json
import os
import time
from typing import Any

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u


def new_id(prefix: str) -> str:
    """A time-ordered identifier such as ``job_01jd…``: 48 bits of milliseconds, then 80 random bits (the ULID layout)."""
    number = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10))
    digits = "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
    return f"{prefix}_{digits}"


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_sha256(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def is_id(prefix: str, text: str) -> bool:
    """Whether a text has the form of an identifier; anything else cannot be known and need not be looked up."""
    head, _, tail = text.partition("_")
    return head == prefix and 0 < len(tail) <= 32 and all(c in _ALPHABET for c in tail)
