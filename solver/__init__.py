"""Bit allocation: arrays in, plan and certificate out.

>>> from solver import Problem, solve
>>> problem = Problem.from_rows(
...     [("conv1", 4, 0.5, 400), ("conv1", 8, 0.1, 800), ("fc", 4, 0.2, 4000), ("fc", 8, 0.1, 8000)], budget=5000
... )
>>> solution = solve(problem)
>>> solution.status.value, solution.named_choices, solution.size_bits
('optimal', {'conv1': '8', 'fc': '4'}, 4800)
"""

from solver.acceleration import warm_up
from solver.api import solve
from solver.budget import BUDGET_FORMS, Budget, parse_budget
from solver.certificate import Evaluation, evaluate
from solver.constraints import Row, WidthCount
from solver.errors import (
    BackendError,
    BoundError,
    BudgetError,
    OptionError,
    PinError,
    ProblemError,
    RowError,
    SolverError,
    TableError,
    TieError,
)
from solver.frontier import Frontier, FrontierPoint, frontier
from solver.interactions import Interactions
from solver.inverse import SmallestSize, smallest_size
from solver.prices import ShadowPrices, Switch, shadow_prices
from solver.problem import Problem
from solver.quadratic import QuadraticSolution, solve_quadratic
from solver.solution import Proof, Solution, SolveStatus, Stopped
from solver.uncertainty import ChoiceProbabilities, choice_probabilities, risk_averse

__all__ = [
    "BUDGET_FORMS",
    "BackendError",
    "BoundError",
    "Budget",
    "BudgetError",
    "ChoiceProbabilities",
    "Evaluation",
    "Frontier",
    "FrontierPoint",
    "Interactions",
    "OptionError",
    "PinError",
    "Problem",
    "ProblemError",
    "Proof",
    "QuadraticSolution",
    "Row",
    "RowError",
    "ShadowPrices",
    "SmallestSize",
    "Solution",
    "SolveStatus",
    "SolverError",
    "Stopped",
    "Switch",
    "TableError",
    "TieError",
    "WidthCount",
    "choice_probabilities",
    "evaluate",
    "frontier",
    "parse_budget",
    "risk_averse",
    "shadow_prices",
    "smallest_size",
    "solve",
    "solve_quadratic",
    "warm_up",
]
