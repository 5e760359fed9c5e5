"""What a job needs measured, cut into shards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.jobs.keys import SampleChoice, entry_key
from workers.contracts import Candidate, Metric, ModelDescription
from workers.sensitivity.sharding import plan_shards, work


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is measured on what: the part of an entry's key that a job's entries have in common."""

    model_sha256: str
    dataset_sha256: str
    metric: Metric
    choice: SampleChoice


@dataclass(frozen=True, kw_only=True)
class PlannedEntry:
    """One (unit, candidate) to measure. ``work`` is in float passes over the samples."""

    key: str
    unit: str
    bits: int
    scheme: str
    work: float


def plan_entries(
    description: ModelDescription,
    candidates: Sequence[Candidate],
    *,
    exclude: Iterable[str],
    source: Source,
    shards: int,
) -> list[list[PlannedEntry]]:
    """All entries in execution order, in at most ``shards`` contiguous runs of about equal work, one per unit at most."""
    excluded = set(exclude)
    units = [u.name for u in description.units if u.name not in excluded]
    wanted = [(unit, candidate) for unit in units for candidate in candidates]
    return [
        [
            PlannedEntry(
                key=entry_key(
                    model_sha256=source.model_sha256,
                    dataset_sha256=source.dataset_sha256,
                    unit=unit,
                    candidate=candidate,
                    metric=source.metric,
                    choice=source.choice,
                ),
                unit=unit,
                bits=candidate.bits,
                scheme=str(candidate.scheme),
                work=share,
            )
            for (unit, candidate), share in zip(shard, work(description, shard), strict=True)
        ]
        for shard in plan_shards(description, wanted, max(min(shards, len(units)), 1))
    ]
