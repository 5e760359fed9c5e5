"""What a plan has to satisfy, and the sizes that follow from it alone: nothing measured, nothing solved."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from app.kit.ids import content_sha256
from solver import parse_budget
from workers.contracts import ModelDescription
from workers.sensitivity.operations import parse_bit_operations


class BudgetCounts(StrEnum):
    """Which size a budget binds."""

    WEIGHTS = "weights"
    """Weights times bit-width, summed over the searched units."""
    FILE = "file"
    """The whole file: scales and zero points, and everything that stays in float."""


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """What a plan has to satisfy.

    Args:
        budget: As written, e.g. ``"4 bits"``.
        budget_counts: Which size the budget binds.
        pins: Unit -> bit-width it must take.
        ties: Groups of units that share one choice.
        exclude: Units that stay in float.
        limits: What else is limited, as written, e.g. ``{"bit_operations": "1.2G"}``.
    """

    budget: str
    budget_counts: BudgetCounts = BudgetCounts.WEIGHTS
    pins: Mapping[str, int] = field(default_factory=dict)
    ties: Sequence[Sequence[str]] = ()
    exclude: Sequence[str] = ()
    limits: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; equal specifications give equal texts."""
        return {
            "budget": self.budget,
            "budget_counts": self.budget_counts.value,
            "pins": dict(sorted(self.pins.items())),
            "ties": sorted(sorted(group) for group in self.ties),
            "exclude": sorted(self.exclude),
            **({"limits": dict(sorted(self.limits.items()))} if self.limits else {}),
        }

    @property
    def sha256(self) -> str:
        """Hash of the canonical form."""
        return content_sha256(self.to_json())

    @property
    def rules_sha256(self) -> str:
        """Hash of everything but the budget."""
        return replace(self, budget="").sha256


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What of a model is searched and what is not, in weights and bits."""

    description: ModelDescription
    searched: frozenset[str]

    @cached_property
    def weights(self) -> int:
        """Weights of the searched units."""
        return sum(u.weights for u in self.description.units if u.name in self.searched)

    @cached_property
    def float_bits(self) -> int:
        """Bits of the searched units as stored in float."""
        return self.description.unit_float_bits - self._excluded_float_bits

    @property
    def fixed_bits(self) -> int:
        """Bits of everything that stays in float."""
        return self.description.float_bits - self.float_bits

    @cached_property
    def _excluded_float_bits(self) -> int:
        # Units do not tell their own width; it is the same for all in every model but mixed-precision ones.
        weights = sum(u.weights for u in self.description.units)
        excluded = weights - self.weights
        return -(-self.description.unit_float_bits * excluded // weights) if weights else 0

    def budget_bits(self, text: str, counts: BudgetCounts) -> int:
        """A budget in whole bits of the size that it binds.

        Raises:
            BudgetError: The text is no budget.
        """
        whole = self.description.float_bits if counts is BudgetCounts.FILE else self.float_bits
        return parse_budget(text, weights=self.weights, float_bits=whole).bits


def sizes_of(description: ModelDescription, exclude: Iterable[str]) -> Sizes:
    """The sizes of a model when some of its units stay in float."""
    names = {u.name for u in description.units}
    return Sizes(description=description, searched=frozenset(names - set(exclude)))


def minimum_bits(
    sizes: Sizes, candidates: Sequence[int], pins: Mapping[str, int], ties: Sequence[Sequence[str]]
) -> int:
    """Smallest sum of weights times bit-width that pins and ties allow."""
    forced = dict(pins)
    for group in joined(ties):
        width = next((pins[unit] for unit in group if unit in pins), None)
        if width is not None:
            forced |= dict.fromkeys(group, width)
    smallest = min(candidates)
    return sum(
        u.weights * forced.get(u.name, smallest) for u in sizes.description.units if u.name in sizes.searched
    )


def joined(ties: Iterable[Iterable[str]]) -> list[set[str]]:
    """Ties whose groups overlap, as one group each."""
    groups: list[set[str]] = []
    for tie in ties:
        merged = set(tie)
        apart = []
        for group in groups:
            if group & merged:
                merged |= group
            else:
                apart.append(group)
        groups = [*apart, merged]
    return groups


def limit_of(name: str, text: str) -> int:
    """A limit as a number. There is one kind so far: units in float do not count, since no choice changes what they take.

    Raises:
        RequestRefused: The text is no such quantity.
    """
    assert name == "bit_operations", name
    return parse_bit_operations(text)
