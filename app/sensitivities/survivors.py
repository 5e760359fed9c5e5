"""Which candidates of a unit are still in question once all are estimated. Pure.

Of several schemes of one width, as a rule one suits a unit best, and the estimates tell which: only what they cannot tell
apart is worth measuring and searching.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from app.sensitivities.knowledge import Sensitivity, Source

SURE = 2.0
"""So many standard errors apart, the cheaper of two candidates is taken to be the cheaper one."""


def survivors(rows: Iterable[Sensitivity], *, ties: Iterable[Iterable[str]] = ()) -> list[Sensitivity]:
    """The candidates that no other of the same unit and widths beats for sure, in the given order.

    A candidate is beaten by one that takes no more storage and costs less by more than `SURE` errors of the difference. The
    cheapest of each width never is, so that neither the best plan nor the uniform ones change where the errors are right.

    Args:
        rows: What is known of candidates, any number of units.
        ties: Groups of units that share one choice. Their candidates all stay: what is best for the group need not be best
            for each of it, and the choice must be there in all.
    """
    rows = list(rows)
    tied = {unit for group in ties for unit in group}
    groups: dict[tuple[str, int, int | None], list[Sensitivity]] = defaultdict(list)
    for row in rows:
        if row.unit not in tied:
            groups[row.unit, row.bits, row.activation_bits].append(row)
    beaten = {id(row) for group in groups.values() for row in _beaten(group)}
    return [row for row in rows if id(row) not in beaten]


def _beaten(group: Sequence[Sensitivity]) -> Iterator[Sensitivity]:
    for row in group:
        if any(
            other.storage_bits <= row.storage_bits
            and row.mean - other.mean > SURE * math.hypot(_error(row), _error(other))
            for other in group
        ):
            yield row


def _error(row: Sensitivity) -> float:
    """One standard deviation of a cost; of measured ones that over samples, which is more than what plans differ by."""
    return row.model_error if row.source is Source.ESTIMATED else row.standard_error or 0.0
