"""The entries that are asked for, by unit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from workers.contracts import Candidate
from workers.graph.program import Program
from workers.graph.units import Unit, UnitTable
from workers.sensitivity.estimators.changes import Quantizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """Entries grouped by unit; units are numbered in the order in which they are first named.

    Args:
        count: How many entries.
        units: The units.
        candidates: Per unit its candidates, by bit-width.
        rows: Per unit the numbers of their entries.
    """

    count: int
    units: tuple[Unit, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    rows: tuple[Tensor, ...]

    @classmethod
    def of(cls, table: UnitTable, wanted: Sequence[tuple[str, Candidate]]) -> Self:
        """Group entries.

        Args:
            table: The model's units.
            wanted: Unit names (tied ones will do) and candidates.

        Raises:
            RequestRefused: There is no such unit.
        """
        rows: dict[str, list[int]] = {}
        for row, (name, _) in enumerate(wanted):
            rows.setdefault(table.unit(name).info.name, []).append(row)
        for found in rows.values():
            found.sort(key=lambda row: wanted[row][1].bits)
        return cls(
            count=len(wanted),
            units=tuple(table.unit(name) for name in rows),
            candidates=tuple(tuple(wanted[row][1] for row in found) for found in rows.values()),
            rows=tuple(torch.tensor(found) for found in rows.values()),
        )

    def weight_changes(
        self, unit: int, program: Program, quantize: Quantizer
    ) -> Iterator[tuple[int, Tensor]]:
        """How each candidate changes a unit's weight, one at a time.

        Args:
            unit: Number of the unit.
            program: The model.
            quantize: Makes a candidate's weight.

        Yields:
            Number of the entry, and the change: the weight's shape, float64.
        """
        weight = program.constant(self.units[unit].node)
        for row, candidate in zip(self.rows[unit].tolist(), self.candidates[unit], strict=True):
            yield row, quantize(self.units[unit], weight, candidate).double() - weight.double()
