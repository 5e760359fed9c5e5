"""The integer program through PuLP: any number of rows, solved by HiGHS or CBC, nothing of it believed unchecked.

What goes wrong otherwise, each reproduced (and each tested here): a right-hand side scaled to 1 lets solvers overspend
the budget within their absolute tolerance; costs of 1e-6 come back far from optimal and still "Optimal"; a timed-out
incumbent has status "Optimal" too, only ``sol_status`` tells.
"""

import ctypes
import itertools
import math
import operator
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pulp
from numpy.typing import NDArray

from solver.errors import BackendError
from solver.reduction import ReducedRow

ROW_SCALE = 1e6
"""Right-hand sides are brought to this: absolute tolerances of 1e-6 to 1e-9 then mean less than one bit in most rows."""

OBJECTIVE_SCALE = 1e5
"""What the expected objective is brought to."""

SOLVER_TOLERANCE = 1e-9
"""Relative to the objective's range: what a foreign solver's bound is lessened by for its own rounding."""

_MAX_REPAIRS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class ProgramInput:
    """A problem without pins, bounds and ties, for a foreign solver.

    Attributes:
        costs: float64 [G, K].
        rows: All linear rows, the size included.
        keep: bool [G, K]: candidates that can be part of an optimal plan; at least one per group.
        widths: int64 [G, K], needed with ``max_widths`` only.
        max_widths: At most so many different widths.
        expected: Rough objective above each group's least cost, for scaling; > 0.
        start: Slots of a known plan, int64 [G], to start from.
        target: Absolute gap (cost) at which the solver may stop.
    """

    costs: NDArray[np.float64]
    rows: Sequence[ReducedRow]
    keep: NDArray[np.bool_]
    widths: NDArray[np.int64] | None = None
    max_widths: int | None = None
    expected: float
    start: NDArray[np.int64] | None = None
    target: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ProgramResult:
    """What the foreign solver answered, checked.

    Attributes:
        slots: Slot of each group, int64 [G], within every row; ``None`` when none was found.
        lower_bound: The solver's bound lessened by its tolerance; ``None`` when it gives none.
        infeasible: The solver proved that no plan exists.
        proven: The solver reports its plan as optimal, up to the target.
        backend: Name of the solver.
        backend_version: Its version.
    """

    slots: NDArray[np.int64] | None
    lower_bound: float | None
    infeasible: bool
    proven: bool
    backend: str
    backend_version: str


def solve_program(given: ProgramInput, *, deadline: float, seed: int, prefer: str = "highs") -> ProgramResult:
    """Build, solve, check, and repair.

    A plan that breaks a row in whole numbers is never returned: the row is tightened by the overshoot and the program
    solved again (at most four times), keeping the first bound, which stays valid.

    Args:
        given: The problem.
        deadline: Of `time.monotonic`.
        seed: For the solver's own random choices.
        prefer: ``"highs"`` or ``"cbc"``.

    Raises:
        BackendError: Neither HiGHS nor CBC is installed, or the solver failed.
    """
    name, backend_version = _available(prefer)
    limits = [row.limit for row in given.rows]
    bound: float | None = None
    for attempt in range(_MAX_REPAIRS + 1):
        remaining = deadline - time.monotonic()
        if attempt and remaining <= 0:
            break
        model = _build(given, limits)
        start = None if given.start is None else [float(given.start[i] == k) for i, k, _ in model.columns]
        run = _Run(
            name=name,
            time_limit_s=max(remaining, 0.05),
            seed=seed % 2**31,
            start=start,
            gap=given.target * model.scale,
        )
        solution = _run(model.problem, run)
        if attempt == 0 and solution.bound is not None:
            reach = abs(solution.bound / model.scale) + given.expected
            bound = model.offset + solution.bound / model.scale - SOLVER_TOLERANCE * reach
        if solution.infeasible:
            return _answer(name, backend_version, None, bound, infeasible=attempt == 0)
        if not solution.found:
            break
        slots = _slots(model)
        over = [_value(row, slots) - row.limit for row in given.rows]
        if max(over, default=0) <= 0 and _few_widths(given, slots):
            return _answer(name, backend_version, slots, bound, proven=solution.proven and attempt == 0)
        limits = [limit - (o + 1 if o > 0 else 0) for limit, o in zip(limits, over, strict=True)]
    return _answer(name, backend_version, None, bound)


def _answer(  # noqa: PLR0913 - the parts of one value
    name: str,
    backend_version: str,
    slots: NDArray[np.int64] | None,
    bound: float | None,
    *,
    infeasible: bool = False,
    proven: bool = False,
) -> ProgramResult:
    return ProgramResult(
        slots=slots,
        lower_bound=bound,
        infeasible=infeasible,
        proven=proven,
        backend=f"pulp-{name}",
        backend_version=backend_version,
    )


def _available(prefer: str) -> tuple[str, str]:
    names = ("highs", "cbc")
    for name in (prefer, *(other for other in names if other != prefer)):
        if (pulp.HiGHS(msg=False) if name == "highs" else _cbc(msg=False)).available():
            if name == "highs":
                _swallow_banner()
            return (
                name,
                f"{pulp.__version__}/{_distribution_version('highspy' if name == 'highs' else 'pulp')}",
            )
    raise BackendError("neither HiGHS nor CBC is installed", "backend", prefer, "pip install highspy")


def _cbc(**options: Any) -> Any:
    """The CBC that PuLP 3 brings along; its warning about PuLP 4 is not for our users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pulp.PULP_CBC_CMD(**options)


@cache
def _swallow_banner() -> None:
    """Take the lines that HiGHS prints on its first construction, whatever its options say, off the standard output.

    They come from C, so the file descriptor itself is turned away, once per process and for about a millisecond.
    """
    import highspy  # noqa: PLC0415 - optional: there only when PuLP found it

    flush = ctypes.CDLL(None).fflush if os.name == "posix" else None
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # no standard output at all: nothing to keep clean
        return
    try:
        with Path(os.devnull).open("wb") as sink:
            os.dup2(sink.fileno(), 1)
            highspy.Highs()  # type: ignore[no-untyped-call]
            if flush is not None:
                flush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _distribution_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


Columns = list[tuple[int, int, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Model:
    """A scaled model.

    Attributes:
        problem: PuLP's.
        columns: Group, slot and variable of each candidate of a group that has a choice.
        settled: Slot of each group: the only one, or 0 where there is a choice.
        scale: What costs above each group's least were multiplied by.
        offset: Sum of the least costs.
    """

    problem: Any
    columns: Columns
    settled: NDArray[np.int64]
    scale: float
    offset: float


def _build(given: ProgramInput, limits: Sequence[int]) -> _Model:
    """The scaled model; groups without a choice go into the constants."""
    least = np.where(given.keep, given.costs, np.inf).min(axis=1)
    scale = OBJECTIVE_SCALE / given.expected
    model = pulp.LpProblem("bit_allocation", pulp.LpMinimize)
    choice = given.keep.sum(axis=1) > 1
    group, slot = (part.tolist() for part in np.nonzero(given.keep & choice[:, None]))
    columns: Columns = [
        (i, k, model.add_variable(f"x{i}_{k}", 0, 1, pulp.LpInteger))
        for i, k in zip(group, slot, strict=True)
    ]
    costs = ((given.costs - least[:, None])[group, slot] * scale).tolist()
    variables = [variable for _, _, variable in columns]
    model.setObjective(pulp.LpAffineExpression(list(zip(variables, costs, strict=True))))
    for _, members in itertools.groupby(columns, key=operator.itemgetter(0)):
        model.addConstraint(pulp.LpAffineExpression([(variable, 1.0) for _, _, variable in members]) == 1)
    for row, limit in zip(given.rows, limits, strict=True):
        model.addConstraint(scaled_row(row, limit, given.keep, (group, slot), variables))
    settled = np.where(choice, 0, given.keep.argmax(axis=1)).astype(np.int64)
    if given.max_widths is not None:
        _limit_widths(model, given, columns, settled[~choice], np.flatnonzero(~choice))
    return _Model(
        problem=model, columns=columns, settled=settled, scale=scale, offset=math.fsum(least.tolist())
    )


def scaled_row(
    row: ReducedRow,
    limit: int,
    keep: NDArray[np.bool_],
    cells: tuple[list[int], list[int]],
    variables: list[Any],
) -> Any:
    """One row, shifted by each group's least value, divided by the common divisor, right-hand side at `ROW_SCALE`.

    Args:
        row: Its table and name.
        limit: To keep; the row's own one or a tighter one.
        keep: bool [G, K], candidates in the program.
        cells: Groups and slots of the variables.
        variables: Of these cells.
    """
    least = np.where(keep, row.table, np.iinfo(np.int64).max).min(axis=1)
    values = (row.table - least[:, None])[cells]
    divisor = max(1, int(np.gcd.reduce(values))) if len(values) else 1
    right = (limit - int(least.sum())) // divisor
    scale = ROW_SCALE / right if right > 0 else 1.0
    terms = list(zip(variables, ((values // divisor) * scale).tolist(), strict=True))
    return pulp.LpAffineExpression(terms) <= right * scale


def _limit_widths(
    model: Any, given: ProgramInput, columns: Columns, slots: NDArray[np.int64], groups: NDArray[np.int64]
) -> None:
    """At most so many different widths: one switch per width, which its candidates need; settled groups have theirs on."""
    assert given.widths is not None
    assert given.max_widths is not None
    taken = set(given.widths[groups, slots].tolist())
    wanted = {int(given.widths[group, slot]) for group, slot, _ in columns} | taken
    switches = {
        width: model.add_variable(f"w{width}", int(width in taken), 1, pulp.LpInteger)
        for width in sorted(wanted)
    }
    for group, slot, variable in columns:
        model.addConstraint(variable - switches[int(given.widths[group, slot])] <= 0)
    model.addConstraint(pulp.lpSum(list(switches.values())) <= given.max_widths)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A solver's answer in the model's scale: whether it found a plan, and what it claims."""

    found: bool
    infeasible: bool
    proven: bool
    bound: float | None


class _StartedHiGHS(pulp.HiGHS):  # type: ignore[misc]
    """HiGHS told a plan to start from; PuLP 3 has no way to say so."""

    start: list[float] | None = None

    def callSolver(self, lp: Any) -> None:  # noqa: N802 - PuLP's name
        """Hand over the start, in the order of the columns, and run."""
        if self.start is not None:
            solution = pulp.apis.highs_api.highspy.HighsSolution()
            solution.col_value = self.start
            lp.solverModel.setSolution(solution)
        super().callSolver(lp)


def run_model(model: Any, *, deadline: float) -> Answer:
    """Run whichever solver there is on a model of integers, to proven optimality or the deadline.

    Raises:
        BackendError: Neither HiGHS nor CBC is installed, or the solver failed.
    """
    name, _ = _available("highs")
    limit = max(deadline - time.monotonic(), 0.05)
    return _run(model, _Run(name=name, time_limit_s=limit, seed=0, start=None, gap=0.0))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """How to run a solver; the gap is in the model's scale."""

    name: str
    time_limit_s: float
    seed: int
    start: list[float] | None
    gap: float


def _run(model: Any, run: _Run) -> Answer:
    """Run the solver silently and translate its status; an unknown one is an error, never a plan."""
    common = {"msg": False, "timeLimit": run.time_limit_s, "gapRel": 0.0, "gapAbs": run.gap, "threads": 1}
    if run.name == "highs":
        solver = _StartedHiGHS(**common, random_seed=run.seed)
        solver.start = run.start
    else:
        # CBC's absolute cut-off increment of 1e-4 would call a worse plan optimal.
        options = ["increment 0", f"randomSeed {run.seed}"]
        solver = _cbc(**common, options=options)
    try:
        model.solve(solver)
    except (pulp.PulpSolverError, KeyError, IndexError) as error:
        raise BackendError(f"the solver {run.name} failed: {error}", "backend", run.name) from error
    found = model.sol_status in {pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible}
    bound: float | None = None
    if run.name == "highs":
        dual = float(model.solverModel.getInfo().mip_dual_bound)
        bound = dual if math.isfinite(dual) and abs(dual) < 1e300 else None
    elif model.sol_status == pulp.LpSolutionOptimal:
        bound = float(pulp.value(model.objective) or 0.0)
    return Answer(
        found=found,
        infeasible=model.sol_status == pulp.LpSolutionInfeasible,
        proven=model.sol_status == pulp.LpSolutionOptimal,
        bound=bound,
    )


def _slots(model: _Model) -> NDArray[np.int64]:
    """The slot of the largest value in each group: values come back as 0.9999999."""
    slots = model.settled.copy()
    best = np.full(len(slots), -1.0)
    for group, slot, variable in model.columns:
        value = variable.varValue or 0.0
        if value > best[group]:
            best[group], slots[group] = value, slot
    return slots


def _value(row: ReducedRow, slots: NDArray[np.int64]) -> int:
    return int(np.take_along_axis(row.table, slots[:, None], 1).sum())


def _few_widths(given: ProgramInput, slots: NDArray[np.int64]) -> bool:
    if given.max_widths is None or given.widths is None:
        return True
    return len(np.unique(np.take_along_axis(given.widths, slots[:, None], 1))) <= given.max_widths
