"""Exact costs by prefix reuse: only what follows a unit's first use is run again.

Units in the outer loop, candidates in the next, batches in the innermost, so that entries are finished (and
can be stored) one after the other. Steps, their order and their inputs are those of the naive loop; results
are the same bit for bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.contracts import Candidate
from workers.graph.program import NO_OVERRIDE, Override, Program
from workers.graph.units import UnitTable
from workers.quant import InputMoments, fake_quantize
from workers.sensitivity.activations import ActivationRanges, quantized_operands
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
        activations: Ranges of the units' inputs; ``None`` where no candidate quantizes them.
        moments: Second moments of the units' inputs, by unit name; ``None`` where no scheme needs them.
    """

    program: Program
    table: UnitTable
    batches: Batches
    reference: Reference
    activations: ActivationRanges | None = None
    moments: Mapping[str, InputMoments] | None = None


def quantized(
    program: Program,
    table: UnitTable,
    choices: Sequence[tuple[str, Candidate]],
    activations: ActivationRanges | None = None,
    moments: Mapping[str, InputMoments] | None = None,
) -> Override:
    """The override that quantizes units: their weights, and their inputs where candidates say so.

    Args:
        program: The model.
        table: Its units.
        choices: Unit names and candidates.
        activations: Observed ranges; needed for candidates with activation bits.
        moments: Of the units' inputs, by unit name; needed for schemes that use them.

    Raises:
        RequestRefused: There is no such unit, its activations cannot be quantized, or the scheme does not suit it.
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
            inputs=None if moments is None else moments.get(unit.info.name),
        )
        changes |= unit.changes(weight)
    return program.override(changes, quantized_operands(table, choices, activations))


def exact_costs(
    setup: Setup, wanted: Sequence[tuple[str, Candidate]], prefixes: Prefixes
) -> Iterator[Tensor]:
    """Costs of entries, one at a time.

    Args:
        setup: What to work on.
        wanted: Unit names and candidates, in the order to measure them; execution order is cheapest.
        prefixes: Of the same program and batches, at whatever cut; moved along.

    Yields:
        Per entry ``[samples]``, float64: see `Reference.costs`.
    """
    for name, candidate in wanted:
        prefixes.move_to(setup.table.unit(name).first_step)
        override = quantized(
            setup.program, setup.table, [(name, candidate)], setup.activations, setup.moments
        )
        yield torch.cat(
            [_suffix_costs(setup, prefixes, batch, override) for batch in range(len(setup.batches))]
        )


def _suffix_costs(setup: Setup, prefixes: Prefixes, batch: int, override: Override) -> Tensor:
    def finish(override: Override) -> Tensor:
        environment = prefixes.environment(batch)
        setup.program.advance(environment, prefixes.cut, len(setup.program), override)
        return first_output(setup.program.outputs(environment, override), setup.batches, batch)

    return setup.reference.costs(batch, finish(override), lambda: finish(NO_OVERRIDE))
