"""Time left, held against workers that are played: after the first tenth it is right within a fifth."""

import random
from itertools import pairwise
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.evidence import of_tasks
from app.jobs.forecast import Part, seconds_left, typical_pace
from app.jobs.progress import measuring, probing
from app.jobs.repository import ProbeCounts, TaskTimes
from app.models import Job, JobState, Stage, TaskKind, TaskState

from .simulated import START, Piece, Simulation, moment_of

WITHIN = 0.2
LOOKS = 200


def look(simulation, now, kind):
    """The progress that is shown at a moment."""
    job = Job(state=JobState.RUNNING, started_at=START)
    times = simulation.times(now, kind)
    if kind is TaskKind.MEASURE:
        job.stage = Stage.MEASURE
        return measuring(job, simulation.shards(now), moment_of(now), times)
    job.stage = Stage.PROBE
    done = sum(task.state is TaskState.DONE for task in times)
    return probing(job, ProbeCounts(done=done, total=len(times)), moment_of(now), times)


def errors(simulation, kind, first=0.1):
    """How wrong the time left is from the first tenth on, as shares of the stage's length.

    Not while a killed worker is away: whether it comes back is nothing that anybody knows.
    """
    length = simulation.seconds
    moments = [length * i / LOOKS for i in range(LOOKS) if i >= first * LOOKS]
    away = [(kill, kill + simulation.restart_seconds) for kill in simulation.kills]
    moments = [now for now in moments if not any(gone <= now <= back for gone, back in away)]
    told = [(now, look(simulation, now, kind).eta_seconds) for now in moments]
    assert all(eta is not None for _, eta in told)
    return [abs(now + eta - length) / length for now, eta in told]


def heavy(random_, seconds):
    """Seconds with a heavy tail and this mean: Pareto's distribution of shape 4."""
    return seconds * random_.paretovariate(4.0) * 0.75


def shards(random_, workers, entries=300):
    """Entries in execution order: the work of a later one is less, what it takes is heavy-tailed around that."""
    number = 4 * workers
    pieces = [
        Piece(work=work, seconds=heavy(random_, work))
        for work in (1.02 - i / entries for i in range(entries))
    ]
    total, cuts, done = sum(p.work for p in pieces), [0], 0.0
    for i, piece in enumerate(pieces):
        done += piece.work
        if done >= total * len(cuts) / number - 1e-9:
            cuts.append(i + 1)
    return [pieces[a:b] for a, b in pairwise(cuts) if a < b]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_entries_with_heavy_tails_after_a_slow_start(workers, seed):
    random_ = random.Random(seed)
    simulation = Simulation(
        tasks=shards(random_, workers), workers=workers, start_seconds=4.0, task_seconds=0.3
    )
    assert max(errors(simulation, TaskKind.MEASURE)) < WITHIN


@pytest.mark.parametrize("seed", range(5))
def test_entries_when_a_worker_is_killed(seed):
    random_ = random.Random(seed)
    tasks = shards(random_, 2)
    undisturbed = Simulation(tasks=tasks, workers=2, start_seconds=4.0, task_seconds=0.3).seconds
    kill = random_.uniform(0.2, 0.8) * undisturbed
    simulation = Simulation(tasks=tasks, workers=2, start_seconds=4.0, task_seconds=0.3, kills={kill: 1})
    assert simulation.seconds >= undisturbed
    assert max(errors(simulation, TaskKind.MEASURE)) < WITHIN


def parts(random_, number, batches=12, seconds=1.0):
    return [
        [Piece(work=1.0, seconds=random_.uniform(0.8, 1.25) * seconds) for _ in range(batches)]
        for _ in range(number)
    ]


@pytest.mark.parametrize(("number", "workers"), [(4, 1), (4, 2), (9, 2), (1, 2), (3, 2), (10, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_parts_that_tell_how_far_they_are(number, workers, seed):
    # What comes once takes as long as two batches: with a single part and the first report after its first batch that
    # is more than a tenth.
    simulation = Simulation(
        tasks=parts(random.Random(seed), number), workers=workers, start_seconds=2.0, task_seconds=0.2
    )
    first = max(0.1, 4.5 / simulation.seconds)
    assert max(errors(simulation, TaskKind.PROBE, first)) < WITHIN


@pytest.mark.parametrize("seed", range(3))
def test_parts_when_a_worker_is_killed_with_one_in_hand(seed):
    tasks = parts(random.Random(seed), 12)
    options = {"workers": 2, "start_seconds": 2.0, "task_seconds": 0.2, "keeps": False}
    simulation = Simulation(tasks=tasks, kills={31.0: 1}, **options)
    assert max(errors(simulation, TaskKind.PROBE)) < WITHIN


@st.composite
def simulations(draw):
    seconds = st.floats(0.01, 30.0)
    pieces = st.builds(Piece, work=st.floats(0.01, 2.0), seconds=seconds)
    tasks = draw(st.lists(st.lists(pieces, min_size=1, max_size=6), min_size=1, max_size=6))
    workers = draw(st.integers(1, 3))
    kills = draw(st.dictionaries(st.floats(0.1, 60.0), st.integers(0, workers - 1), max_size=2))
    return Simulation(
        tasks=tasks,
        workers=workers,
        start_seconds=draw(seconds),
        task_seconds=draw(st.floats(0.0, 3.0)),
        kills=kills,
        keeps=draw(st.booleans()),
    )


@given(simulations(), st.sampled_from([TaskKind.MEASURE, TaskKind.PROBE]))
def test_progress_never_falls_and_ends_at_nothing_left(simulation, kind):
    if kind is TaskKind.MEASURE and not simulation.keeps:
        return  # finished entries stay finished
    length = simulation.seconds
    shown = [look(simulation, length * i / 40, kind) for i in range(41)]
    fractions = [progress.fraction for progress in shown]
    assert all(later >= before - 1e-9 for before, later in pairwise(fractions))
    assert all(0.0 <= fraction <= 1.0 for fraction in fractions)
    assert all(progress.eta_seconds is None or progress.eta_seconds >= 0.0 for progress in shown)
    last = look(simulation, length + 1.0, kind)
    assert last.fraction == pytest.approx(1.0)
    assert last.eta_seconds == 0.0


@given(
    st.lists(st.tuples(st.floats(0.1, 10.0), st.floats(0.1, 10.0)), min_size=1, max_size=8),
    st.lists(st.floats(0.1, 10.0), max_size=8),
    st.integers(1, 4),
)
def test_what_is_left_takes_no_less_than_shared_evenly_and_no_more_than_one_after_the_other(
    done, waiting, workers
):
    timed = [Part(work=work, timed_work=work, timed_seconds=seconds) for work, seconds in done]
    left = seconds_left([*timed, *(Part(work=work, left=work) for work in waiting)], workers)
    pace = sum(seconds for _, seconds in done) / sum(work for work, _ in done)
    alone = pace * sum(waiting)
    assert left is not None
    assert alone / workers * (1 - 1e-9) <= left <= alone * (1 + 1e-9)
    assert left >= pace * max(waiting, default=0.0) * (1 - 1e-9)
    if workers == 1:
        assert left == pytest.approx(alone)


paces = st.lists(st.tuples(st.floats(0.1, 10.0), st.floats(0.1, 10.0)), min_size=1, max_size=8)


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=9))
def test_of_pieces_of_the_same_work_the_median_is_typical(seconds):
    assert typical_pace([(1.0, each) for each in seconds]) == pytest.approx(median(seconds))


@given(paces, st.floats(0.0, 10.0), st.integers(2, 5))
def test_what_is_typical_lies_between_and_scales_with_work_and_seconds(timed, share, times):
    found = typical_pace(timed)
    assert found is not None
    each = [seconds / work for work, seconds in timed]
    assert min(each) * (1 - 1e-9) <= found <= max(each) * (1 + 1e-9)
    assert typical_pace([*timed, (0.0, share)]) == found, "nothing was done"
    twice = [(work * times, seconds * times) for work, seconds in timed]
    assert typical_pace(twice) == pytest.approx(found)
    slower = [(work, seconds * times) for work, seconds in timed]
    assert typical_pace(slower) == pytest.approx(found * times)


def test_nothing_timed_has_no_speed():
    assert typical_pace([]) is None
    assert typical_pace([(0.0, 3.0)]) is None


@pytest.mark.parametrize("slow", range(20))
def test_a_piece_that_is_slow_by_itself_is_not_expected_again(slow):
    timed = [(0.05, 1.0 + (50.0 if i == slow else i / 100)) for i in range(20)]
    assert typical_pace(timed) == pytest.approx(22.0, rel=0.05)


def test_between_two_pieces_the_heavier_one_counts_more():
    assert typical_pace([(1.0, 1.0), (1.0, 2.0)]) == pytest.approx(1.5)
    assert typical_pace([(3.0, 3.0), (1.0, 2.0)]) == pytest.approx(1.25)


def test_what_was_told_last_counts_most():
    old = Part(work=10.0, timed_work=10.0, timed_seconds=10.0, ago_seconds=100.0)
    new = Part(work=10.0, timed_work=10.0, timed_seconds=30.0)
    waiting = Part(work=10.0, left=10.0)
    assert seconds_left([old, new, waiting], 1) == pytest.approx((10 / 4 + 30) / (1 / 4 + 1))


def test_what_comes_before_a_part_s_work_is_waited_for_once():
    done = Part(work=4.0, timed_work=4.0, timed_seconds=8.0, lead_seconds=3.0)
    begun = Part(work=4.0, left=4.0, running=True, age_seconds=1.0)
    late = Part(work=4.0, left=4.0, running=True, age_seconds=9.0)
    assert seconds_left([done, begun], 1) == pytest.approx(2 + 8)
    assert seconds_left([done, late], 1) == pytest.approx(8)


def test_a_slow_worker_is_believed_as_its_part_goes_on():
    done = Part(work=10.0, timed_work=10.0, timed_seconds=10.0)
    slow = Part(work=10.0, left=5.0, running=True, begun=True, timed_work=5.0, timed_seconds=20.0)
    pace = (10 + 20) / (10 + 5)
    own = (20 + pace * 5) / (5 + 5)
    assert pace < own < 4
    assert seconds_left([done, slow], 1) == pytest.approx(5 * own)


def test_plans_that_were_known_from_elsewhere_say_nothing_where_others_tell():
    def verified(name, seconds, **told):
        moments = {"started_at": START, "finished_at": moment_of(seconds)}
        return TaskTimes(
            id=name, kind=TaskKind.VERIFY, state=TaskState.DONE, worker=f"h:1:{name}", **moments, **told
        )

    waits = TaskTimes(id="c", kind=TaskKind.VERIFY, state=TaskState.PENDING)
    told = verified("a", 12.0, pace_seconds=12.0, fraction=1.0)
    assert seconds_left(of_tasks([told, verified("b", 0.01), waits], moment_of(12.0)), 1) == pytest.approx(
        12.0
    )
