"""Interactions from what probes found: whose changes point the same way, and where nothing can be told."""

import numpy as np
import pytest

from app.models import Job
from app.plans.service import draft_job, job_description, job_spec, search_of
from app.sensitivities import interactions as module
from app.sensitivities.interactions import interactions_of

UNITS = ("stem.weight", "q.weight", "k.weight", "head.weight")


def found(world, job):
    with world.database.read() as session:
        row = session.get_one(Job, job.id)
        search = search_of(session, row, job_spec(row.request))
        return search, interactions_of(session, row, job_description(session, row), search)


def products(search, interactions):
    """Inner products of the changes, [units * candidates, units * candidates]."""
    factors = np.asarray(interactions.factors)
    return factors @ factors.T


def test_products_are_those_of_the_probes_and_the_diagonal_is_what_is_known(world):
    rng, changes = np.random.default_rng(0), {}

    def value(unit, candidate, probe, sample):
        # stem and q change the outputs the same way, k the other way, head on its own.
        sign = {"stem.weight": 1, "q.weight": 1, "k.weight": -1}.get(unit)
        shared = changes.setdefault((probe, sample), rng.normal())
        own = changes.setdefault((unit, probe, sample), rng.normal())
        return 2.0**-candidate.bits * (own if sign is None else sign * shared)

    job = world.job(metric="auto", candidates=[2, 4])
    world.estimate(job, value)
    search, interactions = found(world, job)
    gram = products(search, interactions)
    costs = search.problem.costs.reshape(-1)
    assert interactions.diagonal.reshape(-1) == pytest.approx(costs, rel=1e-5)
    cosine = gram / np.sqrt(np.outer(costs, costs))
    assert cosine[0, 2] == pytest.approx(1, abs=0.01)
    assert cosine[0, 4] == pytest.approx(-1, abs=0.01)
    assert abs(cosine[0, 6]) < 0.35


def test_scores_of_estimators_are_no_changes_of_outputs(world):
    job = world.job(metric="fisher", candidates=[2, 4])
    world.estimate(job)
    _, interactions = found(world, job)
    assert interactions is None
    with world.database.read() as session:
        roles = {plan.label.role.value for plan in draft_job(session, job.id)}
    assert roles == {"requested", "uniform"}


def test_measurements_without_sketches_tell_nothing(world):
    job = world.job(candidates=[2, 4])
    world.measure(job)
    assert found(world, job)[1] is None


def test_large_searches_are_left_alone(world, monkeypatch):
    job = world.job(metric="auto", candidates=[2, 4])
    world.estimate(job)
    assert found(world, job)[1] is not None
    monkeypatch.setattr(module, "MOST_CELLS", 7)
    assert found(world, job)[1] is None


def cancelling(unit, candidate, probe, sample):
    """The errors of q and k cancel at equal widths."""
    sign = {"q.weight": 1, "k.weight": -1}.get(unit, 0.01)
    signs = np.random.default_rng((probe, sample)).choice([-1.0, 1.0])
    return sign * signs * 2.0**-candidate.bits


def drafts(world, **values):
    """By role, of a job whose errors cancel."""
    job = world.job(metric="auto", candidates=[2, 4, 8], budgets=["4 bits"], **values)
    world.estimate(job, cancelling)
    with world.database.read() as session:
        return {plan.label.role.value: plan for plan in draft_job(session, job.id)}


def test_an_alternative_is_made_where_changes_cancel(world):
    by_role = drafts(world)
    other, plain = by_role["alternative"].draft, by_role["requested"].draft
    assert other.choices["q.weight"] == other.choices["k.weight"], "the errors of both cancel at equal widths"
    assert other.predicted["kl"] < plain.objective <= other.objective
    assert by_role["alternative"].label.spec == by_role["requested"].label.spec | {"interactions": True}


def test_an_alternative_keeps_the_limits(world):
    def operations(draft):
        macs = {"stem.weight": 9000, "q.weight": 512, "k.weight": 256, "head.weight": 640}
        return sum(macs[unit] * choice["bits"] * 32 for unit, choice in draft.choices.items())

    limit = 1_000_000
    limited, free = drafts(world, limits={"bit_operations": str(limit)}), drafts(world)
    assert operations(free["alternative"].draft) > limit, "the limit does not bind: the test tells nothing"
    other, plain = limited["alternative"].draft, limited["requested"].draft
    for draft in (other, plain):
        assert operations(draft) <= limit
        assert draft.solver["limited"] == {"bit_operations": operations(draft)}
        assert draft.size_bits <= draft.budget_bits
    assert other.choices["q.weight"] == other.choices["k.weight"], "the errors of both cancel at equal widths"
    assert other.predicted["kl"] < plain.objective <= other.objective
