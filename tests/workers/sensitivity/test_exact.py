"""Prefix reuse must not change a single bit of any cost."""

import itertools

import pytest
import torch

from workers.sensitivity.exact import exact_costs
from workers.sensitivity.naive import naive_costs
from workers.sensitivity.prefixes import Prefixes
from workers.sensitivity.session import prepare
from workers.sensitivity.stacking import Stacking


def assert_equal_to_naive(request, memory_bytes, stacking=None):
    setup = prepare(request)
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=memory_bytes)
    ours = [found.costs for found in exact_costs(setup, request.wanted, prefixes, stacking)]
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


def stacking_for(request, *, slower_by=-1.0, memory_bytes=1 << 30):
    """One that finds stacked passes to take so much longer than the plain ones."""
    setup = prepare(request)
    ticks = itertools.count()
    stacking = Stacking(
        setup.program,
        setup.batches,
        memory_bytes=memory_bytes,
        clock=lambda: next(ticks) + slower_by * stacking.stacked,
    )
    return stacking


@pytest.mark.parametrize("memory_bytes", [1 << 30, 4000, 0])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_equal_with_candidates_in_one_pass(make_case, kind, memory_bytes, batch_size):
    case = make_case(kind, samples=11)
    request = case.request(wanted=case.wanted(2, 3, 4), batch_size=batch_size)
    assert_equal_to_naive(request, memory_bytes, stacking_for(request))


def test_candidates_share_passes_where_bits_agree(make_case, monkeypatch):
    """Convolutions over few samples round alike for any number of them."""
    case = make_case(samples=18)
    request = case.request(wanted=case.wanted(2, 4, 8), batch_size=4)
    stacking = stacking_for(request)
    setup = prepare(request)
    counted = []
    advance = setup.program.advance

    def count(environment, start, stop, *override):
        counted.append(stop - start)
        advance(environment, start, stop, *override)

    monkeypatch.setattr(setup.program, "advance", count)
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=1 << 30)
    found = [one.costs for one in exact_costs(setup, request.wanted, prefixes, stacking)]
    assert stacking.stacked > len(case.units)
    monkeypatch.undo()
    assert all(torch.equal(a, b) for a, b in zip(found, naive_costs(setup, request.wanted), strict=True))


@pytest.mark.parametrize("refusal", ["slow", "memory", "fixed batch", "one batch"])
def test_candidates_do_not_share_passes(make_case, refusal):
    case = make_case(samples=12, fixed_batch=3 if refusal == "fixed batch" else None)
    request = case.request(batch_size=12 if refusal == "one batch" else 3)
    stacking = stacking_for(
        request,
        slower_by=1e6 if refusal == "slow" else -1.0,
        memory_bytes=100 if refusal == "memory" else 1 << 30,
    )
    assert_equal_to_naive(request, 1 << 30, stacking)
    tried = 2 if refusal == "slow" else 0  # units 0 and 3: two are left out after a failure
    assert stacking.stacked == tried


def test_different_bits_are_found_out(make_case, monkeypatch):
    case = make_case(samples=12)
    request = case.request(batch_size=3)
    stacking = stacking_for(request)
    run = stacking.run
    monkeypatch.setattr(
        stacking, "run", lambda *args: [output.nextafter(output + 1) for output in run(*args)]
    )
    assert_equal_to_naive(request, 1 << 30, stacking)
    assert stacking.stacked == 2


def test_a_prefix_that_is_not_kept_is_run_once_for_all_candidates(make_case, monkeypatch):
    case = make_case()
    request = case.request(wanted=case.wanted(2, 3, 4, 8))
    setup = prepare(request)
    counted = []
    advance = setup.program.advance

    def count(environment, start, stop, *override):
        counted.append(stop - start)
        advance(environment, start, stop, *override)

    monkeypatch.setattr(setup.program, "advance", count)
    list(exact_costs(setup, request.wanted, Prefixes(setup.program, setup.batches, memory_bytes=0)))
    steps, batches = len(setup.program), len(setup.batches)
    firsts = [setup.table.unit(name).first_step for name in case.units]
    tries = sum(first for first in firsts)  # one batch is run on to see whether it fits
    assert sum(counted) <= sum(batches * (first + 4 * (steps - first)) for first in firsts) + batches * tries
