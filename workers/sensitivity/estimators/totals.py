"""What probes say of each entry, summed up use by use."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_LEFT = 1 / 16
"""What is left of the estimate of a unit with several uses, if one costs less by itself than was estimated."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeValues:
    """What one probe says.

    Args:
        weights: ``[entries, samples]``, float64, on the CPU: squares estimate costs, products interactions. 0 for
            samples without a position that counts.
        activations: Unit -> ``[activation candidates, samples]``, likewise; empty unless asked for.
        counted: ``[samples]``: whether a sample has a position that counts.
    """

    weights: Tensor
    activations: dict[str, Tensor]
    counted: Tensor


class Totals:
    """Sums over uses, for a group of probes.

    Args:
        probes: How many.
        entries: Of how many entries.
        samples: Of how many samples.
    """

    def __init__(self, probes: int, entries: int, samples: int) -> None:
        self._probes = probes
        self.weights = torch.zeros(probes, entries, samples, dtype=torch.float64)
        self.activations: dict[str, list[Tensor]] = {}
        self.counted = torch.zeros(samples, dtype=torch.bool)
        self._surplus = torch.zeros(probes, entries, dtype=torch.float64)

    def know(self, entry: int, estimated: Tensor, costs: Tensor) -> None:
        """What one use of a unit costs by itself.

        Args:
            entry: Number of the entry.
            estimated: ``[probes, samples]``, its values.
            costs: ``[samples]``.
        """
        self._surplus[:, entry] += costs.sum() - estimated.square().sum(-1)

    def add_activation(self, unit: str, candidate: int, samples: slice, values: Tensor) -> None:
        """Add ``[probes, samples]`` to a candidate of a unit's input."""
        rows = self.activations.setdefault(unit, [])
        if candidate == len(rows):
            rows.append(self.weights.new_zeros((self._probes, len(self.counted))))
        rows[candidate][:, samples] += values.cpu()

    def each(self) -> Iterator[ProbeValues]:
        """One probe's values after the other."""
        squares = self.weights.square().sum(-1)
        share = torch.where(squares > 0, 1.0 + self._surplus / squares, 1.0)
        weights = self.weights * share.clamp_min(_LEAST_LEFT).sqrt()[..., None]
        for index in range(self._probes):
            yield ProbeValues(
                weights=weights[index],
                activations={
                    unit: torch.stack([row[index] for row in rows]) for unit, rows in self.activations.items()
                },
                counted=self.counted,
            )
