"""Mean and standard error of costs."""

import math

from torch import Tensor

from workers.contracts import Measured
from workers.errors import DatasetRefused


def summarize(costs: Tensor) -> Measured:
    """Mean and standard error over samples.

    Args:
        costs: ``[samples]``, float64; NaN marks samples that do not count.

    Returns:
        Mean, ``std(ddof=1) / sqrt(n)`` (``None`` for one sample), and the number of samples that count.

    Raises:
        DatasetRefused: No sample counts.
    """
    counted = costs[~costs.isnan()]
    count = len(counted)
    if count == 0:
        raise DatasetRefused("no sample has a label", "labels", None, "at least one label other than -100")
    error = float(counted.std(correction=1)) / math.sqrt(count) if count > 1 else None
    return Measured(mean=float(counted.mean()), standard_error=error, samples=count)
