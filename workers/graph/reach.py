"""What a change reaches: the steps whose values depend on it, and what has to be known besides.

Behind the first step that sees a change there are steps that do not depend on it: the other branches of a block, the
other keys and values of an attention, a whole tower of a model with two inputs. Their values are those of the float
model. So a change is followed by running the steps that it reaches, and nothing else, on the *boundary*: the float
model's values that those steps read.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch.fx import Node

from workers.graph.program import NO_OVERRIDE, Environment, Override, Program, call, changed, computing


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Some steps of a program, in its order.

    Args:
        indices: Which.
        frees: Per step, nodes whose values no later step of the part reads.
    """

    indices: tuple[int, ...]
    frees: tuple[tuple[Node, ...], ...]

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.indices)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reach:
    """What a change reaches on its way to the first output.

    Args:
        cut: Index of the first step that sees the change.
        seeds: Indices of the steps that see it first-hand.
        affected: The steps whose values depend on it and that the first output needs.
        boundary: Nodes whose unchanged values these steps read, and the first output if no step changes it.
        ahead: Those of the boundary that are computed behind the cut.
    """

    cut: int
    seeds: frozenset[int]
    affected: Part
    boundary: frozenset[Node]
    ahead: frozenset[Node]


class Reaches:
    """Finds what changes reach in a program.

    Args:
        program: The program.
    """

    def __init__(self, program: Program) -> None:
        self._nodes = [step.node for step in program.steps]
        self._position = {node: index for index, node in enumerate(self._nodes)}
        live = self._position.keys() | set(program.inputs)
        self._sources = [
            tuple(source for source in node.all_input_nodes if source in live) for node in self._nodes
        ]
        first = program.first_output
        self._output: Node | None = first if isinstance(first, Node) and first in live else None
        self._needed = self._closure([] if self._output is None else [self._output], stop=frozenset(), cut=0)

    def of(self, seeds: Collection[int]) -> Reach:
        """What a change reaches.

        Args:
            seeds: Indices of the steps that see it first-hand, one or more.
        """
        cut = min(seeds)
        reached: set[Node] = set()
        affected: list[int] = []
        for index in range(cut, len(self._nodes)):
            if index in seeds or any(source in reached for source in self._sources[index]):
                reached.add(self._nodes[index])
                if index in self._needed:
                    affected.append(index)
        read = {source for index in affected for source in self._sources[index]}
        if self._output is not None:
            read.add(self._output)
        boundary = frozenset(read - reached)
        ahead = frozenset(node for node in boundary if self._position.get(node, -1) >= cut)
        return Reach(
            cut=cut,
            seeds=frozenset(seeds),
            affected=self._part(affected),
            boundary=boundary,
            ahead=ahead,
        )

    def ahead(self, reach: Reach, known: Collection[Node]) -> Part:
        """The steps behind the cut that have to be run for the boundary, none of them reached by the change.

        Args:
            reach: What is to be run.
            known: Nodes whose values are known, besides those alive at the cut.
        """
        indices = self._closure(reach.ahead, stop=known, cut=reach.cut)
        return self._part(sorted(indices), keep=reach.boundary)

    def _closure(self, wanted: Iterable[Node], *, stop: Collection[Node], cut: int) -> set[int]:
        """The steps at or behind a cut that some values need, those values' own steps among them."""
        found: set[int] = set()
        pending = list(wanted)
        while pending:
            node = pending.pop()
            index = self._position.get(node, -1)
            if index >= cut and index not in found and node not in stop:
                found.add(index)
                pending.extend(self._sources[index])
        return found

    def _part(self, indices: list[int], *, keep: Collection[Node] = ()) -> Part:
        last_use = {source: place for place, index in enumerate(indices) for source in self._sources[index]}
        frees: list[list[Node]] = [[] for _ in indices]
        for node, place in last_use.items():
            if node is not self._output and node not in keep:
                frees[place].append(node)
        return Part(indices=tuple(indices), frees=tuple(tuple(nodes) for nodes in frees))


def run_part(
    program: Program, environment: Environment, part: Part, override: Override = NO_OVERRIDE
) -> None:
    """Run some steps on an environment that holds what they read, dropping values after their last use.

    Args:
        program: The program.
        environment: Changed in place; values in it are not written to.
        part: The steps.
        override: Constants and operands to use in place of the program's.

    Raises:
        MeasurementFailed: An operator failed, or an override of its operands did; names its node.
    """
    value = program.reader(environment, override)
    with computing(program.device):
        for index, frees in zip(part.indices, part.frees, strict=True):
            step, operands = program.steps[index], override.operands.get(index)
            environment[step.node] = call(step, value if operands is None else changed(operands, value))
            for node in frees:
                environment.pop(node, None)
