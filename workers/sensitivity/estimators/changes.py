"""What a unit's candidates change in the constants that the graph reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from workers.contracts import Candidate
from workers.graph.program import Program
from workers.graph.units import Unit
from workers.quant import by_shared_work, fake_quantize

Quantizer = Callable[[Unit, Tensor, Candidate], Tensor]
"""A unit's weight as a candidate stores it: unit, weight, candidate -> weight of the same shape and device."""

_MOST_BYTES_AT_ONCE = 1 << 30


def round_to_nearest(unit: Unit, weight: Tensor, candidate: Candidate) -> Tensor:
    """The quantizer of `workers.quant`."""
    return fake_quantize(
        weight,
        candidate,
        output_channel_axis=unit.info.output_channel_axis,
        group_axis=unit.info.group_axis,
        name=unit.info.name,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ConstantChanges:
    """Changes of a unit's constants under some of its candidates.

    Args:
        candidates: Which of the unit's candidates.
        of: Constant -> ``[candidates, *shape]``: its value under each candidate minus the float one; at least
            float32. Constants that show the same memory share one tensor.
    """

    candidates: slice
    of: dict[Node, Tensor]


@dataclass(kw_only=True, eq=False)
class Changes:
    """Computes changes of constants, and keeps them within a bound on memory.

    Args:
        program: The model.
        units: The units.
        candidates: Per unit its candidates.
        operands: Per unit the constants whose changes are wanted.
        quantize: Makes a candidate's weight.
        memory_bytes: Bound on what is kept for the next batch.
    """

    program: Program
    units: Sequence[Unit]
    candidates: Sequence[Sequence[Candidate]]
    operands: Sequence[frozenset[Node]]
    quantize: Quantizer
    memory_bytes: int
    _kept: dict[tuple[int, int], ConstantChanges] = field(default_factory=dict)

    def of(self, unit: int) -> Iterator[ConstantChanges]:
        """A unit's changes, some candidates at a time.

        Args:
            unit: Number of the unit.
        """
        representatives = self._representatives(unit)
        bytes_each = self._bytes_each(representatives)
        step = max(1, _MOST_BYTES_AT_ONCE // max(1, bytes_each))
        for start in range(0, len(self.candidates[unit]), step):
            stop = min(start + step, len(self.candidates[unit]))
            if (unit, start) not in self._kept:
                found = self._compute(unit, slice(start, stop), representatives)
                size = bytes_each * (stop - start)
                if size > self.memory_bytes:
                    yield found
                    continue
                self.memory_bytes -= size
                self._kept[unit, start] = found
            yield self._kept[unit, start]

    @property
    def bytes(self) -> int:
        """Memory of the changes of all candidates of all units."""
        return sum(
            len(candidates) * self._bytes_each(self._representatives(unit))
            for unit, candidates in enumerate(self.candidates)
        )

    def _bytes_each(self, representatives: Mapping[Node, Node]) -> int:
        """Memory of one candidate's changes of a unit's constants."""
        return sum(
            _precise(self.program.constant(node).dtype).itemsize * self.program.constant(node).numel()
            for node in set(representatives.values())
        )

    def _compute(self, unit: int, candidates: slice, representatives: Mapping[Node, Node]) -> ConstantChanges:
        chosen = self.candidates[unit][candidates]
        weight = self.program.constant(self.units[unit].node)
        stacks: dict[Node, Tensor] = {}
        for node in set(representatives.values()):
            value = self.program.constant(node)
            stacks[node] = value.new_empty((len(chosen), *value.shape), dtype=_precise(value.dtype))
        for index in by_shared_work(chosen):
            quantized = self.quantize(self.units[unit], weight, chosen[index])
            values = self.program.override(self.units[unit].changes(quantized)).values
            for node, stack in stacks.items():
                torch.sub(
                    values[node].to(stack.dtype),
                    self.program.constant(node).to(stack.dtype),
                    out=stack[index],
                )
        return ConstantChanges(
            candidates=candidates, of={node: stacks[same] for node, same in representatives.items()}
        )

    def _representatives(self, unit: int) -> dict[Node, Node]:
        """Per operand one that shows the same memory in the same way."""
        known: dict[tuple[object, ...], Node] = {}
        result: dict[Node, Node] = {}
        for node in sorted(self.operands[unit], key=lambda node: node.name):
            value = self.program.constant(node)
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            result[node] = known.setdefault(key, node)
        return result


def _precise(dtype: torch.dtype) -> torch.dtype:
    """Half precision would round differences away."""
    return torch.promote_types(dtype, torch.float32)
