"""Multipliers for several rows at once: the best Lagrangian bound, by the ellipsoid method.

The dual function ``f(m) = sum_i min_k (c_ik + m . a_ik) - m . b`` is concave with as many variables as there are rows: few.
The ellipsoid method needs only its value and one subgradient per step, no linear program, and shrinks a region known to
hold the best multipliers by a fixed factor each step. Whatever it returns, the bound is recomputed by the certificate.

Sources: Geoffrion 1974 (the bound); Shor 1977 and Yudin and Nemirovski 1976 (the ellipsoid method); the deep cuts are those
of Bland, Goldfarb and Todd 1981, "The ellipsoid method: a survey", section 4.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.reduction import ReducedRow
from solver.tablewise import smallest_total

_STEPS_PER_ROW = 120
_PRECISION = 1e-10
_WIDER = 8.0
_WIDENINGS = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Dual:
    """The best multipliers found.

    Attributes:
        prices: float64 [R], >= 0, cost per whole-number unit of each row.
        bound: Value of the dual function there, as rounded; the certificate recomputes it.
        reduced: float64 [G, K]: what each candidate costs more than its group's cheapest at these prices, >= 0.
        plans: Slots [G] of cheapest plans met on the way that keep every row, best last.
    """

    prices: NDArray[np.float64]
    bound: float
    reduced: NDArray[np.float64]
    plans: tuple[NDArray[np.int64], ...]


def solve_dual(costs: NDArray[np.float64], rows: Sequence[ReducedRow], *, deadline: float) -> Dual:
    """Maximise the Lagrangian bound over multipliers >= 0.

    Args:
        costs: float64 [G, K].
        rows: One or more rows, ``<=``, each of which some plan keeps.
        deadline: Of `time.monotonic`; looked at in every step.
    """
    function = _DualFunction(costs, rows)
    reach = np.ones(len(rows))
    best = function(np.zeros(len(rows)))
    for _ in range(_WIDENINGS):
        best = _ellipsoid(function, reach * function.price_scale, best, deadline)
        outside = best.point >= 0.5 * reach * function.price_scale
        if not outside.any() or time.monotonic() > deadline:
            break
        reach = np.where(outside, reach * _WIDER, reach)
    value = function.priced(best.point)
    return Dual(
        prices=best.point / function.spans,
        bound=best.value,
        reduced=value - value.min(axis=1, keepdims=True),
        plans=tuple(function.plans),
    )


@dataclass(frozen=True, eq=False)
class _Step:
    """The dual function at one point (in normalised prices): value, and a subgradient (use less limit)."""

    point: NDArray[np.float64]
    value: float
    gradient: NDArray[np.float64]


class _DualFunction:
    """The dual function with rows divided by their range, so that all multipliers are of one order."""

    def __init__(self, costs: NDArray[np.float64], rows: Sequence[ReducedRow]) -> None:
        self.costs = costs
        totals = [smallest_total(row.table) for row in rows]
        ranges = [-smallest_total(-row.table) - low for row, low in zip(rows, totals, strict=True)]
        self.spans = np.array([float(span) or 1.0 for span in ranges])
        self.tables = np.stack([row.table / span for row, span in zip(rows, self.spans, strict=True)])
        self.limits = np.array([row.limit / span for row, span in zip(rows, self.spans, strict=True)])
        self.price_scale = float((costs.max(axis=1) - costs.min(axis=1)).sum()) or 1.0
        self.plans: list[NDArray[np.int64]] = []
        self._cheapest = math.inf
        self._at = np.arange(len(costs))

    def priced(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        """Costs with the rows' prices on top, [G, K]."""
        return self.costs + np.tensordot(point, self.tables, 1)

    def __call__(self, point: NDArray[np.float64]) -> _Step:
        value = self.priced(point)
        slots = value.argmin(axis=1)
        gradient = self.tables[:, self._at, slots].sum(axis=1) - self.limits
        if bool((gradient <= 0).all()):
            cost = float(self.costs[self._at, slots].sum())
            if cost < self._cheapest:
                self._cheapest = cost
                self.plans.append(slots.astype(np.int64))
        bound = float(value[self._at, slots].sum()) - float(point @ self.limits)
        return _Step(point, bound, gradient)


def _ellipsoid(function: _DualFunction, reach: NDArray[np.float64], best: _Step, deadline: float) -> _Step:
    """The ellipsoid method with deep cuts, from the ellipsoid around the box ``[0, reach]``."""
    n = len(reach)
    center, shape = reach / 2, np.diag(n * (reach / 2) ** 2)
    for _ in range(_STEPS_PER_ROW * n * (n + 1)):
        negative = int(center.argmin())
        if center[negative] < 0.0:
            # Outside the domain: cut it off, through the boundary.
            normal, depth = np.zeros(n), -float(center[negative])
            normal[negative] = 1.0
        else:
            here = function(center)
            if here.value > best.value:
                best = here
            normal, depth = here.gradient, best.value - here.value
        width = math.sqrt(max(float(normal @ shape @ normal), 0.0))
        if width == 0.0 or depth >= width:
            break
        if center[negative] >= 0.0 and width - depth <= _PRECISION * abs(best.value):
            break
        if time.monotonic() > deadline:
            break
        center, shape = _cut(center, shape, normal, depth / width, width)
    return best


def _cut(
    center: NDArray[np.float64],
    shape: NDArray[np.float64],
    normal: NDArray[np.float64],
    depth: float,
    width: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The smallest ellipsoid around the part where ``normal . (x - center) >= depth * width``."""
    n = len(center)
    direction = shape @ normal / width
    center = center + (1 + n * depth) / (n + 1) * direction
    if n == 1:
        return center, shape * ((1 - depth) / 2) ** 2
    scale = n * n / (n * n - 1) * (1 - depth * depth)
    less = 2 * (1 + n * depth) / ((n + 1) * (1 + depth))
    shape = scale * (shape - less * np.outer(direction, direction))
    return center, (shape + shape.T) / 2
