"""What a unit's candidates change in the constants that the graph reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

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
        for candidates, _ in self._at_once(unit):
            key = unit, candidates.start
            found = self._kept.get(key)
            if found is None:
                found = self._compute(unit, candidates, representatives)
                if key in self._keeps:
                    self._kept[key] = found
            yield found

    def made_again(self, unit: int) -> int:
        """How many of a unit's candidates are made again for each batch."""
        return sum(
            candidates.stop - candidates.start
            for candidates, _ in self._at_once(unit)
            if (unit, candidates.start) not in self._keeps
        )

    @cached_property
    def _keeps(self) -> frozenset[tuple[int, int]]:
        """What is kept: as much as there is memory for, from the last unit on."""
        room, keeps = self.memory_bytes, set()
        for unit in reversed(range(len(self.units))):
            for candidates, size in self._at_once(unit):
                if size <= room:
                    room -= size
                    keeps.add((unit, candidates.start))
        return frozenset(keeps)

    def _at_once(self, unit: int) -> Iterator[tuple[slice, int]]:
        """Which of a unit's candidates are made at once, and the memory that their changes take."""
        each, count = self._bytes_each(self._representatives(unit)), len(self.candidates[unit])
        step = max(1, _MOST_BYTES_AT_ONCE // max(1, each))
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield slice(start, stop), each * (stop - start)

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
