"""Changes of weights, followed through the steps behind them (`workers.sensitivity.estimators.reaches`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from workers.graph.residency import tensors_in
from workers.sensitivity.estimators.contraction import InnerProducts
from workers.sensitivity.estimators.feeds import Layouts
from workers.sensitivity.estimators.layout import SampleLayout
from workers.sensitivity.estimators.reaches import Reach, Reaches
from workers.sensitivity.estimators.tape import Place, Visit
from workers.sensitivity.estimators.visited import VisitedStep


@dataclass(frozen=True, kw_only=True, eq=False)
class Followed:
    """What one change does.

    Args:
        values: ``[cotangents, samples]``, float64: products with what comes back, at the ends of the reach.
        outputs: The model's first output under the change of this use alone, where the reach is whole.
    """

    values: Tensor
    outputs: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _End:
    """A tensor at the end of a reach."""

    source: Node
    number: int
    before: Tensor
    products: InnerProducts

    def values(self, after: Any) -> Tensor:
        """``[cotangents, samples]``, given the source's value under the change."""
        return self.products.with_output(list(tensors_in(after))[self.number] - self.before)


@dataclass(kw_only=True, eq=False)
class Following:
    """One walk back, as far as following needs what it comes by.

    Args:
        reaches: Of all units.
        output: The node of the model's first output.
        outputs: Its value, fillers included.
        starts: Per cotangent where the walk starts from there; emptied as soon as nothing needs it.
        layouts: Of the ends.
        constant: Gives the float values of constants.
    """

    reaches: Reaches
    output: Node
    outputs: Tensor
    starts: list[Tensor]
    layouts: Layouts
    constant: Callable[[Node], Any]
    _values: dict[Node, dict[Node, Any]] = field(default_factory=dict)
    _back: dict[Node, list[dict[Place, Tensor]]] = field(default_factory=dict)

    def begin(self) -> Iterator[dict[Place, Tensor]]:
        """Per cotangent where the walk starts."""
        for start in self.starts:
            yield {(self.output, 0): start}
        if not any(None in done for done in self.reaches.last.values()):
            self.starts.clear()

    def pass_by(self, visit: Visit) -> None:
        """Keep what following needs of a step that the walk visits."""
        node = visit.step.node
        kept = self.reaches.kept.get(node)
        if kept is None:
            return
        self._values[node] = {source: visit.values[source] for source in kept if source in visit.values}
        changing = self.reaches.ends.get(node, ())
        self._back[node] = [
            {place: back for place, back in sources.items() if place[0] in changing}
            for sources in visit.sources
        ]

    def leave(self, node: Node) -> None:
        """Drop what no step before a unit's needs."""
        for done in self.reaches.last.get(node, ()):
            if done is None:
                self.starts.clear()
            else:
                self._values.pop(done, None)
                self._back.pop(done, None)

    def knows(self, node: Node) -> bool:
        """Whether changes of what a unit's step reads can be followed: it makes one tensor, and samples can be told at the ends."""
        reach = self.reaches.of.get(node)
        if reach is None:
            return False
        known = self._known(reach)
        return isinstance(known.get(node), Tensor) and all(
            self.layouts.know((source, number)) and tensor.dim() > 0
            for end, source in reach.ends
            if end is not None
            for number, tensor in enumerate(tensors_in(known[source]))
            if self._back_to(end, (source, number))
        )

    def follow(self, step: VisitedStep, changes: dict[Node, Tensor]) -> Iterator[Followed]:
        """What changes of a unit's constants do at the ends of its reach, one change after the other.

        Args:
            step: The unit's step; `knows` it.
            changes: Constants it reads -> ``[K, *shape]``, their changes.
        """
        own = step.visit.step.node
        reach = self.reaches.of[own]
        known = self._known(reach)
        ends = list(self._ends(reach, known, step.samples))
        walks = len(step.visit.outputs)
        for (change,) in step.outputs_under(changes):
            values = change.new_zeros((walks, step.samples), dtype=torch.float64)
            for end in ends:
                if end.source is own:  # as it is: a difference of outputs would round it
                    values += end.products.with_output(change)
            changed = {own: change.add_(known[own])}
            self._run(reach, changed, known, step)
            for end in ends:
                if end.source is not own:
                    values += end.values(changed[end.source])
            yield Followed(values=values, outputs=changed[self.output] if reach.whole else None)

    def _run(self, reach: Reach, changed: dict[Node, Any], known: dict[Node, Any], step: VisitedStep) -> None:
        """Run a reach's steps on what has changed."""
        ending = {source for _, source in reach.ends}

        def value(node: Node) -> Any:
            if node in changed:
                return changed[node]
            return known[node] if node in known else self.constant(node)

        for inner in reach.steps:
            changed[inner.node] = step.precision.call(inner, value)
            for node in set(inner.frees) - ending:
                changed.pop(node, None)

    def _known(self, reach: Reach) -> dict[Node, Any]:
        """Float values of what a reach reads and ends with."""
        known: dict[Node, Any] = {self.output: self.outputs}
        for node in reach.members():
            known |= self._values[node]
        return known

    def _ends(self, reach: Reach, known: dict[Node, Any], samples: int) -> Iterator[_End]:
        """The tensors at the ends that something comes back to."""
        for end, source in reach.ends:
            for number, before in enumerate(tensors_in(known[source])):
                back = self._back_to(end, (source, number))
                if back:
                    layout = SampleLayout(axis=0) if end is None else self.layouts.of((source, number))
                    products = InnerProducts(back, layout, samples)
                    yield _End(source=source, number=number, before=before, products=products)

    def _back_to(self, end: Node | None, place: Place) -> list[Tensor]:
        """Per cotangent what comes back to a tensor through the step at an end; nothing where that is 0."""
        if end is None:
            return self.starts
        return [sources[place] for sources in self._back[end] if place in sources]
