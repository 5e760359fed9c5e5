"""What a job needs measured, cut into shards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.jobs.keys import SampleChoice, entry_key
from workers.contracts import Candidate, ComputeDtype, Metric, ModelDescription
from workers.sensitivity.sharding import plan_shards, work

LEAST_SHARD_PASSES = 3.0
"""Float passes over its samples that a shard is worth at least: each begins with passes of its own, over the prefixes of its
units, and where the float outputs are not known yet one for those."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is measured on what: the part of an entry's key that a job's entries have in common."""

    model_sha256: str
    dataset_sha256: str
    metric: Metric
    choice: SampleChoice
    output: str | None = None
    compute_dtype: ComputeDtype = ComputeDtype.FLOAT32


@dataclass(frozen=True, kw_only=True)
class PlannedEntry:
    """One (unit, candidate) to measure on a block of samples. ``work`` is in float passes over all samples."""

    key: str
    unit: str
    bits: int
    scheme: str
    activation_bits: int | None
    block_start: int
    block_stop: int
    work: float


def plan_entries(
    description: ModelDescription,
    wanted: Sequence[tuple[str, Candidate]],
    *,
    block: tuple[int, int],
    source: Source,
    shards: int,
) -> list[list[PlannedEntry]]:
    """Entries in execution order, in at most ``shards`` contiguous runs of about equal work.

    No more than there are units, nor than are worth `LEAST_SHARD_PASSES` each.

    Args:
        description: The model.
        wanted: Units and candidates.
        block: Which samples, as positions in the order that the seed gives them.
        source: What is measured on what.
        shards: Number of runs at most.
    """
    units = len({unit for unit, _ in wanted})
    worth = int(math.fsum(work(description, wanted)) / LEAST_SHARD_PASSES)
    start, stop = block
    part = (stop - start) / source.choice.used
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
                    block=block,
                    output=source.output,
                    compute_dtype=source.compute_dtype,
                ),
                unit=unit,
                bits=candidate.bits,
                scheme=str(candidate.scheme),
                activation_bits=candidate.activation_bits,
                block_start=start,
                block_stop=stop,
                work=share * part,
            )
            for (unit, candidate), share in zip(shard, work(description, shard), strict=True)
        ]
        for shard in plan_shards(description, wanted, max(min(shards, units, worth), 1))
    ]
