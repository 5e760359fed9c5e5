"""What candidates cost on all samples, told from some: measured on a part of them, estimated on all, or both. Pure.

Samples differ in difficulty, for all candidates alike, and what matters to a plan is how candidates compare. So the cost of
a sample is taken to be its candidate's mean cost times the sample's relative difficulty, plus a rest; means are worked out
by the ratio estimator (Cochran 1977, chapter 6), and only the rest makes them uncertain. It does so together for the
candidates of a unit, which are measured on the same samples. Of ``N`` samples of which ``n`` were measured nothing is left
to err on when ``n = N`` (the finite population correction, the same, chapter 2).

Where there are estimates they tell how difficult each sample is, and what each candidate costs before it is measured; the
two are weighed by their errors. Where they contradict each other both are taken to be worse than their
errors say, by as much as would explain it (Birge 1932, The calculation of errors by the method of least squares): a few
samples may hold most of a candidate's cost, and those that were measured do not tell so. Where there are no estimates to
contradict, the entries that were looked at further tell how much the samples before had missed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.sensitivities.correction import correct

Array = NDArray[np.float64]

_POOLED = 16.0
"""So many measured runs of a unit weigh as much as what all units have in common."""
_LEAST_DIFFICULTY = 1e-3
_ITERATIONS = 30
_EITHER_SIGN = 0.1
"""Where more costs than this part are not positive, as rises of the loss may be, their ratios tell nothing."""
_FIRST = 1.0
"""What may have been missed of a cost that was seen on the first samples alone, as a share of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What was measured and estimated of a job's entries, over *runs*: samples that follow each other.

    Attributes:
        units: int64 [E], the unit of each entry as a number from 0 on; entries of a unit follow each other.
        bits: int64 [E].
        costs: float64 [E, G], mean measured cost on each run; NaN where it was not measured.
        lengths: int64 [G], samples of each run; 0 where none counts.
        first: How many samples every measured entry was measured on at least.
        estimates: float64 [E, G], mean estimated cost on each run; ``None`` without estimates.
        noise: Relative error of a mean estimate by its random signs.
    """

    units: NDArray[np.int64]
    bits: NDArray[np.int64]
    costs: Array
    lengths: NDArray[np.int64]
    first: int
    estimates: Array | None
    noise: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Belief:
    """Costs on all samples, and how far they may be off.

    Attributes:
        costs: float64 [E]; NaN of what was neither measured nor estimated.
        covariances: For each unit float64 [K, K], of the errors of its entries.
        fitted: float64 [E], the costs as estimated and corrected, whatever was measured; NaN without estimates.
        fitted_errors: float64 [E], one standard deviation of those.
        missed: float64 [E], how much of its cost an entry may have beside what was seen, as a share of that, whatever its
            error says; 0 with estimates, and where all samples were measured.
    """

    costs: Array
    covariances: tuple[Array, ...]
    fitted: Array
    fitted_errors: Array
    missed: Array

    @property
    def errors(self) -> Array:
        """One standard deviation of each cost, float64 [E]."""
        variances = np.concatenate([np.diagonal(covariance) for covariance in self.covariances])
        return np.asarray(np.sqrt(np.maximum(variances, 0.0)))


def believe(evidence: Evidence) -> Belief:
    """Weigh what was measured and what was estimated."""
    seen = np.isfinite(evidence.costs) & (evidence.lengths > 0)
    share, means = _means(evidence, seen)
    inside = _between_samples(evidence, seen, share, means)
    samples = (seen * evidence.lengths).sum(axis=1)
    slices = _slices(evidence.units)
    noises = [
        covariance * _unseen(samples[unit], int(evidence.lengths.sum()))
        for unit, covariance in zip(slices, inside, strict=True)
    ]
    if evidence.estimates is None:
        nothing = np.full(len(means), np.nan)
        return Belief(
            costs=means,
            covariances=tuple(noises),
            fitted=nothing,
            fitted_errors=nothing,
            missed=_missed(evidence, seen, means),
        )
    variances = np.concatenate([np.diagonal(noise) for noise in noises])
    relative = variances / np.square(np.where(means > 0, means, np.nan))
    estimated = evidence.estimates @ evidence.lengths / evidence.lengths.sum()
    fitted = correct(estimated, means, evidence.bits, variances=relative, noise=evidence.noise)
    costs, covariances = fitted.costs.copy(), []
    for unit, noise in zip(slices, noises, strict=True):
        costs[unit], covariance = _weighed(fitted.costs[unit], fitted.errors[unit], means[unit], noise)
        covariances.append(covariance)
    return Belief(
        costs=costs,
        covariances=tuple(covariances),
        fitted=fitted.costs,
        fitted_errors=fitted.errors,
        missed=np.zeros(len(costs)),
    )


def _means(evidence: Evidence, seen: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Relative cost of each run as expected of each entry, [E, G], and mean costs on all samples, [E]."""
    weights = np.where(seen, evidence.lengths, 0).astype(np.float64)
    totals: Array = np.where(seen, evidence.costs, 0.0) * weights
    share: Array
    if evidence.estimates is None:
        share = np.broadcast_to(_difficulty(totals, weights, evidence.lengths), totals.shape)
    else:
        share = _expected(evidence, seen)
    expected = (share * weights).sum(axis=1)
    measured = seen.any(axis=1)
    return share, np.where(measured, totals.sum(axis=1) / np.where(measured, expected, 1.0), np.nan)


def _missed(evidence: Evidence, seen: NDArray[np.bool_], means: Array) -> Array:
    """How much more entries may cost than what was seen of them, as a share, [E].

    A single sample may hold half of a unit's cost, and no error made from other samples tells so. But other entries were
    measured on more samples: as much as the worst of them turned out to cost more than it had seemed to on as few, any
    other may. Of what was seen on the first samples alone as much again may have been missed, until others show that it is more.
    """
    counts = (seen * evidence.lengths).sum(axis=1)
    everything = evidence.lengths.sum()
    missed = np.zeros(len(means))
    for level in np.unique(counts[(counts > 0) & (counts < everything)]):
        further = counts > level
        worst = _FIRST if level <= evidence.first else 0.0
        if further.any():
            before = seen & (np.cumsum(seen * evidence.lengths, axis=1) <= level)
            then = _means(evidence, before)[1][further]
            positive = then > 0
            if 1.0 - positive.mean() <= _EITHER_SIGN:
                worst = max(worst, float((means[further][positive] / then[positive]).max()) - 1.0)
        missed[counts == level] = worst
    return missed


def _difficulty(totals: Array, weights: Array, lengths: NDArray[np.int64]) -> Array:
    """Relative difficulty of each run, [G], such that ``cost = mean of the entry x difficulty``; 1 on average.

    Runs that nothing was measured on count as average ones. Where costs may well be negative they have no common factor.
    """
    measured = weights.any(axis=1)
    scale = np.sqrt((totals**2 / np.maximum(weights, 1)).sum(axis=1) / np.maximum(weights.sum(axis=1), 1))
    usable = measured & (scale > 0)
    relative, weights = totals[usable] / scale[usable, None], weights[usable]
    difficulty = np.ones(len(lengths))
    known = weights.any(axis=0)
    if not known.any() or (relative.sum(axis=1) <= 0).mean() > _EITHER_SIGN:
        return difficulty
    for _ in range(_ITERATIONS):
        means = relative.sum(axis=1) / (weights * difficulty).sum(axis=1)
        found = relative.sum(axis=0)[known] / (weights * means[:, None]).sum(axis=0)[known]
        found = np.maximum(found, _LEAST_DIFFICULTY)
        difficulty[known] = found / (found @ lengths[known] / lengths[known].sum())
    return difficulty


def _expected(evidence: Evidence, seen: NDArray[np.bool_]) -> Array:
    """Relative costs of runs by the estimates: the common difficulty, and of what is an entry's own what holds true of costs.

    An estimate of one sample is noisy. How much of its deviation from the common difficulty costs share is the slope of their
    regression, one for all entries.
    """
    assert evidence.estimates is not None
    whole = evidence.estimates @ evidence.lengths / evidence.lengths.sum()
    relative = np.where(whole > 0, 1.0 / np.where(whole > 0, whole, 1.0), 0.0)[:, None] * evidence.estimates
    relative[whole <= 0] = 1.0
    common = np.broadcast_to(np.maximum(relative.mean(axis=0), _LEAST_DIFFICULTY), relative.shape)
    weights = seen * evidence.lengths
    expected = np.maximum((common * weights).sum(axis=1), 1e-300)
    means = np.where(seen, evidence.costs, 0.0) * weights
    means = means.sum(axis=1) / expected
    use = seen.any(axis=1) & (means > 0)
    rest = np.where(seen, evidence.costs, 0.0)[use] / means[use, None] - common[use] * seen[use]
    own = (relative - common)[use]
    own = np.where(seen[use], own - (own * weights[use]).sum(axis=1, keepdims=True) / weights[use].sum(axis=1, keepdims=True), 0.0)  # fmt: skip
    power = float((own**2 * weights[use]).sum())
    slope = float((rest * own * weights[use]).sum()) / power if power > 0 else 0.0
    return np.asarray(common + min(max(slope, 0.0), 1.0) * (relative - common))


def _between_samples(evidence: Evidence, seen: NDArray[np.bool_], share: Array, means: Array) -> list[Array]:
    """Covariances of the rests of one sample, for each unit [K, K], those of few runs drawn to what units have in common.

    Rests are related to the entry's root mean square. A unit with seemingly small ones is not believed: costs have heavy
    tails, which a few samples as a rule do not show.
    """
    filled = np.where(seen, evidence.costs, 0.0)
    counts = np.maximum(seen.sum(axis=1), 1)
    scale = np.sqrt(np.square(filled).sum(axis=1) / counts)
    rest = np.where(seen, filled - np.nan_to_num(means)[:, None] * share, 0.0)
    rest *= np.sqrt(evidence.lengths) / np.maximum(scale, 1e-300)[:, None]
    alike = [
        (rest[unit] @ rest[unit].T, np.maximum(seen[unit].astype(float) @ seen[unit].T - 1.0, 0.0))
        for unit in _slices(evidence.units)
    ]
    variance, covariance = _common(alike)
    found = []
    for unit, (products, freedom) in zip(_slices(evidence.units), alike, strict=True):
        pooled = np.where(np.eye(len(products), dtype=bool), variance, covariance)
        mixed = (products + _POOLED * pooled) / (freedom + _POOLED)
        raised = np.sqrt(np.maximum(variance / np.maximum(np.diagonal(mixed), 1e-300), 1.0))
        found.append(mixed * np.outer(raised * scale[unit], raised * scale[unit]))
    return found


def _common(alike: list[tuple[Array, Array]]) -> tuple[float, float]:
    """Variance of a rest, and covariance of two of a unit, over all units.

    One run alone tells nothing: it may be off by all of its cost.
    """
    sums = np.zeros(4)
    for products, freedom in alike:
        eye = np.eye(len(products), dtype=bool)
        sums += products[eye].sum(), freedom[eye].sum(), products[~eye].sum(), freedom[~eye].sum()
    if sums[1] == 0:
        return 1.0, 0.0
    variance = float(sums[0] / sums[1])
    covariance = float(sums[2] / sums[3]) if sums[3] > 0 else 0.0
    return variance, min(max(covariance, 0.0), 0.95 * variance)


def _unseen(samples: Array, all_samples: int) -> Array:
    """What is left of a sample's covariance in two means, [K, K]: both are over the samples that came first."""
    larger = np.maximum.outer(samples, samples)
    return np.asarray(
        np.where(larger > 0, np.maximum(1.0 / np.maximum(larger, 1) - 1.0 / all_samples, 0.0), 0.0)
    )


def _weighed(estimated: Array, errors: Array, measured: Array, noise: Array) -> tuple[Array, Array]:
    """Costs of a unit's entries and their covariance, given both kinds of evidence.

    They are weighed as logarithms: errors are shares of costs, and the smaller of two costs must not count for more.
    """
    costs, shares = estimated.copy(), np.diag(np.square(errors / np.where(estimated > 0, estimated, np.inf)))
    sure = np.isfinite(measured) & (np.diagonal(noise) <= 0)
    at = np.flatnonzero(np.isfinite(measured) & ~sure & (measured > 0) & (estimated > 0))
    if len(at):
        apart = np.log(measured[at] / estimated[at])
        seen = noise[np.ix_(at, at)] / np.outer(measured[at], measured[at])
        both = np.diagonal(seen) + shares[at, at]
        doubt = np.sqrt(np.maximum(np.square(apart) / np.maximum(both, 1e-300), 1.0))
        shares[at, at] *= np.square(doubt)
        seen = seen * np.outer(doubt, doubt)
        gain = shares[:, at] @ np.linalg.pinv(shares[np.ix_(at, at)] + seen, hermitian=True)
        costs = estimated * np.exp(gain @ apart)
        shares = shares - gain @ shares[at]
    # Nothing is left to doubt, or nothing to weigh: then only what was measured is known.
    alone = np.isfinite(measured) & ~np.isin(np.arange(len(costs)), at)
    costs[alone] = measured[alone]
    covariance = shares * np.outer(costs, costs)
    covariance[alone], covariance[:, alone] = 0.0, 0.0
    covariance[alone, alone] = np.diagonal(noise)[alone]
    return costs, covariance


def _slices(units: NDArray[np.int64]) -> list[slice]:
    """The entries of each unit."""
    starts = np.flatnonzero(np.diff(units, prepend=-1)).tolist()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(units)], strict=True)]
