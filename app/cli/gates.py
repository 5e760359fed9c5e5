"""Gates: conditions on what was measured, so that a pipeline stops at a plan that is not good enough."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from app.report import quantities, words

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_GATE = re.compile(r"\s*(?P<metric>[a-z][a-z0-9_]*)\s*(?P<operator><=|>=|<|>)\s*(?P<limit>\S+)\s*")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A condition such as ``kl<=0.01`` on a measured quantity of the first budget's plan."""

    metric: str
    comparison: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Read the text form.

        Raises:
            click.BadParameter: It is not ``METRIC<=NUMBER`` or the like.
        """
        match = _GATE.fullmatch(text)
        try:
            limit = float(match["limit"]) if match else float("nan")
        except ValueError:
            limit = float("nan")
        if match is None or limit != limit:  # noqa: PLR0124 - the test for not a number
            raise click.BadParameter(
                f"{text!r} is not a gate; write a metric, one of {' '.join(_OPERATORS)}, and a number: "
                "'kl<=0.01', 'top1_agreement>=0.95'"
            )
        return cls(metric=match["metric"], comparison=match["operator"], limit=limit)

    def holds(self, result: Mapping[str, Any]) -> bool:
        """Whether the measured value (on evaluation data where there are any, else calibration) meets the limit.

        Raises:
            click.UsageError: The metric was not measured.
        """
        value = self.value(result)
        if value is None:
            raise click.UsageError(
                f"the gate {self} cannot be decided: {self.metric!r} was not measured; measured: "
                f"{', '.join(result.get('measured') or {}) or 'nothing'}"
            )
        return _OPERATORS[self.comparison](value, self.limit)

    def value(self, result: Mapping[str, Any]) -> float | None:
        """What is compared with the limit."""
        return words.measured_cost(result.get("measured"), self.metric)

    def missed_words(self, result: Mapping[str, Any]) -> str:
        """What to say when it does not hold."""
        return f"Gate missed: {self} is not met, measured {quantities.number(self.value(result), 4)}"

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{self.limit:g}"


def parse_gates(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> list[Gate]:
    """For a click option that may be given several times."""
    return [Gate.parse(text) for text in texts]
