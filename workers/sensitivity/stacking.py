"""Which steps several candidates of a unit are run through in one call: where that is faster, and changes no bit.

Small batches do not fill a machine, and then one call for several candidates costs less than one call for each. Whether it
does, and whether kernels give the same bits for more samples, depends on the step, the batch and the machine. So it is
tried, step by step: on two batches (one, if that shows no gain) each step is run for each candidate and for all together,
on the same inputs. Steps whose results were the same bit for bit, and laid out alike, may be run together from then on:
kernels, and the order in which they sum, are decided by shapes and layouts, which the other batches and units share. (On
EfficientNet-Lite0 the classifier rounds otherwise for more samples at batches of 1 and 2, some convolutions at 4 and 8; all
else is equal.) Which of those steps are, is decided by what they took: least in sum, joining the candidates' values
counted where a stretch begins.

It is not to cost anything where nothing is gained: trials are made where they are a small part of what is measured with them,
stretches whose values would take much memory are left alone, and a plan whose passes turn out slower than plain ones is given
up. Of each unit one batch is run plainly for that.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from workers.graph.program import Environment, Override, Program
from workers.graph.reach import Reach
from workers.graph.stacked import Comparison, Mode, Stretch, Variants, narrow_places
from workers.sensitivity.batches import Batches

MOST_VARIANTS = 8
"""More candidates are run in groups: the gain is in the first few, the memory in all."""

_FEWEST_BATCHES = 4
_TRIALS = 2
_TRIAL_PASSES = 1.6
"""What a trial costs beside the plain passes that it makes, in units of them."""

_SPENT_ON_TRIALS = 0.015
_GAIN = 0.95
"""A plan that is expected to take more than this part of the plain calls' time is not worth it."""

_REALISED = 0.99
_WATCHED_UNITS = 3
_NARROW_BYTES = 128 << 20


class Stacking:
    """What is known of stacking for one program and its batches.

    Args:
        program: The model.
        batches: The samples.
        memory_bytes: Bound on what all candidates of a pass hold where steps are run together; 128 MiB at most.
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
        self.program = program
        self.batches = batches
        self.clock = clock
        self._limit = min(memory_bytes, _NARROW_BYTES)
        self._compared: dict[tuple[int, int], list[Comparison]] = defaultdict(list)
        self._work = 0.0
        self._plain_seconds = 0.0
        self._seconds = 0.0
        self._watched = 0
        self.stacked = 0
        """Batches of which steps were run together, trials apart."""
        self.tried = 0
        """Batches that trials were made on."""
        self.full_batches = sum(batches.kept(batch) == batches.size for batch in range(len(batches)))
        self._possible = not batches.fixed and self.full_batches >= _FEWEST_BATCHES

    def expect(self, work: float) -> None:
        """Tell of work that is going to be measured.

        Args:
            work: Steps times candidates, over all units.
        """
        self._work += work

    def of(self, reach: Reach, variants: int) -> "UnitStacking | None":
        """How to run so many candidates of a unit; ``None``: one after the other."""
        if not self._possible or not 2 <= variants <= MOST_VARIANTS or not len(reach.affected):
            return None
        # A trial holds each value twice: of each candidate, and joined.
        places = narrow_places(self.program, reach, self.symbols(0), self._limit // (2 * variants))
        unit = UnitStacking(self, reach, variants, places)
        return unit if unit.trials or unit.together else None

    def trials_for(self, reach: Reach, places: Sequence[int], variants: int) -> int:
        """How many batches of a unit to try: none if its steps are known, or if that would be felt."""
        unknown = sum((variants, reach.affected.indices[place]) not in self._compared for place in places)
        cost = _TRIALS * _TRIAL_PASSES / self.full_batches * variants * len(places)
        return _TRIALS if 2 * unknown > len(places) and cost <= _SPENT_ON_TRIALS * self._work else 0

    def note(self, reach: Reach, variants: int, comparisons: dict[int, Comparison]) -> None:
        """Remember what a trial found."""
        for place, comparison in comparisons.items():
            self._compared[variants, reach.affected.indices[place]].append(comparison)

    def watch(self, plain_seconds: float, seconds: float) -> None:
        """Take in what a unit's batches took, and would have taken plainly; stop where that is no gain."""
        self._plain_seconds += plain_seconds
        self._seconds += seconds
        self._watched += 1
        if self._watched >= _WATCHED_UNITS and self._seconds > _REALISED * self._plain_seconds:
            self._possible = False

    def together(self, reach: Reach, places: Sequence[int], variants: int) -> frozenset[int]:
        """The places to run together: those with which all takes least.

        Two states, each candidate's values apart or joined; a step is run in the state it is reached in, and values may
        be joined (which costs) or taken apart (which does not) before each.
        """
        indices = [reach.affected.indices[place] for place in places]
        known = [self._known(variants, index, seen_first_hand=index in reach.seeds) for index in indices]
        apart, joined = (0.0, frozenset[int]()), (float("inf"), frozenset[int]())
        for place, found in zip(places, known, strict=True):
            nearest = min(apart, joined, key=lambda way: way[0])
            if found is None or not found.equal:
                seconds = 0.0 if found is None else found.apart
                apart, joined = (nearest[0] + seconds, nearest[1]), (float("inf"), frozenset())
                continue
            entered = min((apart[0] + found.joining, apart[1]), joined, key=lambda way: way[0])
            apart = nearest[0] + found.apart, nearest[1]
            joined = entered[0] + found.together, entered[1] | {place}
        seconds, chosen = min(apart, joined, key=lambda way: way[0])
        plainly = sum(found.apart for found in known if found is not None)
        return chosen if seconds < _GAIN * plainly else frozenset()

    def _known(self, variants: int, index: int, *, seen_first_hand: bool) -> Comparison | None:
        """The fastest of what trials found of a step; ``None`` where nothing is known."""
        found = self._compared.get((variants, index))
        if not found:
            return None
        return Comparison(
            apart=min(each.apart for each in found),
            together=min(each.together for each in found),
            joining=min(each.joining for each in found),
            equal=all(each.equal for each in found) and not seen_first_hand,
        )

    def symbols(self, batch: int) -> dict[str, int]:
        """The model's symbolic sizes for a batch."""
        inputs = self.batches.inputs_of(batch)
        return {name: inputs[index].shape[axis] for name, (index, axis) in self.program.model.symbols.items()}


class UnitStacking:
    """Candidates of one unit, batch by batch.

    Args:
        stacking: What is known, and learns.
        reach: Of the unit.
        variants: Number of candidates.
        places: Where steps may be run together.
    """

    def __init__(self, stacking: Stacking, reach: Reach, variants: int, places: range) -> None:
        self._stacking = stacking
        self._reach = reach
        self._variants = variants
        self._places = places
        self.trials = stacking.trials_for(reach, places, variants)
        self.together = self._choose()
        self._plain: float | None = None
        self._spent: list[float] = []

    def _choose(self) -> frozenset[int]:
        return self._stacking.together(self._reach, self._places, self._variants)

    def run(
        self, environment: Environment, batch: int, overrides: Sequence[Override]
    ) -> Iterator[Environment]:
        """Run all candidates on a batch.

        Args:
            environment: The boundary's values.
            batch: Which batch.
            overrides: The candidates.

        Yields:
            Per candidate an environment with the first output.
        """
        stacking = self._stacking
        full = stacking.batches.kept(batch) == stacking.batches.size
        watched = False
        if full and self.trials:
            stretches = self._stretches(Mode.COMPARED, frozenset(self._places))
            self.trials -= 1
            stacking.tried += 1
        elif full and self.together and self._plain is not None:
            stretches = self._stretches(Mode.TOGETHER, self.together)
            stacking.stacked += 1
            watched = True
        else:
            stretches = [Stretch(mode=Mode.APART, places=range(len(self._reach.affected)))]
        variants = Variants(
            stacking.program,
            self._reach,
            environment,
            overrides=overrides,
            symbols=stacking.symbols(batch),
            clock=stacking.clock,
        )
        seconds = 0.0
        started = stacking.clock()
        for found in variants.run(stretches):
            seconds += stacking.clock() - started
            yield found
            started = stacking.clock()
        if variants.comparisons:
            stacking.note(self._reach, self._variants, variants.comparisons)
            self.together = self._choose()
            self.trials = self.trials if self.together else 0
        elif watched:
            self._spent.append(seconds)
        elif full:
            self._plain = seconds

    def finish(self) -> None:
        """Say what was gained, once all batches are run."""
        if self._spent and self._plain is not None:
            self._stacking.watch(self._plain * len(self._spent), sum(self._spent))

    def _stretches(self, mode: Mode, chosen: frozenset[int]) -> list[Stretch]:
        """All places, cut where the mode changes."""
        found: list[Stretch] = []
        for place in range(len(self._reach.affected)):
            wanted = mode if place in chosen else Mode.APART
            if found and found[-1].mode is wanted:
                found[-1] = Stretch(mode=wanted, places=range(found[-1].places.start, place + 1))
            else:
                found.append(Stretch(mode=wanted, places=range(place, place + 1)))
        return found
