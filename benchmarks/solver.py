"""The solver against PuLP with CBC, PuLP with HiGHS, HiGHS and CP-SAT: one run, one table, as Markdown.

Ours is timed from the bare arrays to the checked solution, compiled and in plain NumPy; all others in processes of their
own, model building included, on one thread each. Times are of the processor (median over three budgets, and over repeated
runs where they are short), so that a shared machine disturbs them little. Every plan is checked in whole numbers, and every
plan of another solver against our lower bound: one that costs less would disprove the certificate, and ends the program
with code 1::

    python benchmarks/solver.py --quick
    python benchmarks/solver.py --limit 60 --minutes 60 --json solver.json
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core each; read when NumPy is imported
# This file is named like the package: with its folder first on the path, `import solver` would find it.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks import solver_instances as instances
from benchmarks.solver_extras import Extra, extras
from benchmarks.solver_rivals import RIVALS, ask
from solver import Problem, Solution, SolveStatus, solve, warm_up

LENGTHS = (50, 300, 1_000, 10_000, 100_000, 1_000_000)
WIDTHS = (3, 6, 8, 20)
FRACTIONS = (0.35, 0.1, 0.7)
"""Budgets between the smallest and the largest plan; the middle one first, as it decides whether to go on."""

REALISTIC = ("transformer", "experts")
OTHERS = ("noisy", "tied", "shapes")
HARD = ("strong", "strong_real", "subset_sum", "all_equal")
LARGE = 1_000_000
LARGE_GAP = 1e-9
"""What is asked for at a million units, and of the others everywhere; elsewhere ours proves the optimum itself."""

OURS = {"compiled": "exact", "NumPy": "numpy"}
ENOUGH_S = 0.25
MOST_REPEATS = 21
HARD_LIMIT_S = 2.0
TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table: an instance family at one size."""

    family: str
    units: int
    candidates: int

    @property
    def fractions(self) -> tuple[float, ...]:
        """Its budgets: three, and one where each takes until the time limit."""
        return FRACTIONS[:1] if self.family in HARD and self.units > 300 else FRACTIONS


@dataclass(kw_only=True)
class Timing:
    """What a solver did in a case, by budget: processor seconds, whether proven, gap of its plan to our bound."""

    seconds: list[float] = field(default_factory=list)
    proven: list[bool] = field(default_factory=list)
    gap: list[float | None] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Median time to proof; infinite when any budget was not proven."""
        return statistics.median(self.seconds) if self.seconds and all(self.proven) else float("inf")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A case and all timings, by solver; and who broke our bound."""

    case: Case
    timings: dict[str, Timing]
    disproofs: list[str]


def cases(*, quick: bool) -> Iterator[Case]:
    """Every family over all sizes and menus, smallest first."""
    for units in LENGTHS[:3] if quick else LENGTHS:
        for family in (*REALISTIC, *OTHERS, *HARD):
            for candidates in (6,) if quick else WIDTHS:
                yield Case(family=family, units=units, candidates=candidates)


def time_ours(
    costs: np.ndarray, sizes: np.ndarray, budget: int, backend: str, limit_s: float
) -> tuple[float, Solution]:
    """Median processor time of some runs, from the arrays to the checked solution."""
    seconds: list[float] = []
    gap = LARGE_GAP if len(costs) >= LARGE else 0.0
    while not seconds or (sum(seconds) < ENOUGH_S and len(seconds) < MOST_REPEATS):
        start = time.process_time()
        problem = Problem.from_arrays(costs, sizes, budget=budget)
        solution = solve(problem, backend=backend, relative_gap=gap, time_limit_s=limit_s)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), solution


class Benchmark:
    """One run.

    Args:
        limit_s: Wall-clock seconds that another solver gets for a budget.
        minutes: After so many no other solver is asked any more.
        rivals: Which ones.
    """

    def __init__(self, *, limit_s: float, minutes: float, rivals: tuple[str, ...]) -> None:
        self.limit_s, self.rivals = limit_s, rivals
        self.end = time.monotonic() + 60.0 * minutes
        self.beaten: set[tuple[str, str]] = set()

    def our_limit_s(self, case: Case) -> float:
        """The same as the others get; where no solver finishes, what a user would wait."""
        return HARD_LIMIT_S if case.family in HARD else self.limit_s

    def run(self, case: Case) -> Result:
        """All solvers on one case."""
        costs, sizes = instances.FAMILIES[case.family](case.units, case.candidates, 0)
        timings = {name: Timing() for name in OURS}
        budgets = [instances.budget_at(sizes, fraction) for fraction in case.fractions]
        bounds: list[float] = []
        for budget in budgets:
            for name, backend in OURS.items():
                seconds, solution = time_ours(costs, sizes, budget, backend, self.our_limit_s(case))
                timings[name].seconds.append(seconds)
                timings[name].proven.append(solution.status is SolveStatus.OPTIMAL)
                timings[name].gap.append(solution.relative_gap)
            bounds.append(solution.lower_bound or 0.0)
        disproofs: list[str] = []
        for rival in self.rivals:
            timing = timings.setdefault(rival, Timing())
            for budget, bound in zip(budgets, bounds, strict=True):
                # The usual rule: who did not finish is not asked about more of the same kind.
                if (rival, case.family) in self.beaten or time.monotonic() > self.end:
                    break
                self.one(rival, case, (costs, sizes, budget), bound, timing, disproofs)
        return Result(case=case, timings=timings, disproofs=disproofs)

    def one(  # noqa: PLR0913, PLR0917 - one question and where its answer goes
        self,
        rival: str,
        case: Case,
        tables: tuple[np.ndarray, np.ndarray, int],
        bound: float,
        timing: Timing,
        disproofs: list[str],
    ) -> None:
        """Ask another solver about one budget."""
        costs, sizes, budget = tables
        answer = ask(rival, *tables, limit_s=self.limit_s)
        gap, proven = None, False
        if answer.slots is not None:
            at = np.arange(len(costs)), answer.slots
            fits = int(sizes[at].sum()) <= budget
            cost = float(costs[at].sum())
            scale = max(abs(cost), abs(bound)) or 1.0
            gap = (cost - bound) / scale if fits else None
            proven = answer.proven and fits
            if gap is not None and gap < -TOLERANCE:
                disproofs.append(f"{rival} on {case} at {budget} bits: {cost!r} is below our bound {bound!r}")
        timing.seconds.append(answer.seconds)
        timing.proven.append(proven)
        timing.gap.append(gap)
        if not proven:
            self.beaten.add((rival, case.family))


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1.0 else f"{seconds:.3g} s"


def cell(timing: Timing | None, fastest: float | None, limit_s: float) -> str:
    """Time to proof and how many times ours that is; or the limit and the gap there."""
    if timing is None or not timing.seconds:
        return ""
    if all(timing.proven):
        ratio = (
            ""
            if fastest is None or fastest in {0.0, float("inf")}
            else f" ({timing.median_s / fastest:,.0f}x)"
        )
        return duration(timing.median_s) + ratio
    gaps = [gap for gap in timing.gap if gap is not None]
    return f"> {limit_s:g} s, {f'gap {max(gaps):.0e}' if gaps else 'no plan'}"


def markdown(results: list[Result], found: list[Extra], limit_s: float) -> str:
    """The tables."""
    rivals = list(RIVALS)
    head = ["instance", "units", "candidates", *OURS, *rivals]
    legend = (
        f"Median time to proven optimum, processor seconds of one core ({platform.machine()}, Python "
        f"{platform.python_version()}); in brackets: times ours (compiled). `> t`: not proven within t, with the "
        "largest gap of its plan to our lower bound; empty: not asked (a smaller one was not finished, or out of time)."
    )
    lines = [
        legend,
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * 3 + "---:|" * (len(head) - 3),
    ]
    for result in results:
        case, fastest = result.case, result.timings["compiled"].median_s
        cells = [
            cell(result.timings[name], None, HARD_LIMIT_S if case.family in HARD else limit_s)
            for name in OURS
        ]
        cells += [cell(result.timings.get(name), fastest, limit_s) for name in rivals]
        lines.append("| " + " | ".join([case.family, f"{case.units:,}", str(case.candidates), *cells]) + " |")
    if found:
        lines += ["", "| beyond one budget | target | time | result |", "|---|---:|---:|---|"]
    lines += [f"| {x.name} | {duration(x.target_s)} | {duration(x.seconds)} | {x.found} |" for x in found]
    disproofs = [text for result in results for text in result.disproofs]
    checked = sum(len(t.seconds) for r in results for name, t in r.timings.items() if name not in OURS)
    lines += ["", f"Plans of other solvers below our lower bound: {len(disproofs)} of {checked}."]
    return "\n".join(lines + disproofs)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="up to 1,000 units of 6, the fastest rivals only"
    )
    parser.add_argument("--limit", type=float, help="seconds another solver gets for a budget (20; quick: 5)")
    parser.add_argument("--minutes", type=float, help="after these no other solver is asked (10; quick: 1)")
    parser.add_argument("--units", type=int, nargs="+", help="these sizes only, and no second table")
    parser.add_argument("--families", nargs="+", help="these families only, and no second table")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    return parser.parse_args()


def main() -> int:
    """Run; 1 if another solver's plan lies below our bound."""
    options = arguments()
    quick = options.quick
    limit_s = options.limit or (5.0 if quick else 20.0)
    if not warm_up(wait=True):
        print("numba is not installed: both columns of ours are NumPy", file=sys.stderr)
    run = Benchmark(
        limit_s=limit_s,
        minutes=options.minutes or (1.0 if quick else 10.0),
        rivals=("highspy", "CP-SAT") if quick else tuple(RIVALS),
    )
    part = options.units or options.families
    found = [] if part else extras(quick=quick)
    results = []
    try:
        for case in cases(quick=quick):
            if case.units not in (options.units or LENGTHS):
                continue
            if case.family not in (options.families or instances.FAMILIES):
                continue
            print(f"{case.family} {case.units} x {case.candidates} ...", file=sys.stderr, flush=True)
            results.append(run.run(case))
    except KeyboardInterrupt:
        print("interrupted: the table has what was done", file=sys.stderr)
    print(markdown(results, found, limit_s))
    if options.json is not None:
        document = {"results": [asdict(r) for r in results], "extras": [asdict(x) for x in found]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if any(result.disproofs for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
