"""Candidates that share calls: the plain loop's bits, in fewer calls, and nothing lost where it is no gain."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.graph import stacked
from workers.graph.reach import Reaches
from workers.graph.stacked import Comparison, Mode, Stretch, Variants, narrow_places
from workers.sensitivity import stacking as module
from workers.sensitivity.exact import exact_costs
from workers.sensitivity.naive import naive_costs
from workers.sensitivity.prefixes import Prefixes
from workers.sensitivity.session import prepare
from workers.sensitivity.stacking import Stacking


@pytest.fixture
def stacking_for(count_steps, monkeypatch):
    """For a request, with calls for a clock, so that steps that are run together take less; trials are always made."""

    def make(request, *, memory_bytes=1 << 30, together_takes=lambda stacking: 1.0):
        monkeypatch.setattr(module, "_SPENT_ON_TRIALS", float("inf"))
        setup = prepare(request)
        ran, late = count_steps(), [0.0]
        stacking = Stacking(
            setup.program, setup.batches, memory_bytes=memory_bytes, clock=lambda: len(ran) + late[0]
        )
        run = stacked.Variants._run_together

        def run_together(self, place):
            late[0] += together_takes(stacking) - 1.0
            return run(self, place)

        monkeypatch.setattr(stacked.Variants, "_run_together", run_together)
        return stacking

    return make


def assert_equal_to_naive(request, memory_bytes, stacking):
    setup = prepare(request)
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=memory_bytes)
    found = [one.costs for one in exact_costs(setup, request.wanted, prefixes, stacking)]
    plain = list(naive_costs(setup, request.wanted))
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


@pytest.mark.parametrize("memory_bytes", [1 << 30, 4000, 0])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_equal_to_the_plain_loop(make_case, kind, memory_bytes, batch_size, stacking_for):
    case = make_case(kind, samples=11)
    request = case.request(wanted=case.wanted(2, 3, 4), batch_size=batch_size)
    stacking = stacking_for(request)
    assert_equal_to_naive(request, memory_bytes, stacking)
    assert stacking.tried == 2
    assert stacking.stacked > 0


def test_candidates_share_calls(make_case, stacking_for, count_steps):
    case = make_case(samples=32)
    request = case.request(wanted=case.wanted(2, 3, 4, 5, 6, 8), batch_size=2)
    setup = prepare(request)
    stacking = stacking_for(request)
    ran = count_steps()
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=1 << 30)
    list(exact_costs(setup, request.wanted, prefixes, stacking))
    shared = len(ran)
    list(exact_costs(setup, request.wanted, Prefixes(setup.program, setup.batches, memory_bytes=1 << 30)))
    assert shared < 0.65 * (len(ran) - shared)


@pytest.mark.parametrize("refusal", ["slow", "memory", "fixed batch", "few batches", "little work"])
def test_candidates_do_not_share_calls(make_case, refusal, stacking_for, monkeypatch):
    case = make_case(samples=12, fixed_batch=3 if refusal == "fixed batch" else None)
    request = case.request(batch_size=4 if refusal == "few batches" else 3)
    stacking = stacking_for(
        request,
        together_takes=lambda _: 1e6 if refusal == "slow" else 1.0,
        memory_bytes=100 if refusal == "memory" else 1 << 30,
    )
    if refusal == "little work":
        monkeypatch.undo()
    assert_equal_to_naive(request, 1 << 30, stacking)
    assert stacking.stacked == 0
    assert stacking.tried == (1 if refusal == "slow" else 0)


def test_a_plan_that_turns_out_slow_is_given_up(make_case, stacking_for):
    """Fast in trials, slow ever after: three units are enough."""
    case = make_case(samples=12)
    wanted = case.wanted(2, 4)
    request = case.request(wanted=wanted * 4, batch_size=2)
    stacking = stacking_for(request, together_takes=lambda stacking: 100.0 if stacking.stacked else 1.0)
    assert_equal_to_naive(request, 1 << 30, stacking)
    assert 0 < stacking.stacked <= 3 * 5  # one of six batches is run plainly


def test_other_bits_are_found_out(make_case, stacking_for, monkeypatch):
    """Steps that round otherwise for more samples are run apart, the others together."""
    case = make_case(samples=12)
    request = case.request(wanted=case.wanted(2, 3, 4), batch_size=2)
    stacking = stacking_for(request)
    run = stacked.Variants._run_together
    rounds_otherwise = []

    def run_together(self, place):
        result = run(self, place)
        if "conv" in self._node(place).name:
            rounds_otherwise.append(stacking.stacked)
            return result.nextafter(result + 1)
        return result

    monkeypatch.setattr(stacked.Variants, "_run_together", run_together)
    assert_equal_to_naive(request, 1 << 30, stacking)
    assert stacking.stacked > 0
    assert set(rounds_otherwise) == {0}  # in trials alone


@pytest.fixture
def variants_of(make_case):
    """Three candidates of a unit of a small network, on one photo: what runs them, and its places."""
    setup = prepare(make_case(samples=4).request(batch_size=1))

    def make(unit):
        prefixes = Prefixes(setup.program, setup.batches, memory_bytes=1 << 30)
        reach = prefixes.reach(unit := setup.table.unit(unit))
        prefixes.move_to(reach.cut, reach)
        weight = setup.program.constant(unit.node)
        overrides = [setup.program.override(unit.changes(weight * factor)) for factor in (0.5, 1.5, 2.0)]
        symbols = Stacking(setup.program, setup.batches, memory_bytes=0).symbols(0)
        return reach, Variants(
            setup.program, reach, prefixes.environment(0), overrides=overrides, symbols=symbols
        )

    return make


def test_what_was_joined_lies_in_memory_as_tensors_of_their_own_do(variants_of):
    """Kernels may sum in another order from other addresses: five numbers are twenty bytes, parts begin anywhere."""
    reach, variants = variants_of("stem.weight")
    stretches = [
        Stretch(mode=Mode.APART, places=range(1)),
        Stretch(mode=Mode.TOGETHER, places=range(1, len(reach.affected))),
    ]
    addresses = [
        value.data_ptr() % 64 for environment in variants.run(stretches) for value in environment.values()
    ]
    assert addresses == [0, 0, 0]


def test_a_unit_s_own_step_says_nothing_of_what_others_may_share(variants_of):
    reach, variants = variants_of("point.weight")
    for _ in variants.run([Stretch(mode=Mode.COMPARED, places=range(len(reach.affected)))]):
        pass
    (own,) = (place for place, index in enumerate(reach.affected.indices) if index in reach.seeds)
    assert variants.comparisons.keys() == set(range(len(reach.affected))) - {own}


def test_many_candidates_are_run_in_groups(make_case, stacking_for, monkeypatch):
    case = make_case(samples=8)
    twice = sorted(case.wanted(2, 3, 4, 5, 6, 7, 8) * 2, key=lambda entry: case.units.index(entry[0]))
    request = case.request(wanted=tuple(twice), batch_size=2)
    stacking = stacking_for(request)
    groups = []
    of = stacking.of
    monkeypatch.setattr(
        stacking, "of", lambda reach, variants: groups.append(variants) or of(reach, variants)
    )
    assert_equal_to_naive(request, 1 << 30, stacking)
    assert set(groups) - {1} == {7}  # of 14
    assert stacking.stacked > 0


steps = st.builds(
    Comparison,
    apart=st.integers(1, 9).map(float),
    together=st.integers(1, 9).map(float),
    joining=st.integers(0, 9).map(float),
    equal=st.booleans(),
)


@given(st.lists(steps, min_size=1, max_size=8))
def test_the_plan_takes_least(comparisons):
    """Against all ways to run the steps."""
    stacking = object.__new__(Stacking)
    stacking._compared = {(3, index): [found] for index, found in enumerate(comparisons)}
    reach = type("Reach", (), {})()
    reach.seeds = frozenset()
    reach.affected = type("Part", (), {"indices": tuple(range(len(comparisons)))})

    def price(chosen):
        seconds = 0.0
        for place, found in enumerate(comparisons):
            entered = place in chosen and place - 1 not in chosen
            seconds += found.together if place in chosen else found.apart
            seconds += found.joining if entered else 0.0
        return seconds

    offered = [(False, True) if found.equal else (False,) for found in comparisons]
    ways = [{place for place, both in enumerate(way) if both} for way in product(*offered)]
    best = min(price(way) for way in ways)
    chosen = stacking.together(reach, range(len(comparisons)), 3)
    if best < 0.95 * price(()):
        assert price(chosen) == best
        assert all(comparisons[place].equal for place in chosen)
    else:
        assert not chosen


def test_places_are_narrow(make_case):
    """The longest run of steps during which little is held, against sizes added up by hand."""
    case = make_case()
    program = prepare(case.request()).program
    reach = Reaches(program).of({0})
    one = dict.fromkeys(program.model.symbols, 1)
    image = 4 * 8 * 8 * 8
    assert narrow_places(program, reach, one, 1 << 30) == range(len(program))
    assert narrow_places(program, reach, one, 0) == range(0)
    # The mean is still computed beside the image, the head's layer beside the mean alone.
    assert narrow_places(program, reach, one, image - 1) == range(len(program) - 1, len(program))
