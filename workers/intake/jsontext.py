"""Bounded, strict JSON: depth, size, digits and duplicate keys are checked; then typed access. Torch-free."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NoReturn, Self

from workers.intake.limits import Limits
from workers.intake.refusals import refuse

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_MOST_DIGITS: Final = 20


def parse_json(data: memoryview, entry: str, limits: Limits) -> "Json":
    """Parse an entry.

    Args:
        data: UTF-8 text.
        entry: The entry's name, for refusals.
        limits: Bounds on size and depth.

    Raises:
        ModelRefused: Too large, too deep, not JSON, numbers out of any use, or a key that occurs twice.
    """
    if len(data) > limits.max_json_bytes:
        raise refuse(
            "json-size",
            f"{entry!r} has {len(data)} bytes",
            field=entry,
            value=len(data),
            allowed=f"at most {limits.max_json_bytes} bytes",
        )
    raw = bytes(data)
    _check_depth(raw, entry, limits)
    strict = _Strict(entry)
    try:
        value = json.loads(
            raw,
            object_pairs_hook=strict.mapping,
            parse_int=strict.integer,
            parse_constant=strict.constant,
        )
    except (ValueError, RecursionError) as error:
        raise refuse(
            "not-json", f"{entry!r} is not JSON: {error}", field=entry, allowed="JSON as torch writes it"
        ) from None
    return Json(value, entry)


class _Strict:
    """What the parser calls for objects and numbers, where the standard library is too kind."""

    def __init__(self, entry: str) -> None:
        self._entry = entry

    def mapping(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object, each key once."""
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise refuse(
                "duplicate-key",
                f"{self._entry!r} gives the key {twice!r} twice",
                field=self._entry,
                value=twice,
                allowed="every key once",
            )
        return found

    def integer(self, text: str) -> int:
        """An integer of a bounded number of digits."""
        if len(text) > _MOST_DIGITS:
            raise self._number(text, f"an integer of {len(text)} digits")
        return int(text)

    def constant(self, text: str) -> NoReturn:
        """NaN and infinities, which torch writes as text."""
        raise self._number(text, text)

    def _number(self, text: str, what: str) -> Exception:
        return refuse(
            "json-number",
            f"{self._entry!r} holds {what}",
            field=self._entry,
            value=text,
            allowed="numbers of 64 bits",
        )


def _check_depth(raw: bytes, entry: str, limits: Limits) -> None:
    """Refuse deep nesting before any parser recurses: strip strings, keep brackets, peel off pairs."""
    brackets = _STRING.sub(b"", raw).translate(_SQUARE, _NO_BRACKETS)
    for _ in range(limits.max_json_depth):
        if not brackets:
            return
        peeled = brackets.replace(b"[]", b"")
        if len(peeled) == len(brackets):
            break
        brackets = peeled
    if brackets:
        raise refuse(
            "json-depth",
            f"{entry!r} is nested too deeply, or its brackets do not match",
            field=entry,
            allowed=f"at most {limits.max_json_depth} levels",
        )


class Json:
    """A JSON value with the place it came from; every access states the type it expects."""

    __slots__ = ("value", "where")

    def __init__(self, value: Any, where: str) -> None:
        self.value = value
        self.where = where

    def _expect(self, kind: type, name: str) -> Any:
        # bool is an int to Python, never to a schema.
        if type(self.value) is not kind:
            raise refuse(
                "json-type",
                f"{self.where} is not {name}",
                field=self.where,
                value=self.value,
                allowed=name,
            )
        return self.value

    def object(self) -> dict[str, Any]:
        """The value as a mapping."""
        result: dict[str, Any] = self._expect(dict, "an object")
        return result

    def text(self) -> str:
        """The value as text."""
        result: str = self._expect(str, "text")
        return result

    def integer(self) -> int:
        """The value as an integer."""
        result: int = self._expect(int, "an integer")
        return result

    def boolean(self) -> bool:
        """The value as a truth value."""
        result: bool = self._expect(bool, "true or false")
        return result

    def real(self) -> float:
        """The value as a float; torch writes the non-finite ones as text."""
        if self.value in ("Infinity", "-Infinity", "NaN"):
            return float(self.value)
        if type(self.value) is int:
            return float(self.value)
        result: float = self._expect(float, "a number")
        return result

    def items(self) -> Iterator["Json"]:
        """The elements of a list."""
        for index, item in enumerate(self._expect(list, "a list")):
            yield Json(item, f"{self.where}[{index}]")

    def fields(self) -> Iterator[tuple[str, "Json"]]:
        """The keys and values of an object."""
        for key, item in self.object().items():
            yield key, Json(item, f"{self.where}.{key}")

    def has(self, key: str) -> bool:
        """Whether an object has a key with a value other than null."""
        return self.object().get(key) is not None

    def union(self) -> tuple[str, "Json"]:
        """The only key of an object, and its value."""
        if len(self.object()) != 1:
            raise refuse(
                "json-type",
                f"{self.where} must have exactly one key",
                field=self.where,
                value=", ".join(list(self.value)[:4]),
                allowed="an object with one key",
            )
        return next(self.fields())

    def __getitem__(self, key: str) -> Self:
        found = self.object()
        if key not in found:
            raise refuse(
                "json-key",
                f"{self.where} has no {key!r}",
                field=self.where,
                allowed=f"an object with {key!r}",
            )
        return type(self)(found[key], f"{self.where}.{key}")
