"""The joint cost of plans near a plan, from what was found around it. Torch-free: the service solves with it.

With ``g_k`` the first-order change of choosing entry k and ``v_k`` its probe values, both found at the quantized model
(`workers.sensitivity.estimators.around`), plans y near x cost ``cost(x) + g'y + |V'y|^2`` to second order. Taken alone that
model chases the samples it was found on: the gradient of a few samples is mostly their own. Two things hold it back.

- *Trust.* The model is averaged with the added costs, ``trust`` of it and the rest of them: they are sums of squares, in
  which the samples agree.
- *Caution.* Each change costs so many of its standard errors over samples more than it seems to.

And one thing lets it go further: of large changes the second order expects too much, for divergences level off (`Trust.curvature`).

As for all sketches, products between entries are shrunk where there are few numbers for each (`workers.sensitivity.gram`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.sensitivity.gram import shrinkage


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far what was found around a plan is believed.

    Args:
        share: Of the local model, from 0 to 1; the rest is the added costs'.
        caution: Standard errors that a change has to be better by.
        curvature: Of the second order within the local model, from 0 to 1.
    """

    share: float
    caution: float
    curvature: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalCosts:
    """``linear' y + |factors' y|^2``: change of the joint cost from the plan's to another one's.

    Args:
        linear: ``[entries]``.
        factors: ``[entries, columns]``.
    """

    linear: NDArray[np.float64]
    factors: NDArray[np.float64]


def local_costs(
    gradients: NDArray[np.float64],
    values: NDArray[np.float64],
    added: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    trust: Trust,
) -> LocalCosts:
    """A model of the plans near a plan.

    Args:
        gradients: ``[entries, samples]``, of two samples or more.
        values: ``[probes, entries, samples]``.
        added: ``[entries]``: how much more each entry costs alone than what the plan chooses in its place.
        chosen: ``[entries]``: which entries the plan chooses; these change nothing.
        trust: How far to believe what was found.
    """
    probes, entries, samples = values.shape
    values = values * np.sqrt(trust.curvature)
    factors = (values / np.sqrt(probes * samples)).swapaxes(0, 1).reshape(entries, -1)
    shrunk = shrinkage(factors)
    # What shrinking takes from the squares of single changes is known, and put back.
    first = gradients.mean(1) + shrunk * np.square(factors).sum(1)
    per_sample = gradients + np.square(values).mean(0)
    errors = per_sample.std(axis=1, ddof=1) / np.sqrt(samples)
    local = np.where(chosen, 0.0, first + trust.caution * errors)
    return LocalCosts(
        linear=trust.share * local + (1 - trust.share) * np.where(chosen, 0.0, added),
        factors=factors * np.sqrt(trust.share * (1 - shrunk)),
    )
