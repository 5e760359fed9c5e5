"""What a job is at, more closely than its stage says: the round of measuring, or the steps around its plans, in words."""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy.orm import Session

from app.jobs.repository import TaskTimes
from app.models import Job, Stage, TaskKind, TaskState
from app.plans import repository


def details_of(
    session: Session, jobs: Sequence[Job], times: Mapping[str, Sequence[TaskTimes]]
) -> dict[str, str]:
    """Which round or which steps running jobs are at, by id; nothing of others, nor of steps that are over.

    Args:
        session: Where they are stored.
        jobs: Running ones.
        times: Of their tasks.
    """
    rounds = {
        job.id: f"round {_round(job, times.get(job.id, ()))}"
        for job in jobs
        if job.stage is Stage.MEASURE and job.request.get("regret") is not None
    }
    return rounds | _steps_of(session, jobs)


def _round(job: Job, times: Sequence[TaskTimes]) -> int:
    """How often the job has come to measure: each time but one that begins with it, a search asked for more."""
    searched = sum(task.kind is TaskKind.SOLVE and task.state is TaskState.DONE for task in times)
    return searched if "probes" in job.request else searched + 1


def _steps_of(session: Session, jobs: Sequence[Job]) -> dict[str, str]:
    refining = {
        job.id: job.request["budgets"]
        for job in jobs
        if job.stage is Stage.VERIFY and "refine_rounds" in job.request
    }
    found = repository.steps(session, list(refining)) if refining else {}
    told = {job_id: _in_words(steps, refining[job_id]) for job_id, steps in found.items()}
    return {job_id: words for job_id, words in told.items() if words}


def _in_words(steps: Iterable[repository.StepCounts], budgets: Sequence[str]) -> str:
    """Steps of one number around several plans are told together, with the parts of all."""
    by_number: dict[int, list[repository.StepCounts]] = {}
    for step in steps:
        if step.done < step.total:
            by_number.setdefault(step.number, []).append(step)
    return "; ".join(
        f"step {number + 1} around the {_plans_of([budgets[step.ordinal] for step in together])}, "
        f"{sum(step.done for step in together)} of {sum(step.total for step in together)} parts"
        for number, together in by_number.items()
    )


def _plans_of(budgets: Sequence[str]) -> str:
    *others, last = budgets
    return f"plans of {', '.join(others)} and {last}" if others else f"plan of {last}"
