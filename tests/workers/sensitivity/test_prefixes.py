"""What prefixes keep, and that it is counted right on graphs with branches."""

import pytest
import torch
from torch import nn

from workers.contracts import Metric
from workers.graph.residency import tensors_in
from workers.sampling import SampleBlock
from workers.sensitivity.prefixes import Prefixes
from workers.sensitivity.session import prepare


class Branches(nn.Module):
    """A skip from the input's view to the end, a long skip, and a layer used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, a, b):
        view = a.view(-1, 2, 3).transpose(1, 2)
        skip = self.first(b)
        deep = self.shared(torch.relu(self.shared(skip))) + skip
        return self.last(deep) + view.flatten(1)


def kept_bytes(prefixes, batches):
    """Memory behind the environments kept, each storage once, the data set's not."""
    data = {tensor.untyped_storage().data_ptr() for tensor in batches.inputs}
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for checkpoint in prefixes._checkpoints
        for value in (checkpoint.environment or {}).values()
        for tensor in tensors_in(value)
    }
    return sum(size for pointer, size in storages.items() if pointer not in data)


@pytest.mark.parametrize("block", [None, SampleBlock(start=0, stop=7)])
def test_memory_is_counted_right_at_every_cut(make_case, block):
    """Views of the data set cost nothing; copies of scattered samples do."""
    case = make_case(Branches, samples=9)
    setup = prepare(case.request(metric=Metric.MSE, block=block))
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=1 << 20)
    for cut in range(1, len(setup.program)):
        prefixes.move_to(cut)
        assert prefixes.complete
        assert prefixes._used == kept_bytes(prefixes, setup.batches) <= prefixes.peak_bytes
    assert prefixes.peak_bytes > 0


def test_batches_that_do_not_fit_are_not_tried_one_by_one(make_case, count_steps):
    """Of equal batches one tells for all: the others are not run to every cut only to be dropped."""
    case = make_case(Branches, samples=9)
    setup = prepare(case.request(metric=Metric.MSE, batch_size=1))
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=0)
    prefixes.move_to(1)
    ran = count_steps()
    prefixes.move_to(len(setup.program) - 1)
    assert len(ran) <= len(setup.program) - 1


def test_views_of_the_data_set_fit_into_no_memory(make_case):
    case = make_case(Branches, samples=9)
    setup = prepare(case.request(metric=Metric.MSE))
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=0)
    names = [step.node.name for step in setup.program.steps]
    prefixes.move_to(names.index("linear"))
    assert prefixes.complete  # nothing but views so far
    prefixes.move_to(len(setup.program) - 1)
    assert not prefixes.complete
