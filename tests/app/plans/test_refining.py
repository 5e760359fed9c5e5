"""Measuring again around a plan: which steps are tried, and which are taken."""

from dataclasses import replace

import numpy as np
import pytest

import app.plans.refining
import solver.quadratic
from app.models import (
    Task,
    TaskKind,
    TaskState,
)
from app.plans.refinement import TRUSTS, End, partitions, rest
from app.plans.refining import around_of, name_of, refinement_of

from .played import MACS, WEIGHTS, Nature, real, real_costs, refined, run, told, trials


def first_step(world, look, job):
    """The first trial, the refinement it belongs to, and what is known around the plan it starts from."""
    (first, *_) = trials(look, job)
    with world.database.read() as session:
        at = refinement_of(session, job.id, 0)
        return first, at, around_of(session, at, first.base)


def test_steps_are_taken_while_the_measured_cost_falls(world, refining, nature, look):
    job = refining()
    run(world, job)
    tried = trials(look, job)
    taken = [t for t in tried if t.outcome["accepted"]]
    assert taken
    (plan,) = refined(look, job)
    assert plan.choices == taken[-1].choices
    assert plan.size_bits <= plan.budget_bits
    assert plan.solver["remeasured"] == {"rounds": len(taken), "steps": [t.outcome for t in taken]}
    base = tried[0].base
    for number in range(len(taken) + 1):
        of_round = [t for t in tried if t.outcome["round"] == number]
        assert [tuple(t.outcome[name] for name in ("share", "caution", "curvature")) for t in of_round] == [
            (trust.share, trust.caution, trust.curvature) for trust in TRUSTS
        ]
        for trial in of_round:
            assert trial.base == base, "from where the last step led"
            assert trial.outcome["before"] == pytest.approx(real(nature, trial.base))
            assert trial.outcome["after"] == pytest.approx(real(nature, trial.choices))
        led = [t.choices for t in of_round if t.choices != base]
        assert all(led.count(choices) == 1 for choices in led), "where a step has led no other one does"
        holding = [t for t in of_round if t.outcome["holds"]]
        assert bool(holding) == (number < len(taken))
        if holding:
            assert taken[number] == min(
                holding,
                key=lambda t: max(np.add(t.outcome["crossed"], t.outcome["standard_errors"])),
            )
            base = taken[number].choices
    assert told(look, job)["ended"] == End.NO_GAIN
    verify = [t for t in look(Task, job) if t.plan_id == plan.id]
    assert [(t.kind, t.state) for t in verify] == [(TaskKind.VERIFY, TaskState.PENDING)]
    assert len(nature.probed) == 4 * (1 + len(taken)), "four blocks, of each plan once"
    request = nature.probed[0]
    assert {u: c.bits for u, c in request.around.items()} == {u: c["bits"] for u, c in tried[0].base.items()}
    assert {(u, c.bits) for u, c in request.wanted} == {(u, b) for u in WEIGHTS for b in (2, 3, 4, 6)}


def test_steps_keep_the_limits_of_the_plan(world, refining, nature, look):
    def operations(choices):
        return sum(MACS[unit] * c["bits"] * 32 for unit, c in choices.items())

    job, free = refining(limits={"bit_operations": "1.1M"}), refining()
    run(world, job)
    (plan,) = refined(look, job)
    for trial in trials(look, job):
        assert operations(trial.choices) <= 1_100_000
    assert plan.solver["limited"] == {"bit_operations": operations(plan.choices)}
    assert plan.size_bits <= plan.budget_bits
    assert real(nature, plan.choices) < real(nature, trials(look, job)[0].base)
    run(world, free)
    (unlimited,) = refined(look, free)
    assert operations(unlimited.choices) > 1_100_000, "the limit does not bind: the test tells nothing"


def test_a_step_is_searched_for_once_by_a_worker(world, refining, nature, look, monkeypatch):
    """All parts of the work on it have to know where it leads."""
    searched = []
    step = app.plans.refining.Refinement.step

    def count(self, base, around, samples, trust):
        if len(samples) == 40:
            searched.append((trust, tuple(sorted((unit, c["bits"]) for unit, c in base.items()))))
        return step(self, base, around, samples, trust)

    monkeypatch.setattr(app.plans.refining.Refinement, "step", count)
    job = refining()
    run(world, job)
    assert len(searched) == len(set(searched)) == len(trials(look, job))


def test_every_fold_is_measured_with_a_plan_of_the_others(world, refining, nature, look):
    job = refining(refine_rounds=1)
    run(world, job)
    whole, crossed = nature.measured[:2], nature.measured[2:6]
    assert [[len(p.positions) for p in parts] for parts in whole] == [[40], [40]], "the plan, and the step"
    for way in (crossed[:2], crossed[2:]):
        assert sorted(i for parts in way for part in parts for i in part.positions) == list(range(40))
    assert crossed[0][0].positions == tuple(range(10))
    assert crossed[2][0].positions == tuple(range(0, 40, 4))
    assert len([t for t in trials(look, job) if t.outcome["accepted"]]) == 1
    assert told(look, job)["ended"] == End.ROUNDS


class Leaning(Nature):
    """Each quarter of the samples has its own truth: whoever sees it follows it, and is judged by the others."""

    def unit_costs(self, unit, bits, samples):
        costs = super().unit_costs(unit, bits, samples)
        best = sorted(WEIGHTS)[::1]
        for fold in range(4):
            costs[10 * fold : 10 * fold + 10] *= 30.0 if best[fold] == unit else 0.1
        return costs


def test_what_a_sample_is_judged_by_has_not_seen_it(world, refining, nature, look, monkeypatch):
    """The crossed change of every sample is that of the step made without its part, as a plain loop works it out."""
    leaning = Leaning()
    monkeypatch.setattr(nature, "unit_costs", leaning.unit_costs)
    job = refining(refine_rounds=1)
    run(world, job)
    first, at, around = first_step(world, look, job)
    before = real_costs(nature, first.base)
    for way, mean in zip(partitions(40), first.outcome["crossed"], strict=True):
        changes = np.zeros(40)
        for fold in way:
            step = at.step(first.base, around, rest(fold, 40), TRUSTS[0]) or first.base
            changes[fold] = (real_costs(nature, step) - before)[fold]
        assert mean == pytest.approx(changes.mean())
    assert len(set(first.outcome["crossed"])) == 2


def test_probes_are_put_together_in_the_order_of_the_samples(world, refining, nature, look):
    """Blocks are of samples in a random order; steps are judged by samples in their own."""
    job = refining(refine_rounds=1, seed=3)
    run(world, job)
    base = trials(look, job)[0].base
    with world.database.read() as session:
        at = refinement_of(session, job.id, 0)
        found = around_of(session, at, base).gradients
    for row, (unit, candidate) in zip(found, at.offer, strict=True):
        expected = nature.unit_costs(unit, candidate.bits, 40) - nature.unit_costs(
            unit, base[unit]["bits"], 40
        )
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_steps_are_searched_for_from_the_plan_itself(world, refining, nature, look, monkeypatch):
    """Where nothing better is found that is no step."""
    starts = []

    def stay(problem, interactions, *, start, **options):
        starts.append(
            {
                unit: problem.label(i, int(k))
                for i, (unit, k) in enumerate(zip(problem.units, start, strict=True))
            }
        )
        return solver.solve_quadratic(problem, interactions, start=start, restarts=0, **options)

    monkeypatch.setattr(solver.quadratic.Descent, "down", lambda _self, slots, **_: slots)
    job = refining(refine_rounds=1)
    run(world, job)
    first, at, around = first_step(world, look, job)
    monkeypatch.setattr("app.plans.planner.solve_quadratic", stay)
    still = replace(around, gradients=np.abs(around.gradients) + 1e6 * (around.gradients != 0))
    assert at.step(first.base, still, np.arange(40), TRUSTS[0]) is None
    assert starts == [{unit: name_of(choice) for unit, choice in first.base.items()}]


def test_steps_are_not_proven(world, refining, nature, look, monkeypatch):
    """A proof takes as long as it may, and judges nothing: steps are judged by what they measure."""

    def prove(*_, **__):
        raise AssertionError("nobody asks for it")

    job = refining(refine_rounds=1)
    monkeypatch.setattr(solver.quadratic, "prove", prove)
    run(world, job)
    assert told(look, job)["ended"] == End.ROUNDS


def test_noise_is_not_followed(world, refining, nature, look):
    nature.factors = dict.fromkeys(WEIGHTS, 1.0)
    nature.noise = 20.0
    job = refining()
    run(world, job)
    assert trials(look, job)
    assert not any(t.outcome["accepted"] for t in trials(look, job))
    assert refined(look, job) == []
