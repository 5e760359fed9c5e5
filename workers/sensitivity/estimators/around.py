"""What other choices would do to a quantized model, to second order.

Costs of single units in an otherwise float model tell little of a model whose units are all quantized: there errors have
added up, and a change of one unit moves the outputs along them or against them. Around a plan ``x`` the joint cost of a plan
that differs from it by the changes ``dW_k`` of some units' weights (quantized as wanted, minus quantized as in x) is

    cost(x) + sum_k <g, dW_k> + |sum_k v_k|^2,

with g the gradient of the joint cost at the quantized weights, and ``v_k`` what a probe there finds for the change
(`workers.sensitivity.estimators.probe`): the squares expect the generalised Gauss-Newton form, taken at the quantized
model's own outputs. For the KL divergence that is its Fisher information, whatever the float model says. The gradient is
one more walk back beside the probes', without randomness; it is 0 at the float model, whose cost is least.

Where the plan quantizes inputs of units, derivatives are passed straight through their quantizers, and a change of a unit's
input width changes what its steps see: from what the plan makes of the input to what the other width makes of it.

Sources: Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent, section 3; Y. Bengio et al.
(2013), Estimating or propagating gradients through stochastic neurons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.contracts import Candidate
from workers.graph.units import Unit
from workers.sensitivity.activations import quantized_operands
from workers.sensitivity.estimators.feeds import Feed
from workers.sensitivity.estimators.pairs import Pairs
from workers.sensitivity.estimators.probe import ProbeOptions, signed, walk
from workers.sensitivity.estimators.starts import gradient_of
from workers.sensitivity.exact import Setup, quantized
from workers.sensitivity.reference import first_output


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalChanges:
    """Changes of the joint cost around a plan.

    Args:
        gradients: ``[entries, samples]``, float64: the first-order part. 0 for the plan's own choices.
        values: ``[probes, entries, samples]``, float64: squares estimate the second-order part, products what two changes
            have in common.
    """

    gradients: Tensor
    values: Tensor


def probe_around(
    setup: Setup,
    choices: Mapping[str, Candidate],
    wanted: Sequence[tuple[str, Candidate]],
    options: ProbeOptions,
) -> LocalChanges:
    """Estimate what each entry would change, were it chosen in place of the plan's choice.

    Args:
        setup: What to work on: the float model, its outputs, and the samples.
        choices: Unit name -> candidate; the others stay in float.
        wanted: Unit names and candidates, in the order of the entries.
        options: How; one more walk than ``probes``.

    Returns:
        Both parts, sample by sample.

    Raises:
        RequestRefused: As `workers.sensitivity.estimators.probe.probe`, or activations cannot be quantized.
        WorkerError: As `probe`.
    """
    floats = setup.program
    override = quantized(floats, setup.table, list(choices.items()), setup.activations, setup.moments)
    operands = quantized_operands(setup.table, list(choices.items()), setup.activations)
    around = replace(setup, program=floats.replaced(override.values))
    base = [name for name, candidate in choices.items() if candidate.activation_bits is not None]
    pairs = Pairs.of(wanted, setup.table, base=base)

    def quantize(unit: Unit, _: Tensor, candidate: Candidate) -> Tensor:
        return options.quantize(unit, floats.constant(unit.node), candidate)

    signs = signed(setup, options.seed)
    reference = setup.reference

    def start(number: int, output: Tensor, mask: Tensor | None, feed: Feed) -> Tensor:
        if number >= 0:
            return signs(number, output, mask, feed)
        outputs = _float_outputs(setup, feed.batch)[feed.offset : feed.offset + feed.kept]
        return gradient_of(reference, outputs, output, mask)

    numbers = range(-1, options.probes)
    changes = pairs.changes(setup.activations)
    probing = replace(
        options, quantize=quantize, activation_changes=changes, operands=operands, follow_bits=0
    )
    gradients, *values = [
        pairs.values(found) for found in walk(around, pairs.weights, probing, start, numbers)
    ]
    return LocalChanges(gradients=gradients, values=torch.stack(values))


def _float_outputs(setup: Setup, batch: int) -> Tensor:
    kept = setup.reference.outputs[batch]
    if kept is not None:
        return kept
    return first_output(setup.program.run(setup.batches.inputs_of(batch)), setup.batches, batch)
