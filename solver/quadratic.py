"""Plans under interactions: ``min c'x + x'Qx`` with one candidate per unit, within one budget.

The additive costs alone mis-rank plans at few bits, because errors of different units add up or cancel. Here a plan is found
by exchange (one unit, then two at a time) from many starts: the additive optimum, every plan that Frank and Wolfe's method
meets, and kicks of the best one. Frank and Wolfe's method gives a valid lower bound besides: its linear problems are
knapsacks, solved exactly. Small problems are proven by a linearised integer program; for the others the word is heuristic.

Sources: Frank and Wolfe 1956; Adams and Sherali 1986, "A tight linearization and an algorithm for zero-one quadratic
programming problems"; Lourenco, Martin and Stutzle 2003, "Iterated local search". The splitting of the diagonal
blocks, which tightens the convex relaxation, follows Billionnet, Elloumi and Plateau 2009 in its simplest form.
"""

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from solver import acceleration
from solver.api import check_options
from solver.certificate import evaluate
from solver.errors import OptionError, TableError
from solver.frontier import require_size_only
from solver.interactions import Interactions, is_semidefinite
from solver.knapsack import solve_knapsack
from solver.linearised import prove
from solver.problem import Problem
from solver.reduction import Reduced
from solver.solution import Proof, SolveStatus, relative_gap

PROVABLE_CELLS = 100
"""Up to so many candidates in all the linearised program is tried: 30 units of 3."""

_STEPS = 60
_DESCENTS = 12
_PAIRED = 240
_KICKED = 4
_ORACLE_GAP = 1e-10
_SPLITS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class QuadraticSolution:
    """Answer of `solve_quadratic`.

    Attributes:
        status: OPTIMAL (proven), FEASIBLE (heuristic: best plan found), INFEASIBLE, or NO_SOLUTION.
        choice_indices: Candidate index of each unit, int64 [L]; ``None`` without a plan.
        objective: Predicted cost with interactions, ``c'x + x'Qx``.
        additive: Predicted cost without them: ``c'x`` and the diagonal of ``x'Qx`` only.
        lower_bound: No plan costs less; often far below the objective for hundreds of units.
        relative_gap: As in `solver.solution.Solution`.
        size_bits: Exact.
        smallest_feasible_bits: Smallest total size.
        additive_optimum: Cost with interactions of the plan that is best without them, for comparison.
        proof: What the bound rests on: LAGRANGIAN (convex relaxation with exact knapsacks) or SOLVER (linearised program).
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
    restarts: int = 20,
    time_limit_s: float = 30.0,
    seed: int = 0,
    certify: bool = True,
) -> QuadraticSolution:
    """Find a plan of low cost with interactions, and a bound on how much better one could be.

    Args:
        problem: Size only; its costs are the linear part (all zero when Q holds everything).
        interactions: Over the problem's units and candidates.
        restarts: Kicks of the best plan after which the search ends; more find better plans of large problems.
        time_limit_s: Wall-clock seconds, > 0: a guard; the plan depends on the seed only as long as it is not reached.
        seed: For the kicks.
        certify: Whether small problems are tried to be proven, which may take all of the time.

    Raises:
        ProblemError: The problem has further rows or width rules.
        TableError: The interactions are not of this problem's shape.
        OptionError: An argument is out of range.
    """
    check_options(time_limit_s, 0.0, "auto")
    if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 0:
        raise OptionError(f"{restarts!r} restarts", "restarts", repr(restarts), "a whole number >= 0")
    require_size_only(problem)
    if (interactions.units, interactions.candidates) != problem.costs.shape:
        raise TableError(
            "the interactions are not over this problem's units and candidates",
            "interactions",
            [interactions.units, interactions.candidates],
            list(problem.costs.shape),
        )
    start = time.monotonic()
    reduced = problem.reduced
    budget = int(reduced.sizes.max(axis=1).sum()) if problem.budget_bits is None else problem.budget_bits
    if reduced.smallest > budget:
        return QuadraticSolution(
            status=SolveStatus.INFEASIBLE,
            smallest_feasible_bits=reduced.smallest,
            proof=Proof.MINIMUM,
            runtime_s=time.monotonic() - start,
        )
    search = _Search(reduced, interactions.on(reduced), budget, start + time_limit_s, seed)
    search.run(restarts, certify=certify)
    return _answer(problem, interactions, search, start)


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
        self, reduced: Reduced, matrix: Interactions, budget: int, deadline: float, seed: int
    ) -> None:
        self.reduced, self.matrix, self.budget, self.deadline = reduced, matrix, budget, deadline
        self.random = np.random.default_rng(seed)
        self.groups, self.width = reduced.costs.shape
        self.additive = reduced.costs + matrix.diagonal
        self.at = np.arange(self.groups)
        self.cost = math.inf
        self.best = np.zeros(self.groups, np.int64)
        self.first = self.best
        self.bound = -math.inf
        self.proof = Proof.LAGRANGIAN
        self.proven = False

    def run(self, restarts: int, *, certify: bool) -> None:
        """Everything, in order."""
        self.first, _ = self.knapsack(self.additive)
        self.descend(self.first)
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
            found = prove(
                self.reduced.costs,
                self.matrix,
                self.reduced.sizes,
                self.budget,
                start=self.best,
                deadline=self.deadline,
            )
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

    def knapsack(self, costs: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
        """The best plan for linear costs, and a valid bound on them."""
        found = solve_knapsack(
            replace(self.reduced, costs=np.ascontiguousarray(costs)),
            self.reduced.sizes,
            self.budget,
            relative_gap=_ORACLE_GAP,
            deadline=self.deadline,
            engine=acceleration.engine(),
        )
        return found.slots, found.lower_bound

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
        """Minimise the convex relaxation over the knapsack's plans: a bound, and plans to descend from."""
        share = self.split()
        linear = self.reduced.costs + share * self.matrix.diagonal
        within = share * self.matrix.within
        x = np.zeros((self.groups, self.width))
        x[self.at, self.first] = 1.0
        slack = 1e-12 * (float(np.abs(self.matrix.diagonal).sum()) + float(np.abs(linear).max(axis=1).sum()))
        product = self.convex_times(x, within)
        for step in range(_STEPS):
            gradient = 2.0 * product + linear
            slots, lowest = self.knapsack(gradient)
            here = float((x * (product + linear)).sum())
            self.bound = max(self.bound, here + lowest - float((gradient * x).sum()) - slack)
            if step < _DESCENTS:
                self.descend(slots)
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
        """The best plan with a few groups moved at random, back within the budget."""
        slots = self.best.copy()
        count = min(self.groups, _KICKED + int(self.random.integers(0, 1 + self.groups // 20)))
        group = self.random.choice(self.groups, count, replace=False)
        slots[group] = self.random.integers(0, self.width, count)
        over = int(self.reduced.sizes[self.at, slots].sum()) - self.budget
        while over > 0:
            saving = self.reduced.sizes[self.at, slots][:, None] - self.reduced.sizes
            loss = self.additive - self.additive[self.at, slots][:, None]
            rate = np.where(saving > 0, loss / np.maximum(np.minimum(saving, over), 1), np.inf)
            i, k = divmod(int(rate.argmin()), self.width)
            over -= int(saving[i, k])
            slots[i] = k
        return slots

    def descend(self, slots: NDArray[np.int64]) -> None:
        """Exchange one group, else two, for the better while there is anything better."""
        slots = slots.copy()
        cells = self.at * self.width + slots
        indicator = np.zeros(self.groups * self.width)
        indicator[cells] = 1.0
        pull = self.matrix.times(indicator)
        free = self.budget - int(self.reduced.sizes[self.at, slots].sum())
        while time.monotonic() < self.deadline:
            change, steps = self.changes(slots, pull)
            moves = self.best_moves(slots, change, steps, free)
            if not moves:
                break
            for group, slot in moves:
                old, new = group * self.width + int(slots[group]), group * self.width + slot
                both = self.matrix.between(np.arange(len(pull)), np.array([new, old]))
                pull += both[:, 0] - both[:, 1]
                free -= int(steps[group, slot])
                slots[group] = slot
        self.take(slots)

    def changes(
        self, slots: NDArray[np.int64], pull: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Change of cost and of size by moving one group to each slot, [G, K]."""
        # What the others' choices do to each candidate: the group's own present choice is taken out.
        own = self.matrix.within[self.at, :, slots]
        score = self.additive + 2.0 * (pull.reshape(self.groups, self.width) - own)
        change = score - score[self.at, slots][:, None]
        steps = self.reduced.sizes - self.reduced.sizes[self.at, slots][:, None]
        change[self.at, slots] = math.inf
        return change, steps

    def best_moves(
        self, slots: NDArray[np.int64], change: NDArray[np.float64], steps: NDArray[np.int64], free: int
    ) -> list[tuple[int, int]]:
        """The best move that fits, or the best two; empty when neither lowers the cost."""
        enough = -1e-12 * max(abs(self.cost), 1e-300) if math.isfinite(self.cost) else 0.0
        single = np.where(steps <= free, change, math.inf)
        at = int(single.argmin())
        if single.flat[at] < enough:
            return [divmod(at, self.width)]
        order = np.argsort(change, axis=None, kind="stable")[: min(_PAIRED, change.size - self.groups)]
        group, slot = order // self.width, order % self.width
        old = group * self.width + slots[group]
        gains = change[group, slot]
        crossing = (
            self.matrix.between(order, order)
            - self.matrix.between(order, old)
            - self.matrix.between(old, order)
            + self.matrix.between(old, old)
        )
        total = gains[:, None] + gains + 2.0 * crossing
        step = steps[group, slot]
        total[(group[:, None] == group) | (step[:, None] + step > free)] = math.inf
        if not total.size:
            return []
        at = int(total.argmin())
        if not total.flat[at] < enough:
            return []
        a, b = divmod(at, len(order))
        return [(int(group[a]), int(slot[a])), (int(group[b]), int(slot[b]))]
