"""How far a probe is, told after each unit's step that walks pass: for progress and the time left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from workers.contracts import UnitInfo
from workers.graph.dataflow import operator_name
from workers.sensitivity.estimators.entries import Entries
from workers.sensitivity.estimators.uses import Use
from workers.sensitivity.sharding import load, written

PASSES_PER_WALK = 2.4
"""What a walk back with its products takes, in forward passes: four probes, six candidates for each unit, with the next weights
followed. EfficientNet-Lite0 2.55, ESRGAN 2.6, MiniLM 2.3."""
MACS_PER_OUTPUT = 100.0
"""What a walk takes for each number of a unit's output, beside its multiply-accumulates: EfficientNet-Lite0, where early layers
compute little and move much. With 40, as forward, the last tenth of its layers seemed to take twice what they do."""
MACS_PER_WEIGHT = 60.0
"""What products with a weight's candidates take, in multiply-accumulates of the forward pass: MiniLM, likewise."""
MACS_PER_CHANGE = 150.0
"""What making a candidate's weight takes, for each of its numbers: SmolLM2-135M 90 (290 where it is written to memory that was
never touched), MiniLM 230, EfficientNet-Lite0 300, where they are few."""

Progress = Callable[[float, int], None]
"""Told how many samples are done, and of how many; may raise to stop."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What there is to do.

    Args:
        samples: Each walked back over once per probe.
        positions: How many each has where a model's multiply-accumulates are counted with one, such as tokens.
        probes: How many.
        groups: Of probes that share their forward passes.
        feeds: How many parts the samples are fed in, over all groups.
        again: Per unit how many candidates are made for each feed; others are made once.
    """

    samples: int
    positions: int
    probes: int
    groups: int
    feeds: int
    again: Sequence[int]


class Headway:
    """Counts what is done, in multiply-accumulates of forward passes.

    Args:
        at: Units' steps.
        entries: What is probed.
        amount: How much of it.
        progress: Told of it.
    """

    def __init__(
        self, at: Mapping[Node, tuple[Use, ...]], entries: Entries, amount: Amount, progress: Progress
    ) -> None:
        units = [unit.info for unit in entries.units]
        self._progress = progress
        self._amount = amount
        self._passing = max(sum(map(load, units)), 1.0) * amount.positions
        candidates = [len(each) for each in entries.candidates]
        self._making = _to_make(units, candidates)
        self._making_again = _to_make(units, amount.again)
        self._units = {node: [use.unit for use in uses] for node, uses in at.items()}
        fed = amount.samples * amount.positions * amount.groups / max(amount.feeds, 1)
        amounts = {
            # Of tied weights the look-up computes nothing.
            node: 1.0
            + sum(fed * _walked(units[i]) + MACS_PER_WEIGHT * units[i].weights for i in numbers)
            * (operator_name(node) != "embedding")
            for node, numbers in self._units.items()
        }
        self._shares = {node: each / sum(amounts.values()) for node, each in amounts.items()}
        passes = amount.samples * (amount.groups + PASSES_PER_WALK * amount.probes)
        making = sum(self._making) + (amount.feeds - 1) * sum(self._making_again)
        self._total = passes * self._passing + making
        self._done = 0.0
        self._walking = 0.0
        self._first = True
        self._left: list[float] = []

    def fed(self, samples: int, probes: int) -> None:
        """So many samples have been passed forward, for so many probes."""
        self._done += samples * self._passing
        self._walking = PASSES_PER_WALK * probes * samples * self._passing
        self._left = list(self._making if self._first else self._making_again)
        self._first = False

    def passed(self, node: Node) -> None:
        """Their walks have passed a unit's step."""
        self._done += self._walking * self._shares[node]
        for unit in self._units[node]:
            self._done += self._left[unit]
            self._left[unit] = 0.0
        self._tell(self._done / self._total)

    def end(self) -> None:
        """All of it is done."""
        self._tell(1.0)

    def _tell(self, share: float) -> None:
        samples = self._amount.probes * self._amount.samples
        self._progress(samples * min(share, 1.0), samples)


def _to_make(units: Sequence[UnitInfo], candidates: Sequence[int]) -> list[float]:
    """What making so many candidates of each unit takes, in multiply-accumulates."""
    return [MACS_PER_CHANGE * unit.weights * count for unit, count in zip(units, candidates, strict=True)]


def _walked(unit: UnitInfo) -> float:
    """What a walk past a unit takes, in multiply-accumulates per sample, as against other units."""
    return unit.macs + MACS_PER_OUTPUT * written(unit)
