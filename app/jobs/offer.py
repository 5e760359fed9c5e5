"""What a job offers: for every unit the candidates it may take. A pure function of model and request."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from workers.contracts import Candidate, ModelDescription, Scheme, UnitInfo
from workers.menus import Target, menu, short_menu

Offer = tuple[tuple[str, Candidate], ...]

SHORT, FULL = "short", "full"
MENUS = (SHORT, FULL)
"""How much of what a target can store is offered: what is worth its time as a rule, or everything."""


def offer_of(description: ModelDescription, request: Mapping[str, Any]) -> Offer:
    """Every (unit, candidate) of a job, units in execution order, then by bit-width, then as request or menu list schemes.

    Where activations are quantized too, a candidate is a pair of widths; units that multiply no activations (look-ups) have
    none to quantize.

    Args:
        description: The model.
        request: As a job keeps it: `candidates`, `schemes` or `target` and `menu`, `activation_candidates`, `exclude`.
    """
    excluded = set(request["exclude"])
    schemes = [Scheme.parse(text) for text in request["schemes"]]
    widths: list[int | None] = [*request["activation_candidates"]] or [None]
    return tuple(
        (unit.name, replace(candidate, activation_bits=activation_bits))
        for unit in description.units
        if unit.name not in excluded
        for candidate in _weights(unit, request, schemes)
        for activation_bits in (widths if unit.activations else [None])
    )


def unit_menu(unit: UnitInfo, target: str, kind: str, bits: Sequence[int]) -> tuple[Candidate, ...]:
    """The candidates of a unit's weights that a target can store.

    Args:
        unit: The unit.
        target: One of `workers.menus.Target`.
        kind: `SHORT` or `FULL`.
        bits: Bit-widths.
    """
    if kind == SHORT:
        return short_menu(Target(target), unit, bits)
    return menu(Target(target), unit, bits, moments=True, matrix=True, thorough=True)


def _weights(unit: UnitInfo, request: Mapping[str, Any], schemes: Sequence[Scheme]) -> Sequence[Candidate]:
    if "target" in request:
        return unit_menu(unit, request["target"], request["menu"], request["candidates"])
    return [Candidate(bits=bits, scheme=scheme) for bits in request["candidates"] for scheme in schemes]
