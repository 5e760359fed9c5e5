"""How good estimates are, told by the entries that were also measured. Pure."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRIOR_ERRORS = {2: 0.35, 3: 0.25}
"""Relative error of an estimate by bit-width, until measured entries tell: estimates leave out what is not quadratic."""
PRIOR_ERROR = 0.15
_ENOUGH = 6
"""So many measured entries of a bit-width tell how good its estimates are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrected:
    """Corrected estimates and one standard deviation of their error, both float64 of the estimates' shape."""

    costs: NDArray[np.float64]
    errors: NDArray[np.float64]


def correct(
    estimated: NDArray[np.float64],
    measured: NDArray[np.float64],
    bits: NDArray[np.int64],
    *,
    variances: NDArray[np.float64] | None = None,
    noise: float = 0.0,
) -> Corrected:
    """Scale the estimates of each bit-width by the median ratio of measured to estimated cost.

    The error is the spread of the ratios about their median (the median absolute deviation, as a standard deviation) without
    what measuring adds to it, or a prior where too few entries of the bit-width were measured; never less than a third of the
    prior, nor than the noise of the estimates.

    Args:
        estimated: Any shape, >= 0.
        measured: The same shape, NaN where nothing is measured.
        bits: The same shape.
        variances: The same shape, squared relative errors of what is measured; ``None``: it is exact.
        noise: Relative error of an estimate by its random signs, which comes on top of the prior.
    """
    costs, errors = estimated.copy(), np.empty_like(estimated)
    off = np.zeros_like(estimated) if variances is None else variances
    for width in np.unique(bits).tolist():
        here = bits == width
        prior = PRIOR_ERRORS.get(width, PRIOR_ERROR)
        factor, spread = _fit(estimated[here], measured[here], off[here], prior, noise)
        costs[here] *= factor
        errors[here] = spread * costs[here]
    return Corrected(costs=costs, errors=errors)


def _fit(
    estimated: NDArray[np.float64],
    measured: NDArray[np.float64],
    variances: NDArray[np.float64],
    prior: float,
    noise: float,
) -> tuple[float, float]:
    usable = np.isfinite(measured) & (measured > 0) & (estimated > 0)
    if int(usable.sum()) < _ENOUGH:
        return 1.0, math.hypot(prior, noise)
    ratios = measured[usable] / estimated[usable]
    factor = float(np.median(ratios))
    spread = 1.4826 * float(np.median(np.abs(ratios / factor - 1.0)))
    own = math.sqrt(max(spread**2 - float(np.median(variances[usable])), 0.0))
    return factor, max(own, prior / 3, noise)
