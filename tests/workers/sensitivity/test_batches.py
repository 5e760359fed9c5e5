import pytest
import torch

from workers.errors import RequestRefused
from workers.sensitivity.batches import Batches, Selection

DATA = torch.arange(10)[:, None] * torch.ones(1, 3)


def batches(*, samples=None, seed=0, size=4, fixed=None, indices=None):
    selection = Selection(samples=samples, indices=indices, seed=seed, batch_size=size)
    return Batches.of([DATA], torch.arange(10), selection, fixed_batch=fixed)


def fed(made):
    return [made.inputs_of(batch)[0][:, 0].tolist() for batch in range(len(made))]


def test_all_samples_in_order():
    made = batches()
    assert fed(made) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [made.kept(batch) for batch in range(3)] == [4, 4, 2]
    assert made.labels_of(2).tolist() == [8, 9]


def test_a_fixed_batch_is_filled_up_and_the_fillers_do_not_count():
    made = batches(size=2, fixed=4)
    assert fed(made) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert made.kept(2) == 2
    assert made.labels_of(2).tolist() == [8, 9]


def test_the_seed_chooses_samples_and_keeps_their_order():
    chosen = [number for batch in fed(batches(samples=6)) for number in batch]
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 6
    assert fed(batches(samples=6)) == fed(batches(samples=6))
    assert fed(batches(samples=6)) != fed(batches(samples=6, seed=1))
    assert fed(batches(samples=10, seed=1)) == fed(batches())


def test_samples_outside_the_pool_are_held_out():
    assert fed(batches(indices=(1, 4, 5, 6, 9))) == [[1, 4, 5, 6], [9]]
    chosen = {
        number
        for seed in range(20)
        for batch in fed(batches(indices=(1, 4, 9), samples=2, seed=seed))
        for number in batch
    }
    assert chosen == {1, 4, 9}
    with pytest.raises(RequestRefused, match="the data has 3"):
        batches(indices=(1, 4, 9), samples=4)


@pytest.mark.parametrize("indices", [(1, 1), (4, 1), (-1, 2), (3, 10)])
def test_impossible_pools(indices):
    with pytest.raises(RequestRefused, match="ascending numbers below 10") as caught:
        batches(indices=indices)
    assert caught.value.field == "indices"


def test_an_empty_pool_is_refused():
    with pytest.raises(RequestRefused, match="the data has 0"):
        batches(indices=())


def test_whole_runs_of_samples_are_not_copied():
    assert batches().inputs_of(1)[0].data_ptr() == DATA[4:].data_ptr()


@pytest.mark.parametrize("samples", [0, 11, -1])
def test_impossible_numbers_of_samples(samples):
    with pytest.raises(RequestRefused, match="the data has 10") as caught:
        batches(samples=samples)
    assert caught.value.field == "samples"


def test_empty_batches_are_refused():
    with pytest.raises(RequestRefused, match="a batch of 0 samples"):
        batches(size=0)
