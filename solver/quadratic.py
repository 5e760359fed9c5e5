"""Plans under interactions: ``min c'x + x'Qx`` with one candidate per unit, within a budget and further rows.

The additive costs alone mis-rank plans at few bits, because errors of different units add up or cancel. Here a plan is found
by exchange (one unit, then two at a time) from many starts: the additive optimum, every plan that Frank and Wolfe's method
meets, and kicks of the best one. Frank and Wolfe's method gives a valid lower bound besides: its linear problems are
knapsacks, solved exactly (several rows are added up to one). Small problems are proven by a linearised integer program; for
the others the word is heuristic.

Sources: Frank and Wolfe 1956; Adams and Sherali 1986, "A tight linearization and an algorithm for zero-one quadratic
programming problems"; Lourenco, Martin and Stutzle 2003, "Iterated local search". The splitting of the diagonal
blocks, which tightens the convex relaxation, follows Billionnet, Elloumi and Plateau 2009 in its simplest form.
"""

import math
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from solver.api import any_plan, check_options, constraints
from solver.certificate import evaluate
from solver.descent import Descent
from solver.errors import OptionError, ProblemError, TableError
from solver.exchange import Exchange
from solver.interactions import Interactions, is_semidefinite
from solver.linearised import prove
from solver.oracle import LinearOracle
from solver.problem import Problem
from solver.reduction import Reduced, ReducedRow
from solver.solution import Proof, SolveStatus, relative_gap
from solver.tablewise import smallest_total

PROVABLE_CELLS = 100
"""Up to so many candidates in all the linearised program is tried: 30 units of 3."""

_STEPS = 60
_REPRICED = 12
"""After so many steps several rows are added up anew, at prices for where the relaxation has come to."""
_DESCENTS = 12
_KICKED = 4
_SPLITS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class QuadraticSolution:
    """Answer of `solve_quadratic`.

    Attributes:
        status: OPTIMAL (proven), FEASIBLE (heuristic: best plan found), INFEASIBLE (proven), or NO_SOLUTION (neither a plan
            that keeps all rows nor a proof that there is none was found in the time).
        choice_indices: Candidate index of each unit, int64 [L]; ``None`` without a plan.
        objective: Predicted cost with interactions, ``c'x + x'Qx``.
        additive: Predicted cost without them: ``c'x`` and the diagonal of ``x'Qx`` only.
        lower_bound: No plan costs less; often far below the objective for hundreds of units.
        relative_gap: As in `solver.solution.Solution`.
        size_bits: Exact.
        smallest_feasible_bits: Smallest total size that pins, bounds and ties allow (whatever further rows say).
        additive_optimum: Cost with interactions of the plan that is best without them, for comparison; under several rows of
            the best one that exchange finds.
        proof: What the bound rests on: LAGRANGIAN (convex relaxation with exact knapsacks) or SOLVER (linearised program);
            of INFEASIBLE MINIMUM (one row alone cannot be kept) or SOLVER.
        word: "proven optimal" or "heuristic".
        runtime_s: Wall-clock seconds.
    """

    status: SolveStatus
    choice_indices: NDArray[np.int64] | None = None
    objective: float | None = None
    additive: float | None = None
    lower_bound: float | None = None
    size_bits: int | None = None
    smallest_feasible_bits: int
    additive_optimum: float | None = None
    proof: Proof = Proof.NONE
    runtime_s: float
    named_choices: dict[str, str] = field(default_factory=dict)

    @property
    def relative_gap(self) -> float | None:
        """Gap relative to the larger magnitude of objective and bound."""
        if self.objective is None or self.lower_bound is None:
            return None
        return relative_gap(self.objective, self.lower_bound)

    @property
    def word(self) -> str:
        """What may be said of the plan."""
        return "proven optimal" if self.status is SolveStatus.OPTIMAL else "heuristic"


def solve_quadratic(  # noqa: PLR0913 - one keyword for each option
    problem: Problem,
    interactions: Interactions,
    *,
    start: NDArray[np.int64] | None = None,
    restarts: int = 20,
    time_limit_s: float = 30.0,
    seed: int = 0,
    certify: bool = True,
) -> QuadraticSolution:
    """Find a plan of low cost with interactions, and a bound on how much better one could be.

    Args:
        problem: With any rows and width counts; its costs are the linear part (all zero when Q holds everything).
        interactions: Over the problem's units and candidates.
        start: A plan that keeps all rules, candidate index of each unit, int64 [L]: what is found costs no more. ``None``: none
            is known.
        restarts: Kicks of the best plan after which the search ends; more find better plans of large problems.
        time_limit_s: Wall-clock seconds, > 0: a guard; the plan depends on the seed only as long as it is not reached.
        seed: For the kicks.
        certify: Whether small problems are tried to be proven, which may take all of the time.

    Raises:
        ProblemError: The problem limits how many different widths there are.
        TableError: The interactions are not of this problem's shape.
        OptionError: An argument is out of range, or the start breaks a rule.
        BackendError: A foreign solver is needed and not installed, or failed.
    """
    check_options(time_limit_s, 0.0, "auto")
    _check(problem, interactions, restarts)
    _check_start(problem, start)
    began = time.monotonic()
    reduced = problem.reduced
    rows = constraints(reduced, problem.budget_bits) or (_unlimited(reduced),)
    if any(smallest_total(row.table) > row.limit for row in rows):
        return _without_plan(problem, SolveStatus.INFEASIBLE, Proof.MINIMUM, began)
    deadline = began + time_limit_s
    search = _Search(reduced, interactions.on(reduced), rows, deadline, seed)
    known = None if start is None else reduced.contract(start)
    first = search.additive_plan()
    if first is None:
        first = known
    if first is None:
        outcome = any_plan(problem, deadline)
        if outcome.slots is None:
            status = SolveStatus.INFEASIBLE if outcome.infeasible else SolveStatus.NO_SOLUTION
            return _without_plan(problem, status, outcome.proof if outcome.infeasible else Proof.NONE, began)
        first = outcome.slots
    search.run(first, known, restarts, certify=certify)
    return _answer(problem, interactions, search, began)


def _check(problem: Problem, interactions: Interactions, restarts: int) -> None:
    """Refuse what cannot be searched."""
    if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 0:
        raise OptionError(f"{restarts!r} restarts", "restarts", repr(restarts), "a whole number >= 0")
    if problem.max_widths is not None:
        raise ProblemError(
            "with interactions the number of different widths cannot be limited",
            "max_widths",
            problem.max_widths,
            "a problem without max_widths",
        )
    if (interactions.units, interactions.candidates) != problem.costs.shape:
        raise TableError(
            "the interactions are not over this problem's units and candidates",
            "interactions",
            [interactions.units, interactions.candidates],
            list(problem.costs.shape),
        )


def _check_start(problem: Problem, start: NDArray[np.int64] | None) -> None:
    """Refuse a start that is no plan, or breaks a rule."""
    if start is None:
        return
    as_plan = start.dtype == np.int64 and start.shape == problem.counts.shape
    broken = evaluate(problem, start).violations if as_plan else ("its shape or type",)
    if broken:
        raise OptionError(
            f"the start breaks {', '.join(broken)}",
            "start",
            start.tolist(),
            "int64 [units], a plan that keeps all rules",
        )


def _unlimited(reduced: Reduced) -> ReducedRow:
    """A budget that every plan keeps."""
    return ReducedRow(name="size", table=reduced.sizes, limit=int(reduced.sizes.max(axis=1).sum()))


def _without_plan(problem: Problem, status: SolveStatus, proof: Proof, start: float) -> QuadraticSolution:
    return QuadraticSolution(
        status=status,
        smallest_feasible_bits=problem.reduced.smallest,
        proof=proof,
        runtime_s=time.monotonic() - start,
    )


def _answer(
    problem: Problem, interactions: Interactions, search: "_Search", start: float
) -> QuadraticSolution:
    """The plan, evaluated on the problem as the user gave it."""
    choices = problem.reduced.expand(search.best)
    checked = evaluate(problem, choices)
    assert not checked.violations
    at = np.arange(len(choices)), choices
    objective = checked.objective + interactions.value(choices)
    first = problem.reduced.expand(search.first)
    labels = enumerate(zip(problem.units, choices.tolist(), strict=True))
    return QuadraticSolution(
        status=SolveStatus.OPTIMAL if search.proven else SolveStatus.FEASIBLE,
        choice_indices=choices,
        objective=objective,
        additive=checked.objective + float(interactions.diagonal[at].sum()),
        lower_bound=min(search.bound, objective) if math.isfinite(search.bound) else None,
        size_bits=checked.size_bits,
        smallest_feasible_bits=problem.reduced.smallest,
        additive_optimum=evaluate(problem, first).objective + interactions.value(first),
        proof=search.proof,
        runtime_s=time.monotonic() - start,
        named_choices={unit: problem.label(i, k) for i, (unit, k) in labels},
    )


class _Search:
    """Best plan and bound so far, over the groups of a reduced problem."""

    def __init__(
        self,
        reduced: Reduced,
        matrix: Interactions,
        rows: tuple[ReducedRow, ...],
        deadline: float,
        seed: int,
    ) -> None:
        self.reduced, self.matrix, self.rows, self.deadline = reduced, matrix, rows, deadline
        self.random = np.random.default_rng(seed)
        self.groups, self.width = reduced.costs.shape
        self.additive = reduced.costs + matrix.diagonal
        self.at = np.arange(self.groups)
        self.oracle = LinearOracle(reduced, rows, deadline)
        self.descent = Descent(self.additive, matrix, rows)
        self.exchange = Exchange(self.additive, rows, self.additive)  # until prices of several rows are known
        self.cost = math.inf
        self.best = np.zeros(self.groups, np.int64)
        self.first = self.best
        self.bound = -math.inf
        self.proof = Proof.LAGRANGIAN
        self.proven = False

    def additive_plan(self) -> NDArray[np.int64] | None:
        """The best plan without interactions: of one row the optimum, of several the best that exchange finds, if any."""
        if len(self.rows) == 1:
            return self.oracle.least(self.additive)[0]
        dual = self.oracle.reprice(self.additive)
        self.exchange = Exchange(self.additive, self.rows, dual.reduced)
        repaired = [
            self.exchange.repair(slots, deadline=self.deadline)
            for slots in (*dual.plans[-1:], self.oracle.least(self.additive)[0])
        ]
        improved = [
            self.exchange.improve(slots, bound=dual.bound, deadline=self.deadline)
            for slots in repaired
            if slots is not None
        ]
        return min(improved, key=self.exchange.cost, default=None)

    def run(
        self, first: NDArray[np.int64], known: NDArray[np.int64] | None, restarts: int, *, certify: bool
    ) -> None:
        """Everything, in order, from a plan that keeps every row, and another one if there is one."""
        self.first = first
        self.descend(first)
        if known is not None:
            self.descend(known)
        self.frank_wolfe()
        for _ in range(restarts):
            if time.monotonic() > self.deadline:
                break
            self.descend(self.kicked())
        self.close(certify=certify)

    def close(self, *, certify: bool) -> None:
        """Call it optimal if the bound says so, or try to prove it where that is within reach and wanted."""
        tolerance = 1e-9 * max(abs(self.cost), abs(self.bound))
        if self.cost - self.bound <= tolerance:
            self.proven = True
        elif certify and self.groups * self.width <= PROVABLE_CELLS and time.monotonic() < self.deadline:
            found = prove(self.reduced.costs, self.matrix, self.rows, start=self.best, deadline=self.deadline)
            if found.slots is not None and self.value(found.slots) < self.cost:
                self.take(found.slots)
            if found.lower_bound is not None and found.lower_bound > self.bound:
                self.bound, self.proof = found.lower_bound, Proof.SOLVER
            self.proven = found.proven or self.cost - self.bound <= tolerance

    def value(self, slots: NDArray[np.int64]) -> float:
        """Cost of a plan."""
        return float(self.reduced.costs[self.at, slots].sum()) + self.matrix.value(slots)

    def take(self, slots: NDArray[np.int64]) -> None:
        """Keep a plan if it is the best."""
        cost = self.value(slots)
        if cost < self.cost:
            self.cost, self.best = cost, slots

    def split(self) -> float:
        """The largest share of the diagonal blocks that can be taken out of Q with the rest still convex.

        A block costs the same whether it stays in Q or its diagonal goes to the linear part, as only one candidate of a
        group is chosen; in the relaxation the linear part is worth more.
        """
        if self.matrix.matrix is None:
            return 0.0
        blocks = self.block_diagonal()
        low, high = 0.0, 1.0
        for _ in range(_SPLITS):
            middle = (low + high) / 2
            if is_semidefinite(self.matrix.matrix - middle * blocks, 1e-13):
                low = middle
            else:
                high = middle
        return low

    def block_diagonal(self) -> NDArray[np.float64]:
        """Only the blocks of groups with themselves, as a matrix."""
        blocks = np.zeros((self.groups, self.width, self.groups, self.width))
        blocks[self.at, :, self.at, :] = self.matrix.within
        return blocks.reshape(self.groups * self.width, self.groups * self.width)

    def frank_wolfe(self) -> None:
        """Minimise the convex relaxation over the plans of a knapsack: a bound, and plans to descend from.

        The bound holds at any point, wherever it was come from, as the rest of Q is convex and the oracle's bounds hold for
        every plan: so several rows may be added up in another way from time to time.
        """
        share = self.split()
        linear = self.reduced.costs + share * self.matrix.diagonal
        within = share * self.matrix.within
        x = np.zeros((self.groups, self.width))
        x[self.at, self.first] = 1.0
        slack = 1e-12 * (float(np.abs(self.matrix.diagonal).sum()) + float(np.abs(linear).max(axis=1).sum()))
        product = self.convex_times(x, within)
        for step in range(_STEPS):
            gradient = 2.0 * product + linear
            if len(self.rows) > 1 and step % _REPRICED == 0:
                self.oracle.reprice(gradient)
            slots, lowest = self.oracle.least(gradient)
            here = float((x * (product + linear)).sum())
            self.bound = max(self.bound, here + lowest - float((gradient * x).sum()) - slack)
            if step < _DESCENTS:
                self.descend(self.repaired(slots))
            toward = -x
            toward[self.at, slots] += 1.0
            moved = self.convex_times(toward, within)
            slope = float((gradient * toward).sum())
            if slope >= -1e-9 * abs(here) or time.monotonic() > self.deadline:
                break
            bend = 2.0 * float((toward * moved).sum())
            length = min(1.0, -slope / bend) if bend > 0.0 else 1.0
            x += length * toward
            product += length * moved

    def convex_times(self, x: NDArray[np.float64], within: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(Q - split blocks) x``, [G, K]."""
        whole = self.matrix.times(x.ravel()).reshape(x.shape)
        return np.asarray(whole - np.einsum("gkl,gl->gk", within, x))

    def kicked(self) -> NDArray[np.int64]:
        """The best plan with a few groups moved at random, back within the rows."""
        slots = self.best.copy()
        count = min(self.groups, _KICKED + int(self.random.integers(0, 1 + self.groups // 20)))
        group = self.random.choice(self.groups, count, replace=False)
        slots[group] = self.random.integers(0, self.width, count)
        if len(self.rows) > 1:
            return self.repaired(slots)
        (row,) = self.rows
        over = int(row.table[self.at, slots].sum()) - row.limit
        while over > 0:
            saving = row.table[self.at, slots][:, None] - row.table
            loss = self.additive - self.additive[self.at, slots][:, None]
            rate = np.where(saving > 0, loss / np.maximum(np.minimum(saving, over), 1), np.inf)
            i, k = divmod(int(rate.argmin()), self.width)
            over -= int(saving[i, k])
            slots[i] = k
        return slots

    def repaired(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """A plan near another one that keeps every row: where it cannot be repaired, groups go back to the best plan's."""
        found = self.exchange.repair(slots, deadline=self.deadline)
        if found is not None:
            return found
        slots = slots.copy()
        for group in self.random.permutation(np.flatnonzero(slots != self.best)).tolist():
            slots[group] = self.best[group]
            if self.exchange.keeps(slots):
                break
        return slots

    def descend(self, slots: NDArray[np.int64]) -> None:
        """Exchange one group, else two, for the better while there is anything better."""
        self.take(self.descent.down(slots, known=self.cost, deadline=self.deadline))
