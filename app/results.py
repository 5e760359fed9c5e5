"""The result document: what `GET /v1/jobs/{id}/result`, `bitwright search --json`, page and report all show.

Built here only. While a job runs it holds what is there so far.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from typing import Any

from sqlalchemy.orm import Session

from app.jobs.rules import split_sizes
from app.models import Dataset, Job, Model, Plan, PlanRole, utc_now
from app.plans import repository as plans
from app.plans.conclusion import is_remeasured
from app.plans.service import job_description, job_frontier
from app.plans.spec import sizes_of
from app.sensitivities.knowledge import is_complete, known, row_json
from workers.contracts import Candidate, ModelDescription, Scheme
from workers.sensitivity.operations import plan_bit_operations

VERSION = version("bitwright")
_ORIGINS = {PlanRole.UNIFORM: "uniform", PlanRole.ALTERNATIVE: "interactions"}


def job_result(session: Session, job: Job) -> dict[str, Any]:
    """Everything about a job in one document, JSON-serialisable.

    The plan of the job's first budget is spread out at the top level; the keys of a plan are absent from there until
    it exists.
    """
    model = session.get_one(Model, job.model_id)
    dataset = session.get_one(Dataset, job.dataset_id)
    evaluation = session.get_one(Dataset, job.evaluation_dataset_id) if job.evaluation_dataset_id else None
    assert model.description is not None
    description = ModelDescription.from_json(model.description)
    rows = known(session, job, description)
    complete = is_complete(session, job, description)
    requested = [plan_json(p, description) for p in plans.of_job(session, job.id, PlanRole.REQUESTED)]
    others = [plan_json(p, description) for p in plans.of_job(session, job.id, PlanRole.ALTERNATIVE)]
    uniform = [plan_json(p, description) for p in plans.of_job(session, job.id, PlanRole.UNIFORM)]
    return {
        "bitwright": VERSION,
        "job": job.id,
        "name": job.name,
        "state": job.state.value,
        "stage": job.stage.value if job.stage else None,
        "problem": job.problem,
        "model": _model_json(model, description),
        **_data_json(job, dataset, evaluation),
        "settings": {**job.request, "evaluation_dataset": job.evaluation_dataset_id},
        **_handed_over(requested),
        "plans": requested,
        "alternatives": others,
        "baselines": sorted(uniform, key=lambda plan: (plan["size_bits"] or 0, plan["id"])),
        "sensitivities": [row_json(row) for row in rows],
        "left_in_float": job.request.get("left_in_float", []),
        "units": [_unit_json(unit) for unit in model.description["units"]],
        "frontier": frontier_json(session, job) if complete else [],
        "seconds": _seconds(job),
    }


def plan_json(plan: Plan, description: ModelDescription) -> dict[str, Any]:
    """A plan as every document shows it. Sizes are in bits."""
    measured = plan.measured or {}
    searched = sum(u.weights for u in description.units if u.name in plan.choices)
    solver = {k: v for k, v in plan.solver.items() if k not in ("origin", "refining")}
    return {
        "id": plan.id,
        "job": plan.job_id,
        "name": plan.name,
        "role": plan.role.value,
        "spec": plan.spec,
        "budget": plan.budget,
        "budget_bits": plan.budget_bits,
        "status": plan.status,
        "objective": plan.objective,
        "lower_bound": plan.lower_bound,
        "relative_gap": plan.relative_gap,
        "size_bits": plan.size_bits,
        "file_size_bits": plan.file_size_bits,
        "average_bits": plan.size_bits / searched if plan.size_bits is not None and searched else None,
        "origin": _origin(plan),
        "solver": solver,
        "choices": plan.choices,
        "bit_operations": _bit_operations(plan, description),
        "predicted": plan.predicted,
        "measured": measured.get("values", {}),
        "measured_standard_error": measured.get("standard_error", {}),
        "created_at": plan.created_at.isoformat(),
    }


def _origin(plan: Plan) -> str:
    """How what is handed over, or this plan itself, was found."""
    own = "remeasured" if is_remeasured(plan) else _ORIGINS.get(plan.role, "search")
    return str(plan.solver.get("origin", own))


def _bit_operations(plan: Plan, description: ModelDescription) -> int | None:
    """What the plan takes to compute one sample; ``None`` where there is no plan."""
    if not plan.choices:
        return None
    choices = {
        unit: Candidate(
            bits=choice["bits"],
            scheme=Scheme.parse(choice["scheme"]),
            activation_bits=choice.get("activation_bits"),
        )
        for unit, choice in plan.choices.items()
    }
    return plan_bit_operations(description, choices)


def frontier_json(session: Session, job: Job) -> list[dict[str, Any]]:
    """The best predicted cost at each size, under the job's pins and ties, see `app.plans.frontier.best_costs`.

    Sizes are those that the job's budgets bind; ``average_bits`` is over the searched weights, so for the whole file
    it includes what is not searched.

    Raises:
        ResultNotReady: Entries are not measured yet.
    """
    weights = sizes_of(job_description(session, job), job.request["exclude"]).weights
    return [
        {
            "size_bits": point.size_bits,
            "average_bits": point.size_bits / weights,
            "objective": point.objective,
        }
        for point in job_frontier(session, job)
    ]


def _handed_over(requested: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first budget's plan, without what names the plan itself."""
    if not requested:
        return {}
    own = {"id", "job", "name", "role", "spec", "created_at"}
    return {"plan": requested[0]["id"]} | {k: v for k, v in requested[0].items() if k not in own}


def _model_json(model: Model, description: ModelDescription) -> dict[str, Any]:
    return {
        "id": model.id,
        "name": model.name,
        "sha256": model.sha256,
        "weights": description.weights,
        "units": len(description.units),
        "float_bits": description.float_bits,
        "unit_float_bits": description.unit_float_bits,
        "unsupported": [asdict(u) for u in description.unsupported],
    }


def _unit_json(unit: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in unit.items() if k != "group_axis"}


def _data_json(job: Job, dataset: Dataset, evaluation: Dataset | None) -> dict[str, Any]:
    """What was calibrated and what was evaluated on, with the number of samples of each."""
    used, held_out = split_sizes(dataset.samples, job.request["holdout"])
    wanted = job.request["samples"]
    calibration = _dataset_json(dataset, used if wanted is None else min(wanted, used))
    if evaluation is not None:
        return {"calibration": calibration, "evaluation": _dataset_json(evaluation, evaluation.samples)}
    aside = _dataset_json(dataset, held_out) | {"held_out": True} if held_out else None
    return {"calibration": calibration, "evaluation": aside}


def _dataset_json(dataset: Dataset, samples: int) -> dict[str, Any]:
    return {"id": dataset.id, "name": dataset.name, "sha256": dataset.sha256, "samples": samples}


def _seconds(job: Job) -> dict[str, float | None]:
    """Wall-clock seconds of each stage; the one that runs is counted up to now, those to come are ``None``."""
    end = job.finished_at or utc_now()

    def between(start: datetime | None, stop: datetime | None) -> float | None:
        return None if start is None else max(((stop or end) - start).total_seconds(), 0.0)

    return {
        "measure": between(job.started_at, job.measured_at),
        "solve": between(job.measured_at, job.solved_at),
        "verify": between(job.solved_at, job.finished_at),
        "total": between(job.started_at, job.finished_at),
    }
