"""Measuring again around the plan of a budget: what it stands on, and how a step is made from what probes found.

All of this stays the same while it goes on. What was tried, and what is to be done next, are rows: `app.plans.steps`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.jobs import tasks
from app.jobs.entries import Source
from app.jobs.offer import Offer
from app.kit.ids import content_sha256
from app.models import Dataset, Job, JobEntry, ProbeResult
from app.plans.allowance import Allowance, allowance_of, probe_passes
from app.plans.planner import Search, candidate_name
from app.plans.refinement import MIN_SAMPLES, End, Positions
from app.plans.service import job_description, job_spec, search_of
from app.sensitivities.evidence import values_of
from app.sensitivities.interactions import MOST_CELLS
from solver import Interactions
from workers.contracts import Candidate
from workers.sampling import SampleBlock
from workers.sensitivity.blocks import positions_of
from workers.sensitivity.local_model import Trust, local_costs

PROBES = 4
"""Sets of random signs around a plan."""
MEASURED_FIRST = 4.0
"""Passes that a first step is measured with: the plan, the step, and two of steps made without some of the samples."""
TIME_LIMIT_S = 60.0
"""Longest search for one step: a guard. Plans are the same on any machine as long as it is not reached."""
ESTIMATOR = "around"
"""In the keys of what probes find around plans."""

Choices = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Around:
    """What probes found around a plan. The last two axes are its search's entries and the samples, in their order.

    Args:
        gradients: ``[entries, samples]``.
        values: ``[probes, entries, samples]``.
    """

    gradients: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Refinement:
    """What measuring again around the plan of a budget stands on.

    Args:
        job_id: Of the job.
        ordinal: Of the budget.
        request: Of the job.
        search: What plans are made from.
        offer: Units and candidates, in the order of the probes' entries.
        source: What is measured on what.
        allowance: What it may take.
    """

    job_id: str
    ordinal: int
    request: dict[str, Any]
    search: Search
    offer: Offer
    source: Source
    allowance: Allowance

    @property
    def budget(self) -> str:
        """As written."""
        return str(self.request["budgets"][self.ordinal])

    @property
    def samples(self) -> int:
        """Calibrated on."""
        return self.source.choice.used

    @property
    def obstacle(self) -> End | None:
        """Why there is no way to look around any plan."""
        if self.samples < MIN_SAMPLES:
            return End.FEW_SAMPLES
        return End.MANY_CANDIDATES if self.search.problem.costs.size > MOST_CELLS else None

    def probes(self, base: Choices) -> tuple[tasks.ProbePart, ...]:
        """The parts of the probes around a plan: the blocks of the samples that the job's own are cut into."""
        sha256 = content_sha256({"offer": tasks.offer_sha256(self.offer), "around": base})
        return tuple(
            tasks.probe_part(
                self.source, offer_sha256=sha256, estimator=ESTIMATOR, probes=PROBES, block=block
            )
            for block in tasks.cut(self.samples, tasks.PROBE_BLOCKS)
        )

    def step(self, base: Choices, around: Around, samples: Positions, trust: Trust) -> Choices | None:
        """The best plan near another one, as some of the samples show it; ``None`` where that is the plan itself.

        Args:
            base: The plan.
            around: What was found around it.
            samples: Those to believe.
            trust: How far.
        """
        problem = self.search.problem
        shape = problem.costs.shape
        valid = np.arange(shape[1]) < np.asarray(problem.counts)[:, None]
        chosen = np.array([name_of(base[unit]) == str(candidate) for unit, candidate in self.offer])
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
        choices = self.search.joint(
            self.budget, linear, interactions, start=own.argmax(axis=1), time_limit_s=TIME_LIMIT_S
        )
        return choices if changed(base, choices) else None


def refinement_of(session: Session, job_id: str, ordinal: int) -> Refinement:
    """What measuring again around the plan of a budget stands on.

    Raises:
        SolverError: See `app.plans.service.search_of`.
    """
    job = session.get_one(Job, job_id)
    source, search = tasks.source_of(session, job), search_of(session, job, job_spec(job.request))
    problem = search.problem
    offer = tuple(
        (unit, Candidate.parse(problem.label(i, k)))
        for i, unit in enumerate(problem.units)
        for k in range(int(problem.counts[i]))
    )
    dataset = session.get_one(Dataset, job.dataset_id)
    spent = session.scalar(select(func.sum(JobEntry.work)).where(JobEntry.job_id == job.id)) or 0.0
    return Refinement(
        job_id=job.id,
        ordinal=ordinal,
        request=job.request,
        search=search,
        offer=offer,
        source=source,
        allowance=allowance_of(
            job.request,
            job_description(session, job),
            ordinal=ordinal,
            entries=spent,
            samples=source.choice.used,
            shapes={name: found["shape"] for name, found in dataset.tensors.items()},
            first_step=probe_passes(PROBES + 1) + MEASURED_FIRST,
        ),
    )


def around_of(session: Session, at: Refinement, base: Choices) -> Around:
    """What probes found around a plan, sample by sample in their order; all of it has to be there."""
    entries, samples = len(at.offer), at.samples
    values = np.zeros((PROBES + 1, entries, samples))
    for part in at.probes(base):
        start, stop = part.block
        positions = positions_of(SampleBlock(start=start, stop=stop), samples, at.source.choice.seed)
        values[:, :, positions] = values_of(session.get_one(ProbeResult, part.key))
    return Around(gradients=values[0], values=values[1:])


def changed(base: Choices, choices: Choices) -> int:
    """How many units a plan changes of another one."""
    return sum(choices[unit] != choice for unit, choice in base.items())


def name_of(choice: dict[str, Any]) -> str:
    """What a choice of a plan is called as a candidate."""
    return candidate_name(choice["bits"], choice["scheme"], choice.get("activation_bits"))
