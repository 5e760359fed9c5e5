"""Other people's solvers on the same one-budget problem, each in a process of its own that a deadline can end.

All get the scaling they need to answer rightly (a raw budget row or costs of 1e-6 make several of them return worse plans
and call them optimal), one thread, a relative gap of 1e-9, and a time limit. Time is the processor's, of the solver and
its helpers, model building included: on a machine that is shared it hardly depends on the neighbours.
"""

import math
import multiprocessing
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import highspy
import numpy as np
import pulp
from numpy.typing import NDArray
from ortools.sat.python import cp_model

GAP = 1e-9
ROW_SCALE = 1e6
OBJECTIVE_SCALE = 1e5
_WHOLE = 2**52
"""Constraint programming wants whole costs: their sum is brought to this."""

_GRACE_S = 10.0
"""How long after its limit a solver is ended: building a model and presolving do not look at the clock."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a solver answered.

    Attributes:
        slots: Its plan, one candidate per unit; ``None`` without one.
        proven: It says that the plan is optimal up to the gap.
        seconds: Of processor time.
    """

    slots: NDArray[np.int64] | None
    proven: bool
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaled:
    """A problem as a floating-point solver likes it: least values taken off, sums of one order of magnitude."""

    costs: NDArray[np.float64]
    sizes: NDArray[np.float64]
    budget: float


Plan = tuple[NDArray[np.int64] | None, bool]


def scaled(costs: NDArray[np.float64], sizes: NDArray[np.int64], budget: int) -> Scaled:
    """Least values taken off, sizes divided by their common divisor, budget and expected cost scaled."""
    extra = sizes - sizes.min(axis=1, keepdims=True)
    divisor = max(1, int(np.gcd.reduce(extra, axis=None)))
    right = (budget - int(sizes.min(axis=1).sum())) // divisor
    row_scale = ROW_SCALE / max(right, 1)
    above = costs - costs.min(axis=1, keepdims=True)
    expected = float(np.median(above.max(axis=1))) * len(costs)
    return Scaled(
        costs=above * (OBJECTIVE_SCALE / (expected or 1.0)),
        sizes=(extra // divisor) * row_scale,
        budget=right * row_scale,
    )


def by_pulp(
    solver: str, costs: NDArray[np.float64], sizes: NDArray[np.int64], budget: int, limit_s: float
) -> Plan:
    """PuLP with CBC or HiGHS, modelled as its documentation does."""
    given = scaled(costs, sizes, budget)
    model = pulp.LpProblem("benchmark", pulp.LpMinimize)
    x = [
        [model.add_variable(f"x{i}_{k}", 0, 1, pulp.LpInteger) for k in range(costs.shape[1])]
        for i in range(len(costs))
    ]
    cells = [variable for row in x for variable in row]
    model.setObjective(pulp.LpAffineExpression(list(zip(cells, given.costs.ravel().tolist(), strict=True))))
    for row in x:
        model.addConstraint(pulp.LpAffineExpression([(variable, 1.0) for variable in row]) == 1)
    terms = list(zip(cells, given.sizes.ravel().tolist(), strict=True))
    model.addConstraint(pulp.LpAffineExpression(terms) <= given.budget)
    common = {"msg": False, "timeLimit": limit_s, "gapRel": GAP, "threads": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model.solve(pulp.HiGHS(**common) if solver == "highs" else pulp.PULP_CBC_CMD(**common))
    if model.sol_status not in {pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible}:
        return None, False
    values = np.array([variable.varValue or 0.0 for variable in cells]).reshape(costs.shape)
    return values.argmax(axis=1), model.sol_status == pulp.LpSolutionOptimal


def by_highs(costs: NDArray[np.float64], sizes: NDArray[np.int64], budget: int, limit_s: float) -> Plan:
    """HiGHS through its own interface, the model handed over as arrays."""
    given = scaled(costs, sizes, budget)
    length, width = costs.shape
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = costs.size, length + 1
    model.col_cost_ = given.costs.ravel()
    model.col_lower_, model.col_upper_ = np.zeros(costs.size), np.ones(costs.size)
    model.integrality_ = [highspy.HighsVarType.kInteger] * costs.size
    model.row_lower_ = np.append(np.ones(length), -highspy.kHighsInf)
    model.row_upper_ = np.append(np.ones(length), given.budget)
    matrix = model.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kColwise
    matrix.start_ = np.arange(0, 2 * costs.size + 1, 2)
    matrix.index_ = np.stack((np.repeat(np.arange(length), width), np.full(costs.size, length)), 1).ravel()
    matrix.value_ = np.stack((np.ones(costs.size), given.sizes.ravel()), 1).ravel()
    solver = highspy.Highs()
    for name, value in (
        ("output_flag", False),
        ("threads", 1),
        ("mip_rel_gap", GAP),
        ("mip_abs_gap", 0.0),
        ("time_limit", limit_s),
    ):
        solver.setOptionValue(name, value)
    solver.passModel(model)
    solver.run()
    if not math.isfinite(solver.getInfo().mip_gap):
        return None, False
    values = np.array(solver.getSolution().col_value).reshape(costs.shape)
    return values.argmax(axis=1), solver.getModelStatus() == highspy.HighsModelStatus.kOptimal


def by_cp_sat(costs: NDArray[np.float64], sizes: NDArray[np.int64], budget: int, limit_s: float) -> Plan:
    """OR-Tools' CP-SAT on one worker, costs rounded to whole numbers."""
    above = costs - costs.min(axis=1, keepdims=True)
    whole = np.rint(above * (_WHOLE / float(above.max(axis=1).sum() or 1.0))).astype(np.int64)
    model = cp_model.CpModel()
    x = [[model.new_bool_var("") for _ in range(costs.shape[1])] for _ in range(len(costs))]
    for row in x:
        model.add_exactly_one(row)
    cells = [variable for row in x for variable in row]
    model.add(cp_model.LinearExpr.weighted_sum(cells, sizes.ravel().tolist()) <= budget)
    model.minimize(cp_model.LinearExpr.weighted_sum(cells, whole.ravel().tolist()))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.relative_gap_limit = GAP
    status = solver.solve(model)
    if status not in {cp_model.OPTIMAL, cp_model.FEASIBLE}:
        return None, False
    slots = np.array([[solver.boolean_value(variable) for variable in row] for row in x]).argmax(axis=1)
    return slots, status == cp_model.OPTIMAL


def _pulp_cbc(*arguments: Any) -> Plan:
    return by_pulp("cbc", *arguments)


def _pulp_highs(*arguments: Any) -> Plan:
    return by_pulp("highs", *arguments)


RIVALS: dict[str, Callable[..., Plan]] = {
    "PuLP+CBC": _pulp_cbc,
    "PuLP+HiGHS": _pulp_highs,
    "highspy": by_highs,
    "CP-SAT": by_cp_sat,
}


def processor_seconds() -> float:
    """Processor time of this process and of the helpers it waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in used)


def ask(
    rival: str, costs: NDArray[np.float64], sizes: NDArray[np.int64], budget: int, *, limit_s: float
) -> Answer:
    """Run a rival in a process of its own; end it, helpers and all, when it does not keep its limit."""
    here, there = multiprocessing.Pipe(duplex=False)
    given = (costs, sizes, budget, limit_s)
    process = multiprocessing.Process(target=_work, args=(there, rival, given), daemon=True)
    started = time.monotonic()
    process.start()
    there.close()
    answer = Answer(slots=None, proven=False, seconds=math.nan)
    try:
        if here.poll(limit_s + _GRACE_S):
            answer = here.recv()
    except EOFError:  # it ended without a word, e.g. for want of memory
        pass
    if process.is_alive() and not math.isfinite(answer.seconds):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    if not math.isfinite(answer.seconds):
        return Answer(slots=None, proven=False, seconds=time.monotonic() - started)
    return answer


def _work(there: Connection, rival: str, given: tuple[Any, ...]) -> None:
    """The child: a session of its own, so that a solver's helper process ends with it."""
    os.setsid()
    _quiet()
    started = processor_seconds()
    slots, proven = RIVALS[rival](*given)
    there.send(Answer(slots=slots, proven=proven, seconds=processor_seconds() - started))


def _quiet() -> None:
    """Solvers print banners from C whatever they are told."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.close(sink)
