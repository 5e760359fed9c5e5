"""Pairs of a weight's and its inputs' bit-widths: to first order they change outputs by the sum of what either does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.fx import Node

from workers.contracts import Candidate
from workers.graph.units import Unit, UnitTable
from workers.sensitivity.activations import ActivationRanges
from workers.sensitivity.estimators.probe import ActivationChanges
from workers.sensitivity.estimators.totals import ProbeValues


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Entries taken apart into what is probed once for several of them.

    Args:
        wanted: Unit names and candidates, in the order of the entries.
        weights: The same without activation widths, each once.
        widths: Unit -> the widths of its inputs that are told from what its steps see as it is; ``None``: float.
        units: Of the entries, as ``widths`` names them.
    """

    wanted: Sequence[tuple[str, Candidate]]
    weights: Sequence[tuple[str, Candidate]]
    widths: dict[str, list[int | None]]
    units: Sequence[str]

    @classmethod
    def of(
        cls, wanted: Sequence[tuple[str, Candidate]], table: UnitTable, *, base: Sequence[str] = ()
    ) -> Self:
        """Take entries apart.

        Args:
            wanted: Unit names and candidates.
            table: Of the units.
            base: Names of the units whose inputs are quantized to begin with: for them float is a change.
        """
        units = [table.unit(name).info.name for name, _ in wanted]
        begun = {table.unit(name).info.name for name in base}
        widths: dict[str, list[int | None]] = {}
        for unit, (_, candidate) in zip(units, wanted, strict=True):
            bits = candidate.activation_bits
            if (bits is not None or unit in begun) and bits not in widths.setdefault(unit, []):
                widths[unit].append(bits)
        parts = [(name, replace(candidate, activation_bits=None)) for name, candidate in wanted]
        return cls(wanted=wanted, weights=list(dict.fromkeys(parts)), widths=widths, units=units)

    def changes(self, ranges: ActivationRanges | None) -> ActivationChanges | None:
        """How inputs change, for `workers.sensitivity.estimators.probe.ProbeOptions`; ``None`` where none does.

        Args:
            ranges: Observed; of all inputs that any entry quantizes.
        """
        if not self.widths:
            return None

        def changes(unit: Unit, node: Node, value: Tensor, seen: Tensor) -> Iterator[Tensor]:
            for bits in self.widths.get(unit.info.name, ()):
                if bits is None:
                    yield value - seen
                else:
                    assert ranges is not None
                    yield ranges.quantizer(node.name, bits)(value) - seen

        return changes

    def values(self, found: ProbeValues) -> Tensor:
        """One walk's values of all entries, ``[entries, samples]``."""
        place = {entry: row for row, entry in enumerate(self.weights)}
        rows = [place[name, replace(candidate, activation_bits=None)] for name, candidate in self.wanted]
        values = found.weights[torch.tensor(rows)]
        for row, (unit, (_, candidate)) in enumerate(zip(self.units, self.wanted, strict=True)):
            widths = self.widths.get(unit, [])
            # A unit that the output does not depend on is never come by, and costs nothing.
            if candidate.activation_bits in widths and unit in found.activations:
                values[row] += found.activations[unit][widths.index(candidate.activation_bits)]
        return values
