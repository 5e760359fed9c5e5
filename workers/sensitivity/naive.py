"""The plain loop: the whole model once per entry and batch. The yardstick of `workers.sensitivity.exact`."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from workers.contracts import Candidate
from workers.sensitivity.exact import Setup, quantized
from workers.sensitivity.reference import first_output


def naive_costs(setup: Setup, wanted: Sequence[tuple[str, Candidate]]) -> Iterator[Tensor]:
    """Costs of entries, one at a time.

    Args:
        setup: What to work on.
        wanted: Unit names and candidates.

    Yields:
        Per entry ``[samples]``, float64: see `Reference.costs`.
    """
    for name, candidate in wanted:
        override = quantized(
            setup.program, setup.table, [(name, candidate)], setup.activations, setup.moments
        )
        costs = []
        for batch in range(len(setup.batches)):
            inputs = setup.batches.inputs_of(batch)
            output = first_output(setup.program.run(inputs, override), setup.batches, batch)

            def recompute(batch: int = batch, inputs: list[Tensor] = inputs) -> Tensor:
                return first_output(setup.program.run(inputs), setup.batches, batch)

            costs.append(setup.reference.costs(batch, output, recompute))
        yield torch.cat(costs)
