"""Exact costs by prefix reuse: only what follows a unit's first use is run again.

Units in the outer loop, candidates in the next, batches in the innermost, so that entries are finished (and
can be stored) one after the other. Where a batch's prefix has to be computed again, or candidates may share
calls, several candidates of a unit are run on a batch before the next. Steps and their inputs are those of the naive
loop, without the steps that a unit does not reach; results are the same bit for bit (for shared calls that is tried
out: `Stacking`).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from workers.contracts import Candidate
from workers.graph.program import NO_OVERRIDE, Environment, Override, Program
from workers.graph.reach import Reach, run_part
from workers.graph.units import UnitTable
from workers.quant import InputMoments, QuantizedWeights
from workers.sensitivity.activations import ActivationRanges, quantized_operands
from workers.sensitivity.batches import Batches
from workers.sensitivity.mixture import MixedReference
from workers.sensitivity.prefixes import Prefixes
from workers.sensitivity.reference import Reference, first_output
from workers.sensitivity.stacking import MOST_VARIANTS, Stacking, UnitStacking

Entry = tuple[str, Candidate]
"""A unit's name and a candidate."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What a measurement works on.

    Args:
        program: The model, ready to run.
        table: Its units.
        batches: The samples.
        reference: The float model's outputs for them.
        activations: Ranges of the units' inputs; ``None`` where no candidate quantizes them.
        moments: Second moments of the units' inputs, by unit name; ``None`` where no scheme needs them.
        weights: Quantizes them; keeps what was costly to find.
    """

    program: Program
    table: UnitTable
    batches: Batches
    reference: Reference | MixedReference
    activations: ActivationRanges | None = None
    moments: Mapping[str, InputMoments] | None = None
    weights: QuantizedWeights = field(default_factory=QuantizedWeights)


def quantized(  # noqa: PLR0913 - what quantized units depend on
    program: Program,
    table: UnitTable,
    choices: Sequence[tuple[str, Candidate]],
    activations: ActivationRanges | None = None,
    moments: Mapping[str, InputMoments] | None = None,
    *,
    weights: QuantizedWeights | None = None,
) -> Override:
    """The override that quantizes units: their weights, and their inputs where candidates say so.

    Args:
        program: The model.
        table: Its units.
        choices: Unit names and candidates.
        activations: Observed ranges; needed for candidates with activation bits.
        moments: Of the units' inputs, by unit name; needed for schemes that use them.
        weights: Quantizes them, and may know what was found before.

    Raises:
        RequestRefused: There is no such unit, its activations cannot be quantized, or the scheme does not suit it.
        ModelRefused: A weight is not finite.
    """
    weights = weights or QuantizedWeights()
    changes: dict[torch.fx.Node, Tensor] = {}
    for name, candidate in choices:
        unit = table.unit(name)
        inputs = None if moments is None else moments.get(unit.info.name)
        weight = weights.fake_quantize(unit.info, program.constant(unit.node), candidate, inputs)
        changes |= unit.changes(weight)
    return program.override(changes, quantized_operands(table, choices, activations))


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """What was measured of one entry.

    Args:
        costs: ``[samples]``, float64: see `Reference.costs`.
        sketch: See `Reference.finished`; ``None`` if it was not asked for.
        seconds: Wall-clock time; of candidates measured together their part of it.
    """

    costs: Tensor
    sketch: bytes | None
    seconds: float


def exact_costs(
    setup: Setup,
    wanted: Sequence[tuple[str, Candidate]],
    prefixes: Prefixes,
    stacking: Stacking | None = None,
) -> Iterator[Measurement]:
    """Costs of entries, one unit after the other.

    Args:
        setup: What to work on.
        wanted: Unit names and candidates, in the order to measure them; execution order is cheapest.
        prefixes: Of the same program and batches, at whatever cut; moved along.
        stacking: Of the same program and batches; ``None``: candidates are never run in one pass.

    Yields:
        One measurement per entry.
    """
    units = [(name, list(entries)) for name, entries in groupby(wanted, key=lambda entry: entry[0])]
    reaches = {name: prefixes.reach(setup.table.unit(name)) for name, _ in units}
    if stacking is not None:
        stacking.expect(sum(len(reaches[name].affected) * len(entries) for name, entries in units))
    for name, candidates in units:
        started = time.perf_counter()
        reach = reaches[name]
        prefixes.move_to(reach.cut, reach)
        for group in _groups(candidates, stacking, reach, whole=not prefixes.complete):
            together = None if stacking is None else stacking.of(reach, len(group))
            found = _UnitRun(setup, prefixes, reach, group).measure(together)
            seconds = (time.perf_counter() - started) / len(found)
            for costs, sketch in found:
                yield Measurement(costs=costs, sketch=sketch, seconds=seconds)
            started = time.perf_counter()


def _groups(
    candidates: list[Entry], stacking: Stacking | None, reach: Reach, *, whole: bool
) -> list[list[Entry]]:
    """The candidates that are measured at the same time.

    Several cost memory for their weights, and delay what is finished: only where that saves time, because prefixes have
    to be run again for each group, or candidates may share calls.
    """
    if whole:
        return [candidates]
    size = -(-len(candidates) // -(-len(candidates) // MOST_VARIANTS))
    groups = [candidates[start : start + size] for start in range(0, len(candidates), size)]
    if stacking is None:
        return [[candidate] for candidate in candidates]
    return [
        part
        for group in groups
        for part in ([group] if stacking.of(reach, len(group)) else [[candidate] for candidate in group])
    ]


class _UnitRun:
    """Some candidates of one unit, batch by batch."""

    def __init__(
        self, setup: Setup, prefixes: Prefixes, reach: Reach, entries: Sequence[tuple[str, Candidate]]
    ) -> None:
        self._setup = setup
        self._reach = reach
        self._prefixes = prefixes
        self._overrides = [
            quantized(
                setup.program, setup.table, [entry], setup.activations, setup.moments, weights=setup.weights
            )
            for entry in entries
        ]
        self._sketches = [setup.reference.start_sketch() for _ in entries]
        self._costs: list[list[Tensor]] = [[] for _ in entries]

    def measure(self, stacking: UnitStacking | None) -> list[tuple[Tensor, bytes | None]]:
        """Costs and sketches, per candidate."""
        program = self._setup.program
        for batch in range(len(self._setup.batches)):
            environment = self._prefixes.environment(batch)
            if stacking is None:
                for candidate, override in enumerate(self._overrides):
                    self._take(candidate, batch, environment, self._finish(environment, batch, override))
                continue
            ended = stacking.run(environment, batch, self._overrides)
            for candidate, (values, override) in enumerate(zip(ended, self._overrides, strict=True)):
                output = first_output(program.outputs(values, override), self._setup.batches, batch)
                self._take(candidate, batch, environment, output)
        if stacking is not None:
            stacking.finish()
        finished = self._setup.reference.finished
        return [
            (torch.cat(costs), None if sketch is None else finished(sketch))
            for costs, sketch in zip(self._costs, self._sketches, strict=True)
        ]

    def _finish(self, environment: Environment, batch: int, override: Override) -> Tensor:
        """The first output from the boundary's values, which are kept."""
        program = self._setup.program
        values = dict(environment)
        run_part(program, values, self._reach.affected, override)
        return first_output(program.outputs(values, override), self._setup.batches, batch)

    def _take(self, candidate: int, batch: int, environment: Environment, output: Tensor) -> None:
        costs = self._setup.reference.costs(
            batch,
            output,
            lambda: self._finish(environment, batch, NO_OVERRIDE),
            self._sketches[candidate],
        )
        self._costs[candidate].append(costs)
