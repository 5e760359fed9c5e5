"""The complete frontier of a size-only problem: every plan that no other plan equals or beats in both size and cost.

Groups are added one by one; a state is dropped only when another one is neither larger nor dearer. The list stays short when
sizes share a large divisor (models with a few distinct shapes), and explodes otherwise: hence the cap.

Source: Bellman's dynamic programming over nondominated lists (Nemhauser and Ullmann 1969, "Discrete dynamic programming and
capital allocation").
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from solver.acceleration import Engine

MAX_NODES = 20_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class ParetoList:
    """All nondominated plans by rising size; plans share their beginnings in a tree of moves.

    Attributes:
        sizes: int64 [P], increasing.
        costs: float64 [P], decreasing; sums in the order of the search.
        nodes: int64 [P], the last move of each plan; 0 for none.
        parents: int64 [N], node before each node.
        groups: int64 [N].
        slots: int64 [N].
        start: int64 [G], the smallest plan, which the moves change.
    """

    sizes: NDArray[np.int64]
    costs: NDArray[np.float64]
    nodes: NDArray[np.int64]
    parents: NDArray[np.int64]
    groups: NDArray[np.int64]
    slots: NDArray[np.int64]
    start: NDArray[np.int64]

    def plan(self, index: int) -> NDArray[np.int64]:
        """Slot of each group."""
        slots = self.start.copy()
        node = int(self.nodes[index])
        while node > 0:
            slots[self.groups[node]] = self.slots[node]
            node = int(self.parents[node])
        return slots


def complete_frontier(
    costs: NDArray[np.float64],
    sizes: NDArray[np.int64],
    *,
    max_points: int,
    deadline: float,
    engine: "Engine",
) -> ParetoList | None:
    """Every nondominated plan, or ``None`` when there are more than ``max_points`` (at any stage) or the time is over.

    Args:
        costs: float64 [G, K].
        sizes: int64 [G, K].
        max_points: Most points of the list while groups are added.
        deadline: Of `time.monotonic`; looked at after every group.
        engine: Implementation of one step.
    """
    order = np.lexsort((costs, sizes), axis=1)
    start = order[:, 0].astype(np.int64)
    rows = np.arange(len(costs))
    steps = sizes - sizes[rows, start][:, None]
    changes = costs - costs[rows, start][:, None]
    size, cost, node = np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64)
    tree = [np.zeros((3, 1), np.int64)]
    nodes = 1
    # Groups of small range first: the lists stay short for longer.
    for group in np.argsort(steps.max(axis=1), kind="stable").tolist():
        slots = _useful(order[group], changes[group])
        if not len(slots):
            continue
        size, cost, before, option = engine.add_choices(
            size, cost, steps[group, slots], changes[group, slots]
        )
        parents = node[before]
        moved = np.flatnonzero(option)
        node = parents.copy()
        node[moved] = np.arange(nodes, nodes + len(moved))
        tree.append(np.stack((parents[moved], np.full(len(moved), group), slots[option[moved] - 1])))
        nodes += len(moved)
        if len(size) > max_points or nodes > MAX_NODES or time.monotonic() > deadline:
            return None
    parents, groups, chosen = np.concatenate(tree, axis=1)
    return ParetoList(
        sizes=size + int(sizes[rows, start].sum()),
        costs=cost + float(costs[rows, start].sum()),
        nodes=node,
        parents=parents,
        groups=groups,
        slots=chosen,
        start=start,
    )


def _useful(order: NDArray[np.int64], changes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Slots of a group that save cost against all smaller ones, by rising size."""
    saved = changes[order]
    keep = np.zeros(len(order), bool)
    keep[1:] = saved[1:] < np.minimum.accumulate(saved)[:-1]
    return order[keep].astype(np.int64)


def add_choices(
    size: NDArray[np.int64],
    cost: NDArray[np.float64],
    steps: NDArray[np.int64],
    changes: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Every state with no move and with each of a group's moves; dominated states are left out.

    Args:
        size: int64 [S], increasing.
        cost: float64 [S], decreasing.
        steps: int64 [M], what each move adds to the size, > 0.
        changes: float64 [M], what it adds to the cost.

    Returns:
        Sizes, costs, the position before of each new state, and 0 or 1 + the position of its move.
    """
    sizes = np.concatenate((size, (steps[:, None] + size).ravel()))
    all_costs = np.concatenate((cost, (changes[:, None] + cost).ravel()))
    order = np.argsort(sizes, kind="stable")
    sizes, all_costs = sizes[order], all_costs[order]
    keep = np.ones(len(sizes), bool)
    keep[1:] = all_costs[1:] < np.minimum.accumulate(all_costs)[:-1]
    # Of equal sizes only the cheapest survives: a later one is cheaper, or it would have fallen out.
    at = np.flatnonzero(keep)
    at = at[np.append(sizes[at][1:] != sizes[at][:-1], True)]
    return sizes[at], all_costs[at], order[at] % len(size), order[at] // len(size)
