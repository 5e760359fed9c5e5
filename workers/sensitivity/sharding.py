"""What entries cost, and how to split them among workers. Torch-free: the service plans with it.

The unit of work is one float pass of the model over the samples. An entry reruns the steps that its unit reaches, so its
work is their share of the model's load, plus a constant for what every entry does once. A unit's load is its
multiply-accumulates and what it writes: early layers of convolutional networks compute little and move much. Everything
else (norms, attention between activations) is taken to be spread like them.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from workers.contracts import Candidate, InputInfo, ModelDescription, UnitInfo
from workers.errors import RequestRefused

Wanted = Sequence[tuple[str, Candidate]]

# Quantizing the weight, comparing the outputs, stepping through the graph: a guess that keeps late units from
# counting as free.
_PER_ENTRY = 0.02
# Multiply-accumulates in the time that writing a number of a layer's output, and passing it through what follows (bias,
# activation), takes. Measured on EfficientNet-Lite0, one core: with 40 the seconds of an entry are within 6 % of
# its work at all depths; without it the first layers take 37 % longer than the last ones for the same work.
_MACS_PER_OUTPUT = 40.0


def work(description: ModelDescription, wanted: Wanted) -> list[float]:
    """Expected work of entries, in float passes over the samples.

    Args:
        description: The model.
        wanted: Unit names and candidates.

    Returns:
        One number per entry, in ``(0, 1.02]``.

    Raises:
        RequestRefused: The model has no such unit.
    """
    shares = _reached_shares(description)
    positions = _positions(description)
    return [shares[_position(positions, name)] + _PER_ENTRY for name, _ in wanted]


def in_execution_order(description: ModelDescription, wanted: Wanted) -> list[tuple[str, Candidate]]:
    """Entries sorted by the first use of their unit; the order of candidates within a unit is kept.

    Raises:
        RequestRefused: The model has no such unit.
    """
    positions = _positions(description)
    return sorted(wanted, key=lambda entry: _position(positions, entry[0]))


def plan_shards(
    description: ModelDescription, wanted: Wanted, shards: int
) -> list[tuple[tuple[str, Candidate], ...]]:
    """Split entries into runs of equal work, contiguous in execution order.

    A run also pays for the float prefix of its first unit and for one float pass that gives the reference;
    neither depends on how entries are split much, and neither is counted.

    Args:
        description: The model.
        wanted: Unit names and candidates; any order.
        shards: Number of runs at most; 1 or more.

    Returns:
        At most ``shards`` runs, none empty, whose largest is as small as a contiguous split allows (to 1e-9).

    Raises:
        RequestRefused: The model has no such unit, or ``shards`` is less than 1.
    """
    if shards < 1:
        raise RequestRefused(f"{shards} shards were asked for", "shards", shards, "1 or more")
    entries = in_execution_order(description, wanted)
    if not entries:
        return []
    ends = list(accumulate(work(description, entries)))
    low = max(ends[0], *(after - before for before, after in pairwise(ends)), ends[-1] / shards)
    high = ends[-1]
    best = _split(ends, high)
    while high - low > 1e-9 * ends[-1]:
        bound = (low + high) / 2
        cuts = _split(ends, bound)
        if len(cuts) <= shards:
            best, high = cuts, bound
        else:
            low = bound
    starts = [0, *best[:-1]]
    return [tuple(entries[start:stop]) for start, stop in zip(starts, best, strict=True)]


def _split(ends: Sequence[float], bound: float) -> list[int]:
    """Fill runs up to a bound, one after the other; the position after each run."""
    cuts: list[int] = []
    done = 0.0
    while not cuts or cuts[-1] < len(ends):
        start = cuts[-1] if cuts else 0
        cut = max(start + 1, bisect_right(ends, done + bound * (1 + 1e-12)))
        cuts.append(cut)
        done = ends[cut - 1]
    return cuts


def load(unit: UnitInfo) -> float:
    """What running a unit takes, in multiply-accumulates per sample; 0 for look-ups."""
    return unit.macs + _MACS_PER_OUTPUT * written(unit)


def written(unit: UnitInfo) -> float:
    """How many numbers a unit's output has per sample; 0 for look-ups."""
    # Each is the product with one output channel's weights.
    return unit.macs * unit.shape[unit.output_channel_axis] / unit.weights


def free_positions(inputs: Sequence[InputInfo], shapes: Mapping[str, Sequence[int]]) -> int:
    """How many positions a sample has along axes whose size a model leaves open, such as tokens.

    A model's multiply-accumulates are counted with one position there. Inputs mostly share such axes: the input with the
    most positions tells.

    Args:
        inputs: Of the model.
        shapes: Of the data's tensors, by name, samples first.
    """
    return max(
        (_open(info.shape[1:], shapes[info.name][1:]) for info in inputs if info.name in shapes), default=1
    )


def _open(declared: Sequence[int | None], found: Sequence[int]) -> int:
    return math.prod(size for known, size in zip(declared, found, strict=True) if known is None)


def _reached_shares(description: ModelDescription) -> list[float]:
    """Per unit the share of the load that it reaches.

    It is the load at and behind the unit, less the share of multiply-accumulates there that the unit does not reach, where
    that is known. A model of look-ups alone is taken to have its work spread evenly.
    """
    units = description.units
    if not any(unit.macs for unit in units):
        return [(len(units) - i) / len(units) for i in range(len(units))]
    loads = _behind([load(unit) for unit in units])
    macs = _behind([float(unit.macs) for unit in units])
    return [
        later / loads[0] * (1.0 if unit.reached_macs is None or not of_macs else unit.reached_macs / of_macs)
        for unit, later, of_macs in zip(units, loads, macs, strict=True)
    ]


def _behind(values: Sequence[float]) -> list[float]:
    """Sums of each value and those after it."""
    return list(accumulate(reversed(values)))[::-1]


def _positions(description: ModelDescription) -> dict[str, int]:
    return {
        name: position for position, unit in enumerate(description.units) for name in (*unit.tied, unit.name)
    }


def _position(positions: dict[str, int], name: str) -> int:
    if name not in positions:
        raise RequestRefused(f"the model has no unit {name!r}", "unit", name, list(positions))
    return positions[name]
