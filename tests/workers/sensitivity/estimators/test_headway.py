"""How far a probe is: as shares of what all of it takes, reckoned here by hand."""

import pytest
import torch

from tests.workers.sensitivity.estimators import models
from workers.graph.dataflow import Dataflow, operator_name
from workers.sensitivity.estimators import headway
from workers.sensitivity.estimators.changes import Changes, round_to_nearest
from workers.sensitivity.estimators.entries import Entries
from workers.sensitivity.estimators.headway import Amount, Headway
from workers.sensitivity.estimators.probe import ProbeOptions, probe
from workers.sensitivity.estimators.uses import Uses
from workers.sensitivity.sharding import load


def entries_and_uses(setup, wanted):
    entries = Entries.of(setup.table, wanted)
    return entries, Uses.of(Dataflow.of(setup.program.model), entries.units).at


def told_by(setup, wanted, amount, walks):
    """Shares that are told while walks, of (samples, probes) each, pass all steps."""
    entries, at = entries_and_uses(setup, wanted)
    told = []
    way = Headway(at, entries, amount, lambda done, total: told.append(done / total))
    for samples, probes in walks:
        way.fed(samples, probes)
        for node in reversed(at):
            way.passed(node)
    way.end()
    return told


def share_of(units, info, amount):
    """A unit's share of a walk."""

    def takes(of):
        fed = amount.samples * amount.positions * amount.groups / amount.feeds
        written = of.macs / of.weights * of.shape[of.output_channel_axis]
        return 1 + fed * (of.macs + headway.MACS_PER_OUTPUT * written) + headway.MACS_PER_WEIGHT * of.weights

    return takes(info) / sum(takes(unit.info) for unit in units)


@pytest.mark.parametrize("positions", [1, 7])
@pytest.mark.parametrize("kept", [True, False])
def test_candidates_are_made_once_where_they_are_kept(make_setup, kept, positions):
    case = make_setup(*models.build("linear"))
    again = [0 if kept else 3 for _ in case.units]
    amount = Amount(samples=10, positions=positions, probes=4, groups=1, feeds=2, again=again)
    told = told_by(case.setup, case.wanted, amount, [(6, 4), (4, 4)])
    passing = positions * sum(load(unit.info) for unit in case.units)
    making = sum(headway.MACS_PER_CHANGE * unit.info.weights * 3 for unit in case.units)
    walk = 1 + 4 * headway.PASSES_PER_WALK
    total = 10 * passing * walk + making * (1 if kept else 2)
    assert told[len(case.units) - 1] == pytest.approx((6 * passing * walk + making) / total)
    assert told[-2:] == [pytest.approx(1.0), 1.0]
    assert told == sorted(told)
    # Where walks pass a step a second time, its unit's candidates are there, or are made again.
    again = told[len(case.units)] - told[len(case.units) - 1]
    last = case.units[-1].info
    feeding = 4 * passing + 4 * passing * (walk - 1) * share_of(case.units, last, amount)
    made = 0 if kept else headway.MACS_PER_CHANGE * last.weights * 3
    assert again == pytest.approx((feeding + made) / total, rel=1e-6)


@pytest.mark.parametrize("name", ["tied", "twice"])
def test_candidates_of_a_unit_that_is_used_twice_are_made_once_a_feed(make_setup, monkeypatch, name):
    monkeypatch.setattr(headway, "MACS_PER_CHANGE", 1e12)
    case = make_setup(*models.build(name))
    _, at = entries_and_uses(case.setup, case.wanted)
    again = [3] * len(case.units)
    amount = Amount(samples=10, positions=1, probes=4, groups=1, feeds=2, again=again)
    told = [0.0, *told_by(case.setup, case.wanted, amount, [(5, 4), (5, 4)])]
    each_feed = [use.unit for node in reversed(at) for use in at[node]]
    assert len(each_feed) == len(at) > len(set(each_feed)), "a unit to a step, one of them at two"
    weights = sum(unit.info.weights for unit in case.units)
    for place, unit in enumerate(each_feed * 2):
        met = unit in each_feed[: place % len(each_feed)]
        made = 0.0 if met else case.units[unit].info.weights / weights / 2
        assert told[place + 1] - told[place] == pytest.approx(made, abs=1e-6)


def test_probes_that_do_not_share_their_forward_passes_take_more(make_setup):
    case = make_setup(*models.build("linear"))
    amount = Amount(samples=10, positions=1, probes=3, groups=2, feeds=2, again=[0] * len(case.units))
    told = told_by(
        case.setup, [(name, c) for name, c in case.wanted if c.bits == 2], amount, [(10, 2), (10, 1)]
    )
    passing = sum(load(unit.info) for unit in case.units)
    making = sum(headway.MACS_PER_CHANGE * unit.info.weights for unit in case.units)
    first, second = (10 * passing * (1 + n * headway.PASSES_PER_WALK) for n in (2, 1))
    assert told[len(case.units) - 1] == pytest.approx((first + making) / (first + second + making))


@pytest.mark.parametrize("share", [0.0, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("name", ["linear", "tied", "twice"])
def test_what_memory_has_room_for_is_made_once_and_the_rest_again(make_setup, name, share):
    """All candidates of these units are made at once."""
    case = make_setup(*models.build(name), batch_size=2)
    entries, _ = entries_and_uses(case.setup, case.wanted)
    uses = Uses.of(Dataflow.of(case.setup.program.model), entries.units)
    made = []

    def quantize(unit, weight, candidate):
        made.append((unit.info.name, candidate))
        return round_to_nearest(unit, weight, candidate)

    def changes_within(memory_bytes):
        return Changes(
            program=case.setup.program,
            units=entries.units,
            candidates=entries.candidates,
            operands=uses.operands,
            quantize=quantize,
            memory_bytes=memory_bytes,
        )

    def bytes_of(unit):
        found = [change for changes in everything.of(unit) for change in changes.of.values()]
        return sum({change.data_ptr(): change.nbytes for change in found}.values())

    numbers = range(len(entries.units))
    everything = changes_within(1 << 30)
    sizes = [bytes_of(unit) for unit in numbers]
    changes = changes_within(round(share * sum(sizes)))
    rounds = []
    for _ in range(3):
        made.clear()
        for unit in numbers:
            list(changes.of(unit))
        rounds.append(sorted(made, key=str))
    again = [changes.made_again(unit) for unit in numbers]
    assert rounds[0] == sorted(case.wanted, key=str)
    assert rounds[1] == rounds[2]
    assert [sum(unit.info.name == name for name, _ in rounds[1]) for unit in entries.units] == again
    kept = sum(size for size, count in zip(sizes, again, strict=True) if count == 0)
    assert kept <= share * sum(sizes)
    smallest = min((size for size, count in zip(sizes, again, strict=True) if count), default=0)
    assert (share == 1.0) == (not any(again))
    assert not any(again) or kept + smallest > share * sum(sizes), "there was room for another one"


def test_candidates_that_are_not_made_at_once_are_kept_one_by_one(make_setup, monkeypatch):
    case = make_setup(*models.build("linear"), batch_size=2)
    entries, _ = entries_and_uses(case.setup, case.wanted)
    uses = Uses.of(Dataflow.of(case.setup.program.model), entries.units)
    each = next(case.module.parameters()).element_size() * case.units[-1].info.weights
    monkeypatch.setattr("workers.sensitivity.estimators.changes._MOST_BYTES_AT_ONCE", each)
    made = []

    def quantize(unit, weight, candidate):
        made.append(candidate.bits)
        return round_to_nearest(unit, weight, candidate)

    changes = Changes(
        program=case.setup.program,
        units=entries.units,
        candidates=entries.candidates,
        operands=uses.operands,
        quantize=quantize,
        memory_bytes=2 * each,
    )
    last = len(entries.units) - 1
    parts = [[found.candidates for found in changes.of(last)] for _ in range(2)]
    assert parts == [[slice(0, 1), slice(1, 2), slice(2, 3)]] * 2
    assert made == [candidate.bits for candidate in (*entries.candidates[last], entries.candidates[last][2])]
    assert changes.made_again(last) == 1


def test_the_look_up_of_a_tied_table_takes_next_to_nothing(make_setup):
    case = make_setup(*models.build("tied"))
    _, at = entries_and_uses(case.setup, case.wanted)
    look_ups = [operator_name(node) == "embedding" for node in reversed(at)]
    assert any(look_ups)
    assert not all(look_ups)
    amount = Amount(samples=1000, positions=1, probes=4, groups=1, feeds=1, again=[0] * len(case.units))
    told = told_by(case.setup, case.wanted, amount, [(1000, 4)])
    for look_up, before, after in zip(look_ups[1:], told, told[1:], strict=False):
        assert (after - before < 1e-2) == look_up


def test_the_amount_is_that_of_the_feeds(make_setup, monkeypatch):
    """Five samples in batches of three, three probes of which two share their forward passes."""
    case = make_setup(*models.build("linear"))
    amounts = []
    monkeypatch.setattr(
        "workers.sensitivity.estimators.probe.Headway",
        lambda at, entries, amount, progress: (
            amounts.append(amount) or Headway(at, entries, amount, progress)
        ),
    )
    each = next(case.module.parameters()).element_size()
    weights = sum(each * 3 * unit.info.weights for unit in case.units)
    for most in (weights, 0):
        list(probe(case.setup, case.wanted, ProbeOptions(probes=3, together=2, changes_bytes=most)))
    assert amounts == [
        Amount(samples=5, positions=1, probes=3, groups=2, feeds=4, again=[again] * len(case.units))
        for again in (0, 3)
    ]


def test_tokens_count_as_positions(make_setup, monkeypatch):
    """A model that takes any length counts its multiply-accumulates with one token."""
    module = torch.nn.Sequential(torch.nn.Embedding(11, 4), torch.nn.Linear(4, 3)).double()
    ids = torch.arange(5 * 6).reshape(5, 6) % 11
    case = make_setup(module, (ids,), sequences=True)
    assert case.setup.program.model.inputs[0].shape == (None, None)
    assert [unit.info.macs for unit in case.units] == [0, 12]
    amounts = []
    monkeypatch.setattr(
        "workers.sensitivity.estimators.probe.Headway",
        lambda at, entries, amount, progress: (
            amounts.append(amount) or Headway(at, entries, amount, progress)
        ),
    )
    list(probe(case.setup, case.wanted, ProbeOptions(probes=1)))
    assert [amount.positions for amount in amounts] == [6]
