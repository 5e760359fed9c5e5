"""What a job has measured and estimated of its entries, from its rows to arrays."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from app.jobs import tasks
from app.jobs.offer import offer_of
from app.models import Job, Measurement, ProbeResult
from app.plans.planner import candidate_name
from app.sensitivities import repository
from app.sensitivities.belief import Evidence
from app.sensitivities.smoothing import smooth
from workers.contracts import Candidate, ModelDescription
from workers.sensitivity.statistics import run_lengths

Key = tuple[str, str]
"""Unit and candidate."""


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


def estimates(session: Session, job: Job, description: ModelDescription) -> Estimates | None:
    """What a job's probes found; ``None`` until all of it is there."""
    parts = parts_of(session, job, description)
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


def parts_of(session: Session, job: Job, description: ModelDescription) -> tuple[tasks.ProbePart, ...]:
    """All parts of a job's probes."""
    offer = offer_of(description, job.request)
    return tasks.probe_parts(tasks.source_of(session, job), job.request, offer)


def covered(rows: Iterable[Measurement]) -> dict[Key, int]:
    """How many samples each entry was measured on, those that do not count included."""
    samples: dict[Key, int] = defaultdict(int)
    for row in rows:
        samples[key_of(row)] += row.block_stop - row.block_start
    return samples


def key_of(row: Measurement) -> Key:
    """Which entry a measurement is of."""
    return row.unit, candidate_name(row.bits, row.scheme, row.activation_bits)


def evidence_of(
    keys: Sequence[Key],
    rows: Iterable[Measurement],
    estimated: Estimates | None,
    *,
    blocks: Sequence[tasks.Block],
    noisy: bool,
) -> Evidence:
    """What was measured and estimated of some entries, over runs of samples.

    Args:
        keys: The entries; those of a unit follow each other. All that were estimated, where any were.
        rows: What was measured of them, each on one of the blocks.
        estimated: What was estimated.
        blocks: What all samples are cut into.
        noisy: Estimates rest on random signs, and are told sample by sample.
    """
    lengths = [run_lengths(stop - start) for start, stop in blocks]
    ends = np.cumsum([len(of_block) for of_block in lengths]).tolist()
    runs = {block: slice(a, b) for block, a, b in zip(blocks, [0, *ends], ends, strict=False)}
    places = {key: place for place, key in enumerate(keys)}
    costs = np.full((len(keys), ends[-1]), np.nan)
    counted = np.concatenate(lengths)
    for row in rows:
        at = runs[row.block_start, row.block_stop]
        costs[places[key_of(row)], at] = np.frombuffer(row.runs, "<f8")
        counted[at] = np.where(np.isnan(costs[places[key_of(row)], at]), 0, counted[at])
    units = list(dict.fromkeys(unit for unit, _ in keys))
    number = {unit: place for place, unit in enumerate(units)}
    of_entry = np.array([number[unit] for unit, _ in keys], np.int64)
    told, noise = None, 0.0
    if estimated is not None:
        told = _over_runs(estimated, np.concatenate(lengths))
        if noisy:
            found = smooth(estimated.values, of_entry, [candidate for _, candidate in keys])
            told, noise = told * found.factors[:, None], found.noise
    return Evidence(
        units=of_entry,
        bits=np.array([Candidate.parse(candidate).bits for _, candidate in keys], np.int64),
        costs=costs,
        lengths=counted,
        first=int(counted[: len(lengths[0])].sum()),
        estimates=told,
        noise=noise,
    )


def _over_runs(estimated: Estimates, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean estimates of runs, float64 [entries, runs]; the mean of all where an estimator does not tell samples apart."""
    samples = np.square(estimated.values).mean(axis=1)
    if samples.shape[1] != lengths.sum():
        return np.repeat(samples.mean(axis=1, keepdims=True), len(lengths), axis=1)
    return np.asarray(np.add.reduceat(samples, np.cumsum(lengths) - lengths, axis=1) / lengths)
