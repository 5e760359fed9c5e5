"""What a job offers: for every unit the candidates it may take. A pure function of model and request."""

from collections.abc import Mapping
from typing import Any

from workers.contracts import Candidate, ModelDescription, Scheme

Offer = tuple[tuple[str, Candidate], ...]


def offer_of(description: ModelDescription, request: Mapping[str, Any]) -> Offer:
    """Every (unit, candidate) of a job, units in execution order, then by bit-width, then as the request lists schemes.

    Where activations are quantized too, a candidate is a pair of widths; units that multiply no activations (look-ups) have
    none to quantize.

    Args:
        description: The model.
        request: As a job keeps it: `candidates`, `schemes`, `activation_candidates`, `exclude`.
    """
    excluded = set(request["exclude"])
    schemes = [Scheme.parse(text) for text in request["schemes"]]
    widths: list[int | None] = [*request["activation_candidates"]] or [None]
    return tuple(
        (unit.name, Candidate(bits=bits, scheme=scheme, activation_bits=activation_bits))
        for unit in description.units
        if unit.name not in excluded
        for bits in request["candidates"]
        for scheme in schemes
        for activation_bits in (widths if unit.activations else [None])
    )
