"""From the values of probes to estimates with their errors."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.contracts import Measured
from workers.errors import DatasetRefused
from workers.sensitivity.estimators.totals import ProbeValues


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimates:
    """Estimated costs of some entries.

    Args:
        mean: ``[entries]``, float64: mean over samples and probes, in the metric's unit.
        standard_error: ``[entries]``: of the mean as an estimate for other samples like these; over samples of
            their means over probes, so that it holds the signs' chance as well. NaN for one sample.
        sign_error: ``[entries]``: the part of it that the signs add, that is the error of the mean as an estimate of
            what these very samples cost to second order. From the scatter over probes; with one probe from the
            values' being sums of many signs and so nearly normal, whence their squares' variance.
        samples: Number of samples that count.
        probes: Number of probes.
    """

    mean: Tensor
    standard_error: Tensor
    sign_error: Tensor
    samples: int
    probes: int

    def measured(self, entry: int) -> Measured:
        """One entry's mean and standard error in the form of an exact measurement."""
        error = float(self.standard_error[entry])
        return Measured(
            mean=float(self.mean[entry]),
            standard_error=None if math.isnan(error) else error,
            samples=self.samples,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
    """Estimates from all probes.

    Args:
        weights: Of the entries, in their order.
        activations: Unit -> estimates for its activation candidates.
    """

    weights: Estimates
    activations: dict[str, Estimates]


class _Moments:
    """First two moments over probes of the squares of ``[entries, samples]``."""

    def __init__(self) -> None:
        self._probes = 0
        self._sum = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        square = values.square()
        self._sum = self._sum + square
        self._squares = self._squares + square.square()
        self._probes += 1

    def estimates(self, counted: Tensor) -> Estimates:
        means = (self._sum / self._probes)[:, counted]
        fourth = (self._squares / self._probes)[:, counted]
        samples = means.shape[1]
        if self._probes > 1:
            variance = (fourth - means.square()).clamp_min(0) / (self._probes - 1)
        else:
            variance = fourth * (2 / 3)  # E v^4 = 3 (E v^2)^2
        scatter = means.std(-1, correction=1) if samples > 1 else means.new_full(means.shape[:1], math.nan)
        return Estimates(
            mean=means.mean(-1),
            standard_error=scatter / math.sqrt(samples),
            sign_error=variance.sum(-1).sqrt() / samples,
            samples=samples,
            probes=self._probes,
        )


def summarize(values: Iterable[ProbeValues]) -> Summary:
    """Summarize probes, one at a time.

    Args:
        values: From `workers.sensitivity.estimators.probe.probe`, at least one.

    Raises:
        DatasetRefused: No sample has a position that counts.
    """
    weights, activations = _Moments(), dict[str, _Moments]()
    counted = torch.zeros(0, dtype=torch.bool)
    for each in values:
        counted = each.counted
        weights.add(each.weights)
        for unit, rows in each.activations.items():
            activations.setdefault(unit, _Moments()).add(rows)
    if not bool(counted.any()):
        raise DatasetRefused(
            "no position of any sample counts", "position_mask", None, "a position that counts"
        )
    return Summary(
        weights=weights.estimates(counted),
        activations={unit: moments.estimates(counted) for unit, moments in activations.items()},
    )
