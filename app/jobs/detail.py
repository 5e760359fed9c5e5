"""What a job is at, more closely than its stage says: the steps around its plans, in words."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.models import Job, Stage
from app.plans import repository


def details_of(session: Session, jobs: Sequence[Job]) -> dict[str, str]:
    """Which steps around their plans running jobs are at, by id; nothing of others, nor of steps that are over."""
    refining = {
        job.id: job.request["budgets"]
        for job in jobs
        if job.stage is Stage.VERIFY and "refine_rounds" in job.request
    }
    found: dict[str, str] = {}
    for job_id, steps in (repository.steps(session, list(refining)) if refining else {}).items():
        under_way = [step for step in steps if step.done < step.total]
        if under_way:
            found[job_id] = "; ".join(
                f"step {step.number + 1} around the plan of {refining[job_id][step.ordinal]}, "
                f"{step.done} of {step.total} parts"
                for step in under_way
            )
    return found
