"""Measuring again around the plan of a budget: the database's side of `app.plans.refinement`.

Everything follows from rows: the plans as verified, and the steps tried so far. So whoever takes over a task that was killed
goes on with the step after the last one that was finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.jobs import tasks
from app.jobs.entries import Source
from app.jobs.offer import Offer
from app.kit.ids import content_sha256
from app.models import Job, JobEntry, Plan, PlanRole, PlanTrial, ProbeResult
from app.plans import repository
from app.plans.conclusion import is_better, is_remeasured
from app.plans.planner import Search, candidate_name
from app.plans.refinement import MIN_SAMPLES, Outcome, Positions, Turn, next_turn
from app.plans.service import JobPlan, PlanLabel, add_plan, job_spec, search_of
from app.sensitivities.evidence import values_of
from app.sensitivities.interactions import MOST_CELLS
from solver import Interactions
from workers.contracts import Candidate
from workers.sensitivity.local_model import Trust, local_costs

PROBES = 4
"""Sets of random signs around a plan."""
PASSES_PER_TRIAL = 4.0
"""Float passes over the samples that one step is measured with: the plan, the step, and two of steps made without a part."""
TIME_LIMIT_S = 5.0
"""Longest search for one step. There are nine for each: all samples', and two times four that leave some out."""
ESTIMATOR = "around"
"""In the keys of what probes find around plans."""

Choices = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Around:
    """What probes found around a plan. The last three are of its search.

    Args:
        gradients: ``[entries, samples]``.
        values: ``[probes, entries, samples]``.
    """

    gradients: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Refinement:
    """Where the refinement of a budget's plan stands.

    Args:
        ordinal: Of the budget.
        budget: As written.
        search: What plans are made from.
        base: The plan to look around.
        turn: What to try.
        part: What the probes around the plan are known by.
        offer: Units and candidates, in the order of the probes' entries.
        samples: Calibrated on.
    """

    ordinal: int
    budget: str
    search: Search
    base: Choices
    turn: Turn
    part: tasks.ProbePart
    offer: Offer
    samples: int

    def step(self, around: Around, samples: Positions, trust: Trust) -> Choices:
        """The best plan near this one, as some of the samples show it.

        Args:
            around: What was found around this plan.
            samples: Those to believe.
            trust: How far.
        """
        problem = self.search.problem
        shape = problem.costs.shape
        valid = np.arange(shape[1]) < np.asarray(problem.counts)[:, None]
        chosen = np.array([_name(self.base[unit]) == str(candidate) for unit, candidate in self.offer])
        added = np.zeros(shape)
        own = np.zeros(shape, np.bool_)
        own[valid] = chosen
        added[valid] = (problem.costs - problem.costs[own][:, None])[valid]
        found = local_costs(
            around.gradients[:, samples], around.values[:, :, samples], added[valid], chosen, trust
        )
        linear = problem.costs.copy()
        linear[valid] = found.linear
        factors = np.zeros((shape[0] * shape[1], found.factors.shape[1]))
        factors[valid.ravel()] = found.factors
        interactions = Interactions.from_factors(factors, units=shape[0], candidates=shape[1])
        return self.search.joint(self.budget, linear, interactions, time_limit_s=TIME_LIMIT_S)

    def changed(self, choices: Choices) -> int:
        """How many units another plan changes."""
        return sum(choices[unit] != choice for unit, choice in self.base.items())


def refinement_of(session: Session, job_id: str, ordinal: int) -> Refinement | None:
    """Where the refinement of a budget's plan stands; ``None`` where there is nothing to look around, or no way to.

    Raises:
        SolverError: See `app.plans.service.search_of`.
    """
    job = session.get_one(Job, job_id)
    source = tasks.source_of(session, job)
    plan = next(
        (p for p in repository.of_job(session, job_id, PlanRole.REQUESTED) if p.ordinal == ordinal), None
    )
    if plan is None or not plan.choices or source.choice.used < MIN_SAMPLES:
        return None
    search = search_of(session, job, job_spec(job.request))
    if search.problem.costs.size > MOST_CELLS or search.problem.rows:
        return None
    trials = repository.trials(session, job_id, ordinal)
    turn = next_turn(
        [trial.outcome for trial in trials],
        rounds=job.request["refine_rounds"],
        regret=job.request.get("regret") or 0.0,
    )
    if not _affordable(session, job, len(trials)):
        turn = replace(turn, trust=None)
    problem = search.problem
    offer = tuple(
        (unit, Candidate.parse(problem.label(i, k)))
        for i, unit in enumerate(problem.units)
        for k in range(int(problem.counts[i]))
    )
    base = _base(session, job, plan, trials)
    return Refinement(
        ordinal=ordinal,
        budget=job.request["budgets"][ordinal],
        search=search,
        base=base,
        turn=turn,
        part=_part(source, offer, base),
        offer=offer,
        samples=source.choice.used,
    )


def _affordable(session: Session, job: Job, trials: int) -> bool:
    """Whether the passes that the job may spend on measuring pay for one more step; each budget has what entries left."""
    limit = job.request.get("max_passes")
    if limit is None:
        return True
    spent = session.scalar(select(func.sum(JobEntry.work)).where(JobEntry.job_id == job.id)) or 0.0
    return bool(spent + PASSES_PER_TRIAL * (trials + 1) <= limit)


def _base(session: Session, job: Job, plan: Plan, trials: Sequence[PlanTrial]) -> Choices:
    """The last step that was taken, else the better plan of those that the search made."""
    for trial in reversed(trials):
        if trial.outcome["accepted"]:
            return trial.choices
    if trials:
        return trials[0].base
    for other in repository.of_job(session, job.id, PlanRole.ALTERNATIVE):
        if (
            other.ordinal == plan.ordinal
            and not is_remeasured(other)
            and is_better(other, plan, job.request["compare"])
        ):
            return other.choices
    return plan.choices


def _part(source: Source, offer: Offer, base: Choices) -> tasks.ProbePart:
    return tasks.probe_part(
        source,
        offer_sha256=content_sha256({"offer": tasks.offer_sha256(offer), "around": base}),
        estimator=ESTIMATOR,
        probes=PROBES,
        block=tasks.whole_block(source),
    )


def around_of(session: Session, part: tasks.ProbePart) -> Around | None:
    """What probes found around a plan, if they did."""
    result = session.get(ProbeResult, part.key)
    if result is None:
        return None
    values = values_of(result)
    return Around(gradients=values[0], values=values[1:])


def store_trial(session: Session, job_id: str, at: Refinement, choices: Choices, outcome: Outcome) -> None:
    """Write down a step and what came of it, unless that was done before."""
    if session.get(PlanTrial, (job_id, at.ordinal, at.turn.number)) is not None:
        return
    session.add(
        PlanTrial(
            job_id=job_id,
            ordinal=at.ordinal,
            number=at.turn.number,
            base=at.base,
            choices=choices,
            outcome=outcome.to_json(),
        )
    )
    session.flush()


def store_refined(session: Session, job_id: str, at: Refinement) -> None:
    """Have the plan that steps led to verified, if any was taken."""
    job = session.get_one(Job, job_id)
    taken = [t.outcome for t in repository.trials(session, job_id, at.ordinal) if t.outcome["accepted"]]
    if not taken:
        return
    draft = at.search.chosen({unit: _name(choice) for unit, choice in at.base.items()})
    budget_bits = at.search.sizes.budget_bits(at.budget, at.search.counts)
    details = {"backend": "remeasured", "remeasured": {"rounds": len(taken), "steps": taken}}
    label = PlanLabel(
        role=PlanRole.ALTERNATIVE,
        name=f"{at.budget}, measured again",
        spec=job_spec(job.request, at.budget).to_json() | {"remeasured": True},
        ordinal=at.ordinal,
    )
    found = replace(draft, budget_bits=budget_bits, solver=draft.solver | details)
    add_plan(session, job_id, JobPlan(draft=found, label=label))


def _name(choice: dict[str, Any]) -> str:
    return candidate_name(choice["bits"], choice["scheme"], choice.get("activation_bits"))
