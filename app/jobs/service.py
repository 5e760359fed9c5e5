"""Jobs: created, found, cancelled. What runs them is the dispatcher's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.datasets.rules import check_dataset, has_labels
from app.errors import InvalidRequest, JobFinished, KeyReused, ModelNotReady, NotFound
from app.jobs import repository, rules, tasks
from app.jobs.blocks import measure_blocks
from app.jobs.candidates import (
    DEFAULT_CANDIDATES,
    Offered,
    check_activations,
    check_candidates,
    check_left_in_float,
    check_schemes,
    check_schemes_or_target,
    check_target,
)
from app.jobs.keys import SampleChoice
from app.jobs.mixing import Mixture, OutputShare, check_outputs
from app.jobs.offer import SHORT
from app.jobs.outputs import with_output_first
from app.jobs.rules import Method
from app.jobs.schemas import JobCreate, OutputShareCreate
from app.kit.ids import content_sha256, is_id, new_id
from app.kit.locks import lock_name
from app.kit.pages import Cursor
from app.models import (
    Dataset,
    IdempotencyKey,
    Job,
    JobState,
    Model,
    ModelState,
    utc_now,
)
from app.plans.service import below_minimum
from app.plans.spec import BudgetCounts, PlanSpec, minimum_bits, sizes_of
from app.settings import Settings
from solver.errors import BudgetError
from workers.contracts import Metric, ModelDescription
from workers.sensitivity.sharding import free_positions


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job, and whether it is new or the answer to an earlier request with the same key."""

    job: Job
    new: bool


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """A request that can be met."""

    model: Model
    dataset: Dataset
    evaluation: Dataset | None
    description: ModelDescription
    request: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some jobs, and where the next ones begin."""

    jobs: Sequence[Job]
    next_cursor: str | None


def create_job(
    session: Session, create: JobCreate, settings: Settings, idempotency_key: str | None = None
) -> Job:
    """Check a request and queue it: the job, what it needs measured, and the shards, in the caller's transaction.

    Args:
        session: A session for writing.
        create: The request.
        settings: Of the service.
        idempotency_key: The same key with the same request gives the same job.

    Returns:
        The job, queued; or the earlier one with that key.

    Raises:
        NotFound: No such model or dataset.
        ModelNotReady: The model is not inspected, or was refused.
        InvalidRequest: A value does not fit the model or the data; names field, value and what is allowed.
        BudgetBelowMinimum: No plan is that small.
        KeyReused: The key came with another request.
        WorkerError, SolverError: A candidate, scheme, dataset or budget is not acceptable.
    """
    return submit_job(session, create, settings, idempotency_key).job


def submit_job(
    session: Session, create: JobCreate, settings: Settings, idempotency_key: str | None = None
) -> Submission:
    """As `create_job`; tells whether the job is new."""
    body_sha256 = content_sha256(create.model_dump(mode="json"))
    if idempotency_key is not None:
        lock_name(session, f"idempotency:{idempotency_key}")
        known = repository.idempotency(session, idempotency_key)
        if known is not None:
            return Submission(job=_answered(session, known, body_sha256), new=False)
    job = _queue(session, _check(session, create, settings), create, settings)
    if idempotency_key is not None:
        session.add(IdempotencyKey(key=idempotency_key, body_sha256=body_sha256, job_id=job.id))
        session.flush()
    return Submission(job=job, new=True)


def get_job(session: Session, job_id: str) -> Job:
    """A job by its id.

    Raises:
        NotFound: There is none.
    """
    job = repository.get(session, job_id) if is_id("job", job_id) else None
    if job is None:
        raise NotFound(f"there is no job {job_id!r}", "job", job_id)
    return job


def list_jobs(  # noqa: PLR0913 - one keyword for each filter
    session: Session,
    *,
    limit: int,
    cursor: str | None = None,
    state: JobState | None = None,
    model_id: str | None = None,
    owner: str | None = None,
) -> Page:
    """A page of jobs, newest first.

    Raises:
        InvalidRequest: The cursor is not one of ours.
    """
    after = None if cursor is None else Cursor.decode(cursor)
    jobs = repository.page(
        session, limit=limit + 1, cursor=after, state=state, model_id=model_id, owner=owner
    )
    shown = jobs[:limit]
    more = len(jobs) > limit
    last = Cursor(created_at=shown[-1].created_at, id=shown[-1].id).encode() if more else None
    return Page(jobs=shown, next_cursor=last)


def cancel_job(session: Session, job_id: str) -> Job:
    """End a job. What is measured is kept; tasks stop at their next entry, as the dispatcher and they see the state.

    Raises:
        NotFound: There is no such job.
        JobFinished: It has already ended.
    """
    job = repository.for_update(session, job_id) if is_id("job", job_id) else None
    if job is None:
        raise NotFound(f"there is no job {job_id!r}", "job", job_id)
    if job.state.final:
        raise JobFinished(
            f"job {job.id} is {job.state.value} already",
            "state",
            job.state.value,
            [JobState.QUEUED.value, JobState.RUNNING.value],
        )
    job.state = JobState.CANCELLED
    job.finished_at = utc_now()
    session.flush()
    return job


def _answered(session: Session, known: IdempotencyKey, body_sha256: str) -> Job:
    if known.body_sha256 != body_sha256:
        raise KeyReused(
            f"Idempotency-Key {known.key!r} came with another request before (job {known.job_id})",
            "Idempotency-Key",
            known.key,
            "the same request, or a new key",
            {"job": known.job_id},
        )
    return session.get_one(Job, known.job_id)


def _check(session: Session, create: JobCreate, settings: Settings) -> _Checked:
    model, description = _ready_model(session, create.model)
    mixture = _mixture(create, description)
    compared = with_output_first(description, create.output) if mixture is None else mixture.description
    dataset = _fitting_dataset(session, "dataset", create.dataset, compared)
    evaluation = None
    if create.evaluation_dataset is not None:
        evaluation = _fitting_dataset(session, "evaluation_dataset", create.evaluation_dataset, compared)
    offered = _offered(create, description)
    compare = create.compare
    if mixture is not None and create.metric not in (Metric.KL, Metric.MSE):
        compare = mixture.compare
    method = rules.check_method(
        create.metric, compare, compared, regret=create.regret, max_passes=create.max_passes
    )
    if method.compare is Metric.LOSS:
        _require_labels(dataset, "dataset")
        if evaluation is not None:
            _require_labels(evaluation, "evaluation_dataset")
    rules.check_samples(
        create.samples, create.holdout, dataset.samples, has_evaluation=evaluation is not None
    )
    exclude = [*create.exclude, *offered.left_in_float]
    _check_budgets(create, description, offered.candidates, exclude)
    return _Checked(
        model=model,
        dataset=dataset,
        evaluation=evaluation,
        description=description,
        request={
            **offered.to_json(),
            "activation_candidates": check_activations(create.activation_candidates),
            **_measuring(create, method),
            **_blocks(create, method, compared, dataset),
            **_output(create, compared, mixture),
            **_refining(create, method),
            **_canonical(create, settings),
            **rules.check_compute_dtype(create.compute_dtype),
            "exclude": sorted(set(exclude)),
        },
    )


def _mixture(create: JobCreate, description: ModelDescription) -> Mixture | None:
    if not create.outputs:
        return None
    if create.output is not None:
        raise InvalidRequest(
            "both output and outputs are given", "outputs", sorted(create.outputs), "one of the two"
        )
    shares = {
        name: OutputShare(weight=share.weight, compare=share.compare)
        if isinstance(share, OutputShareCreate)
        else OutputShare(weight=share)
        for name, share in create.outputs.items()
    }
    return check_outputs(description, shares, create.metric, create.compare)


def _output(create: JobCreate, compared: ModelDescription, mixture: Mixture | None) -> dict[str, str]:
    """What is compared, where the request says so."""
    if mixture is not None:
        return {"output": mixture.text}
    return {} if create.output is None else {"output": compared.outputs[0].name}


def _offered(create: JobCreate, description: ModelDescription) -> Offered:
    """What weights may become, by schemes or by a target."""
    check_schemes_or_target(create.scheme, create.schemes, create.target, create.menu)
    if create.target is None:
        given = DEFAULT_CANDIDATES if create.candidates is None else create.candidates
        return Offered(
            candidates=check_candidates(given), schemes=check_schemes(create.scheme, create.schemes)
        )
    offered = check_target(
        description, create.target, create.menu or SHORT, create.candidates, create.exclude
    )
    check_left_in_float(offered.left_in_float, create.target, create.pins, create.ties)
    return offered


def _measuring(create: JobCreate, method: Method) -> dict[str, Any]:
    """How costs are come by; of estimates and of how much is measured only where that is a question."""
    how: dict[str, Any] = {
        "metric": create.metric,
        "compare": method.compare.value,
        "predicts": method.predicts,
    }
    if method.estimator is not None:
        how |= {"estimator": method.estimator, "probes": create.probes}
    if method.regret is not None:
        how |= {"regret": method.regret, "max_passes": method.max_passes}
    return how


def _blocks(
    create: JobCreate, method: Method, compared: ModelDescription, dataset: Dataset
) -> dict[str, int]:
    """Into how many blocks samples are cut, where plans decide how many are measured."""
    if method.regret is None or not compared.outputs:
        return {}
    choice = SampleChoice(
        available=dataset.samples, samples=create.samples, holdout=create.holdout, seed=create.seed
    )
    positions = free_positions(compared.inputs, {name: t["shape"] for name, t in dataset.tensors.items()})
    return {"blocks": measure_blocks(method.compare, compared.outputs[0], positions, choice.used)}


def _refining(create: JobCreate, method: Method) -> dict[str, Any]:
    """How often plans are measured again around; nothing where that cannot be."""
    able = method.predicts == method.compare.value and method.compare is not Metric.LOSS
    wanted = {"refine_rounds": create.refine_rounds, "refine_passes": create.refine_passes}
    return {name: value for name, value in wanted.items() if able and create.refine_rounds and value}


def _canonical(create: JobCreate, settings: Settings) -> dict[str, Any]:
    """The rest of the request with all defaults filled in, in one form."""
    return {
        "budgets": [text.strip() for text in create.budgets],
        "budget_counts": create.budget_counts,
        "limits": rules.check_limits(create.limits),
        "pins": dict(sorted(create.pins.items())),
        "ties": [list(group) for group in create.ties],
        "seed": create.seed,
        "samples": create.samples,
        "holdout": create.holdout,
        "batch_size": create.batch_size,
        "memory_bytes": create.memory_bytes or settings.memory_bytes,
    }


def _ready_model(session: Session, model_id: str) -> tuple[Model, ModelDescription]:
    model = repository.model(session, model_id) if is_id("mdl", model_id) else None
    if model is None:
        raise NotFound(f"there is no model {model_id!r}", "model", model_id)
    if model.state is not ModelState.READY or model.description is None:
        raise ModelNotReady(
            f"model {model.id} is {model.state.value}",
            "model",
            model.id,
            "a model whose state is ready",
            {"state": model.state.value, "problem": model.problem},
        )
    return model, ModelDescription.from_json(model.description)


def _fitting_dataset(session: Session, field: str, dataset_id: str, description: ModelDescription) -> Dataset:
    dataset = repository.dataset(session, dataset_id) if is_id("dat", dataset_id) else None
    if dataset is None:
        raise NotFound(f"there is no dataset {dataset_id!r}", field, dataset_id)
    check_dataset(dataset.tensors, dataset.samples, description)
    return dataset


def _require_labels(dataset: Dataset, field: str) -> None:
    if not has_labels(dataset.tensors):
        raise InvalidRequest(
            f"metric 'loss' needs labels; dataset {dataset.id} has none",
            "metric",
            "loss",
            f"a {field} with a tensor named 'labels', or metric kl or mse",
            {"dataset": dataset.id},
        )


def _check_budgets(
    create: JobCreate, description: ModelDescription, candidates: list[int], exclude: list[str]
) -> None:
    """Every budget must be readable, and no smaller than the smallest plan."""
    counts = rules.check_budget_counts(create.budget_counts)
    sizes = sizes_of(description, exclude)
    seen: set[str] = set()
    for index, given in enumerate(create.budgets):
        text, field = given.strip(), f"budgets.{index}"
        spec = PlanSpec(
            budget=text,
            budget_counts=counts,
            pins=create.pins,
            ties=create.ties,
            exclude=exclude,
        )
        rules.check_spec(description, spec, candidates, field=field)
        if text in seen:
            raise InvalidRequest(f"budget {text!r} is given twice", field, text, "each budget once")
        seen.add(text)
        try:
            bits = sizes.budget_bits(text, counts)
        except BudgetError as error:
            raise BudgetError(error.message, field, error.value, error.allowed, error.extra) from None
        smallest = minimum_bits(sizes, candidates, create.pins, create.ties)
        if counts is BudgetCounts.FILE:
            smallest += sizes.fixed_bits
        if bits < smallest:
            raise below_minimum(field, text, bits, smallest)


def _queue(session: Session, checked: _Checked, create: JobCreate, settings: Settings) -> Job:
    job = Job(
        id=new_id("job"),
        model_id=checked.model.id,
        dataset_id=checked.dataset.id,
        evaluation_dataset_id=checked.evaluation.id if checked.evaluation else None,
        request=checked.request,
        name=create.name,
        owner=create.owner,
        priority=create.priority,
        state=JobState.QUEUED,
    )
    session.add(job)
    session.flush()
    tasks.queue_first(session, job, checked.description, settings)
    return job
