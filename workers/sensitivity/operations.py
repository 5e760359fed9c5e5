"""Bit operations: what a plan costs to compute. Torch-free: the service plans with it.

A multiply-accumulate of a ``b_w``-bit weight and a ``b_a``-bit activation counts ``b_w * b_a`` bit operations, the area or
the time of an array multiplier (Baskin et al. 2018, UNIQ; without their accumulator term, like van Baalen et al. 2020,
Bayesian Bits). Float operands count with the width they are stored in: a float32 activation as 32 bits. Such
figures rank plans of one model; they are no latency, and a float multiplication is not an integer one of its width.
"""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal

from workers.contracts import Candidate, ModelDescription, UnitInfo
from workers.errors import RequestRefused

_FLOAT_WIDTHS = (16, 32, 64)
_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s?(?P<prefix>[KMGTP]?)", re.ASCII)
_PREFIXES = {"": 0, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15}
QUANTITY_GRAMMAR = "a number, with K, M, G, T or P for thousands, e.g. 1.2G"


def float_width(description: ModelDescription) -> int:
    """Width in bits of a model's floats: that in which its units are stored (of mixed models the nearest to the mean)."""
    average = description.unit_float_bits / max(description.weights, 1)
    return min(_FLOAT_WIDTHS, key=lambda width: abs(width - average))


def bit_operations(unit: UnitInfo, candidate: Candidate | None, *, float_bits: int) -> int:
    """Bit operations of a unit for one sample.

    Args:
        unit: With its multiply-accumulates.
        candidate: Its choice; ``None`` for weights and activations in float.
        float_bits: Width of a float, see `float_width`.

    Returns:
        ``macs * weight bits * activation bits``; 0 for look-ups.
    """
    if candidate is None:
        return unit.macs * float_bits * float_bits
    activation_bits = float_bits if candidate.activation_bits is None else candidate.activation_bits
    return unit.macs * candidate.bits * activation_bits


def bit_operation_values(
    description: ModelDescription, wanted: Iterable[tuple[str, Candidate]]
) -> dict[tuple[str, str], int]:
    """Bit operations of entries: the values of a `solver.Row`.

    Args:
        description: The model.
        wanted: Unit names (not tied ones) and candidates.

    Returns:
        ``(unit, text of the candidate) -> bit operations`` for one sample.

    Raises:
        RequestRefused: The model has no such unit.
    """
    units = _units(description)
    width = float_width(description)
    return {
        (name, str(candidate)): bit_operations(_unit(units, name), candidate, float_bits=width)
        for name, candidate in wanted
    }


def plan_bit_operations(description: ModelDescription, choices: Mapping[str, Candidate]) -> int:
    """Bit operations of the units of a whole model for one sample; units without a choice count as float.

    Raises:
        RequestRefused: The model has no such unit.
    """
    units = _units(description)
    for name in choices:
        _unit(units, name)
    width = float_width(description)
    return sum(bit_operations(unit, choices.get(unit.name), float_bits=width) for unit in description.units)


def parse_bit_operations(text: str) -> int:
    """A limit on bit operations, e.g. ``"1.2G"``: rounded down to whole operations.

    Raises:
        RequestRefused: The text is no such quantity.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or len(text) > 64:
        raise RequestRefused(
            f"{text[:64]!r} is no number of bit operations", "bit_operations", text[:64], QUANTITY_GRAMMAR
        )
    return int(Decimal(match["number"]).scaleb(_PREFIXES[match["prefix"]]))


def _units(description: ModelDescription) -> dict[str, UnitInfo]:
    return {unit.name: unit for unit in description.units}


def _unit(units: Mapping[str, UnitInfo], name: str) -> UnitInfo:
    if name not in units:
        raise RequestRefused(f"the model has no unit {name!r}", "unit", name, list(units))
    return units[name]
