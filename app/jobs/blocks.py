"""Into how many blocks samples are cut, of which entries are measured on no more than plans need. Pure.

The smaller a block, the less is measured of what no plan takes. But a block has to tell something: costs of samples have heavy
tails, and few of them may hide what a candidate costs. A sample that is compared at many positions, or over many numbers
without a distribution, is a mean itself, and tells more.
"""

import math

from workers.contracts import InputInfo, Metric

FEWEST = 4
MOST = 8
_LEAST_NUMBERS = 16
"""More blocks than the fewest are cut where each of them then holds so many numbers that costs are means of."""
_COUNTED_PER_SAMPLE = 8
"""A sample's numbers are related: more do not tell more."""


def measure_blocks(metric: Metric, output: InputInfo, positions: int, samples: int) -> int:
    """The number of blocks.

    Args:
        metric: By which outputs are compared.
        output: What is compared, with its axis of samples; sizes that vary are ``None``.
        positions: What those sizes come to in the data, together.
        samples: That are measured on at most.
    """
    counted = output.shape[1:] if metric is Metric.MSE else output.shape[1:-1]
    known = math.prod(size for size in counted if size is not None)
    numbers = known * (positions if None in counted else 1)
    return min(max(samples * min(numbers, _COUNTED_PER_SAMPLE) // _LEAST_NUMBERS, FEWEST), MOST)
