"""Which of the chosen samples a block holds. Torch-free: the service puts blocks together with it."""

import numpy as np
from numpy.typing import NDArray

from workers.sampling import SampleBlock


def positions_of(block: SampleBlock, samples: int, seed: int) -> NDArray[np.int64]:
    """Where a block's samples are among all chosen ones, int64, ascending.

    Args:
        block: Ends at ``samples`` or before.
        samples: How many are chosen.
        seed: Of their order.
    """
    order = np.random.default_rng([seed, samples]).permutation(samples)
    return np.sort(order[block.start : block.stop])
