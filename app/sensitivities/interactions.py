"""How the errors of different units add up or cancel, from what was kept of their output changes.

Measured entries come with a sketch of the change of the outputs that they cause; what a probe finds for an entry is such a
sketch as well. Inner products of sketches estimate how much two changes have in common, and so the joint cost of a plan
beyond the sum of its units' (`workers.sensitivity.gram`).
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from sqlalchemy.orm import Session

from app.jobs import tasks
from app.models import Job
from app.plans.planner import Search
from app.sensitivities import repository
from app.sensitivities.evidence import Key, estimates, key_of
from solver import Interactions
from workers.contracts import Estimator, ModelDescription
from workers.sampling import SampleBlock
from workers.sensitivity.gram import pairwise_costs

MOST_CELLS = 4096
"""With more candidates than this in all, interactions are left alone: the search with them would take too long."""


@dataclass(frozen=True, kw_only=True)
class _Sketch:
    """What was kept of one entry's change on some samples."""

    samples: int
    block: SampleBlock | None
    sketch: bytes | None


def interactions_of(
    session: Session, job: Job, description: ModelDescription, search: Search
) -> Interactions | None:
    """Interactions over the units and candidates of a search; ``None`` where nothing is known of them."""
    problem = search.problem
    units, candidates = problem.costs.shape
    if units * candidates > MOST_CELLS:
        return None
    sketches = _sketches(session, job, description)
    if not sketches:
        return None
    cells = [
        [
            sketches.get((unit, problem.label(i, k)), []) if k < problem.counts[i] else []
            for k in range(candidates)
        ]
        for i, unit in enumerate(problem.units)
    ]
    pairs = pairwise_costs(problem.costs, cells)
    return (
        Interactions.from_factors(pairs.factors, units=units, candidates=candidates) if pairs.known else None
    )


def _sketches(session: Session, job: Job, description: ModelDescription) -> dict[Key, list[_Sketch]]:
    """Sketches of one kind for all entries: of the probes where there are any, else of the measurements."""
    found: dict[Key, list[_Sketch]] = defaultdict(list)
    if tasks.is_exact(job.request):
        for row in repository.measurements(session, job.id, sketches=True):
            block = SampleBlock(start=row.block_start, stop=row.block_stop)
            found[key_of(row)].append(_Sketch(samples=row.samples, block=block, sketch=row.sketch))
        return found
    estimated = estimates(session, job, description) if job.request["estimator"] == Estimator.PROBE else None
    if estimated is None:  # other estimators' scores are no changes of outputs
        return found
    _, probes, samples = estimated.values.shape
    changes = (estimated.values / np.sqrt(probes * samples)).reshape(len(estimated.keys), -1)
    for key, change in zip(estimated.keys, changes.astype("<f4"), strict=True):
        found[key].append(_Sketch(samples=samples, block=None, sketch=change.tobytes()))
    return found
