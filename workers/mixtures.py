"""Several outputs compared at once, in words: names, weights, and what each is compared by. Torch-free."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from workers.contracts import Metric
from workers.errors import RequestRefused

COMPARED = (Metric.KL, Metric.MSE)
"""What an output of several may be compared by: the same for every sample, whatever its labels."""
GRAMMAR = "NAME=WEIGHT:kl or NAME=WEIGHT:mse, separated by commas"

_PART = re.compile(r"(?P<name>[^=:,]+)=(?P<weight>[^=:,]+):(?P<metric>[a-z]+)")


@dataclass(frozen=True, kw_only=True)
class WeightedOutput:
    """One output of several that are compared. Text form, e.g. ``boxes=0.5:mse``.

    Args:
        name: Name or index of the output.
        weight: Its share in the cost, above 0.
        metric: ``kl`` or ``mse``.
    """

    name: str
    weight: float
    metric: Metric

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise RequestRefused(
                f"the weight of output {self.name!r} is {self.weight}",
                "outputs",
                self.weight,
                "finite numbers above 0",
            )
        if self.metric not in COMPARED:
            raise RequestRefused(
                f"output {self.name!r} cannot be one of several compared by {self.metric.value!r}",
                "outputs",
                self.metric.value,
                [metric.value for metric in COMPARED],
            )

    def __str__(self) -> str:
        return f"{self.name}={self.weight!r}:{self.metric.value}"


def mixture_text(outputs: Sequence[WeightedOutput]) -> str:
    """The text form of several outputs: what stands in the place of one output's name."""
    return ",".join(map(str, outputs))


def parse_mixture(text: str | None) -> tuple[WeightedOutput, ...] | None:
    """Read the text form; ``None`` for the name of a single output, or for none.

    Raises:
        RequestRefused: The text does not follow `GRAMMAR`, or an output is named twice.
    """
    if text is None or "=" not in text:
        return None
    found = []
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None or match["metric"] not in COMPARED or not _is_number(match["weight"]):
            raise RequestRefused(f"{part!r} is no weighted output", "outputs", text, GRAMMAR)
        found.append(
            WeightedOutput(name=match["name"], weight=float(match["weight"]), metric=Metric(match["metric"]))
        )
    if len({output.name for output in found}) < len(found):
        raise RequestRefused(f"an output is named twice in {text!r}", "outputs", text, "each output once")
    return tuple(found)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
