"""What is known of a job's candidates: measured where there are measurements, estimated else."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from app.jobs import tasks
from app.jobs.offer import offer_of
from app.models import Job, Measurement, ProbeResult
from app.plans.planner import candidate_name
from app.sensitivities import repository
from app.sensitivities.correction import correct
from workers.contracts import ModelDescription

Key = tuple[str, str]
"""Unit and candidate."""


_MOST_PROJECTED = 3.0
"""A projection changes a cost by this factor at most."""


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
class Estimates:
    """What a job's probes found.

    Args:
        keys: Unit and candidate of each row.
        values: float64 ``[entries, probes, samples]``: a square's expectation over the signs is the sample's cost.
        storage_bits: Of each entry, scales and zero points included.
    """

    keys: tuple[Key, ...]
    values: NDArray[np.float64]
    storage_bits: tuple[int, ...]

    @property
    def means(self) -> NDArray[np.float64]:
        """Estimated cost of each entry."""
        return np.asarray(np.square(self.values).mean(axis=(1, 2)))

    @property
    def standard_errors(self) -> NDArray[np.float64]:
        """Of the means, over samples, the noise of the signs included; 0 where there is one sample."""
        per_sample = np.square(self.values).mean(axis=1)
        count = per_sample.shape[1]
        if count < 2:
            return np.zeros(len(per_sample))
        return np.asarray(per_sample.std(axis=1, ddof=1) / math.sqrt(count))


def known(session: Session, job: Job, description: ModelDescription) -> list[Sensitivity]:
    """What is known of a job's candidates, in the order of its offer; what is not known yet is left out.

    Estimates are corrected by what the measured entries of the same bit-width show.
    """
    rows = repository.measurements(session, job.id)
    found = {s.key: s for s in combined(rows)}
    if not tasks.is_exact(job.request):
        estimated = estimates(session, job, description)
        if estimated is not None:
            found |= {s.key: s for s in _projected(rows, found, estimated)}
            others = {s.key: s for s in _estimated(job, description, estimated, found)}
            found = others | {key: _less_sure(s, others[key]) for key, s in found.items()}
    offer = ((unit, str(candidate)) for unit, candidate in offer_of(description, job.request))
    return [found[key] for key in offer if key in found]


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
    parts = _parts(session, job, description)
    return repository.probes_done(session, [part.key for part in parts]) == len(parts)


def combined(rows: Iterable[Measurement]) -> list[Sensitivity]:
    """One sensitivity for each entry, its blocks put together (Chan, Golub, LeVeque 1983), in the rows' order."""
    blocks: dict[Key, list[Measurement]] = {}
    for row in rows:
        key = row.unit, candidate_name(row.bits, row.scheme, row.activation_bits)
        blocks.setdefault(key, []).append(row)
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


def estimates(session: Session, job: Job, description: ModelDescription) -> Estimates | None:
    """What a job's probes found; ``None`` until all of it is there."""
    parts = _parts(session, job, description)
    results = repository.probe_results(session, [part.key for part in parts])
    if len(results) < len(parts):
        return None
    blocks = [values_of(results[part.key]) for part in parts]
    offer = offer_of(description, job.request)
    return Estimates(
        keys=tuple((unit, str(candidate)) for unit, candidate in offer),
        values=np.concatenate(blocks, axis=2).swapaxes(0, 1),
        storage_bits=tuple(results[parts[0].key].storage_bits),
    )


def values_of(result: ProbeResult) -> NDArray[np.float64]:
    """The values of a part of the probes, float64 ``[probes, entries, samples]``."""
    shape = result.probes, result.entries, result.samples
    stored = np.frombuffer(result.values, dtype="<f4").reshape(shape)
    return stored.astype(np.float64)


def _parts(session: Session, job: Job, description: ModelDescription) -> tuple[tasks.ProbePart, ...]:
    offer = offer_of(description, job.request)
    return tasks.probe_parts(tasks.source_of(session, job), job.request, offer)


def _projected(
    rows: Sequence[Measurement], found: Mapping[Key, Sensitivity], estimated: Estimates
) -> Iterator[Sensitivity]:
    """What entries measured on a part of the samples would cost on all of them.

    Samples differ in difficulty, and alike for a measurement and its estimate: the ratio of the estimate over all samples to
    that over the measured ones takes most of this out (the ratio estimator, Cochran 1977, chapter 6). Blocks of measuring are
    those of probing, so that both are about the same samples.
    """
    spans: dict[Key, list[slice]] = {}
    for row in rows:
        key = row.unit, candidate_name(row.bits, row.scheme, row.activation_bits)
        spans.setdefault(key, []).append(slice(row.block_start, row.block_stop))
    places = {key: place for place, key in enumerate(estimated.keys)}
    samples = estimated.values.shape[2]
    for key, parts in spans.items():
        if key not in places or sum(part.stop - part.start for part in parts) >= samples:
            continue
        squares = np.square(estimated.values[places[key]])
        seen = float(np.concatenate([squares[:, part] for part in parts], axis=1).mean())
        if seen > 0:
            ratio = min(max(float(squares.mean()) / seen, 1 / _MOST_PROJECTED), _MOST_PROJECTED)
            error = found[key].standard_error
            yield replace(
                found[key],
                mean=found[key].mean * ratio,
                standard_error=None if error is None else error * ratio,
            )


def _less_sure(measured: Sensitivity, estimate: Sensitivity) -> Sensitivity:
    """A measurement with the error that its projection may have: no more than that of the estimate, as a share."""
    if estimate.mean <= 0:
        return measured
    return replace(measured, model_error=abs(measured.mean) * estimate.model_error / estimate.mean)


def _estimated(
    job: Job, description: ModelDescription, found: Estimates, measured: Mapping[Key, Sensitivity]
) -> list[Sensitivity]:
    """Estimates of all entries, corrected; their standard errors hold the correction's as well."""
    request: Mapping[str, Any] = job.request
    units = {u.name: u for u in description.units}
    offer = offer_of(description, request)
    samples = found.values.shape[2]
    seen = np.array([measured[key].mean if key in measured else math.nan for key in found.keys])
    bits = np.array([candidate.bits for _, candidate in offer])
    fitted = correct(found.means, seen, bits)
    sampled = found.standard_errors * fitted.costs / np.maximum(found.means, 1e-300)
    errors = np.hypot(fitted.errors, sampled)
    rows = zip(offer, fitted.costs.tolist(), errors.tolist(), found.storage_bits, strict=True)
    return [
        Sensitivity(
            unit=unit,
            bits=candidate.bits,
            scheme=str(candidate.scheme),
            metric=request["predicts"],
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
        for ((unit, candidate), mean, error, storage), model_error in zip(
            rows, fitted.errors.tolist(), strict=True
        )
    ]
