"""What is fed to the model in one walk, and where the samples lie inside."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from workers.errors import MeasurementFailed
from workers.graph.program import Program
from workers.sensitivity.batches import Batches
from workers.sensitivity.estimators.layout import SampleLayout, find_layout
from workers.sensitivity.estimators.tape import Place, Plan, Tape, Visit

_MOST_BYTES = 1 << 30
"""What the steps of a walk compute at most, if that is more than one sample: the walk back needs about three times that."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Feed:
    """One walk's samples.

    Args:
        inputs: What the model is fed.
        fed: How many samples that is, fillers included.
        kept: How many of them count; they come first.
        batch: The batch they belong to.
        offset: Number of the first of them in the batch.
        samples: Where they stand among all samples.
    """

    inputs: Sequence[Tensor]
    fed: int
    kept: int
    batch: int
    offset: int
    samples: slice


class Layouts:
    """Where samples lie in the tensors that visits show.

    Args:
        found: Per tensor; ``None`` if some tensor mixes samples, so that they are to be fed one by one.
        most: Samples that are fed at once, where the batch is not fixed.
    """

    def __init__(self, found: dict[Place, SampleLayout] | None, most: int = 1) -> None:
        self._found = found
        self._most = most

    def know(self, place: Place) -> bool:
        """Whether a tensor's layout is known; it always is where a wanted step reads or writes it."""
        return self._found is None or place in self._found

    def of(self, place: Place) -> SampleLayout:
        """A tensor's layout."""
        if self._found is None:  # there is one sample only, on any axis
            return SampleLayout(axis=0)
        return self._found[place]

    def feeds(self, batches: Batches, batch: int) -> Iterator[Feed]:
        """A batch as it is to be fed."""
        inputs, kept, first = batches.inputs_of(batch), batches.kept(batch), batch * batches.size
        if batches.fixed:
            samples = slice(first, first + kept)
            yield Feed(inputs=inputs, fed=batches.size, kept=kept, batch=batch, offset=0, samples=samples)
            return
        size = -(-kept // -(-kept // self._most))
        for start in range(0, kept, size):
            count = min(size, kept - start)
            yield Feed(
                inputs=[tensor[start : start + count] for tensor in inputs],
                fed=count,
                kept=count,
                batch=batch,
                offset=start,
                samples=slice(first + start, first + start + count),
            )


_KNOWN: WeakKeyDictionary[Program, dict[Hashable, Layouts]] = WeakKeyDictionary()
"""What was found of a program: a worker probes the same one part by part, and looking takes as long as two samples' walks."""


def layouts_of(plan: Plan, start: Place | None, batches: Batches) -> Layouts:
    """As `find_layouts`, which looks once for all walks over the same program that visit the same and are fed the same shapes."""
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in batches.inputs_of(0))
    fed = batches.size if batches.fixed else 0
    key = (
        start,
        frozenset(plan.wanted),
        frozenset(plan.kept),
        frozenset(plan.quantizers),
        plan.through,
        fed,
        shapes,
    )
    known = _KNOWN.setdefault(plan.program, {})
    if key not in known:
        known[key] = find_layouts(plan, start, batches)
    return known[key]


def find_layouts(plan: Plan, start: Place | None, batches: Batches) -> Layouts:
    """Find out where samples lie, by the gradients of two samples.

    Args:
        plan: What will be walked.
        start: The output that is differentiated; ``None`` if there is nothing to walk.
        batches: The samples.

    Raises:
        MeasurementFailed: A model with a fixed batch mixes samples.
    """
    if start is None or (batches.fixed and batches.size == 1):
        return Layouts(None)
    inputs = batches.inputs_of(0)
    if not batches.fixed:  # two samples say as much as many
        inputs = [tensor[[0, -1]] for tensor in inputs]
    samples = len(inputs[0])
    tape = Tape(plan, inputs)
    starts = [{start: _of_one(tape.outputs[0], sample)} for sample in (0, samples - 1)]
    found: dict[Place, SampleLayout | None] = {}
    needed: set[Place] = set()

    def look(visit: Visit) -> None:
        wanted = visit.step.node in plan.wanted
        for number in visit.outputs[0] if wanted else ():
            one, other = (walk[number] for walk in visit.outputs)
            found[visit.step.node, number] = _layout(one, other, samples, fixed=batches.fixed)
            needed.add((visit.step.node, number))
        for place in visit.sources[0]:
            one, other = (walk[place] for walk in visit.sources)
            if found.get(place) is None:
                found[place] = _layout(one, other, samples, fixed=batches.fixed)
            if wanted:
                needed.add(place)

    tape.backward(starts, look)
    clear = {place: layout for place, layout in found.items() if layout is not None}
    if needed <= clear.keys():
        return Layouts(clear, max(1, _MOST_BYTES * samples // tape.computed_bytes))
    if batches.fixed:
        mixed = next(place[0].name for place in found if place in needed - clear.keys())
        raise MeasurementFailed(
            f"node {mixed!r} mixes the samples of the model's fixed batch of {batches.size}",
            "batch_size",
            batches.size,
            "a model that treats samples apart, or one exported with a batch of any size",
        )
    return Layouts(None)


def _of_one(output: Tensor, sample: int) -> Tensor:
    """A random cotangent of one sample's outputs."""
    cotangent = torch.zeros_like(output)
    draw = torch.randn(output.shape[1:], generator=torch.Generator().manual_seed(0))
    cotangent[sample] = draw.to(output)
    return cotangent


def _layout(first: Tensor, last: Tensor, samples: int, *, fixed: bool) -> SampleLayout | None:
    layout = find_layout(first, last, samples)
    dead = fixed and not bool(first.any()) and not bool(last.any())
    if layout is None and dead:  # nothing depends on it: any axis will do
        axis = next((axis for axis, size in enumerate(first.shape) if size % samples == 0), None)
        return None if axis is None else SampleLayout(axis=axis)
    return layout
