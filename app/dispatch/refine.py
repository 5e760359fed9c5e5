"""What a worker does to measure again around a plan: one step after the other, each in the database as soon as it is done."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from app.db import Database
from app.dispatch import work
from app.dispatch.requests import around_request, calibration_request
from app.dispatch.work import Claim, JobFiles, ProbeValues, patiently
from app.plans.refinement import Outcome, Positions, crossed_changes, judge, partitions, rest, unchanged
from app.plans.refining import (
    Around,
    Choices,
    Refinement,
    around_of,
    refinement_of,
    store_refined,
    store_trial,
)
from app.settings import Settings
from workers.sensitivity.local_model import Trust


def refine(settings: Settings, database: Database, claim: Claim) -> bool:
    """Try steps around the plan of a budget until none helps; whether that was wanted to the end.

    Raises:
        WorkerError: The model cannot be differentiated, or an operator failed.
    """
    job_id = claim.job_id
    assert job_id is not None
    while True:
        with database.read() as session:
            ordinal = work.task_ordinal(session, claim)
            files = work.job_files(session, job_id)
            at = refinement_of(session, job_id, ordinal)
            around = None if at is None else around_of(session, at.part)
        if at is None or at.turn.trust is None:
            return _end(database, claim, at)
        if around is None:
            found = _probe(settings, files, at)
            patiently(database, partial(_store_probe, at=at, model_sha256=files.model.sha256, found=found))
            continue
        trial = _Trial(settings=settings, files=files, at=at, around=around, trust=at.turn.trust)
        choices, outcome = trial.run()
        if not patiently(database, partial(_store, claim=claim, at=at, choices=choices, outcome=outcome)):
            return False


def _store_probe(session: Session, *, at: Refinement, model_sha256: str, found: ProbeValues) -> bool:
    return work.store_probe(session, at.part, model_sha256, found)


def _store(session: Session, *, claim: Claim, at: Refinement, choices: Choices, outcome: Outcome) -> bool:
    if not work.holds(session, claim):
        return False
    assert claim.job_id is not None
    store_trial(session, claim.job_id, at, choices, outcome)
    return True


def _end(database: Database, claim: Claim, at: Refinement | None) -> bool:
    def write(session: Session) -> bool:
        assert claim.job_id is not None
        if not work.holds(session, claim):
            return False
        if at is not None:
            store_refined(session, claim.job_id, at)
        return work.finish(session, claim)

    return patiently(database, write)


def _probe(settings: Settings, files: JobFiles, at: Refinement) -> ProbeValues:
    from workers.sensitivity.estimators.run import estimate  # noqa: PLC0415 - torch is for workers only

    started = time.perf_counter()
    found = estimate(around_request(settings, files, at))
    assert found.gradients is not None
    return ProbeValues(
        values=np.concatenate([found.gradients[None], found.values]),
        storage_bits=found.storage_bits,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Trial:
    """A step to be made and measured."""

    settings: Settings
    files: JobFiles
    at: Refinement
    around: Around
    trust: Trust

    def run(self) -> tuple[Choices, Outcome]:
        """Make the step, and measure what it gains: itself, and made without each part of the samples.

        Returns:
            Where the step leads, and what came of it.
        """
        everything = np.arange(self.at.samples)
        choices = self.step(everything)
        if choices is None:
            (before,) = self.costs([(self.at.base, everything)])
            return self.at.base, unchanged(self.trust, before)
        before, after = self.costs([(self.at.base, everything), (choices, everything)])
        crossed = [self.crossed(before, folds) for folds in partitions(self.at.samples)]
        return choices, judge(self.trust, self.at.changed(choices), before, after, crossed)

    def step(self, samples: Positions) -> Choices | None:
        """Where the step leads that some of the samples suggest; ``None`` where it leads nowhere."""
        choices = self.at.step(self.around, samples, self.trust)
        return choices if choices and self.at.changed(choices) else None

    def crossed(self, before: NDArray[np.float64], folds: Sequence[Positions]) -> NDArray[np.float64]:
        """Per sample the change by a step that was made without it."""
        steps = [self.step(rest(fold, self.at.samples)) for fold in folds]
        plans = {i: (step, folds[i]) for i, step in enumerate(steps) if step is not None}
        measured = self.costs(list(plans.values()))
        return crossed_changes(before, folds, dict(zip(plans, measured, strict=True)).get)

    def costs(self, plans: Sequence[tuple[Choices, Positions]]) -> list[NDArray[np.float64]]:
        """Costs of plans on some of the calibration samples each."""
        from workers.verify.parts import PlanPart, measure_parts  # noqa: PLC0415 - torch is for workers only

        parts = [
            PlanPart(
                choices={unit: work.candidate_of(choice) for unit, choice in choices.items()},
                positions=tuple(positions.tolist()),
            )
            for choices, positions in plans
        ]
        return measure_parts(calibration_request(self.settings, self.files, {}), parts)
