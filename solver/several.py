"""Several rows at once: relaxations to a single row first, then what they leave open.

1. Each row alone, solved exactly: a plan that happens to keep the other rows as well is the proven optimum.
2. The rows added up, weighted with the best multipliers of the Lagrangian dual (a *surrogate*): the same argument.
3. A good plan by exchange; with the dual's reduced costs it rules out most candidates.
4. What is left goes to a foreign solver, with the good plan as its start.

Sources: Glover 1975, "Surrogate constraint duality in mathematical programming"; reduced-cost fixing as in
Dudzinski and Walukiewicz 1987, "Exact methods for the knapsack problem and its generalizations".
"""

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver import acceleration
from solver.certificate import lagrangian_bound
from solver.dual import Dual, solve_dual
from solver.exchange import Exchange
from solver.knapsack import OPTIMAL_GAP, KnapsackResult, solve_knapsack
from solver.outcome import Outcome, shifted
from solver.problem import Problem
from solver.reduction import Reduced, ReducedRow
from solver.solution import Proof
from solver.tablewise import exact_sum, smallest_total

_EXCHANGE_S = 0.3
_SHARE = 0.2
"""Part of the time that a single-row relaxation may take."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Closed:
    """What is known before a foreign solver is asked.

    Attributes:
        outcome: The best plan and bound.
        enough: Nothing is left to ask: the plan is proven, or within the gap asked for.
        lagrangian: The certificate's bound at the dual's prices.
        keep: bool [G, K]: candidates that a better plan may contain (every group keeps one).
        dual: The multipliers.
    """

    outcome: Outcome
    enough: bool
    lagrangian: float
    keep: NDArray[np.bool_]
    dual: Dual


def close_rows(
    problem: Problem,
    rows: tuple[ReducedRow, ...],
    *,
    relative_gap: float,
    deadline: float,
    engine: acceleration.Engine,
) -> Closed:
    """Steps 1 to 3. Every row must be kept by some plan of its own."""
    reduced = problem.reduced
    dual = solve_dual(reduced.costs, rows, deadline=deadline)
    search = _Search(reduced, rows, dual, relative_gap, deadline, engine)
    search.by_lagrangian()
    for row in search.relaxations():
        if search.relaxed(row):
            break
        if time.monotonic() > deadline:
            break
    else:
        search.by_exchange()
    return search.closed()


class _Search:
    """Best plan and bound so far."""

    def __init__(  # noqa: PLR0913, PLR0917 - one problem and how long to look
        self,
        reduced: Reduced,
        rows: tuple[ReducedRow, ...],
        dual: Dual,
        relative_gap: float,
        deadline: float,
        engine: acceleration.Engine,
    ) -> None:
        self.reduced, self.rows, self.dual = reduced, rows, dual
        self.relative_gap, self.deadline, self.engine = relative_gap, deadline, engine
        self.exchange = Exchange(reduced.costs, rows, dual.reduced)
        self.prices = tuple(dual.prices.tolist())
        self.slots: NDArray[np.int64] | None = None
        self.cost = math.inf
        self.bound = -math.inf
        self.proof = Proof.LAGRANGIAN
        self.proven = False
        self.starts: list[NDArray[np.int64]] = list(dual.plans[-1:])

    def by_lagrangian(self) -> None:
        """The certificate's own bound at the dual's multipliers."""
        limits = [(row.table, row.limit) for row in self.rows]
        self.lagrangian = lagrangian_bound(self.reduced, limits, self.prices)
        self.bound = self.lagrangian

    def relaxations(self) -> list[ReducedRow]:
        """Single rows by how much they weigh, then their sum."""
        spans = [-smallest_total(-row.table) - smallest_total(row.table) for row in self.rows]
        weight = [price * span for price, span in zip(self.prices, spans, strict=True)]
        single = [self.rows[r] for r in np.argsort(np.negative(weight), kind="stable").tolist()]
        added = surrogate(self.rows, self.prices)
        return single if added is None else [*single[:1], added, *single[1:]]

    def relaxed(self, row: ReducedRow) -> bool:
        """Solve with one row only; whether that settles the problem."""
        now = time.monotonic()
        table, limit = shifted(row)
        found = solve_knapsack(
            self.reduced,
            table,
            limit,
            relative_gap=self.relative_gap,
            deadline=min(self.deadline, now + _SHARE * (self.deadline - now)),
            engine=self.engine,
        )
        if self.exchange.keeps(found.slots):
            self.offer(found.slots)
            if found.proven:
                self.settle(row, found)
                return True
            if found.lower_bound > self.bound:
                self.bound, self.proof = found.lower_bound, found.proof
            return self.cost - self.bound <= self.relative_gap * abs(self.cost)
        self.starts.append(found.slots)
        if found.lower_bound > self.bound:
            self.bound, self.proof = found.lower_bound, Proof.SEARCH
        return False

    def offer(self, slots: NDArray[np.int64]) -> None:
        """Take a plan that keeps every row as the incumbent if it is one."""
        cost = exact_sum(self.reduced.costs[np.arange(len(slots)), slots])
        if cost < self.cost:
            self.slots, self.cost = slots, cost

    def settle(self, row: ReducedRow, found: KnapsackResult) -> None:
        """The optimum of a relaxation keeps every row: it is the optimum."""
        self.proven, self.bound, self.proof = True, found.lower_bound, found.proof
        if found.proof is Proof.LAGRANGIAN and row in self.rows:
            # The bound anyone can repeat is the one at this row's own price.
            self.prices = tuple(found.multiplier if other is row else 0.0 for other in self.rows)

    def by_exchange(self) -> None:
        """The best plan that repairing and improving the relaxations' plans gives."""
        now = time.monotonic()
        deadline = min(now + _EXCHANGE_S, now + _SHARE * (self.deadline - now))
        for start in self.starts:
            plan = self.exchange.repair(start, deadline=deadline)
            if plan is not None:
                self.offer(self.exchange.improve(plan, bound=self.bound, deadline=deadline))
            if time.monotonic() > deadline:
                break

    def closed(self) -> Closed:
        """Everything known, and the candidates that are still in question."""
        gap = self.cost - self.lagrangian
        keep: NDArray[np.bool_] = self.dual.reduced <= gap
        bound = min(self.bound, self.cost)
        enough = self.proven or (
            math.isfinite(self.cost) and self.cost - bound <= self.relative_gap * abs(self.cost)
        )
        return Closed(
            outcome=Outcome(
                slots=self.slots,
                lower_bound=bound,
                proven=self.proven or (enough and self.relative_gap <= OPTIMAL_GAP),
                proof=self.proof,
                prices=self.prices,
                backend="exact",
                backend_version=self.engine.name,
            ),
            enough=enough,
            lagrangian=self.lagrangian,
            keep=keep,
            dual=self.dual,
        )


def surrogate(rows: tuple[ReducedRow, ...], prices: tuple[float, ...]) -> ReducedRow | None:
    """The rows added up with their prices, in whole numbers rounded in favour of feasibility: a relaxation.

    ``None`` when fewer than two rows have a price.
    """
    priced = [(row, price) for row, price in zip(rows, prices, strict=True) if price > 0.0]
    if len(priced) < 2:
        return None
    tables = [(row.table - row.table.min(axis=1, keepdims=True)) for row, _ in priced]
    limits = [row.limit - smallest_total(row.table) for row, _ in priced]
    real = sum(
        (price * table for table, (_, price) in zip(tables, priced, strict=True)), np.zeros(tables[0].shape)
    )
    limit = math.fsum(price * room for room, (_, price) in zip(limits, priced, strict=True))
    total = float(real.max(axis=1).sum())
    if not 0.0 < total < math.inf or limit < 0.0:
        return None
    scale = math.ldexp(1.0, 58 - math.frexp(max(total, limit))[1])
    # Each term is rounded three times on the way; the limit makes up for all of them.
    slack = 8.0 * 2.0**-53 * limit * scale
    return ReducedRow(
        name="surrogate",
        table=np.floor(real * scale * (1.0 - 2.0**-50)).astype(np.int64),
        limit=math.ceil(limit * scale + slack),
    )
