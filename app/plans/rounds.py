"""What a job still has to measure before its plans can be made: the database's side of `app.sensitivities.rounds`."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.jobs import tasks
from app.jobs.tasks import Block
from app.models import Job, JobEntry, Stage, utc_now
from app.plans.planner import Search, candidate_name
from app.plans.service import job_description, prepare_search
from app.sensitivities.evidence import Key
from app.sensitivities.knowledge import Knowledge, knowledge
from app.sensitivities.rounds import Table, next_round
from app.settings import Settings
from workers.contracts import Candidate, ModelDescription
from workers.sensitivity.sharding import work

Further = dict[Block, list[tuple[str, Candidate]]]


def further_entries(session: Session, job_id: str) -> Further:
    """The entries whose measurement the plans of a job still need, by block of samples; empty when there are none.

    Only jobs with a regret need any beyond those they begin with.
    """
    job = session.get_one(Job, job_id)
    regret = job.request.get("regret")
    if regret is None:
        return {}
    description = job_description(session, job)
    found = knowledge(session, job, description)
    search = prepare_search(job, description, found.rows)
    blocks = tasks.measure_blocks(tasks.source_of(session, job), job.request)
    measured = _measured_until(session, job_id)
    table = _table(found, search, measured, blocks[-1][1], estimated=not tasks.is_exact(job.request))
    budgets = [
        search.sizes.budget_bits(text, search.counts) - search.fixed_bits for text in job.request["budgets"]
    ]
    reachable = [b for b in budgets if b >= search.problem.reduced.smallest]
    asked = next_round(table, reachable, regret=regret)
    wanted: list[tuple[Block, tuple[str, Candidate]]] = []
    for unit, candidate in asked.cells:
        key = search.problem.units[unit], search.problem.label(unit, candidate)
        block = next(b for b in blocks if b[1] > measured.get(key, 0))
        wanted.append((block, (key[0], Candidate.parse(key[1]))))
    further: Further = defaultdict(list)
    for block, entry in _affordable(session, job, description, wanted, samples=blocks[-1][1]):
        further[block].append(entry)
    return further


def _affordable(
    session: Session,
    job: Job,
    description: ModelDescription,
    wanted: Sequence[tuple[Block, tuple[str, Candidate]]],
    *,
    samples: int,
) -> Iterator[tuple[Block, tuple[str, Candidate]]]:
    """The most useful entries, as many as the passes that the job may still spend on measuring pay for."""
    limit = job.request.get("max_passes")
    spent = session.scalar(select(func.sum(JobEntry.work)).where(JobEntry.job_id == job.id)) or 0.0
    shares = work(description, [entry for _, entry in wanted])
    for (block, entry), share in zip(wanted, shares, strict=True):
        spent += share * (block[1] - block[0]) / samples
        if limit is not None and spent > limit:
            return
        yield block, entry


def measure_further(session: Session, job_id: str, further: Further, settings: Settings) -> None:
    """Queue entries that the plans still need, and set the job back to measuring."""
    job = session.get_one(Job, job_id)
    tasks.queue_entries(session, job, job_description(session, job), further, settings)
    if job.stage is Stage.SOLVE:
        job.stage, job.stage_started_at = Stage.MEASURE, utc_now()
    session.flush()


def _measured_until(session: Session, job_id: str) -> dict[Key, int]:
    """Up to which sample each entry was measured, or is asked to be."""
    rows = session.execute(
        select(
            JobEntry.unit,
            JobEntry.bits,
            JobEntry.scheme,
            JobEntry.activation_bits,
            func.max(JobEntry.block_stop),
        )
        .where(JobEntry.job_id == job_id)
        .group_by(JobEntry.unit, JobEntry.bits, JobEntry.scheme, JobEntry.activation_bits)
    )
    return {
        (unit, candidate_name(bits, scheme, activation)): stop
        for unit, bits, scheme, activation, stop in rows
    }


def _table(
    found: Knowledge, search: Search, measured: Mapping[Key, int], samples: int, *, estimated: bool
) -> Table:
    problem = search.problem
    length, width = problem.costs.shape
    covariances, still = np.zeros((length, width, width)), np.zeros((length, width), np.bool_)
    missed = np.zeros((length, width))
    for i, unit in enumerate(problem.units):
        offered = [problem.label(i, k) for k in range(int(problem.counts[i]))]
        covariances[i, : len(offered), : len(offered)] = found.covariance(unit, offered)
        missed[i, : len(offered)] = found.missed_by(unit, offered)
        still[i, : len(offered)] = [measured.get((unit, label), 0) < samples for label in offered]
    variances = np.diagonal(covariances, axis1=1, axis2=2)
    errors = np.sqrt(np.maximum(variances, 0.0))
    return Table(
        problem=problem,
        errors=errors,
        open=still,
        covariances=covariances,
        missed=None if estimated else missed,
    )
