"""How far a change of a weight is followed before it is taken to be small.

Products with what comes back to a unit's own output take all that lies behind it to be linear. What lies next is often the
least linear part: an activation function that clips, a softmax that saturates. It is also cheap, for up to the next
weights there are no large products. So a change may be computed up to there as it is, and multiplied with what comes back
to that place: linear is then only what lies behind.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, NamedTuple, Self

from torch.fx import Node

from workers.graph.dataflow import Dataflow, ancestors, operator_name
from workers.graph.program import Program, Step
from workers.sensitivity.estimators.uses import Uses

_SUMS = frozenset(("add", "sub", "cat", "stack"))
"""Linear in all operands together."""
_PRODUCTS = frozenset(
    ("matmul", "mm", "bmm", "mv", "einsum", "tensordot", "baddbmm", "addmm", "linear", "bilinear")
)
"""Linear in each operand by itself, and not cheap with weights, like convolutions."""
_LINEAR_IN_FIRST = frozenset(("div", "masked_fill", "gather", "index"))
_MOVES = frozenset(
    (
        *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"),
        *("transpose", "permute", "t", "slice", "select", "index_select", "narrow", "split", "chunk"),
        *("split_with_sizes", "unbind", "getitem", "repeat", "repeat_interleave", "roll", "flip", "neg"),
        *("pixel_shuffle", "contiguous", "clone", "alias", "detach", "to", "_to_copy", "type_as"),
        *("dropout", "pad", "constant_pad_nd", "mean", "sum", "cumsum", "avg_pool1d", "avg_pool2d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "batch_norm", "sym_size"),
        *("upsample_nearest2d", "upsample_bilinear2d"),
    )
)
"""Linear (or linear and a constant) in what changes, whatever else they read."""
_MOST_STEPS = 64
"""Steps that are run again for one unit at most; attention with rotary embeddings has 17."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The steps behind a unit's own that are run again with a change.

    Args:
        steps: In order.
        ends: Steps in front of which following ends, each with a node that it reads; ``None``: the node is the output.
    """

    steps: tuple[Step, ...]
    ends: tuple[tuple[Node | None, Node], ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is left to be linear: the change is known at the output."""
        return all(end is None for end, _ in self.ends)

    def members(self) -> list[Node]:
        """Steps that a walk back comes by before it comes to the unit's own."""
        return [*(step.node for step in self.steps), *(end for end, _ in self.ends if end is not None)]

    def reads(self) -> list[tuple[Node, Node]]:
        """Steps with the float values that following needs of what they read."""
        inside = {step.node for step in self.steps}
        outside = [
            (step.node, source)
            for step in self.steps
            for source in step.node.all_input_nodes
            if source not in inside
        ]
        return [*outside, *((end, source) for end, source in self.ends if end is not None)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reaches:
    """How far the changes of all units are followed.

    Args:
        of: Unit's step -> its reach; none where all that lies in it is linear.
        kept: Step of a reach, or at the end of one -> values it reads that following needs.
        ends: Step at the end of one -> those that change.
        last: Unit's step -> steps of ``kept`` that no unit's step before it needs: a walk back is done with them there;
            ``None``: with where it started from.
    """

    of: Mapping[Node, Reach]
    kept: Mapping[Node, frozenset[Node]]
    ends: Mapping[Node, frozenset[Node]]
    last: Mapping[Node, frozenset[Node | None]]

    @classmethod
    def find(cls, program: Program, flow: Dataflow, uses: Uses, wanted: Collection[Node]) -> Self:
        """Find how far changes can be followed: up to the next weights, or to where they join what others have summed up.

        Args:
            program: The model.
            flow: Its graph.
            uses: Of all units, wanted or not: what a change may do depends on the model alone.
            wanted: Steps that read a unit whose changes are followed.
        """
        output = flow.outputs[0]
        bounds = _Bounds(
            active=uses.active,
            weighted=uses.at,
            sums={node for node in flow.live if operator_name(node) in _SUMS} - _tail(flow),
            needed=ancestors(output) if isinstance(output, Node) else set(),
        )
        found: dict[Node, Reach] = {}
        kept: dict[Node, set[Node]] = defaultdict(set)
        ends: dict[Node, set[Node]] = defaultdict(set)
        last: dict[Node, set[Node | None]] = defaultdict(set)
        seen: set[Node | None] = set()
        for node in flow.live:
            reach = _find(program, flow, node, bounds) if node in wanted else None
            if reach is None:
                continue
            found[node] = reach
            members = {*reach.members(), *(end for end, _ in reach.ends)}
            last[node].update(members - seen)
            seen |= members
            for end, source in reach.ends:
                if end is not None:
                    ends[end].add(source)
            for member in reach.members():
                kept[member].update(source for step, source in reach.reads() if step is member)
        return cls(
            of=found,
            kept={node: frozenset(values) for node, values in kept.items()},
            ends={node: frozenset(sources) for node, sources in ends.items()},
            last={node: frozenset(members) for node, members in last.items()},
        )

    @classmethod
    def none(cls) -> Self:
        """Nothing is followed."""
        return cls(of={}, kept={}, ends={}, last={})


class _Bounds(NamedTuple):
    """Where following ends: in front of weights, and of sums with what other units have made; what is needed at all."""

    active: Collection[Node]
    weighted: Collection[Node]
    sums: Collection[Node]
    needed: Collection[Node]

    def hold(self, node: Node, changed: Collection[Node]) -> bool:
        """Whether a step ends it: a stream that others write to goes on to the model's end."""
        return node in self.weighted or (
            node in self.sums
            and any(source in self.active and source not in changed for source in node.all_input_nodes)
        )


def _tail(flow: Dataflow) -> set[Node]:
    """The output, and what is only laid side by side there: several outputs that are compared at once."""
    found = {node for node in flow.outputs[:1] if isinstance(node, Node)}
    for node in reversed(flow.live):
        readers = [reader for reader in node.users if reader in flow.position]
        if operator_name(node) in _MOVES | {"cat", "stack"} and readers and found.issuperset(readers):
            found.add(node)
    return found


def _find(program: Program, flow: Dataflow, own: Node, bounds: _Bounds) -> Reach | None:
    changed = {own}
    steps: list[Step] = []
    ends: list[tuple[Node | None, Node]] = []
    linear = True
    coming = _positions(flow, own)
    while coming:
        step = program.steps[heappop(coming)]
        node = step.node
        if node in changed or node not in bounds.needed or any(node is end for end, _ in ends):
            continue
        sources = [source for source in node.all_input_nodes if source in changed]
        if bounds.hold(node, changed) or _is_layer(flow, node, sources):
            ends += [(node, source) for source in sources]
            continue
        linear = linear and _is_linear(node, sources)
        changed.add(node)
        steps.append(step)
        if len(steps) > _MOST_STEPS:
            return None
        for position in _positions(flow, node):
            heappush(coming, position)
    output = flow.outputs[0]
    if output in changed:
        ends.append((None, output))
    reach = Reach(steps=tuple(steps), ends=tuple(ends))
    return reach if ends and (reach.whole or not linear) else None


def _positions(flow: Dataflow, node: Node) -> list[int]:
    """Numbers of the steps that read a value, ascending."""
    return sorted(flow.position[reader] for reader in node.users if reader in flow.position)


def _is_layer(flow: Dataflow, node: Node, changed: list[Node]) -> bool:
    """Whether a step multiplies the change with weights that are no unit's."""
    name = operator_name(node)
    others = [source for source in node.all_input_nodes if source not in changed]
    return (name in _PRODUCTS or "conv" in name) and others != [] and not any(map(flow.is_live, others))


def _is_linear(node: Node, changed: list[Node]) -> bool:
    name, first = operator_name(node), next(iter(node.args), None)
    if name in _SUMS or name in _MOVES:
        return True
    if _occurrences(node, changed) > 1:
        return False
    if name == "scaled_dot_product_attention":  # in its values
        return node.args[2] is changed[0]
    return name in ("mul", "where") or name in _PRODUCTS or (name in _LINEAR_IN_FIRST and first is changed[0])


def _occurrences(node: Node, changed: list[Node]) -> int:
    def count(value: Any) -> int:
        if isinstance(value, list | tuple):
            return sum(count(element) for element in value)
        return int(value in changed if isinstance(value, Node) else False)

    return count(node.args) + count(list(node.kwargs.values()))
