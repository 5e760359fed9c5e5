"""Several outputs compared at once: the cost is the weighted sum of what each output costs.

The model's first output is then all of them packed, one row of numbers per sample
(`workers.graph.outputs.pack_outputs`); here they are taken apart again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor

from workers.contracts import Metric
from workers.graph.dataflow import shape_of
from workers.graph.model import GraphModel
from workers.graph.outputs import output_named
from workers.graph.program import Program
from workers.mixtures import WeightedOutput
from workers.sampling import SketchRequest
from workers.sensitivity.batches import Batches
from workers.sensitivity.metrics import COST_LIMIT
from workers.sensitivity.reference import Reference, Spread, check, first_output


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where each output lies in the packed one.

    Args:
        outputs: Which, their weights, and what they are compared by.
        shapes: Of one sample, of each.
    """

    outputs: tuple[WeightedOutput, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: GraphModel, outputs: Sequence[WeightedOutput], batches: Batches) -> Self:
        """Find the sizes that the outputs have for some data.

        Args:
            model: With the outputs packed.
            outputs: In the order in which they are packed.
            batches: The data.
        """
        sizes = {name: batches.inputs[index].shape[axis] for name, (index, axis) in model.symbols.items()}
        nodes = [output_named(model, output.name, packed=True) for output in outputs]
        return cls(outputs=tuple(outputs), shapes=tuple(tuple(shape_of(node, sizes))[1:] for node in nodes))

    @property
    def weights(self) -> tuple[float, ...]:
        """Of each output."""
        return tuple(output.weight for output in self.outputs)

    def split(self, packed: Tensor) -> list[Tensor]:
        """The outputs ``[n, ...]`` of a packed one ``[n, numbers]``."""
        parts = torch.split(packed, [math.prod(shape) for shape in self.shapes], 1)
        return [part.reshape(len(packed), *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def positions(self) -> list[int]:
        """Positions of each output of a sample."""
        return [math.prod(shape[:-1]) for shape in self.shapes]

    def counted(self, batches: Batches, batch: int, packed: Tensor) -> list[Tensor | None]:
        """Which positions of each output count, see `Batches.counted_of`."""
        return [batches.counted_of(batch, part) for part in self.split(packed)]


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedReference:
    """Outputs of the float model: to those who measure a `Reference`.

    Args:
        metric: What the sum is called.
        packing: Where the outputs lie.
        parts: One reference per output.
        outputs: Per batch all of them packed, or ``None``.
    """

    metric: Metric
    packing: Packing
    parts: tuple[Reference, ...]
    outputs: tuple[Tensor | None, ...]

    @classmethod
    def measure(  # noqa: PLR0913 - what a reference is made of
        cls,
        program: Program,
        batches: Batches,
        metric: Metric,
        packing: Packing,
        *,
        memory_bytes: int,
        variances: Sequence[float] | None = None,
    ) -> Self:
        """Run the float model over all batches.

        Args:
            program: The model.
            batches: The samples.
            metric: What the sum is called.
            packing: Where the outputs lie.
            memory_bytes: As in `Reference.measure`.
            variances: What squared errors are related to, if not these outputs' variances; one per output.

        Raises:
            WorkerError: As `Reference.measure`.
        """
        outputs: list[Tensor | None] = []
        spreads = [Spread() for _ in packing.outputs]
        room = memory_bytes
        for batch in range(len(batches)):
            packed = first_output(program.run(batches.inputs_of(batch)), batches, batch)
            for output, part, spread in zip(packing.outputs, packing.split(packed), spreads, strict=True):
                check(output.metric, part, batches, batch)
                if output.metric is Metric.MSE and variances is None:
                    spread.add(part, batches.counted_of(batch, part))
            room -= packed.nbytes
            outputs.append(packed.clone() if room >= 0 else None)
        if variances is None:
            variances = variances_of(packing.outputs, spreads)
        kept = [[None] * len(packing.outputs) if o is None else packing.split(o) for o in outputs]
        return cls(
            metric=metric,
            packing=packing,
            parts=tuple(
                Reference(
                    metric=output.metric,
                    batches=batches,
                    outputs=tuple(batch[number] for batch in kept),
                    variance=variances[number],
                    sample_shape=packing.shapes[number],
                    device=packed.device,
                )
                for number, output in enumerate(packing.outputs)
            ),
            outputs=tuple(outputs),
        )

    @property
    def kept_bytes(self) -> int:
        """Memory that the outputs take."""
        return sum(output.nbytes for output in self.outputs if output is not None)

    def with_sketches(self, sketch: SketchRequest, seed: int) -> Self:
        """See `Reference.with_sketches`."""
        return replace(self, parts=tuple(part.with_sketches(sketch, seed) for part in self.parts))

    def start_sketch(self) -> list[Tensor] | None:
        """See `Reference.start_sketch`: one sketch per output."""
        found = [part.start_sketch() for part in self.parts]
        return None if None in found else [sketch for each in found if each is not None for sketch in each]

    def costs(
        self, batch: int, output: Tensor, recompute: Callable[[], Tensor], sketch: list[Tensor] | None = None
    ) -> Tensor:
        """See `Reference.costs`; the weighted sum."""
        reference = self.outputs[batch]
        if reference is None:
            reference = recompute()
        before = self.packing.split(reference)
        total = torch.zeros(len(output), dtype=torch.float64)
        for number, (part, found) in enumerate(zip(self.parts, self.packing.split(output), strict=True)):
            costs = part.costs(
                batch,
                found,
                partial(before.__getitem__, number),
                None if sketch is None else [sketch[number]],
            )
            total += self.packing.weights[number] * costs
        return total.clamp_(max=COST_LIMIT)

    def finished(self, sketch: list[Tensor]) -> bytes | None:
        """See `Reference.finished`: one after the other, such that inner products are weighted sums."""
        found = []
        for part, weight, each in zip(self.parts, self.packing.weights, sketch, strict=True):
            data = part.finished([each])
            if data is None:
                return None
            found.append(np.frombuffer(data, "<f4") * np.float32(weight**0.5))
        return np.concatenate(found).astype("<f4").tobytes()


def variances_of(outputs: Sequence[WeightedOutput], spreads: Sequence[Spread]) -> tuple[float, ...]:
    """What squared errors are related to; 1 for outputs that are compared otherwise."""
    return tuple(
        spread.variance() if output.metric is Metric.MSE else 1.0
        for output, spread in zip(outputs, spreads, strict=True)
    )


def mixed_variances(program: Program, batches: Batches, packing: Packing) -> tuple[float, ...]:
    """Variances of the float model's outputs over some data.

    Raises:
        WorkerError: As `workers.sensitivity.reference.output_variance`.
    """
    spreads = [Spread() for _ in packing.outputs]
    for batch in range(len(batches)):
        packed = first_output(program.run(batches.inputs_of(batch)), batches, batch)
        for output, part, spread in zip(packing.outputs, packing.split(packed), spreads, strict=True):
            check(output.metric, part, batches, batch)
            spread.add(part, batches.counted_of(batch, part))
    return variances_of(packing.outputs, spreads)
