"""What a worker does to measure again around a plan: one part of a step, in the database as soon as it is done."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from app.db import Database
from app.dispatch import work
from app.dispatch.heartbeat import Heartbeat, Progress
from app.dispatch.requests import around_request, calibration_request
from app.dispatch.work import Claim, JobFiles, ProbeValues, patiently
from app.jobs.tasks import ProbePart
from app.kit.recent import Recent
from app.models import PartKind, ProbeResult
from app.plans import steps
from app.plans.refinement import CROSSED, Positions, partitions, rest
from app.plans.refining import Around, Choices, Refinement, around_of, refinement_of
from app.plans.steps import Part, Standing
from app.settings import Settings
from solver import SolverError
from workers.contracts import EstimateRequest
from workers.errors import WorkerError
from workers.sensitivity.local_model import Trust

_WHOLE_STEPS: Recent[tuple[str, int, int], Choices | None] = Recent(16)
"""Job, ordinal and number of a step -> where all samples suggest to go: every part asks, and searching takes as long as measuring a part."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What came of a part: values of probes, or costs and where a step leads."""

    probe: tuple[ProbePart, ProbeValues] | None = None
    choices: Choices | None = None
    costs: NDArray[np.float64] | None = None


def refine(settings: Settings, database: Database, claim: Claim) -> bool:
    """Do one part of a step around the plan of a budget, and see what is next; whether it was wanted to the end.

    What is there already is worth having without: where the model cannot be looked around, the steps are over.

    Raises:
        SolverError: See `app.plans.service.search_of`.
    """
    assert claim.job_id is not None
    with database.read() as session:
        files = work.job_files(session, claim.job_id)
        part = steps.part_of(session, claim.task_id)
        at = refinement_of(session, claim.job_id, part.ordinal)
        do = _what(session, settings, files, at, part, Heartbeat(database, claim).part())
    found, problem = _Found(), None
    try:
        found = do()
    except (WorkerError, SolverError) as error:
        problem = f"{type(error).__name__}: {error}"

    def write(session: Session) -> bool:
        if found.probe is not None:
            work.store_probe(session, found.probe[0], files.model.sha256, found.probe[1])
        steps.lock(session, at.job_id, at.ordinal)
        if not work.holds(session, claim):
            return False
        if found.costs is not None:
            steps.store_measured(session, at.job_id, part, found.choices, found.costs)
        if problem is not None:
            steps.give_up(session, at, problem)
        work.finish(session, claim)
        steps.go_on(session, at)
        return True

    return patiently(database, write)


def _what(  # noqa: PLR0913, PLR0917 - what a part depends on
    session: Session, settings: Settings, files: JobFiles, at: Refinement, part: Part, progress: Progress
) -> Callable[[], _Found]:
    """What there is to do for a part; nothing if it is done, or the steps are over."""
    standing = steps.standing_of(session, at)
    if standing is None or part.kind is PartKind.START:
        return _Found
    if part.kind is PartKind.PROBE:
        probe = at.probes(standing.base)[part.place]
        known = session.get(ProbeResult, probe.key) is not None
        return (
            _Found
            if known
            else partial(
                _probe, around_request(settings, files, at.offer, standing.base, probe.block), probe, progress
            )
        )
    plans = _Plans(settings=settings, files=files, at=at, standing=standing, progress=progress)
    if part.kind is PartKind.BASE:
        return plans.base
    around = around_of(session, at, standing.base)
    if part.kind is PartKind.STEP:
        return partial(plans.step, around)
    return partial(plans.crossed, around, *CROSSED[part.place])


def _probe(request: EstimateRequest, part: ProbePart, progress: Progress) -> _Found:
    from workers.sensitivity.estimators.run import estimate  # noqa: PLC0415 - torch is for workers only

    started = time.perf_counter()
    found = estimate(request, progress)
    assert found.gradients is not None
    values = ProbeValues(
        values=np.concatenate([found.gradients[None], found.values]),
        storage_bits=found.storage_bits,
        seconds=time.perf_counter() - started,
    )
    return _Found(probe=(part, values))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plans:
    """Plans to be made and measured for a step."""

    settings: Settings
    files: JobFiles
    at: Refinement
    standing: Standing
    progress: Progress

    @property
    def _trust(self) -> Trust:
        assert self.standing.turn.trust is not None
        return self.standing.turn.trust

    def base(self) -> _Found:
        """The plan that steps are tried from."""
        (costs,) = self._costs([(self.standing.base, np.arange(self.at.samples))])
        return _Found(costs=costs)

    def step(self, around: Around) -> _Found:
        """Where all samples suggest to go."""
        choices = self._whole_step(around)
        if choices is None:
            return _Found(costs=np.full(self.at.samples, np.nan))
        (costs,) = self._costs([(choices, np.arange(self.at.samples))])
        return _Found(choices=choices, costs=costs)

    def crossed(self, around: Around, way: int, numbers: Sequence[int]) -> _Found:
        """Parts of the samples, each under the step that is made without it."""
        folds = [partitions(self.at.samples)[way][number] for number in numbers]
        found = [np.full(len(fold), np.nan) for fold in folds]
        # A step that leads nowhere new is not taken, whatever others do: nothing to measure.
        if self._whole_step(around) is not None:
            made = [self._step(around, rest(fold, self.at.samples)) for fold in folds]
            plans = {i: (step, folds[i]) for i, step in enumerate(made) if step is not None}
            for i, costs in zip(plans, self._costs(list(plans.values())), strict=True):
                found[i] = costs
        return _Found(costs=np.concatenate(found))

    def _whole_step(self, around: Around) -> Choices | None:
        """The step as all samples show it; ``None`` where it leads nowhere, or where another one from the same plan has led."""
        which = self.at.job_id, self.at.ordinal, self.standing.turn.number
        choices = _WHOLE_STEPS.get(which, lambda: self._step(around, np.arange(self.at.samples)))
        return None if choices in self.standing.tried else choices

    def _step(self, around: Around, samples: Positions) -> Choices | None:
        return self.at.step(self.standing.base, around, samples, self._trust)

    def _costs(self, plans: Sequence[tuple[Choices, Positions]]) -> list[NDArray[np.float64]]:
        """Costs of plans on some of the calibration samples each."""
        from workers.verify.parts import PlanPart, measure_parts  # noqa: PLC0415 - torch is for workers only

        parts = [
            PlanPart(
                choices={unit: work.candidate_of(choice) for unit, choice in choices.items()},
                positions=tuple(positions.tolist()),
            )
            for choices, positions in plans
        ]
        request = calibration_request(self.settings, self.files, {})
        return measure_parts(request, parts, self.progress) if parts else []
