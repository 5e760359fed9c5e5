"""What jobs offer, how samples are cut into blocks, what probes depend on, and the tasks that follow from it."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from app.dispatch.requests import sample_block
from app.dispatch.work import FileRef, JobFiles
from app.jobs import tasks
from app.jobs.entries import Source
from app.jobs.keys import SampleChoice, probe_key
from app.jobs.offer import offer_of
from app.models import Job, JobEntry, Stage, Task, TaskKind
from app.plans.rounds import measure_further
from workers.contracts import Candidate, Estimator, Metric, ModelDescription, UnitInfo
from workers.sampling import SampleBlock


@given(st.integers(1, 500), st.integers(1, 12))
def test_blocks_part_the_samples_about_equally(samples, parts):
    blocks = tasks.cut(samples, parts)
    assert [i for start, stop in blocks for i in range(start, stop)] == list(range(samples))
    sizes = [stop - start for start, stop in blocks]
    assert len(blocks) == min(samples, parts)
    assert max(sizes) - min(sizes) <= 1


# Offers ---------------------------------------------------------------------------------------------------------------


def description(*units):
    made = tuple(
        UnitInfo(
            name=name, operator="linear", shape=(2, 3), weights=6, output_channel_axis=0, group_axis=1, macs=6,
            activations=activations,
        )
        for name, activations in units
    )  # fmt: skip
    return ModelDescription(
        inputs=(), batch_size=None, outputs=(), units=made, unsupported=(), weights=6 * len(made), float_bits=1, unit_float_bits=1
    )  # fmt: skip


REQUEST = {
    "candidates": [2, 4], "schemes": ["channel-symmetric", "tensor-symmetric"], "activation_candidates": [], "exclude": [],
    "metric": "auto", "compare": "kl", "estimator": "probe", "probes": 4,
}  # fmt: skip


def texts(offer):
    return [f"{unit} {candidate}" for unit, candidate in offer]


def test_an_offer_goes_by_unit_then_width_then_scheme():
    offer = offer_of(description(("b", 1), ("a", 0)), REQUEST)
    each = ["2:channel-symmetric", "2:tensor-symmetric", "4:channel-symmetric", "4:tensor-symmetric"]
    assert texts(offer) == [f"{unit} {text}" for unit in "ba" for text in each]


def test_only_units_that_multiply_activations_are_offered_pairs_and_excluded_ones_nothing():
    request = REQUEST | {"schemes": ["channel-symmetric"], "activation_candidates": [4, 8], "exclude": ["c"]}
    offer = offer_of(description(("lookup", 0), ("layer", 2), ("c", 1)), request)
    assert texts(offer) == [
        "lookup 2:channel-symmetric",
        "lookup 4:channel-symmetric",
        "layer 2a4:channel-symmetric",
        "layer 2a8:channel-symmetric",
        "layer 4a4:channel-symmetric",
        "layer 4a8:channel-symmetric",
    ]


# Probes ---------------------------------------------------------------------------------------------------------------


CHOICE = SampleChoice(available=20, samples=None, holdout=0.0, seed=0)
BASE = {
    "model_sha256": "a" * 64, "dataset_sha256": "b" * 64, "offer_sha256": "c" * 64, "metric": Metric.KL, "estimator": "probe",
    "choice": CHOICE, "probes": 4, "block": (0, 5),
}  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        {"model_sha256": "d" * 64},
        {"dataset_sha256": "d" * 64},
        {"offer_sha256": "d" * 64},
        {"metric": Metric.MSE},
        {"estimator": "fisher"},
        {"probes": 5},
        {"block": (5, 10)},
        {"choice": SampleChoice(available=20, samples=10, holdout=0.0, seed=0)},
        {"choice": SampleChoice(available=20, samples=None, holdout=0.25, seed=0)},
        # The seed draws the signs, whatever samples are taken.
        {"choice": SampleChoice(available=20, samples=None, holdout=0.0, seed=1)},
    ],
    ids=str,
)
def test_whatever_a_probe_depends_on_changes_its_key(other):
    assert probe_key(**BASE | other) != probe_key(**BASE)


def test_taking_all_samples_by_number_is_no_choice():
    by_number = SampleChoice(available=20, samples=20, holdout=0.0, seed=0)
    assert probe_key(**BASE | {"choice": by_number}) == probe_key(**BASE)


def source(samples):
    choice = SampleChoice(available=samples, samples=None, holdout=0.0, seed=0)
    return Source(model_sha256="a", dataset_sha256="b", metric=Metric.KL, choice=choice)


def test_probes_are_cut_by_samples_and_other_scores_are_not():
    offer = offer_of(description(("a", 1)), REQUEST)
    parts = tasks.probe_parts(source(18), REQUEST, offer)
    assert [p.block for p in parts] == [(0, 4), (4, 9), (9, 13), (13, 18)]
    assert len({p.key for p in parts}) == 4
    assert len(tasks.probe_parts(source(3), REQUEST, offer)) == 3
    for estimator in set(Estimator) - {Estimator.PROBE}:
        request = REQUEST | {"estimator": estimator.value}
        assert [p.block for p in tasks.probe_parts(source(18), request, offer)] == [(0, 18)]
    other = tasks.probe_parts(source(18), REQUEST, offer[:-1])
    assert not {p.key for p in other} & {p.key for p in parts}


@pytest.mark.parametrize("samples", [None, 10, 3])
@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_a_workers_block_is_none_just_when_it_is_all_samples(samples, holdout):
    choice = SampleChoice(available=20, samples=samples, holdout=holdout, seed=3)
    request = {"samples": samples, "holdout": holdout, "seed": 3}
    ref = FileRef(sha256="a", size_bytes=1, location=str(Path("x")), samples=20)
    files = JobFiles(model=ref, calibration=ref, evaluation=None, request=request)
    assert sample_block(files, (0, choice.used)) is None
    for block in tasks.cut(choice.used, 2):
        assert sample_block(files, block) == SampleBlock(start=block[0], stop=block[1])


# Tasks ----------------------------------------------------------------------------------------------------------------


def rows(world, job):
    with world.database.read() as session:
        queued = session.scalars(
            select(Task).where(Task.job_id == job.id).order_by(Task.kind, Task.ordinal)
        ).all()
        entries = session.scalars(
            select(JobEntry).where(JobEntry.job_id == job.id).order_by(JobEntry.ordinal)
        ).all()
    return queued, entries


@pytest.mark.parametrize(("workers", "count"), [(1, 1), (3, 3), (16, 4)])
def test_probes_are_as_many_tasks_as_there_are_workers_or_parts(world, workers, count):
    world.settings = world.settings.model_copy(update={"workers": workers})
    queued, entries = rows(world, world.job(metric="auto"))
    assert [(t.kind, t.ordinal) for t in queued] == [(TaskKind.PROBE, i) for i in range(count)]
    assert entries == []


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_tasks_are_dealt_all_parts_each_once(count):
    parts = [tasks.ProbePart(block=(2 * i, 2 * i + 2), key=str(i)) for i in range(4)]
    dealt = [tasks.dealt_parts(parts, count, ordinal) for ordinal in range(count)]
    assert [part for some in dealt for part in some] == parts
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_a_job_begins_with_its_probes_or_with_all_its_entries(world):
    queued, _ = rows(world, world.job(metric="fisher"))
    assert [(t.kind, t.ordinal) for t in queued] == [(TaskKind.PROBE, 0)]
    queued, entries = rows(world, world.job(metric="kl", schemes=["channel-symmetric", "tensor-symmetric"]))
    assert {t.kind for t in queued} == {TaskKind.MEASURE}
    assert len(entries) == 4 * 6 * 2
    assert {(e.block_start, e.block_stop) for e in entries} == {(0, 40)}


def test_shards_are_worth_what_each_begins_with(world):
    """Many entries are cut for all workers, few stay together: a shard first runs the prefixes of its units."""
    world.settings = world.settings.model_copy(update={"workers": 3})
    units = ("stem.weight", "q.weight", "k.weight", "head.weight")
    every = [(unit, bits) for unit in units for bits in range(2, 9)]
    for wanted in (every, every[:7], every[-1:]):
        job = world.job(metric="auto")
        world.estimate(job)
        candidates = [(unit, Candidate.parse(f"{bits}:channel-asymmetric")) for unit, bits in wanted]
        with world.database.write() as session:
            session.get_one(Job, job.id).stage = Stage.SOLVE
            measure_further(session, job.id, {(0, 10): candidates}, world.settings)
        _, entries = rows(world, job)
        shards = Counter()
        for entry in entries:
            shards[entry.task_id] += entry.work * 40 / 10  # a quarter of the samples
        passes = sum(shards.values())
        assert len(shards) == max(
            min(int(passes / 3), tasks.SHARDS_PER_WORKER * 3, len({u for u, _ in wanted})), 1
        )


def test_further_shards_and_entries_go_on_counting(world):
    job = world.job(metric="auto")
    world.estimate(job)
    units = ("stem.weight", "q.weight", "k.weight", "head.weight")
    for block, width in (((0, 10), 2), ((10, 20), 2), ((0, 10), 4)):
        wanted = {block: [(unit, Candidate.parse(f"{width}:channel-asymmetric")) for unit in units]}
        with world.database.write() as session:
            session.get_one(Job, job.id).stage = Stage.SOLVE
            measure_further(session, job.id, wanted, world.settings)
    queued, entries = rows(world, job)
    shards = [t for t in queued if t.kind is TaskKind.MEASURE]
    assert [t.ordinal for t in shards] == list(range(len(shards)))
    assert [e.ordinal for e in entries] == list(range(12))
    assert len({e.key for e in entries}) == 12
    number = {t.id: t.ordinal for t in shards}
    order = [number[e.task_id] for e in entries]
    assert order == sorted(order)
    assert set(order) == set(range(len(shards)))
    whole = sum(e.work for e in entries if (e.block_start, e.bits) == (0, 2))
    assert whole == pytest.approx(sum(e.work for e in entries if (e.block_start, e.bits) == (10, 2)))
    assert whole > 0


def test_the_longest_offer_of_a_job_is_hashed_in_order():
    offer = offer_of(description(("a", 1), ("b", 1)), REQUEST)
    assert tasks.offer_sha256(offer) == tasks.offer_sha256(tuple(offer))
    assert tasks.offer_sha256(offer) != tasks.offer_sha256(offer[::-1])
    assert tasks.is_exact({"metric": "kl", "compare": "kl"})
    assert not tasks.is_exact({"metric": "auto", "compare": "kl"})
