"""The float model's values at one cut of the graph, for all batches, within a bound on memory."""

from dataclasses import dataclass

from workers.graph.program import Environment, Program
from workers.graph.residency import resident_bytes
from workers.sensitivity.batches import Batches


@dataclass
class _Checkpoint:
    """A batch's environment at some cut; without one, the batch starts from its inputs."""

    cut: int = 0
    environment: Environment | None = None
    size: int = 0


class Prefixes:
    """Environments of all batches, moved along the graph together.

    What is kept is what later steps still need of each batch: the values alive at one cut. Batches that do
    not fit keep the last checkpoint that did (at first their inputs, which cost nothing) and are run on from
    there each time they are asked for; they are taken up again when a narrower cut makes room.

    Args:
        program: The model.
        batches: The samples.
        memory_bytes: Bound on the environments kept.
    """

    def __init__(self, program: Program, batches: Batches, *, memory_bytes: int) -> None:
        self._program = program
        self._batches = batches
        self._limit = memory_bytes
        self._checkpoints = [_Checkpoint() for _ in range(len(batches))]
        self._used = 0
        self.cut = 0
        self.peak_bytes = 0

    def move_to(self, cut: int) -> None:
        """Move to a cut; backwards means starting over.

        Args:
            cut: Number of steps that all prefixes share.
        """
        if cut < self.cut:
            self._checkpoints = [_Checkpoint() for _ in self._checkpoints]
            self._used = 0
        if cut == self.cut:
            return
        self.cut = cut
        sizes: dict[int, int] = {}
        for batch, checkpoint in enumerate(self._checkpoints):
            expected = sizes.get(self._batches.kept(batch))
            if expected is not None and not self._fits(checkpoint, expected):
                continue  # equal batches have equal sizes: no need to try each
            environment = self._run_on(batch, checkpoint)
            size = resident_bytes(environment, free=self._batches.inputs)
            sizes[self._batches.kept(batch)] = size
            if self._fits(checkpoint, size):
                self._used += size - checkpoint.size
                self._checkpoints[batch] = _Checkpoint(cut, environment, size)
                self.peak_bytes = max(self.peak_bytes, self._used)

    @property
    def complete(self) -> bool:
        """Whether the environments of all batches at the cut are kept."""
        return all(checkpoint.cut == self.cut for checkpoint in self._checkpoints)

    def environment(self, batch: int) -> Environment:
        """A batch's environment at the cut, free to be run on."""
        return self._run_on(batch, self._checkpoints[batch])

    def _fits(self, checkpoint: _Checkpoint, size: int) -> bool:
        return self._used - checkpoint.size + size <= self._limit

    def _run_on(self, batch: int, checkpoint: _Checkpoint) -> Environment:
        if checkpoint.environment is None:
            environment = self._program.environment(self._batches.inputs_of(batch))
        else:
            environment = dict(checkpoint.environment)
        self._program.advance(environment, checkpoint.cut, self.cut)
        return environment
