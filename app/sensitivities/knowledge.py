"""What is known of a job's candidates: measured where there are measurements, estimated else."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from app.jobs import tasks
from app.jobs.offer import offer_of
from app.models import Job, Measurement
from app.plans.planner import candidate_name
from app.sensitivities import repository
from app.sensitivities.belief import Belief, believe
from app.sensitivities.evidence import Estimates, Key, covered, estimates, evidence_of, key_of, parts_of
from workers.contracts import Estimator, ModelDescription


class Source(StrEnum):
    """Where a cost comes from."""

    MEASURED = "measured"
    """The quantized model was run."""
    ESTIMATED = "estimated"
    """A probe or another estimator said so."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Cost of one candidate of one unit, everything else float.

    Args:
        metric: What ``mean`` is in.
        mean: Mean cost over the samples.
        standard_error: Of the mean, over samples; ``None`` for a single one.
        samples: How many were looked at.
        seconds: Wall-clock time spent on it; 0 for estimates, which come all at once.
        source: Whether it was measured.
        activation_bits: Of the unit's inputs; ``None`` when they stay in float.
        model_error: How far off an estimate, or what was projected from a part of the samples, may be from the cost on these
            very samples; 0 where that is not known.
    """

    unit: str
    bits: int
    scheme: str
    metric: str
    size_bits: int
    storage_bits: int
    mean: float
    standard_error: float | None
    samples: int
    seconds: float
    source: Source = Source.MEASURED
    activation_bits: int | None = None
    model_error: float = 0.0

    @property
    def key(self) -> Key:
        """Unit and candidate."""
        return self.unit, candidate_name(self.bits, self.scheme, self.activation_bits)


@dataclass(frozen=True, kw_only=True, eq=False)
class Knowledge:
    """What is known of a job's candidates.

    Attributes:
        rows: In the order of the offer; what is not known yet is left out.
        places: Of each unit's candidates in ``covariances``.
        covariances: Of each unit, float64 [K, K]: how far costs may be off those on all samples, together.
        missed: Of each unit, float64 [K]: how much of their costs may have been missed, as a share of what was seen.
    """

    rows: tuple[Sensitivity, ...]
    places: Mapping[str, Mapping[str, int]]
    covariances: Mapping[str, NDArray[np.float64]]
    missed: Mapping[str, NDArray[np.float64]]

    def covariance(self, unit: str, candidates: Sequence[str]) -> NDArray[np.float64]:
        """Of the errors of some candidates of a unit, float64 [candidates, candidates]."""
        at = [self.places[unit][candidate] for candidate in candidates]
        return np.asarray(self.covariances[unit][np.ix_(at, at)])

    def missed_by(self, unit: str, candidates: Sequence[str]) -> NDArray[np.float64]:
        """How much of the costs of some candidates of a unit may have been missed, as shares, float64 [candidates]."""
        return np.asarray(self.missed[unit][[self.places[unit][candidate] for candidate in candidates]])


def known(session: Session, job: Job, description: ModelDescription) -> list[Sensitivity]:
    """What is known of a job's candidates, in the order of its offer; what is not known yet is left out."""
    return list(knowledge(session, job, description).rows)


def knowledge(session: Session, job: Job, description: ModelDescription) -> Knowledge:
    """What is known of a job's candidates and how far that may be off.

    Where plans decide how many samples are measured, what was measured on some is projected to all, with the help of
    estimates where there are any; these are corrected by what the measured entries of the same bit-width show.
    """
    request, rows = job.request, repository.measurements(session, job.id)
    found = {s.key: s for s in combined(rows)}
    offer = [(unit, str(candidate)) for unit, candidate in offer_of(description, request)]
    estimated = None if tasks.is_exact(request) else estimates(session, job, description)
    keys = [key for key in offer if estimated is not None or key in found]
    if not keys or (request.get("regret") is None and estimated is None):
        return Knowledge(rows=tuple(found[key] for key in keys), places={}, covariances={}, missed={})
    blocks = tasks.measure_blocks(tasks.source_of(session, job), request)
    used = blocks[-1][1]
    belief = believe(evidence_of(keys, rows, estimated, blocks=blocks, noisy=_noisy(request)))
    places: dict[str, dict[str, int]] = {}
    for unit, candidate in keys:
        of_unit = places.setdefault(unit, {})
        of_unit[candidate] = len(of_unit)
    others = {} if estimated is None else _estimated(job, description, estimated, belief)
    whole = {key for key, samples in covered(rows).items() if samples >= used}
    believed = [
        others[key]
        if key not in found
        else found[key]
        if key in whole
        else _projected(found[key], cost, error, used)
        for key, cost, error in zip(keys, belief.costs.tolist(), belief.errors.tolist(), strict=True)
    ]
    ends = np.cumsum([len(of_unit) for of_unit in places.values()])
    return Knowledge(
        rows=tuple(believed),
        places=places,
        covariances=dict(zip(places, belief.covariances, strict=True)),
        missed=dict(zip(places, np.split(belief.missed, ends[:-1]), strict=True)),
    )


def _noisy(request: Mapping[str, Any]) -> bool:
    """Whether estimates rest on random signs."""
    return bool(request.get("estimator") == Estimator.PROBE)


def _projected(measured: Sensitivity, cost: float, error: float, used: int) -> Sensitivity:
    """An entry measured on some of the samples, as it is believed to be on all.

    Its standard error has two parts: how far that may be off the cost on these very samples, and how far the mean over so many
    samples is off that of all there could be.
    """
    spread = measured.standard_error
    return replace(
        measured,
        mean=cost,
        standard_error=None
        if spread is None
        else math.hypot(error, spread * math.sqrt(measured.samples / used)),
        model_error=error,
    )


def row_json(row: Sensitivity) -> dict[str, Any]:
    """A sensitivity as every document and table shows it."""
    return {k: v for k, v in asdict(row).items() if k != "model_error"}


def is_complete(session: Session, job: Job, description: ModelDescription) -> bool:
    """Whether everything that a job has asked for so far is there."""
    entries = repository.count(session, job.id)
    if entries.done < entries.total:
        return False
    if tasks.is_exact(job.request):
        return entries.total > 0
    parts = parts_of(session, job, description)
    return repository.probes_done(session, [part.key for part in parts]) == len(parts)


def combined(rows: Iterable[Measurement]) -> list[Sensitivity]:
    """One sensitivity for each entry, its blocks put together (Chan, Golub, LeVeque 1983), in the rows' order."""
    blocks: dict[Key, list[Measurement]] = {}
    for row in rows:
        blocks.setdefault(key_of(row), []).append(row)
    return [_together(parts) for parts in blocks.values()]


def _together(parts: Sequence[Measurement]) -> Sensitivity:
    first = parts[0]
    samples = sum(p.samples for p in parts)
    if len(parts) == 1:
        mean, error = first.mean, first.standard_error
    else:
        mean = math.fsum(p.samples * p.mean for p in parts) / samples
        within = math.fsum((p.standard_error or 0.0) ** 2 * p.samples * (p.samples - 1) for p in parts)
        between = math.fsum(p.samples * (p.mean - mean) ** 2 for p in parts)
        error = math.sqrt((within + between) / (samples - 1) / samples)
    return Sensitivity(
        unit=first.unit,
        bits=first.bits,
        scheme=first.scheme,
        metric=first.metric,
        size_bits=first.size_bits,
        storage_bits=first.storage_bits,
        mean=mean,
        standard_error=error,
        samples=samples,
        seconds=math.fsum(p.seconds for p in parts),
        activation_bits=first.activation_bits,
    )


def _estimated(
    job: Job, description: ModelDescription, found: Estimates, belief: Belief
) -> dict[Key, Sensitivity]:
    """Estimates of all entries, corrected; their standard errors hold the correction's as well."""
    units = {u.name: u for u in description.units}
    offer = offer_of(description, job.request)
    samples = found.values.shape[2]
    sampled = found.standard_errors * belief.fitted / np.maximum(found.means, 1e-300)
    numbers = zip(
        found.keys,
        belief.fitted.tolist(),
        np.hypot(belief.fitted_errors, sampled).tolist(),
        belief.fitted_errors.tolist(),
        found.storage_bits,
        strict=True,
    )
    return {
        key: Sensitivity(
            unit=unit,
            bits=candidate.bits,
            scheme=str(candidate.scheme),
            metric=job.request["predicts"],
            size_bits=units[unit].weights * candidate.bits,
            storage_bits=storage,
            mean=mean,
            standard_error=error if samples > 1 else None,
            samples=samples,
            seconds=0.0,
            source=Source.ESTIMATED,
            activation_bits=candidate.activation_bits,
            model_error=model_error,
        )
        for (unit, candidate), (key, mean, error, model_error, storage) in zip(offer, numbers, strict=True)
    }
