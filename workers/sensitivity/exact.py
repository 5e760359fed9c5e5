"""Exact costs by prefix reuse: only what follows a unit's first use is run again.

Units in the outer loop, candidates in the next, batches in the innermost, so that entries are finished (and
can be stored) one after the other. Steps, their order and their inputs are those of the naive loop; results
are the same bit for bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.contracts import Candidate
from workers.graph.program import NO_OVERRIDE, Override, Program
from workers.graph.units import UnitTable
from workers.quant import fake_quantize
from workers.sensitivity.batches import Batches
from workers.sensitivity.prefixes import Prefixes
from workers.sensitivity.reference import Reference, first_output


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What a measurement works on.

    Args:
        program: The model, ready to run.
        table: Its units.
        batches: The samples.
        reference: The float model's outputs for them.
    """

    program: Program
    table: UnitTable
    batches: Batches
    reference: Reference


def quantized(program: Program, table: UnitTable, choices: Sequence[tuple[str, Candidate]]) -> Override:
    """The override that quantizes units.

    Args:
        program: The model.
        table: Its units.
        choices: Unit names and candidates.

    Raises:
        RequestRefused: There is no such unit.
        ModelRefused: A weight is not finite.
    """
    changes: dict[torch.fx.Node, Tensor] = {}
    for name, candidate in choices:
        unit = table.unit(name)
        weight = fake_quantize(
            program.constant(unit.node),
            candidate,
            output_channel_axis=unit.info.output_channel_axis,
            group_axis=unit.info.group_axis,
            name=unit.info.name,
        )
        changes |= unit.changes(weight)
    return program.override(changes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """What was measured of one entry.

    Args:
        costs: ``[samples]``, float64: see `Reference.costs`.
        sketch: See `Reference.finished`; ``None`` if it was not asked for.
    """

    costs: Tensor
    sketch: bytes | None


def exact_costs(
    setup: Setup, wanted: Sequence[tuple[str, Candidate]], prefixes: Prefixes
) -> Iterator[Measurement]:
    """Costs of entries, one at a time.

    Args:
        setup: What to work on.
        wanted: Unit names and candidates, in the order to measure them; execution order is cheapest.
        prefixes: Of the same program and batches, at whatever cut; moved along.

    Yields:
        One measurement per entry.
    """
    for name, candidate in wanted:
        prefixes.move_to(setup.table.unit(name).first_step)
        override = quantized(setup.program, setup.table, [(name, candidate)])
        projection = setup.reference.projection
        sketch = None if projection is None else projection.start()
        costs = [
            _suffix_costs(setup, prefixes, batch, override, sketch) for batch in range(len(setup.batches))
        ]
        yield Measurement(
            costs=torch.cat(costs), sketch=None if sketch is None else setup.reference.finished(sketch)
        )


def _suffix_costs(
    setup: Setup, prefixes: Prefixes, batch: int, override: Override, sketch: Tensor | None
) -> Tensor:
    def finish(override: Override) -> Tensor:
        environment = prefixes.environment(batch)
        setup.program.advance(environment, prefixes.cut, len(setup.program), override)
        return first_output(setup.program.outputs(environment, override), setup.batches, batch)

    return setup.reference.costs(batch, finish(override), lambda: finish(NO_OVERRIDE), sketch)
