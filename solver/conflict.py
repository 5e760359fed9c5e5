"""Why nothing is feasible: a smallest set of rows, pins and bounds that cannot hold together.

Source: Chinneck and Dravnieks 1991, "Locating minimal infeasible constraint sets in linear programs" (the deletion
filter), here with groups of halving size, so that many pins that do not matter fall out together.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solver.constraints import MAX_WIDTHS
from solver.problem import Problem

Feasible = Callable[[Problem, float], bool | None]


@dataclass(frozen=True)
class Element:
    """One thing a user asked for."""

    kind: str
    name: str
    unit: int = -1


def minimal_conflict(problem: Problem, feasible: Feasible, *, deadline: float) -> tuple[str, ...]:
    """Rows, pins and bounds that conflict, in words; without any one of them the others could be kept.

    Args:
        problem: Infeasible.
        feasible: Tells whether a problem has a plan; ``None`` when it cannot tell in time.
        deadline: Of `time.monotonic`; when it is over, what was not tried yet stays in the set.
    """
    kept = _elements(problem)
    chunk = max(1, len(kept) // 2)
    while True:
        at = 0
        while at < len(kept):
            if time.monotonic() > deadline:
                return _in_words(problem, kept)
            rest = kept[:at] + kept[at + chunk :]
            if feasible(_only(problem, rest), deadline) is False:
                kept = rest
            else:
                at += chunk
        if chunk == 1:
            return _in_words(problem, kept)
        chunk //= 2


def _elements(problem: Problem) -> list[Element]:
    rows = [] if problem.budget_bits is None else ["size"]
    rows += [row.name for row in problem.rows] + [str(rule) for rule in problem.width_counts]
    rows += [] if problem.max_widths is None else [MAX_WIDTHS]
    # What stands first is tried first for removal: pins and bounds before rows.
    pins = [Element("pin", problem.units[unit], unit) for unit in problem.pins]
    bounds = [Element("bound", unit) for unit in problem.bounds]
    return [*pins, *bounds, *(Element("row", name) for name in rows)]


def _only(problem: Problem, elements: list[Element]) -> Problem:
    return problem.only(
        rows=[element.name for element in elements if element.kind == "row"],
        pins=[element.unit for element in elements if element.kind == "pin"],
        bounds=[element.name for element in elements if element.kind == "bound"],
    )


def _in_words(problem: Problem, elements: list[Element]) -> tuple[str, ...]:
    words = []
    for element in elements:
        if element.kind == "pin":
            label = problem.label(element.unit, problem.pins[element.unit])
            words.append(f"pin of {element.name!r} to {label!r}")
        elif element.kind == "bound":
            least, most = problem.bounds[element.name]
            words.append(f"bound of {element.name!r} to {least}..{most} bits")
        elif element.name == "size":
            words.append(f"size <= {problem.budget_bits} bits")
        else:
            words.append(_row_in_words(problem, element.name))
    return tuple(words)


def _row_in_words(problem: Problem, name: str) -> str:
    for row in problem.rows:
        if row.name == name:
            return f"{name} <= {np.format_float_positional(row.limit / row.scale, trim='-')}"
    return f"at most {problem.max_widths} different widths" if name == MAX_WIDTHS else name
