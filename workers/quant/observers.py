"""Streaming observers: the range of activations that never lie in memory together (MATH.md section 2).

Both observers keep bounded state, give the same answer however the data is cut into batches and in whatever order it
comes, and can be merged, so that several workers may each watch a part. They are plain objects that pickle.
"""

import math

import torch
from torch import Tensor

from workers.contracts import Candidate, RangeMethod
from workers.errors import MeasurementFailed, RequestRefused
from workers.quant.affine import CodeRange, compute_dtype
from workers.quant.clipping_kl import bin_count, kl_threshold
from workers.quant.clipping_mse import mse_range

# Powers of two beyond these are no normal float32 numbers.
_LEAST_EXPONENT = -126


class MinMaxObserver:
    """Exact smallest and largest value.

    Args:
        name: The layer or activation, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.low = math.inf
        self.high = -math.inf

    def update(self, values: Tensor) -> None:
        """Take in a batch.

        Args:
            values: Any shape (possibly empty), floating point.

        Raises:
            MeasurementFailed: A value is NaN or infinite; names the layer. The state stays as it was.
            RequestRefused: ``values`` is not floating point.
        """
        if values.numel() == 0:
            return
        low, high = _finite_ends(values.detach().to(compute_dtype(values.dtype)), self.name)
        self.low, self.high = min(self.low, low), max(self.high, high)

    def merge(self, other: "MinMaxObserver") -> None:
        """Take in what another observer has seen."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def range(self) -> tuple[float, float]:
        """Smallest and largest value.

        Raises:
            MeasurementFailed: Nothing was observed.
        """
        if self.low > self.high:
            raise MeasurementFailed(f"nothing was observed for {self.name!r}", self.name)
        return self.low, self.high


class HistogramObserver:
    """A histogram on a grid that only ever coarsens, with the exact ends.

    The bins are ``2^e`` wide and aligned at 0, with ``e`` the smallest that fits the largest magnitude seen. When
    that grows, neighbours are added up, which loses nothing: the counts are those of all data put at once into the
    final grid. The state therefore depends on the data alone, not on batches, order or merging.

    Args:
        name: The layer or activation, for messages.
        bins: Bins on each side of 0, a power of two; at least half of them are in use. Memory: 16 bytes each.
    """

    def __init__(self, name: str, *, bins: int = 2048) -> None:
        if bins < 2 or bins & (bins - 1):
            raise RequestRefused(
                f"{bins} bins are not a power of two", "bins", bins, "a power of two, 2 or more"
            )
        self.name = name
        self.bins = bins
        self.ends = MinMaxObserver(name)
        self.exponent = _LEAST_EXPONENT
        self.counts = torch.zeros(2 * bins, dtype=torch.int64)

    def update(self, values: Tensor) -> None:
        """Take in a batch.

        Args:
            values: Any shape (possibly empty), floating point.

        Raises:
            MeasurementFailed: A value is NaN or infinite; names the layer. The state stays as it was.
            RequestRefused: ``values`` is not floating point.
        """
        if values.numel() == 0:
            return
        values = values.detach().to(compute_dtype(values.dtype))
        self.ends.update(values)
        self.counts = self.counts.to(values.device)
        self._coarsen(self._fitting_exponent())
        # A power of two: the products are exact, so that a value meets the same bin at whatever time it comes.
        index = (values * 2.0**-self.exponent).mul_(self.bins).floor_()
        if self.ends.low < 0:
            # What was rounded up to 0 from below still belongs below.
            index = torch.where(values < 0, index.clamp(max=-1), index)
        # 32 bits are enough for a bin's number, and four times as fast to count as 64.
        index = index.to(torch.int32).add_(self.bins).reshape(-1)
        self.counts += torch.bincount(index, minlength=2 * self.bins)

    def merge(self, other: "HistogramObserver") -> None:
        """Take in what another observer has seen.

        Raises:
            RequestRefused: It has another number of bins.
        """
        if other.bins != self.bins:
            raise RequestRefused(
                f"histograms of {other.bins} and {self.bins} bins cannot be merged",
                "bins",
                other.bins,
                self.bins,
            )
        self.ends.merge(other.ends)
        self._coarsen(max(self.exponent, other.exponent))
        counts = _coarser(other.counts, self.exponent - other.exponent)
        self.counts = self.counts + counts.to(self.counts.device)

    def range(self, candidate: Candidate) -> tuple[Tensor, Tensor]:
        """The range by the candidate's method; feed it to `scale_and_zero_point`.

        Min-max is exact. The others are those of the binned data: percentiles within one bin of the exact ones, KL
        and MSE with every value moved by less than a bin.

        Args:
            candidate: Bit-width and scheme; the granularity is not looked at.

        Returns:
            ``(range_min, range_max)``: float64 scalars on the device of the data.

        Raises:
            MeasurementFailed: Nothing was observed.
            RequestRefused: The method weights errors by inputs.
        """
        low, high = self.ends.range()
        codes = CodeRange.of_candidate(candidate)
        match candidate.scheme.range_method:
            case RangeMethod.MINMAX:
                pass
            case RangeMethod.PERCENTILE:
                share = candidate.scheme.percentile / 100
                low, high = self._at_share(share), self._at_share(1 - share)
            case RangeMethod.KL:
                threshold = self._kl_threshold(codes)
                low, high = max(low, -threshold), min(high, threshold)
            case RangeMethod.MSE:
                return self._least_error_range(codes, exponent=2)
            case RangeMethod.L3:
                return self._least_error_range(codes, exponent=3)
            case RangeMethod.WEIGHTED_MSE:
                raise RequestRefused(
                    f"activations have no inputs to weight the error of {self.name!r} by",
                    "scheme",
                    str(candidate.scheme),
                    [method.value for method in RangeMethod if method is not RangeMethod.WEIGHTED_MSE],
                )
        return self.counts.new_tensor(low, dtype=torch.float64), self.counts.new_tensor(
            high, dtype=torch.float64
        )

    @property
    def bin_width(self) -> float:
        """Width of a bin in the data's unit."""
        return 2.0**self.exponent / self.bins

    def _fitting_exponent(self) -> int:
        largest = max(map(abs, self.ends.range()))
        return max(_LEAST_EXPONENT, math.frexp(largest)[1]) if largest > 0 else _LEAST_EXPONENT

    def _coarsen(self, exponent: int) -> None:
        self.counts = _coarser(self.counts, exponent - self.exponent)
        self.exponent = exponent

    def _at_share(self, share: float) -> float:
        """Quantile, linear between the order statistics, each of which is spread evenly within its bin."""
        position = share * (int(self.counts.sum()) - 1)
        below, above = self._order_statistic(math.floor(position)), self._order_statistic(math.ceil(position))
        return below + (above - below) * (position - math.floor(position))

    def _order_statistic(self, rank: int) -> float:
        low, high = self.ends.range()
        upto = self.counts.cumsum(0)
        bin_ = int(torch.searchsorted(upto, rank, right=True))
        count = int(self.counts[bin_])
        within = (rank - int(upto[bin_]) + count + 0.5) / count
        return min(max((bin_ - self.bins + within) * self.bin_width, low), high)

    def _kl_threshold(self, codes: CodeRange) -> float:
        kept = min(self.bins, bin_count(int(self.counts.sum())))
        counts = self.counts.reshape(1, 2 * kept, -1).sum(2)
        return int(kl_threshold(counts, codes)) * 2.0**self.exponent / kept

    def _least_error_range(self, codes: CodeRange, *, exponent: int) -> tuple[Tensor, Tensor]:
        low, high = self.ends.range()
        occupied = self.counts.nonzero()[:, 0]
        centres = (occupied - self.bins + 0.5).to(torch.float64).mul_(self.bin_width).clamp_(low, high)
        weights = self.counts[occupied].to(torch.float64)
        range_min, range_max = mse_range(centres[None], codes, weights[None], exponent=exponent)
        return range_min[0], range_max[0]


def _coarser(counts: Tensor, doublings: int) -> Tensor:
    """The same histogram with bins ``2^doublings`` as wide: bin ``i`` (0 in the middle) goes to ``floor(i / 2^d)``."""
    bins = len(counts) // 2
    kept = max(1, bins >> doublings)
    sums = counts.reshape(2 * kept, -1).sum(1)
    return torch.nn.functional.pad(sums, (bins - kept, bins - kept))


def _finite_ends(values: Tensor, name: str) -> tuple[float, float]:
    low, high = (float(end) for end in torch.aminmax(values))
    # NaN propagates through aminmax.
    if not (math.isfinite(low) and math.isfinite(high)):
        raise MeasurementFailed(
            f"activation {name!r} holds NaN or infinite values",
            name,
            {"low": str(low), "high": str(high)},
            "finite values",
        )
    return low, high
