"""What probes say of each entry, summed up use by use."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_LEFT = 1 / 16
"""What is left of an estimate at least, where one of a unit's uses costs less by itself than was estimated."""


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
    """Sums over uses, for probes that share their forward passes.

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
        self._costs = torch.full((entries, samples), torch.nan, dtype=torch.float64)

    def know(self, entry: int, samples: slice, costs: Tensor) -> None:
        """What a unit's only use costs some samples.

        Args:
            entry: Number of the entry.
            samples: Which samples.
            costs: Of each of them.
        """
        self._costs[entry, samples] = costs

    def know_part(self, entry: int, estimated: Tensor, costs: Tensor) -> None:
        """What one of a unit's uses costs by itself.

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
        """One probe's values after the other.

        Where costs are known the squares' mean over the probes is each sample's cost, and their scatter says nothing; where
        a part is, the squares' sum over the samples is as much more as that costs more than was estimated.
        """
        squares = self.weights.square()
        sums = squares.sum(-1)
        share = torch.where(sums > 0, 1.0 + self._surplus / sums, 1.0)
        weights = self.weights * share.clamp_min(_LEAST_LEFT).sqrt()[..., None]
        mean = squares.mean(0)
        exact = torch.where(mean > 0, self.weights * (self._costs / mean).sqrt(), self._costs.sqrt())
        weights = torch.where(self._costs.isnan(), weights, exact)
        for index in range(self._probes):
            yield ProbeValues(
                weights=weights[index],
                activations={
                    unit: torch.stack([row[index] for row in rows]) for unit, rows in self.activations.items()
                },
                counted=self.counted,
            )
