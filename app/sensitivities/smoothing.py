"""Estimates of a unit's candidates, each told with the help of the others. Pure.

Random signs add to each estimate an error of its own: 18 % with four probes of 16 samples. What candidates of one unit
really cost goes together, and how closely is told by the units: their logarithms are taken to be normal about a common mean, with a
covariance that is the one seen among the units without the one seen among the probes. Given both, the best linear guess of
what a unit's candidates cost follows from all its estimates. Where candidates are as unlike each other as units are, or
signs add little, nothing changes.

Source: Efron, Morris (1972), Empirical Bayes on vector observations: an extension of Stein's method.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_UNITS_PER_CANDIDATE = 3
"""So many units for each candidate tell a covariance; with fewer, estimates stay what they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Smoothed:
    """What became of estimates.

    Args:
        factors: float64 [E], what each is to be multiplied by.
        noise: Relative error that the signs leave in an estimate, root mean square.
    """

    factors: Array
    noise: float


def smooth(values: Array, units: NDArray[np.int64], candidates: Sequence[str]) -> Smoothed:
    """Take out of estimates what random signs added, as far as that can be told.

    Args:
        values: float64 [E, P, N], of P probes on N samples: a square's expectation over the signs is the sample's cost.
        units: int64 [E], the unit of each entry; entries of a unit follow each other.
        candidates: E names; units that have the same are told from each other.
    """
    each = np.square(values).mean(axis=2)
    means = each.mean(axis=1)
    factors, errors = np.ones(len(values)), np.zeros(len(values))
    for places in _alike(units, candidates):
        usable = places[(means[places] > 0).all(axis=1)]
        if not usable.size:
            continue
        noise = _noise(each[usable] / means[usable, None], samples=values.shape[2])
        if len(usable) < _UNITS_PER_CANDIDATE * usable.shape[1]:
            errors[usable] = np.sqrt(np.diagonal(noise))
            continue
        moves, left = _best_guess(np.log(means[usable]), noise)
        factors[usable], errors[usable] = np.exp(moves), np.sqrt(left)
    told = errors[errors > 0]
    return Smoothed(factors=factors, noise=float(np.sqrt(np.square(told).mean())) if len(told) else 0.0)


def _noise(relative: Array, *, samples: int) -> Array:
    """Covariance of the signs' relative errors in the estimates of a unit, [K, K], given [units, K, P]."""
    units, width, probes = relative.shape
    if probes < 2:
        # A square of random signs has twice the variance of its expectation squared.
        return np.asarray(2.0 / samples * np.eye(width))
    apart = relative - 1.0
    return np.asarray(np.einsum("ujp,ukp->jk", apart, apart) / (units * probes * (probes - 1)))


def _alike(units: NDArray[np.int64], candidates: Sequence[str]) -> list[NDArray[np.int64]]:
    """Numbers of entries, int64 [units, candidates], of units that have the same candidates."""
    groups: dict[tuple[str, ...], list[list[int]]] = defaultdict(list)
    starts = np.flatnonzero(np.diff(units, prepend=-1)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(units)], strict=True):
        groups[tuple(candidates[start:stop])].append(list(range(start, stop)))
    return [np.array(places) for places in groups.values()]


def _best_guess(seen: Array, noise: Array) -> tuple[Array, Array]:
    """By how much rows [units, K] are to be moved, and the variance of what is then left of the noise, [K]."""
    mean = seen.mean(axis=0)
    apart = seen - mean
    covariance = apart.T @ apart / (len(seen) - 1)
    values, vectors = np.linalg.eigh(covariance - noise)
    true = (vectors * np.maximum(values, 0.0)) @ vectors.T
    gain = true @ np.linalg.pinv(true + noise, hermitian=True)
    left = np.diagonal(true - gain @ true)
    return apart @ gain.T - apart, np.maximum(left, 0.0)
