"""Budgets as users write them: ``"4 bits"``, ``"12 MB"``, ``"3.5x"`` and the like, to whole bits."""

import re
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, localcontext

from solver.errors import BudgetError

BUDGET_FORMS = (
    '"4 bits" (average per searched weight), "123456 bits total", "12 MB" (10^6 bytes; also B, KB, GB, TB), '
    '"12 MiB" (2^20 bytes; also KiB, GiB, TiB), "3.5x" (compression against the stored float weights) or "0.4 of float"'
)
MAX_BUDGET_BITS = 2**62
"""Sums of sizes stay below this, so that they fit 64-bit integers with room to spare."""

MAX_AVERAGE_BITS = 64
"""No stored weight is wider; a larger average is a total that lacks its unit."""

_BYTES = {
    "B": 1,
    "byte": 1,
    "bytes": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_BY_FOLDED = {name.casefold(): name for name in _BYTES}
_AVERAGE = ("bits", "bit", "bits per weight", "bits/weight")
_TOTAL = ("bits total", "bit total")
# Bounded lengths: a hostile string cannot ask for an enormous integer.
_FORM = re.compile(
    r"(?P<sign>[-+]?)(?P<number>[0-9]{1,20}(?:\.[0-9]{1,20})?|\.[0-9]{1,20})\s*(?P<unit>[^\s0-9.](?:.{0,40}))?",
    re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A budget as written and what it means.

    Args:
        text: As the user wrote it.
        bits: The same in whole bits, rounded down.
    """

    text: str
    bits: int


def parse_budget(text: str, *, weights: int, float_bits: int) -> Budget:
    """Read a budget string.

    Decimal arithmetic throughout, rounded down to whole bits: ``"0.1 of float"`` of 100 bits is 10 bits.

    Args:
        text: One of the forms in `BUDGET_FORMS`. Units are case-sensitive where case matters (Mb is not MB).
        weights: Number of searched weights, >= 1; what an average in bits is multiplied by.
        float_bits: Storage of the same weights in float, in bits, >= 1; what ratios refer to.

    Returns:
        The budget in whole bits, at least 1.

    Raises:
        BudgetError: Malformed, without unit, ambiguous, zero, negative, or 2^62 bits and more.
    """
    if not isinstance(text, str):
        raise BudgetError(f"a budget is a text with a unit, not {text!r}", "budget", repr(text), BUDGET_FORMS)
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise _refused(text, "is not a number followed by a unit")
    number = Decimal(match["number"])
    if match["sign"] == "-" and number:
        raise _refused(text, "is negative")
    if not number:
        raise _refused(text, "is zero")
    unit = " ".join((match["unit"] or "").split())
    with localcontext() as context:
        context.prec = 100
        bits = int(_bits(text, number, unit, weights, float_bits).to_integral_value(ROUND_FLOOR))
    if bits < 1:
        raise _refused(text, "is less than one bit")
    if bits >= MAX_BUDGET_BITS:
        raise _refused(text, "is 2^62 bits or more")
    return Budget(text=text, bits=bits)


def _bits(text: str, number: Decimal, unit: str, weights: int, float_bits: int) -> Decimal:
    """The budget in bits, not yet rounded."""
    if unit in _AVERAGE:
        if number > MAX_AVERAGE_BITS:
            hint = f'an average above {MAX_AVERAGE_BITS} bits per weight; did you mean "{number} bits total"?'
            raise _refused(text, f"is {hint}")
        return number * weights
    if unit in _TOTAL:
        return number
    if unit in _BYTES:
        return number * _BYTES[unit] * 8
    if unit in {"x", "X", "×"}:  # noqa: RUF001 - the multiplication sign is what some users type
        if number < 1:
            hint = f'would enlarge the model; did you mean "{number} of float"?'
            raise _refused(text, hint)
        return Decimal(float_bits) / number
    if unit == "of float":
        if number > 1:
            hint = f'is more than the float model; did you mean "{number}x"?'
            raise _refused(text, hint)
        return number * float_bits
    raise _refused(text, _unit_hint(number, unit))


def _unit_hint(number: Decimal, unit: str) -> str:
    """Why a unit was not understood, with the likeliest readings."""
    if not unit:
        return f'has no unit; did you mean "{number} bits" (average per weight) or "{number} MB"?'
    likely = _BY_FOLDED.get(unit.casefold())
    if likely is not None:
        return f'is ambiguous: bits or bytes? did you mean "{number} {likely}" (bytes)?'
    return f"has the unknown unit {unit!r}"


def _refused(text: str, why: str) -> BudgetError:
    return BudgetError(f"budget {text[:80]!r} {why}", "budget", text[:80], BUDGET_FORMS)
