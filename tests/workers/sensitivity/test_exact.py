"""Prefix reuse must not change a single bit of any cost."""

import pytest
import torch

from workers.sensitivity.exact import exact_costs
from workers.sensitivity.naive import naive_costs
from workers.sensitivity.prefixes import Prefixes
from workers.sensitivity.session import prepare


def assert_equal_to_naive(request, memory_bytes):
    setup = prepare(request)
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=memory_bytes)
    ours = [found.costs for found in exact_costs(setup, request.wanted, prefixes)]
    plain = list(naive_costs(setup, request.wanted))
    assert len(ours) == len(plain) == len(request.wanted)
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()
    assert prefixes.peak_bytes <= memory_bytes
    return prefixes


@pytest.mark.parametrize("memory_bytes", [1 << 30, 4000, 0])
@pytest.mark.parametrize("fixed_batch", [None, 3])
def test_equal_to_the_plain_loop(make_case, kind, memory_bytes, fixed_batch):
    case = make_case(kind, fixed_batch=fixed_batch)
    prefixes = assert_equal_to_naive(case.request(), memory_bytes)
    if memory_bytes == 4000:
        assert prefixes.peak_bytes > 0


def test_equal_in_any_order(make_case):
    case = make_case()
    backwards = case.wanted(3)[::-1]
    assert_equal_to_naive(case.request(wanted=backwards + case.wanted(2)), 1 << 30)


def test_equal_where_the_reference_is_not_kept(make_case):
    """Outputs that do not fit into half the bound are computed again."""
    case = make_case()
    request = case.request(memory_bytes=2 * (2 * 3 * 5 * 4))
    setup = prepare(request)
    assert [output is None for output in setup.reference.outputs] == [False, False, True]
    assert_equal_to_naive(request, 1 << 30)


def test_only_the_suffix_is_run(make_case, count_steps):
    case = make_case()
    request = case.request(wanted=case.wanted(2, 4))
    setup = prepare(request)
    ran = count_steps()
    list(exact_costs(setup, request.wanted, Prefixes(setup.program, setup.batches, memory_bytes=1 << 30)))
    steps, batches = len(setup.program), len(setup.batches)
    firsts = [setup.table.unit(name).first_step for name in case.units]
    suffixes = sum(2 * (steps - first) for first in firsts)
    assert len(ran) == batches * (suffixes + firsts[-1])


def test_a_failed_entry_leaves_nothing_wrong_behind(make_case, monkeypatch):
    case = make_case()
    request = case.request()
    setup = prepare(request)
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=1 << 30)
    expected = list(naive_costs(setup, request.wanted))
    running = exact_costs(setup, request.wanted, prefixes)
    assert torch.equal(next(running).costs, expected[0])
    with monkeypatch.context() as broken:
        broken.setattr(setup.program, "override", None)
        with pytest.raises(TypeError):
            next(running)
    again = [found.costs for found in exact_costs(setup, request.wanted, prefixes)]
    assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))


def test_a_prefix_that_is_not_kept_is_run_once_for_all_candidates(make_case, count_steps):
    case = make_case()
    request = case.request(wanted=case.wanted(2, 3, 4, 8))
    setup = prepare(request)
    ran = count_steps()
    list(exact_costs(setup, request.wanted, Prefixes(setup.program, setup.batches, memory_bytes=0)))
    steps, batches = len(setup.program), len(setup.batches)
    firsts = [setup.table.unit(name).first_step for name in case.units]
    tries = sum(first for first in firsts)  # one batch is run on to see whether it fits
    assert len(ran) <= sum(batches * (first + 4 * (steps - first)) for first in firsts) + batches * tries
