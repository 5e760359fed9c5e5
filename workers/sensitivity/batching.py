"""How many samples to feed at a time when nobody says so.

Results must not depend on the machine or on what else it does, and kernels round differently for different
batches, so that this is a rule, not a timing: as many samples as the widest value of a pass leaves room for, at
most 32. EfficientNet-Lite0 takes 22.6, 20.9, 20.4, 20.4, 17.2 and 18.0 ms of CPU time per image in batches of 1, 2, 4,
8, 16 and 32 (torch 2.13, one thread): from 16 on better kernels are chosen, and nothing is gained beyond. A
language model's outputs hold a number per token and word; 32 sequences of them would fill the memory, and take longer:
an output layer of 576 x 49 152 with its softmax on 256 tokens takes .28, .33 and .47 s of CPU time per sequence, and .5, .9
and 2.6 GiB, in batches of 1, 4 (the rule's) and 16.
"""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from workers.graph.dataflow import Dataflow, shape_of
from workers.graph.model import GraphModel

MOST_SAMPLES = 32
_WIDEST_BYTES = 256 << 20


def batch_size_for(model: GraphModel, inputs: Sequence[Tensor]) -> int:
    """A power of two from 1 to 32.

    Args:
        model: The model.
        inputs: The data, samples along axis 0.
    """
    symbols = {
        name: 1 if axis == 0 else inputs[index].shape[axis] for name, (index, axis) in model.symbols.items()
    }
    widest = max(
        prod(shape_of(node, symbols)) * node.meta["dtype"].itemsize
        for node in Dataflow.of(model).live
        if "shape" in node.meta
    )
    size = MOST_SAMPLES
    while size > 1 and size * widest > _WIDEST_BYTES:
        size //= 2
    return size
