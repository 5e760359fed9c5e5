"""What is known of candidates: blocks put together against all samples at once, estimates where nothing is measured."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from app.jobs import tasks
from app.jobs.tasks import cut
from app.models import Job, JobEntry, Measurement, Stage
from app.plans.rounds import measure_further
from app.plans.service import job_description
from app.sensitivities.evidence import Estimates
from app.sensitivities.knowledge import (
    Source,
    combined,
    is_complete,
    known,
    row_json,
)
from app.sensitivities.knowledge import knowledge as of_job
from workers.contracts import Candidate


def block_of(costs, unit="u", bits=4, **values):
    error = float(np.std(costs, ddof=1) / math.sqrt(len(costs))) if len(costs) > 1 else None
    return Measurement(
        **{
            "unit": unit, "bits": bits, "scheme": "tensor-symmetric", "metric": "kl", "size_bits": 8, "storage_bits": 9,
            "mean": float(np.mean(costs)), "standard_error": error, "samples": len(costs), "seconds": 0.25,
            "activation_bits": None,
        }
        | values
    )  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    costs=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40),
    ends=st.lists(st.integers(1, 39), max_size=4, unique=True),
)
def test_blocks_tell_what_all_samples_at_once_tell(costs, ends):
    ends = [0, *sorted(e for e in ends if e < len(costs)), len(costs)]
    parts = [costs[a:b] for a, b in itertools.pairwise(ends)]
    (found,) = combined([block_of(part) for part in parts])
    whole = block_of(costs)
    assert found.samples == len(costs)
    assert found.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-9)
    assert found.standard_error == pytest.approx(whole.standard_error, rel=1e-6, abs=1e-9)
    assert found.seconds == pytest.approx(0.25 * len(parts))


def test_entries_stay_apart_by_unit_width_scheme_and_activations():
    rows = [
        block_of([1.0], unit="a"),
        block_of([2.0], unit="b"),
        block_of([3.0], unit="a", bits=2),
        block_of([4.0], unit="a", scheme="channel-symmetric"),
        block_of([5.0], unit="a", activation_bits=8),
        block_of([6.0], unit="a"),
    ]
    found = {s.key: (s.mean, s.samples) for s in combined(rows)}
    assert found == {
        ("a", "4:tensor-symmetric"): (3.5, 2),
        ("b", "4:tensor-symmetric"): (2.0, 1),
        ("a", "2:tensor-symmetric"): (3.0, 1),
        ("a", "4:channel-symmetric"): (4.0, 1),
        ("a", "4a8:tensor-symmetric"): (5.0, 1),
    }
    assert combined([block_of([1.0])])[0].standard_error is None


def test_estimates_are_mean_squares_and_their_errors_are_over_samples():
    values = np.random.default_rng(0).normal(size=(2, 4, 30))
    found = Estimates(keys=(("a", "x"), ("a", "y")), values=values, storage_bits=(1, 2))
    for entry in range(2):
        per_sample = [np.mean([values[entry, p, s] ** 2 for p in range(4)]) for s in range(30)]
        assert found.means[entry] == pytest.approx(np.mean(per_sample))
        assert found.standard_errors[entry] == pytest.approx(np.std(per_sample, ddof=1) / 30**0.5)
    alone = Estimates(keys=(("a", "x"),), values=values[:1, :, :1], storage_bits=(1,))
    assert alone.standard_errors.tolist() == [0.0]


# Of a job -------------------------------------------------------------------------------------------------------------


def knowledge(world, job):
    with world.database.read() as session:
        row = session.get_one(Job, job.id)
        return known(session, row, job_description(session, row))


def complete(world, job):
    with world.database.read() as session:
        row = session.get_one(Job, job.id)
        return is_complete(session, row, job_description(session, row))


def measure_blocks(world, job):
    """The blocks of samples that entries are measured on."""
    with world.database.read() as session:
        row = session.get_one(Job, job.id)
        return tasks.measure_blocks(tasks.source_of(session, row), row.request)


def ask(world, job, wanted, block):
    """Have entries measured on a block, as a SOLVE task does."""
    with world.database.write() as session:
        session.get_one(Job, job.id).stage = Stage.SOLVE
        measure_further(session, job.id, {block: wanted}, world.settings)


def candidate(bits):
    return Candidate.parse(f"{bits}:channel-asymmetric")


def test_a_job_that_measures_everything_knows_what_is_measured(world):
    job = world.job(candidates=[2, 4])
    assert knowledge(world, job) == []
    world.measure(job, 3)
    assert [(s.unit, s.bits) for s in knowledge(world, job)] == [("stem.weight", 2), ("stem.weight", 4), ("q.weight", 2)]  # fmt: skip
    assert not complete(world, job)
    world.measure(job)
    assert complete(world, job)
    assert {s.source for s in knowledge(world, job)} == {Source.MEASURED}


def test_estimates_fill_in_for_what_is_not_measured_in_the_order_of_the_offer(world):
    job = world.job(metric="auto", candidates=[2, 4])
    assert knowledge(world, job) == []
    assert not complete(world, job)
    world.estimate(job, lambda unit, c, _p, s: (1 + s % 2) * 2.0**-c.bits)
    assert complete(world, job)
    rows = knowledge(world, job)
    units = ["stem.weight", "q.weight", "k.weight", "head.weight"]
    assert [(s.unit, s.bits) for s in rows] == [(u, b) for u in units for b in (2, 4)]
    assert {(s.source, s.samples, s.seconds, s.metric) for s in rows} == {(Source.ESTIMATED, 40, 0.0, "kl")}
    # Half the samples cost 4 times what the others do.
    assert [s.mean for s in rows[:2]] == pytest.approx([2.5 * 4.0**-2, 2.5 * 4.0**-4])
    for row, prior in zip(rows[:2], (0.35, 0.15), strict=True):
        sampled = 1.5 / 2.5 * row.mean / 39**0.5
        assert row.model_error == pytest.approx(prior * row.mean)
        assert row.standard_error == pytest.approx(math.hypot(prior * row.mean, sampled))
        assert "model_error" not in row_json(row)

    ask(world, job, [("q.weight", candidate(4))], (0, 10))
    assert not complete(world, job)
    world.measure(job, cost=lambda _u, _b: 1.2 * rows[3].mean)
    assert complete(world, job)
    then = knowledge(world, job)
    assert [s.key for s in then] == [s.key for s in rows]
    assert [i for i, s in enumerate(then) if s.source is Source.MEASURED] == [3]
    assert rows[3].mean < then[3].mean < 1.2 * rows[3].mean, "estimated and measured are weighed"
    assert then[3].samples == 10
    assert 0 < then[3].model_error < rows[3].model_error
    assert [s for s in then if s.source is Source.ESTIMATED] == [s for i, s in enumerate(rows) if i != 3]


def test_measured_entries_correct_the_estimates_of_their_width(world):
    job = world.job(metric="auto", candidates=[2, 4], schemes=["channel-asymmetric", "channel-symmetric"])
    world.estimate(job, lambda unit, c, _p, s: 2.0**-c.bits)
    units = ["stem.weight", "q.weight", "k.weight", "head.weight"]
    ask(world, job, [(u, candidate(4)) for u in units], (0, 10))
    both = [(u, Candidate.parse("4:channel-symmetric")) for u in units[:2]]
    ask(world, job, both, (0, 10))
    world.measure(job, cost=lambda _u, bits: 3 * 4.0**-bits)
    rows = {s.key: s for s in knowledge(world, job)}
    assert rows["k.weight", "4:channel-symmetric"].source is Source.ESTIMATED
    assert rows["k.weight", "4:channel-symmetric"].mean == pytest.approx(3 * 4.0**-4)
    assert rows["k.weight", "2:channel-symmetric"].mean == pytest.approx(4.0**-2)


def test_what_may_have_been_missed_is_told_of_the_entry_that_it_is_about(world):
    """Two entries were measured further, and one of them costs four times as much there."""
    job = world.job(metric="kl", regret=0.01, candidates=[2, 4], budgets=["3 bits"])
    blocks = measure_blocks(world, job)
    world.measure(job, cost=lambda *_: 1.0)
    ask(world, job, [("q.weight", candidate(2)), ("k.weight", candidate(2))], blocks[1])
    world.measure(job, cost=lambda unit, _bits: 4.0 if unit == "q.weight" else 1.0)
    with world.database.read() as session:
        row = session.get_one(Job, job.id)
        found = of_job(session, row, job_description(session, row))
    missed = {
        (u, b): found.missed_by(u, [f"{b}:channel-asymmetric"])[0] for u in found.places for b in (2, 4)
    }
    further = {("q.weight", 2), ("k.weight", 2)}
    assert {key for key, share in missed.items() if share == 0} == further, "nobody has seen more than these"
    assert {missed[key] for key in missed.keys() - further} == {max(missed.values())}
    assert max(missed.values()) >= 1


def test_an_estimator_tells_costs_of_its_own(world):
    job = world.job(metric="fisher", candidates=[2, 4])
    world.estimate(job, lambda unit, c, _p, _s: 3.0 * 2.0**-c.bits)
    rows = knowledge(world, job)
    assert complete(world, job)
    assert {(s.metric, s.source) for s in rows} == {("fisher", Source.ESTIMATED)}
    assert rows[1].mean == pytest.approx(9 * 4.0**-4)


def test_every_block_of_an_entry_has_a_row_of_its_own(world):
    job = world.job(metric="auto", candidates=[2, 4])
    world.estimate(job)
    for block in cut(40, 4):
        ask(world, job, [("q.weight", candidate(4))], block)
    with world.database.read() as session:
        rows = session.scalars(select(JobEntry).where(JobEntry.job_id == job.id)).all()
    assert [r.ordinal for r in rows] == [0, 1, 2, 3]
    assert len({r.key for r in rows}) == 4
    world.measure(job, cost=lambda _u, _b: 2.0)
    found = next(s for s in knowledge(world, job) if s.source is Source.MEASURED)
    assert (found.samples, found.mean) == (40, 2.0)
