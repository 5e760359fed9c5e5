"""The steps around the plan of a budget, as rows: what was tried, the parts of the work on the next one, and the end.

A step is made in two goes of parts that may be done in any order, by as many workers as there are: the probes (with the plan
itself to be measured, before the first step), then the step and those made without some of the samples. Whoever finishes the
last part of a go sees what is next, in the same transaction.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from app.jobs import tasks
from app.kit.ids import new_id
from app.kit.locks import lock_name
from app.models import PartKind, Plan, PlanRole, PlanTrial, Task, TaskKind, TaskState, TrialPart
from app.plans import repository
from app.plans.allowance import probe_passes
from app.plans.conclusion import is_better, is_remeasured
from app.plans.refinement import (
    CROSSED,
    End,
    Turn,
    crossed_changes,
    judge,
    next_turn,
    partitions,
    passes_ahead,
    unchanged,
)
from app.plans.refining import PROBES, Choices, Refinement, changed, name_of, refinement_of
from app.plans.service import JobPlan, PlanLabel, add_plan, job_spec

_OPEN = (TaskState.PENDING, TaskState.RUNNING)
_MEASURED = (PartKind.BASE, PartKind.STEP, PartKind.CROSSED)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a task is to do.

    Args:
        ordinal: Of the budget.
        number: Of the step.
        kind: What is to be done.
        place: Which part of its kind.
    """

    ordinal: int
    number: int
    kind: PartKind
    place: int

    @classmethod
    def of(cls, row: TrialPart) -> Self:
        """What a row tells."""
        return cls(ordinal=row.ordinal, number=row.number, kind=row.kind, place=row.place)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A part, and what it takes in float passes over the samples, as reckoned."""

    part: Part
    passes: float

    @classmethod
    def of(cls, at: Refinement, number: int, kind: PartKind, place: int, passes: float) -> Self:
        """A part of a step around the plan of a budget."""
        return cls(part=Part(ordinal=at.ordinal, number=number, kind=kind, place=place), passes=passes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """How far the steps around the plan of a budget are.

    Args:
        base: The plan to look around.
        turn: What is next.
        tried: Where steps around it have led so far.
    """

    base: Choices
    turn: Turn
    tried: tuple[Choices, ...]


def part_of(session: Session, task_id: str) -> Part:
    """What a REFINE task is to do."""
    row = session.scalars(select(TrialPart).where(TrialPart.task_id == task_id)).one()
    return Part.of(row)


def standing_of(session: Session, at: Refinement) -> Standing | None:
    """How far the steps are; ``None`` where there is nothing to look around, or no more to do."""
    plan = _plan(session, at.job_id, at.ordinal)
    if plan is None or not plan.choices or "refinement" in plan.solver:
        return None
    trials = repository.trials(session, at.job_id, at.ordinal)
    turn = next_turn(
        [trial.outcome for trial in trials],
        rounds=at.request["refine_rounds"],
        regret=at.request.get("regret") or 0.0,
    )
    tried = tuple(trials[number].choices for number in turn.tried)
    return Standing(base=_base(session, at, plan, trials), turn=turn, tried=tried)


def _plan(session: Session, job_id: str, ordinal: int) -> Plan | None:
    plans = repository.of_job(session, job_id, PlanRole.REQUESTED)
    return next((plan for plan in plans if plan.ordinal == ordinal), None)


def _base(session: Session, at: Refinement, plan: Plan, trials: Sequence[PlanTrial]) -> Choices:
    """The last step that was taken, else the better plan of those that the search made."""
    for trial in reversed(trials):
        if trial.outcome["accepted"]:
            return trial.choices
    if trials:
        return trials[0].base
    for other in repository.of_job(session, at.job_id, PlanRole.ALTERNATIVE):
        if (
            other.ordinal == plan.ordinal
            and not is_remeasured(other)
            and is_better(other, plan, at.request["compare"])
        ):
            return other.choices
    return plan.choices


def begin(session: Session, job_id: str, ordinal: int) -> None:
    """Have a worker see what there is to do around the plan of a budget."""
    start = Part(ordinal=ordinal, number=0, kind=PartKind.START, place=0)
    _queue(session, job_id, [Work(part=start, passes=0.0)])


def lock(session: Session, job_id: str, ordinal: int) -> None:
    """Keep others from finishing parts of the same steps: of two that finish at once, one has to see both done."""
    lock_name(session, f"refine:{job_id}:{ordinal}")


def store_measured(
    session: Session, job_id: str, part: Part, choices: Choices | None, costs: NDArray[np.float64]
) -> None:
    """Write down what a part measured.

    Args:
        session: For writing.
        job_id: Of the job.
        part: Which.
        choices: Where the step leads, of the part that tells.
        costs: Of the part's samples; not-a-number where a step leads nowhere.
    """
    row = session.get_one(TrialPart, (job_id, part.ordinal, part.number, part.kind, part.place))
    row.choices, row.costs = choices, costs.astype("<f8").tobytes()
    session.flush()


def go_on(session: Session, at: Refinement) -> None:
    """Queue what is to be done next, once nothing is left of what was queued before; `lock` is held."""
    if _is_open(session, at):
        return
    while (standing := standing_of(session, at)) is not None:
        turn = standing.turn
        rows = [row for row in _rows(session, at) if row.number == turn.number]
        kinds = {row.kind for row in rows}
        if PartKind.STEP in kinds:
            _conclude(session, at, standing, rows)
            continue
        if kinds & {PartKind.PROBE}:
            _queue_next(session, at, turn, _measuring(at, turn.number))
            return
        wanted, then = _probing(at, standing), _measuring(at, turn.number)
        end = at.obstacle or turn.end
        if end is None and turn.trust is not None:
            end = _unaffordable(session, at, wanted, then)
        if turn.best is not None and (end is not None or turn.trust is None):
            _take(session, at, turn.best)
            continue
        if end is not None:
            finish(session, at, standing.base, end)
            return
        _queue_next(session, at, turn, wanted or then)
        return


def give_up(session: Session, at: Refinement, problem: str) -> None:
    """End the steps because of an error, with those that were taken, and the best one that holds around the last plan."""
    standing = standing_of(session, at)
    if standing is not None and standing.turn.best is not None:
        _take(session, at, standing.turn.best)
        standing = standing_of(session, at)
    if standing is not None:
        finish(session, at, standing.base, End.FAILED, problem)


def abandoned(session: Session, task_id: str, given_up: Callable[[], bool], problem: str) -> bool:
    """End the steps of a task that nobody can do: the plans are there without them.

    Args:
        session: For writing.
        task_id: A REFINE task.
        given_up: Gives the task up, if it still is as it was found.
        problem: What went wrong with it.

    Returns:
        Whether it was given up.

    Raises:
        SolverError: See `refinement_of`.
    """
    job_id, part = session.get_one(Task, task_id).job_id, part_of(session, task_id)
    assert job_id is not None
    lock(session, job_id, part.ordinal)
    done = given_up()
    if done:
        give_up(session, refinement_of(session, job_id, part.ordinal), problem)
    return done


def finish(session: Session, at: Refinement, base: Choices, end: End, problem: str | None = None) -> None:
    """End the steps: say why, and have the plan verified that they led to, if any was taken.

    Args:
        session: For writing.
        at: Around which budget's plan.
        base: Where the steps led.
        end: Why.
        problem: What went wrong, if anything did.
    """
    plan = _plan(session, at.job_id, at.ordinal)
    assert plan is not None
    spent = math.fsum(row.work for row in _rows(session, at))
    about = {"ended": end.value, "passes": spent, "allowed_passes": at.allowance.passes}
    kept = {name: value for name, value in plan.solver.items() if name != "refining"}
    plan.solver = kept | {"refinement": about | ({} if problem is None else {"problem": problem})}
    taken = [t.outcome for t in repository.trials(session, at.job_id, at.ordinal) if t.outcome["accepted"]]
    if not taken:
        session.flush()
        return
    draft = at.search.chosen({unit: name_of(choice) for unit, choice in base.items()})
    budget_bits = at.search.sizes.budget_bits(at.budget, at.search.counts)
    details = {"backend": "remeasured", "remeasured": {"rounds": len(taken), "steps": taken}}
    label = PlanLabel(
        role=PlanRole.ALTERNATIVE,
        name=f"{at.budget}, measured again",
        spec=job_spec(at.request, at.budget).to_json() | {"remeasured": True},
        ordinal=at.ordinal,
    )
    found = replace(draft, budget_bits=budget_bits, solver=draft.solver | details)
    add_plan(session, at.job_id, JobPlan(draft=found, label=label))


def _is_open(session: Session, at: Refinement) -> bool:
    query = (
        exists()
        .where(TrialPart.job_id == at.job_id, TrialPart.ordinal == at.ordinal)
        .where(Task.id == TrialPart.task_id, Task.state.in_(_OPEN))
    )
    return bool(session.scalar(select(query)))


def _rows(session: Session, at: Refinement) -> Sequence[TrialPart]:
    query = select(TrialPart).where(TrialPart.job_id == at.job_id, TrialPart.ordinal == at.ordinal)
    return session.scalars(query.order_by(TrialPart.number, TrialPart.kind, TrialPart.place)).all()


def _probing(at: Refinement, standing: Standing) -> list[Work]:
    """What has to be known of a plan before steps from it are made; nothing for another step from the same plan."""
    if standing.tried:
        return []
    passes, blocks = probe_passes(PROBES + 1), [part.block for part in at.probes(standing.base)]
    number = standing.turn.number
    parts = [
        Work.of(at, number, PartKind.PROBE, place, passes * (stop - start) / at.samples)
        for place, (start, stop) in enumerate(blocks)
    ]
    if number == 0:  # later ones were measured as steps
        parts.append(Work.of(at, number, PartKind.BASE, 0, 1.0))
    return parts


def _measuring(at: Refinement, number: int) -> list[Work]:
    """The step, and those made without some of the samples; what takes longest first."""
    ways = partitions(at.samples)
    crossed = [
        Work.of(at, number, PartKind.CROSSED, place, sum(len(ways[way][fold]) for fold in folds) / at.samples)
        for place, (way, folds) in enumerate(CROSSED)
    ]
    return [Work.of(at, number, PartKind.STEP, 0, 1.0), *crossed]


def _unaffordable(
    session: Session, at: Refinement, probing: Sequence[Work], measuring: Sequence[Work]
) -> End | None:
    """Why the passes that a step takes are too many, if they are."""
    rows = _rows(session, at)
    spent = [Work(part=Part.of(row), passes=row.work) for row in rows]
    step = [*probing, *measuring]
    return at.allowance.ends(
        spent=_passes(spent),
        measured=_passes(spent, *_MEASURED),
        probing=_passes(step, PartKind.PROBE),
        measuring=_passes(step, *_MEASURED),
    )


def _passes(work: Iterable[Work], *kinds: PartKind) -> float:
    return math.fsum(each.passes for each in work if not kinds or each.part.kind in kinds)


def _queue_next(session: Session, at: Refinement, turn: Turn, work: Sequence[Work]) -> None:
    """Queue what is next, and note how much is likely to follow: what tells of progress has only rows."""
    _queue(session, at.job_id, work)
    plan = _plan(session, at.job_id, at.ordinal)
    assert plan is not None
    ahead = passes_ahead(
        turn,
        rounds=at.request["refine_rounds"],
        queued=int(any(each.part.kind is PartKind.STEP for each in work)),
        probing=probe_passes(PROBES + 1),
        measuring=_passes(_measuring(at, turn.number)),
    )
    spent = math.fsum(row.work for row in _rows(session, at))
    plan.solver = plan.solver | {"refining": {"passes_ahead": at.allowance.cut(spent, ahead)}}
    session.flush()


def _queue(session: Session, job_id: str, work: Sequence[Work]) -> None:
    """One task for each part."""
    for ordinal, each in enumerate(work, start=tasks.task_count(session, job_id, TaskKind.REFINE)):
        task = Task(id=new_id("tsk"), kind=TaskKind.REFINE, job_id=job_id, ordinal=ordinal)
        session.add(task)
        session.flush()
        session.add(TrialPart(job_id=job_id, task_id=task.id, work=each.passes, **vars(each.part)))
    session.flush()


def _conclude(session: Session, at: Refinement, standing: Standing, rows: Sequence[TrialPart]) -> None:
    """Judge a step whose parts are all done, and write down what came of it."""
    turn = standing.turn
    measured = {(row.kind, row.place): np.frombuffer(row.costs or b"", "<f8") for row in rows}
    before, after = _costs_of(session, at), measured[PartKind.STEP, 0]
    choices = next(row.choices for row in rows if row.kind is PartKind.STEP)
    if choices is None:
        choices, outcome = standing.base, unchanged(turn, before)
    else:
        crossed = _crossed(before, [measured[PartKind.CROSSED, place] for place in range(len(CROSSED))])
        outcome = judge(turn, changed(standing.base, choices), before, after, crossed)
    trial = PlanTrial(job_id=at.job_id, ordinal=at.ordinal, number=turn.number)
    trial.base, trial.choices, trial.outcome = standing.base, choices, outcome.to_json()
    session.add(trial)
    session.flush()


def _take(session: Session, at: Refinement, number: int) -> None:
    """Take a step that was tried: what comes next is tried from where it leads."""
    trial = session.get_one(PlanTrial, (at.job_id, at.ordinal, number))
    trial.outcome = trial.outcome | {"accepted": True}
    session.flush()


def _costs_of(session: Session, at: Refinement) -> NDArray[np.float64]:
    """What the plan that steps are tried from costs: measured as the last step that was taken, or before the first one."""
    kind, number = PartKind.BASE, 0
    for trial in repository.trials(session, at.job_id, at.ordinal):
        if trial.outcome["accepted"]:
            kind, number = PartKind.STEP, trial.number
    row = session.get_one(TrialPart, (at.job_id, at.ordinal, number, kind, 0))
    return np.frombuffer(row.costs or b"", "<f8")


def _crossed(before: NDArray[np.float64], parts: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """For either way of cutting the samples, the change of each by the step that has not seen it."""
    ways = partitions(len(before))
    found: list[dict[int, NDArray[np.float64] | None]] = [{} for _ in ways]
    for (way, folds), costs in zip(CROSSED, parts, strict=True):
        ends = np.cumsum([len(ways[way][fold]) for fold in folds])[:-1]
        for fold, of_fold in zip(folds, np.split(costs, ends), strict=True):
            found[way][fold] = None if np.isnan(of_fold).any() else of_fold
    return [crossed_changes(before, folds, of_way.get) for folds, of_way in zip(ways, found, strict=True)]
