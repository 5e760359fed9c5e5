"""Plans of a job: those for its budgets with their baselines, and those asked for later."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from app.db import Database
from app.errors import BudgetBelowMinimum, NotFound, ResultNotReady
from app.jobs.rules import check_spec
from app.kit.ids import content_sha256, is_id, new_id
from app.kit.locks import lock_name
from app.kit.recent import Recent
from app.models import Job, Model, Plan, PlanRole, Task, TaskKind, TaskState
from app.plans import repository
from app.plans.frontier import best_costs, together
from app.plans.planner import Cell, Draft, FrontierPoint, Search, prepare
from app.plans.spec import BudgetCounts, PlanSpec
from app.sensitivities import repository as sensitivities
from app.sensitivities.interactions import interactions_of
from app.sensitivities.knowledge import Sensitivity, is_complete, known
from app.sensitivities.survivors import survivors
from solver import SolveStatus
from workers.contracts import ModelDescription

JOB_TIME_LIMIT_S = 60.0
"""Longest search for one of a job's budgets."""
INTERACTIONS_TIME_LIMIT_S = 30.0
"""Longest search with interactions for one of a job's budgets."""
ADHOC_TIME_LIMIT_S = 5.0
"""Longest search while a client waits."""
_SEARCHES: Recent[tuple[str, str], Search] = Recent(16)
_FRONTIERS: Recent[str, tuple[FrontierPoint, ...]] = Recent(16)


@dataclass(frozen=True, kw_only=True)
class PlanChange:
    """What a later plan changes; ``None`` keeps what the job has."""

    budget: str
    budget_counts: BudgetCounts | None = None
    pins: dict[str, int] | None = None
    ties: list[list[str]] | None = None
    exclude: list[str] | None = None
    limits: dict[str, str] | None = None
    name: str = ""
    measure: bool = False


@dataclass(frozen=True, kw_only=True)
class PlanLabel:
    """Why a plan exists and what it answers."""

    role: PlanRole
    name: str
    spec: dict[str, Any]
    ordinal: int = 0


@dataclass(frozen=True, kw_only=True)
class Created:
    """A plan, and whether it is new."""

    plan: Plan
    new: bool


def get_plan(session: Session, plan_id: str) -> Plan:
    """A plan by its id.

    Raises:
        NotFound: There is none.
    """
    plan = repository.get(session, plan_id) if is_id("pln", plan_id) else None
    if plan is None:
        raise NotFound(f"there is no plan {plan_id!r}", "plan", plan_id)
    return plan


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """A plan that a job needs, not yet stored."""

    draft: Draft
    label: PlanLabel


def solve_job(session: Session, job_id: str) -> None:
    """Make and store a job's plans, in one transaction.

    Raises:
        ResultNotReady: Entries are not measured yet.
        SolverError: The request contradicts the measurements.
    """
    store_job_plans(session, job_id, draft_job(session, job_id))


def draft_job(session: Session, job_id: str) -> list[JobPlan]:
    """A job's plans; reads only, since searching may take seconds.

    One for each budget, another one where interactions lead elsewhere, and a uniform baseline for each bit-width.

    Raises:
        ResultNotReady: Entries are not measured yet.
        SolverError: The request contradicts the measurements.
    """
    job = session.get_one(Job, job_id)
    request = job.request
    search = search_of(session, job, job_spec(request))
    plans: list[JobPlan] = []
    for ordinal, budget in enumerate(request["budgets"]):
        draft = search.plan(budget, time_limit_s=JOB_TIME_LIMIT_S)
        spec = job_spec(request, budget).to_json()
        label = PlanLabel(role=PlanRole.REQUESTED, name=budget, spec=spec, ordinal=ordinal)
        plans.append(JobPlan(draft=draft, label=label))
        other = search.alternative(budget, time_limit_s=INTERACTIONS_TIME_LIMIT_S) if draft.choices else None
        if other is not None and other.choices != draft.choices:
            label = PlanLabel(
                role=PlanRole.ALTERNATIVE,
                name=f"{budget}, with interactions",
                spec=spec | {"interactions": True},
                ordinal=ordinal,
            )
            plans.append(JobPlan(draft=other, label=label))
    for ordinal, bits in enumerate(request["candidates"]):
        spec = {"uniform": bits, **_offered_by(request), "exclude": sorted(request["exclude"])}
        label = PlanLabel(role=PlanRole.UNIFORM, name=f"uniform {bits} bits", spec=spec, ordinal=ordinal)
        plans.append(JobPlan(draft=search.uniform(bits), label=label))
    return plans


def _offered_by(request: dict[str, Any]) -> dict[str, Any]:
    """What decides which quantizers there are."""
    if "target" in request:
        return {"target": request["target"], "menu": request["menu"]}
    return {"schemes": request["schemes"]}


def add_plan(session: Session, job_id: str, plan: JobPlan) -> None:
    """Store a plan with the task that measures it, unless it is there already."""
    _add(session, job_id, plan.draft, plan.label)


def store_job_plans(session: Session, job_id: str, plans: Sequence[JobPlan]) -> None:
    """Store a job's plans, each with its VERIFY task. Safe to do twice: plans that exist are left alone."""
    for plan in plans:
        add_plan(session, job_id, plan)


def search_of(session: Session, job: Job, spec: PlanSpec) -> Search:
    """What plans for a job are made from, under the rules of a specification.

    What is known does not change once a job is past measuring, so that it is kept for the next budget.

    Raises:
        ResultNotReady: Entries are not measured yet.
        SolverError: The rules contradict each other.
    """
    if job.solved_at is None:
        return _prepare(session, job, spec)
    return _SEARCHES.get((job.id, spec.rules_sha256), lambda: _prepare(session, job, spec))


def job_frontier(session: Session, job: Job) -> list[FrontierPoint]:
    """The best predicted cost at each size, under a job's pins and ties; sizes as its budgets count them.

    None of the plans found for it lies below. While the job has no plans yet: the points on the convex hull.

    Raises:
        ResultNotReady: Entries are not measured yet.
        SolverError: The rules contradict each other.
    """
    spec = job_spec(job.request)
    search = search_of(session, job, spec)
    if job.solved_at is None:
        return list(search.frontier)
    budgets = [search.sizes.budget_bits(text, search.counts) for text in job.request["budgets"]]
    points = _FRONTIERS.get(job.id, lambda: best_costs(search, budgets))
    plans = repository.of_job(session, job.id, PlanRole.REQUESTED, PlanRole.ADHOC)
    return together(points, _plan_points(plans, spec))


def _plan_points(plans: Iterable[Plan], spec: PlanSpec) -> Iterator[FrontierPoint]:
    """What the search found for budgets under these rules; further limits make plans no cheaper."""
    free = ("budget", "limits")
    rules = {k: v for k, v in spec.to_json().items() if k not in free}
    for plan in plans:
        size = plan.file_size_bits if spec.budget_counts is BudgetCounts.FILE else plan.size_bits
        if size is None or plan.objective is None or plan.solver.get("origin", "search") != "search":
            continue
        if {k: v for k, v in plan.spec.items() if k not in free} == rules:
            yield FrontierPoint(size_bits=size, objective=plan.objective)


def _prepare(session: Session, job: Job, spec: PlanSpec) -> Search:
    description = job_description(session, job)
    if not is_complete(session, job, description):
        found = sensitivities.count(session, job.id)
        raise ResultNotReady(
            f"job {job.id} has measured {found.done} of {found.total} entries; plans need all of them",
            "job",
            job.id,
            "a job whose measurements are complete",
            {"state": job.state.value, "done": found.done, "total": found.total},
        )
    search = prepare_search(job, description, known(session, job, description), spec)
    return replace(search, interactions=interactions_of(session, job, description, search))


def prepare_search(
    job: Job, description: ModelDescription, rows: Sequence[Sensitivity], spec: PlanSpec | None = None
) -> Search:
    """What plans are made from, without interactions: of every unit the candidates that may be worth their size.

    Args:
        job: Whose.
        description: Of its model.
        rows: What is known of every candidate.
        spec: The rules; the job's own when not given.

    Raises:
        SolverError: The rules contradict each other.
    """
    rules = spec or job_spec(job.request)
    cells = [
        Cell(
            unit=r.unit,
            bits=r.bits,
            scheme=r.scheme,
            cost=r.mean,
            size_bits=r.size_bits,
            storage_bits=r.storage_bits,
            activation_bits=r.activation_bits,
        )
        for r in survivors(rows, ties=rules.ties)
    ]
    return prepare(description, cells, rules, metric=job.request["predicts"])


def job_description(session: Session, job: Job) -> ModelDescription:
    """What intake told of the job's model."""
    model = session.get_one(Model, job.model_id)
    assert model.description is not None
    return ModelDescription.from_json(model.description)


def list_plans(session: Session, job: Job, roles: Sequence[PlanRole]) -> Sequence[Plan]:
    """A job's plans of these roles."""
    return repository.of_job(session, job.id, *roles)


def create_plan(database: Database, job_id: str, change: PlanChange) -> Created:
    """Solve for another budget, other pins or ties, on the measurements a job already has.

    Asking for the same again gives the same plan. With ``measure`` a worker also measures it.

    Raises:
        NotFound: There is no such job.
        ResultNotReady: The job has not measured everything yet.
        InvalidRequest: A pin, tie or exclusion does not fit.
        BudgetBelowMinimum: No plan is that small.
        SolverError: The budget is malformed, or rules contradict each other.
    """
    with database.read() as session:
        job = session.get(Job, job_id) if is_id("job", job_id) else None
        if job is None:
            raise NotFound(f"there is no job {job_id!r}", "job", job_id)
        request = job.request
        spec = _changed_spec(request, change)
        check_spec(job_description(session, job), spec, request["candidates"], field="budget")
        search = search_of(session, job, spec)
        existing = repository.by_spec(session, job_id, spec.sha256)
    draft = None
    if existing is None:
        draft = search.plan(spec.budget, time_limit_s=ADHOC_TIME_LIMIT_S)
        _require_plan(spec, draft)
    return _store_adhoc(database, job_id, spec, draft, change)


def _store_adhoc(
    database: Database, job_id: str, spec: PlanSpec, draft: Draft | None, change: PlanChange
) -> Created:
    with database.write() as session:
        lock_name(session, f"plans:{job_id}")
        plan = repository.by_spec(session, job_id, spec.sha256)
        new = plan is None
        if plan is None:
            assert draft is not None
            label = PlanLabel(role=PlanRole.ADHOC, name=change.name or spec.budget, spec=spec.to_json())
            plan = _insert(session, job_id, draft, label)
        if change.measure and plan.choices and plan.measured is None:
            _verify(session, plan)
        return Created(plan=plan, new=new)


def _changed_spec(request: dict[str, Any], change: PlanChange) -> PlanSpec:
    return PlanSpec(
        budget=change.budget.strip(),
        budget_counts=change.budget_counts or BudgetCounts(request["budget_counts"]),
        pins=request["pins"] if change.pins is None else change.pins,
        ties=request["ties"] if change.ties is None else change.ties,
        exclude=request["exclude"]
        if change.exclude is None
        else sorted({*request["exclude"], *change.exclude}),
        limits=request["limits"] if change.limits is None else change.limits,
    )


def job_spec(request: dict[str, Any], budget: str = "") -> PlanSpec:
    """What a job asks of its plans, with one of its budgets or without."""
    return PlanSpec(
        budget=budget,
        budget_counts=BudgetCounts(request["budget_counts"]),
        pins=request["pins"],
        ties=request["ties"],
        exclude=request["exclude"],
        limits=request["limits"],
    )


def _require_plan(spec: PlanSpec, draft: Draft) -> None:
    if draft.choices:
        return
    minimum = draft.solver.get("minimum_bits")
    if draft.status == SolveStatus.INFEASIBLE and minimum is not None:
        raise below_minimum("budget", spec.budget, draft.budget_bits or 0, minimum)
    raise ResultNotReady(
        f"no plan for budget {spec.budget!r} was found in {ADHOC_TIME_LIMIT_S:g} s (status {draft.status})",
        "budget",
        spec.budget,
        "a budget with more room",
    )


def below_minimum(field: str, text: str, budget_bits: int, minimum: int) -> BudgetBelowMinimum:
    """The error for a budget that no plan keeps; it tells the smallest that one does."""
    return BudgetBelowMinimum(
        f"budget {text!r} is {budget_bits} bits; the smallest possible plan takes {minimum} bits",
        field,
        text,
        f"{minimum} bits total or more",
        {"minimum_bits": minimum, "minimum": f"{minimum} bits total", "budget_bits": budget_bits},
    )


def _add(session: Session, job_id: str, draft: Draft, label: PlanLabel) -> None:
    """Store one of a job's own plans with the task that measures it, unless it is there already."""
    if repository.by_spec(session, job_id, content_sha256(label.spec)) is not None:
        return
    plan = _insert(session, job_id, draft, label)
    if plan.choices:
        _verify(session, plan)


def _insert(session: Session, job_id: str, draft: Draft, label: PlanLabel) -> Plan:
    plan = Plan(
        id=new_id("pln"),
        job_id=job_id,
        role=label.role,
        ordinal=label.ordinal,
        name=label.name,
        spec=label.spec,
        spec_sha256=content_sha256(label.spec),
        budget=label.spec.get("budget"),
        budget_bits=draft.budget_bits,
        status=draft.status,
        objective=draft.objective,
        lower_bound=draft.lower_bound,
        relative_gap=draft.relative_gap,
        size_bits=draft.size_bits,
        file_size_bits=draft.file_size_bits,
        choices=draft.choices,
        predicted=draft.predicted,
        solver=draft.solver,
    )
    session.add(plan)
    session.flush()
    return plan


def _verify(session: Session, plan: Plan) -> None:
    """Have a worker measure the plan, unless one is already asked to."""
    waiting = (TaskState.PENDING, TaskState.RUNNING)
    if any(task.state in waiting for task in repository.tasks(session, plan.id)):
        return
    session.add(
        Task(
            id=new_id("tsk"),
            kind=TaskKind.VERIFY,
            job_id=plan.job_id,
            plan_id=plan.id,
            ordinal=plan.ordinal,
            state=TaskState.PENDING,
        )
    )
