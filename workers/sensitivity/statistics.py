"""Mean and standard error of costs, also from blocks of samples. Torch-free: the service combines blocks with it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workers.contracts import Measured
from workers.errors import DatasetRefused

MOST_RUNS = 64
"""Costs are kept for so many runs of samples at most, whatever their number."""


class Summary(Protocol):
    """What is known of the costs of some samples: an `Entry`, or `Moments`."""

    @property
    def samples(self) -> int:
        """Number of samples."""

    @property
    def mean(self) -> float:
        """Mean cost; of no meaning without samples."""

    @property
    def squares(self) -> float:
        """Sum of squared distances from the mean."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean and sum of squared distances from the mean."""

    samples: int
    mean: float
    squares: float

    @property
    def standard_error(self) -> float | None:
        """``std(ddof=1) / sqrt(n)``; ``None`` for less than two samples."""
        if self.samples < 2:
            return None
        return math.sqrt(self.squares / (self.samples - 1) / self.samples)

    @property
    def measured(self) -> Measured:
        """Mean and standard error."""
        return Measured(mean=self.mean, standard_error=self.standard_error, samples=self.samples)


def moments(costs: NDArray[np.float64]) -> Moments:
    """Moments of the samples that count.

    Args:
        costs: ``[samples]``; NaN marks samples that do not count.

    Returns:
        The moments; all 0 if no sample counts.
    """
    counted = costs[~np.isnan(costs)]
    if len(counted) == 0:
        return Moments(samples=0, mean=0.0, squares=0.0)
    mean = float(counted.mean())
    return Moments(samples=len(counted), mean=mean, squares=float(np.square(counted - mean).sum()))


def run_lengths(samples: int) -> NDArray[np.int64]:
    """How many samples each run has that a number of samples is cut into: about as many each, 64 runs at most."""
    runs = min(samples, MOST_RUNS)
    return np.diff(np.arange(runs + 1) * samples // max(runs, 1))


def run_means(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean costs of runs of samples that follow each other.

    Entries that were measured on the same samples are compared by them: how far their costs go together.

    Args:
        costs: ``[samples]``; NaN marks samples that do not count.

    Returns:
        One number for each of `run_lengths`; NaN where no sample counts.
    """
    starts = np.cumsum(run_lengths(len(costs))) - run_lengths(len(costs))
    counted = ~np.isnan(costs)
    counts = np.add.reduceat(counted.astype(np.float64), starts)
    totals = np.add.reduceat(np.where(counted, costs, 0.0), starts)
    return np.where(counts > 0, totals / np.maximum(counts, 1.0), np.nan)


def combine(parts: Iterable[Summary]) -> Moments:
    """Moments of disjoint sets of samples taken together.

    Args:
        parts: Any number; those without samples change nothing.

    Returns:
        What `moments` gives for all samples at once, to rounding.

    Source:
        Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance, equation 2.1.
    """
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        if part.samples == 0:
            continue
        total = count + part.samples
        difference = part.mean - mean
        squares += part.squares + difference**2 * count * part.samples / total
        mean += difference * part.samples / total
        count = total
    return Moments(samples=count, mean=mean, squares=squares)


def summarize(costs: NDArray[np.float64]) -> Measured:
    """Mean and standard error over samples.

    Args:
        costs: ``[samples]``; NaN marks samples that do not count.

    Returns:
        Mean, ``std(ddof=1) / sqrt(n)`` (``None`` for one sample), and the number of samples that count.

    Raises:
        DatasetRefused: No sample counts.
    """
    return require_samples(moments(costs)).measured


def require_samples(found: Moments) -> Moments:
    """Moments of one sample at least.

    Raises:
        DatasetRefused: No sample counts.
    """
    if found.samples == 0:
        raise DatasetRefused("no sample has a label", "labels", None, "at least one label other than -100")
    return found
