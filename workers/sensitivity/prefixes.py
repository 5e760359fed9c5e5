"""The float model's values that measuring a unit starts from, for all batches, within a bound on memory.

Of each batch are kept, as far as the bound allows,

* the values alive at one cut of the graph, which moves on from unit to unit; a batch whose values do not fit keeps the
  last ones that did (at first its inputs, which cost nothing) and is run on from there each time it is asked for;
* values computed *ahead* of the cut: those that the steps reached by the unit read and that do not depend on it (see
  `workers.graph.reach`). They are run once for all candidates instead of once for each, and are kept for the
  next unit if that reads them too; where they do not fit, they are run again each time, which is what each candidate
  would cost without them. When the cut gets there, they are run once more rather than held all the way.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from workers.graph.program import Environment, Program
from workers.graph.reach import Reach, Reaches, run_part
from workers.graph.residency import resident_bytes
from workers.graph.units import Unit
from workers.sensitivity.batches import Batches


@dataclass
class _Checkpoint:
    """A batch's environment at some cut, and what was computed ahead; without one, it starts from its inputs."""

    cut: int = 0
    environment: Environment | None = None
    ahead: Environment = field(default_factory=dict)
    reach: Reach | None = None
    size: int = 0


class Prefixes:
    """Environments of all batches, moved along the graph together.

    Args:
        program: The model.
        batches: The samples.
        memory_bytes: Bound on the environments kept.
    """

    def __init__(self, program: Program, batches: Batches, *, memory_bytes: int) -> None:
        self._reaches = Reaches(program)
        self._known: dict[str, Reach] = {}
        self._program = program
        self._batches = batches
        self._limit = memory_bytes
        self._checkpoints = [_Checkpoint() for _ in range(len(batches))]
        self._reach: Reach | None = None
        self._used = 0
        self.cut = 0
        self.peak_bytes = 0

    def reach(self, unit: Unit) -> Reach:
        """What a unit reaches: through its weight, and through the inputs of the operators that use it."""
        name = unit.info.name
        if name not in self._known:
            seeds = self._program.reading_steps(alias.node for alias in unit.aliases)
            self._known[name] = self._reaches.of(seeds | {use.step for use in unit.uses})
        return self._known[name]

    def move_to(self, cut: int, reach: Reach | None = None) -> None:
        """Move to a cut; backwards means starting over.

        Args:
            cut: Number of steps that all prefixes share.
            reach: What is to be run from there; its own cut is ``cut``.
        """
        if cut < self.cut:
            self._checkpoints = [_Checkpoint() for _ in self._checkpoints]
            self._used = 0
        elif cut == self.cut and reach is self._reach:
            return
        self.cut, self._reach = cut, reach
        # What is at the cut first: without it, more and more has to be run again, from unit to unit.
        self._keep_what_fits(self._moved)
        if reach is not None:
            self._keep_what_fits(self._with_ahead)

    @property
    def complete(self) -> bool:
        """Whether all that the steps to run start from is kept, of all batches."""
        return all(each.cut == self.cut and each.reach is self._reach for each in self._checkpoints)

    def environment(self, batch: int) -> Environment:
        """What a batch is run on from, free to be changed: at the cut, or the boundary of the reach."""
        environment = self._run_on(batch)
        if self._reach is None:
            return environment
        environment |= self._run_ahead(self._reach, environment, self._checkpoints[batch].ahead)
        return {node: environment[node] for node in self._reach.boundary}

    def _keep_what_fits(self, make: Callable[[int], tuple[_Checkpoint, int]]) -> None:
        """Replace checkpoints by new ones that fit.

        Args:
            make: Gives the new checkpoint of a batch, and what the smallest such one of an equal batch takes.
        """
        smallest: dict[int, int] = {}
        for batch in range(len(self._checkpoints)):
            kept = self._batches.kept(batch)
            if kept in smallest and not self._fits(batch, smallest[kept]):
                continue  # equal batches have equal sizes: no need to try each
            checkpoint, smallest[kept] = make(batch)
            if self._fits(batch, checkpoint.size):
                self._used += checkpoint.size - self._checkpoints[batch].size
                self._checkpoints[batch] = checkpoint
                self.peak_bytes = max(self.peak_bytes, self._used)

    def _moved(self, batch: int) -> tuple[_Checkpoint, int]:
        """A batch at the cut, with what is known ahead and still of use if there is room for it."""
        old = self._checkpoints[batch]
        environment = self._run_on(batch)
        bare = _Checkpoint(cut=self.cut, environment=environment, size=self._size(environment))
        wanted = frozenset() if self._reach is None else self._reach.ahead
        ahead = {node: value for node, value in old.ahead.items() if node in wanted}
        if not ahead:
            return bare, bare.size
        size = self._size({**environment, **ahead})
        full = _Checkpoint(cut=self.cut, environment=environment, ahead=ahead, size=size)
        return full if self._fits(batch, size) else bare, bare.size

    def _with_ahead(self, batch: int) -> tuple[_Checkpoint, int]:
        """A batch that is at the cut, with all that is needed ahead; others as they are."""
        old, reach = self._checkpoints[batch], self._reach
        if old.cut != self.cut or reach is None:
            return old, 0
        environment = self._run_on(batch)
        ahead = self._run_ahead(reach, environment, old.ahead)
        size = self._size({**environment, **ahead})
        full = _Checkpoint(cut=self.cut, environment=environment, ahead=ahead, reach=reach, size=size)
        return full, size

    def _size(self, environment: Environment) -> int:
        return resident_bytes(environment, free=self._batches.inputs)

    def _fits(self, batch: int, size: int) -> bool:
        return self._used - self._checkpoints[batch].size + size <= self._limit

    def _run_on(self, batch: int) -> Environment:
        """A batch's environment at the cut."""
        checkpoint = self._checkpoints[batch]
        if checkpoint.environment is None:
            environment = self._program.environment(self._batches.inputs_of(batch))
        else:
            environment = dict(checkpoint.environment)
        self._program.advance(environment, checkpoint.cut, self.cut)
        return environment

    def _run_ahead(self, reach: Reach, environment: Environment, known: Environment) -> Environment:
        """The values of the boundary that are computed behind the cut; some may be known already."""
        known = {node: value for node, value in known.items() if node in reach.ahead}
        values = {**environment, **known}
        run_part(self._program, values, self._reaches.ahead(reach, known.keys()))
        return {node: values[node] for node in reach.ahead}
