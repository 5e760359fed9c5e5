"""Where the graph reads each unit, and which values depend on one."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from torch.fx import Node

from workers.graph.dataflow import Dataflow, depends_on
from workers.graph.units import Unit


@dataclass(frozen=True, kw_only=True)
class Use:
    """One step that reads a unit.

    Args:
        unit: Number of the unit.
        operands: The constants read there that change with the unit: the weight, a view of it, or something
            computed from it.
    """

    unit: int
    operands: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Uses:
    """All uses of some units.

    Args:
        at: Step's node -> its uses (one per unit that it reads).
        operands: Per unit all constants that are read.
        active: The steps whose values depend on a unit.
    """

    at: dict[Node, tuple[Use, ...]]
    operands: tuple[frozenset[Node], ...]
    active: frozenset[Node]

    @classmethod
    def of(cls, flow: Dataflow, units: Iterable[Unit]) -> Self:
        """Find the uses.

        Args:
            flow: The graph.
            units: In the order that numbers them.
        """
        at: dict[Node, list[Use]] = defaultdict(list)
        read: list[frozenset[Node]] = []
        for number, unit in enumerate(units):
            changed = {alias.node for alias in unit.aliases}
            changed |= depends_on(flow.constants, changed)
            for node in flow.live:
                operands = tuple(source for source in node.all_input_nodes if source in changed)
                if operands:
                    at[node].append(Use(unit=number, operands=operands))
            read.append(
                frozenset(
                    node
                    for uses in at.values()
                    for use in uses
                    if use.unit == number
                    for node in use.operands
                )
            )
        return cls(
            at={node: tuple(uses) for node, uses in at.items()},
            operands=tuple(read),
            active=frozenset({*at, *depends_on(flow.live, at)}),
        )

    def once(self) -> frozenset[int]:
        """The units that one step alone reads."""
        count = Counter(use.unit for uses in self.at.values() for use in uses)
        return frozenset(unit for unit, steps in count.items() if steps == 1)

    def done_at(self) -> dict[Node, tuple[int, ...]]:
        """Step -> the units that it is the first to read: a walk back is done with them there."""
        first: dict[int, Node] = {}
        for node, uses in self.at.items():
            for use in uses:
                known = first.get(use.unit)
                if known is None or node < known:
                    first[use.unit] = node
        return {
            node: tuple(unit for unit, step in first.items() if step is node) for node in set(first.values())
        }
