"""Whether several candidates of a unit are run in one pass: where that is faster, and changes no bit.

Small batches do not fill a machine, and then several candidates cost little more than one. Whether they do
depends on the model, the batch and the machine, and whether kernels give the same bits for more samples on the kernels;
so both are tried: a unit's first batch is run plainly, then stacked, and only if the outputs are equal bit for
bit and took less time are the unit's other batches stacked. Which kernels run, and in which order they sum, is
decided by shapes, which the other batches share; a shorter last batch is run plainly. After a trial that failed the
next units are not tried, twice as many each time.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workers.errors import MeasurementFailed
from workers.graph.program import Environment, Override, Program
from workers.graph.residency import resident_bytes
from workers.graph.stacked import stacked_outputs
from workers.sensitivity.batches import Batches

_FEWEST_BATCHES = 4
_GAIN = 0.9
"""A stacked pass that takes more than this part of the plain ones' time is not worth it."""

_LONGEST_PAUSE = 32


class Stacking:
    """What is known of stacking for one program and its batches.

    Args:
        program: The model.
        batches: The samples.
        memory_bytes: Bound on the live values of all candidates at a cut.
        clock: Gives seconds: CPU time, which a busy machine does not disturb.
    """

    def __init__(
        self,
        program: Program,
        batches: Batches,
        *,
        memory_bytes: int,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._program = program
        self._batches = batches
        self._limit = memory_bytes
        self.clock = clock
        self._pause = 1
        self._skip = 0
        self.stacked = 0
        """Batches that were run stacked."""
        full = sum(batches.kept(batch) == batches.size for batch in range(len(batches)))
        self._possible = not batches.fixed and full >= _FEWEST_BATCHES

    def wants_trial(self) -> bool:
        """Whether to try the next unit; counts the units that are left out."""
        if not self._possible:
            return False
        if self._skip > 0:
            self._skip -= 1
            return False
        return True

    def try_out(
        self,
        environment: Environment,
        indices: Sequence[int],
        overrides: Sequence[Override],
        plain: Sequence[Tensor],
        plain_seconds: float,
    ) -> bool:
        """Run the first batch stacked.

        Args:
            environment: What the steps read of the first batch; used up.
            indices: The steps to run.
            overrides: The candidates.
            plain: First outputs of the candidates.
            plain_seconds: What they took.

        Returns:
            Whether to stack the other batches.
        """
        worth = resident_bytes(environment) * len(overrides) <= self._limit
        if worth:
            started = self.clock()
            try:
                outputs = self.run(environment, 0, indices, overrides)
            except MeasurementFailed:
                worth = False
            else:
                faster = self.clock() - started < _GAIN * plain_seconds
                same = all(torch.equal(a, b) for a, b in zip(outputs, plain, strict=True))
                worth = faster and same
        self._pause = 1 if worth else min(2 * self._pause, _LONGEST_PAUSE)
        self._skip = 0 if worth else self._pause
        return worth

    def fits(self, batch: int) -> bool:
        """Whether a batch has the size of the first one."""
        return self._batches.kept(batch) == self._batches.size

    def run(
        self, environment: Environment, batch: int, indices: Sequence[int], overrides: Sequence[Override]
    ) -> list[Tensor]:
        """First outputs of all candidates for a batch."""
        inputs = self._batches.inputs_of(batch)
        symbols = {
            name: inputs[index].shape[axis] for name, (index, axis) in self._program.model.symbols.items()
        }
        self.stacked += 1
        return stacked_outputs(self._program, environment, indices, overrides, symbols)
