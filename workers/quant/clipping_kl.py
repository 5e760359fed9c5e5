"""The clipping threshold of least KL divergence, per slice (MATH.md section 2).

For a threshold ``T`` of ``k`` bins, ``P`` is the histogram clipped at ``T`` with the outliers added to its last bin
(both end bins where the histogram has two sides), and ``Q`` is the *unclipped* part of the histogram merged into the
quantizer's levels, each level's mass spread evenly over its bins that are not empty. Both sum to 1. Smoothing: ``Q``
is mixed with the uniform distribution over its bins, ``(1 - e) Q + e / k`` with ``e = 1e-6``; it matters only where
outliers fall on an end bin that was empty. Were ``Q`` made from the clipped histogram, as is often seen, the
outliers would be in both, clipping would cost nothing, and the threshold would collapse.

A symmetric quantizer merges the histogram of ``|r|`` into its ``2^(b-1)`` non-negative levels; an asymmetric one the
signed histogram within ``[max(r_min, -T), min(r_max, T)]`` into ``2^b``. A window with fewer bins than levels is not
considered (nothing would be merged), so wide codes, and slices too short to tell a density from, end at min-max.

The sums over bins are differences of prefix sums, since ``Q`` is constant on a level: a threshold costs one look-up
per level, not per bin.

Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017, slides 17-38; ours states the smoothing, takes any
bit-width, and spreads thresholds evenly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.quant import acceleration
from workers.quant.affine import CodeRange

SMOOTHING = 1e-6
# Bins of [0, max|r|]: a power of two, at most one for 16 values. Merging sampling noise costs a divergence of about
# bins / (2 values), which grows with the threshold: with fuller histograms than this it drowns the signal and
# everything is clipped too far (measured; fewer bins gave the smaller error for all shapes tried, at 2 to 8 bits).
_VALUES_PER_BIN, _MOST_BINS = 16, 2048
# At most so many thresholds are tried: the answer is exact to max|r| / 128 or one bin.
_THRESHOLDS = 128
# Values and bins worked on at once.
_CHUNK_BINS = 1 << 19


def kl_range(rows: Tensor, codes: CodeRange) -> tuple[Tensor, Tensor]:
    """The range of each row, clipped at the threshold of least KL divergence.

    Args:
        rows: ``[slices, values]``, float32 or float64, finite.
        codes: The integer codes.

    Returns:
        ``(range_min, range_max)``, each ``[slices]``: the row's min-max range within ``[-T, T]``.
    """
    return Histograms(rows).range(codes)


class Histograms:
    """The histograms of some rows: what the thresholds of all bit-widths are found from.

    Args:
        rows: ``[slices, values]``, float32 or float64, finite.
    """

    def __init__(self, rows: Tensor) -> None:
        self.low, self.high = torch.aminmax(rows, dim=1)
        self.largest = torch.maximum(self.low.abs(), self.high.abs())
        self.bins = bin_count(rows.shape[1])
        per_chunk = max(1, _CHUNK_BINS // max(rows.shape[1], 2 * self.bins))
        self.counts = [
            _histogram(rows[i : i + per_chunk], self.largest[i : i + per_chunk], self.bins)
            for i in range(0, rows.shape[0], per_chunk)
        ]

    def range(self, codes: CodeRange) -> tuple[Tensor, Tensor]:
        """See `kl_range`."""
        kept = torch.cat([kl_threshold(counts, codes) for counts in self.counts])
        threshold = self.largest * (kept.to(self.largest.dtype) / self.bins)
        return torch.maximum(self.low, -threshold), torch.minimum(self.high, threshold)


def bin_count(values: int) -> int:
    """How many bins ``[0, max|r|]`` gets for a number of values: a power of two."""
    most = max(1, values // _VALUES_PER_BIN)
    return min(1 << (most.bit_length() - 1), _MOST_BINS)


def kl_threshold(counts: Tensor, codes: CodeRange) -> Tensor:
    """The threshold of least KL divergence, in bins.

    Args:
        counts: ``[slices, 2 * bins]``, the signed histogram: bin ``i`` spans ``[i - bins, i + 1 - bins)`` bin widths.
        codes: The integer codes.

    Returns:
        ``k`` of each row, int64 ``[slices]``, in 1..bins; ``bins`` (no clipping) for an empty histogram.
    """
    bins = counts.shape[1] // 2
    thresholds = _thresholds(bins, codes.quant_max + 1 if codes.symmetric else codes.levels // 2)
    if len(thresholds) == 1:
        return torch.full((len(counts),), bins, dtype=torch.int64, device=counts.device)
    if codes.symmetric:
        counts = counts[:, bins:] + counts[:, :bins].flip(1)
        levels, origin = codes.quant_max + 1, 0
        first, last = torch.zeros_like(counts[:, 0]), torch.full_like(counts[:, 0], bins)
    else:
        levels, origin = codes.levels, bins
        occupied = counts > 0
        first = occupied.int().argmax(1).clamp(max=bins)
        last = (2 * bins - occupied.flip(1).int().argmax(1)).clamp(min=bins)
    windows = _Windows(first=first, last=last, thresholds=thresholds, bins=bins, origin=origin, levels=levels)
    if acceleration.suits_counts(counts):
        return acceleration.find_thresholds(counts, smoothing=SMOOTHING, **vars(windows))
    return _find_thresholds(counts, windows)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Windows:
    """The windows ``[max(first, origin - T), min(last, origin + T))`` of bins that are tried.

    Args:
        first: int64 ``[slices]``.
        last: int64 ``[slices]``.
        thresholds: T, falling.
        bins: The largest: nothing is clipped.
        origin: The bin that begins at 0.
        levels: Into how many levels a window is merged.
    """

    first: Tensor
    last: Tensor
    thresholds: list[int]
    bins: int
    origin: int
    levels: int


def _find_thresholds(counts: Tensor, windows: _Windows) -> Tensor:
    """By tensors, on any device."""
    bins, levels = windows.bins, windows.levels
    sums = _PrefixSums(counts)
    best = torch.full((len(counts),), torch.inf, dtype=torch.float64, device=counts.device)
    kept = torch.full((len(counts),), bins, dtype=torch.int64, device=counts.device)
    for threshold in windows.thresholds:
        start = windows.first.clamp(min=windows.origin - threshold)
        stop = windows.last.clamp(max=windows.origin + threshold)
        divergence = sums.divergence(start, stop, levels)
        if threshold < bins:
            divergence = torch.where(stop - start < levels, torch.inf, divergence)
        # The largest threshold comes first, and wins ties.
        better = divergence < best
        best = torch.where(better, divergence, best)
        kept = torch.where(better, threshold, kept)
    return kept


def _thresholds(bins: int, fewest: int) -> list[int]:
    if fewest >= bins:
        return [bins]
    step = max(1, -(-(bins - fewest) // _THRESHOLDS))
    return list(range(bins, fewest - 1, -step))


def _histogram(rows: Tensor, largest: Tensor, bins: int) -> Tensor:
    """Signed histograms ``[slices, 2 * bins]`` (int64) over ``[-largest, largest]``."""
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))[:, None]
    index = (rows / unit).mul_(bins).floor_().to(torch.int64).add_(bins).clamp_(0, 2 * bins - 1)
    index += torch.arange(len(rows), device=rows.device)[:, None] * (2 * bins)
    return torch.bincount(index.reshape(-1), minlength=2 * bins * len(rows)).reshape(len(rows), 2 * bins)


class _PrefixSums:
    """What the divergence of any window needs: sums from the left of counts, of occupied bins and of ``h log h``."""

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts.to(torch.float64)
        self.mass = _from_left(self.counts)
        self.occupied = _from_left((self.counts > 0).to(torch.float64))
        self.entropy = _from_left(torch.xlogy(self.counts, self.counts))

    def divergence(self, start: Tensor, stop: Tensor, levels: int) -> Tensor:
        """``D_KL(P || Q)`` for the window ``[start, stop)`` of bins of each row.

        Args:
            start: int64 ``[slices]``.
            stop: int64 ``[slices]``, above ``start``.
            levels: Into how many levels the window is merged. Where something lies outside of a window, that window
                must be no narrower than this, and two bins or more.

        Returns:
            float64 ``[slices]``; infinite where the window is empty.
        """
        width = (stop - start)[:, None]
        steps = torch.arange(levels + 1, device=start.device)
        edges = start[:, None] + (steps * width + levels - 1) // levels
        mass, occupied = self.mass.gather(1, edges), self.occupied.gather(1, edges)
        inside = mass[:, -1:] - mass[:, :1]
        level_mass = mass.diff(dim=1)
        floor = SMOOTHING / width.to(torch.float64)
        share = level_mass / (occupied.diff(dim=1).clamp_(min=1) * inside.clamp(min=1))
        log_share = share.mul_(1 - SMOOTHING).add_(floor).log_()
        cross = (level_mass * log_share).sum(1)
        total = self.mass[:, -1]
        below, above = mass[:, 0], total - mass[:, -1]
        first = self.counts.gather(1, start[:, None])[:, 0]
        final = self.counts.gather(1, stop[:, None] - 1)[:, 0]
        log_floor = floor[:, 0].log()
        cross += torch.where(first > 0, log_share[:, 0], log_floor) * below
        cross += torch.where(final > 0, log_share[:, -1], log_floor) * above
        # P log P: the counts as they are, but with the outliers on the end bins.
        own = self._entropy_between(start, stop)
        own += torch.xlogy(first + below, first + below) - torch.xlogy(first, first)
        own += torch.xlogy(final + above, final + above) - torch.xlogy(final, final)
        divergence = (own - cross) / total.clamp(min=1) - total.clamp(min=1).log()
        return torch.where(inside[:, 0] > 0, divergence, torch.inf)

    def _entropy_between(self, start: Tensor, stop: Tensor) -> Tensor:
        ends = self.entropy.gather(1, torch.stack([start, stop], 1))
        return ends[:, 1] - ends[:, 0]


def _from_left(values: Tensor) -> Tensor:
    """Sums of the first 0, 1, ... values: ``[slices, values + 1]``."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))
