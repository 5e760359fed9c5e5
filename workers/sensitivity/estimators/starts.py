"""Where a probe's walk starts: at the output that is compared, or at several of them packed."""

from collections.abc import Iterator

import torch
from torch import Tensor

from workers.sensitivity.estimators.cotangents import cost_gradient, cotangent
from workers.sensitivity.mixture import MixedReference
from workers.sensitivity.reference import Reference, sample_costs


def start_of(
    reference: Reference | MixedReference, output: Tensor, signs: Tensor, mask: Tensor | None
) -> Tensor:
    """``R s`` for what a reference compares, see `workers.sensitivity.estimators.cotangents`.

    Of several outputs each has its own signs, and the square root of its weight: the cross terms of the square
    vanish in expectation, and what is left is the weighted sum of the outputs' costs.

    Args:
        reference: Gives metrics, weights and variances.
        output: ``[n, ...]``, outputs of the float model.
        signs: ``[n, elements]`` of -1 and 1.
        mask: ``[n, positions]``, of several outputs one after the other; ``None`` if all count.
    """
    if isinstance(reference, Reference):
        return cotangent(reference.metric, output, signs, mask=mask, variance=reference.variance)
    packing = reference.packing
    parts = packing.split(output)
    all_signs = torch.split(signs, [part[0].numel() for part in parts], 1)
    masks = _masks(reference, mask)
    found = [
        cotangent(part.metric, values, each, mask=counted, variance=part.variance).reshape(len(output), -1)
        * weight**0.5
        for part, values, each, counted, weight in zip(
            reference.parts, parts, all_signs, masks, packing.weights, strict=True
        )
    ]
    return torch.cat(found, 1)


def gradient_of(
    reference: Reference | MixedReference, before: Tensor, output: Tensor, mask: Tensor | None
) -> Tensor:
    """Derivative of each sample's cost by the outputs of a quantized model.

    Args:
        reference: As for `start_of`.
        before: ``[n, ...]``, outputs of the float model.
        output: The same shape, outputs of the quantized model.
        mask: As for `start_of`.
    """
    if isinstance(reference, Reference):
        return cost_gradient(reference.metric, before, output, mask=mask, variance=reference.variance)
    found = [
        gradient_of(part, floats, values, counted).reshape(len(output), -1) * weight
        for part, floats, values, counted, weight in _each_output(reference, before, output, mask)
    ]
    return torch.cat(found, 1)


def costs_of(
    reference: Reference | MixedReference, before: Tensor, output: Tensor, mask: Tensor | None
) -> Tensor:
    """Each sample's cost, ``[n]``, float64, on the CPU; 0 for samples without a position that counts.

    Args:
        reference: As for `gradient_of`, like what follows.
        before: Outputs of the float model.
        output: Outputs of a quantized model.
        mask: ``[n, positions]``, as for `start_of`.
    """
    if isinstance(reference, Reference):
        counted = None if mask is None else mask != 0
        found = sample_costs(reference.metric, before, output, None, reference.variance, counted=counted)
        return found if counted is None else found.where(counted.any(1).cpu(), 0.0)
    found = torch.zeros(len(output), dtype=torch.float64)
    for part, floats, values, counted, weight in _each_output(reference, before, output, mask):
        found += weight * costs_of(part, floats, values, counted)
    return found


def _each_output(
    reference: MixedReference, before: Tensor, output: Tensor, mask: Tensor | None
) -> Iterator[tuple[Reference, Tensor, Tensor, Tensor | None, float]]:
    """Of outputs that are compared together each with its reference, before and after, its mask, and its weight."""
    packing = reference.packing
    return zip(
        reference.parts,
        packing.split(before),
        packing.split(output),
        _masks(reference, mask),
        packing.weights,
        strict=True,
    )


def _masks(reference: MixedReference, mask: Tensor | None) -> list[Tensor | None]:
    """The mask of each output."""
    if mask is None:
        return [None] * len(reference.parts)
    return list(torch.split(mask, reference.packing.positions(), 1))
