"""Plans that are the same on the same data are measured once, whichever jobs they belong to."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs import tasks
from app.jobs.keys import MEASURE_VERSION
from app.models import Job, Plan


def measured_of_equal(session: Session, plan: Plan) -> dict[str, Any] | None:
    """What was measured of another plan that makes the same choices, by the same metric on the same samples.

    Args:
        session: For reading.
        plan: Which is not measured yet.

    Returns:
        The other plan's ``measured`` member, which may lack a part; ``None`` when there is no such plan.
    """
    job = session.get_one(Job, plan.job_id)
    others = session.execute(
        select(Plan.measured, Plan.choices, Job)
        .join(Job, Job.id == Plan.job_id)
        .where(
            Plan.id != plan.id,
            Plan.size_bits == plan.size_bits,
            Plan.measured.is_not(None),
            Job.model_id == job.model_id,
            Job.dataset_id == job.dataset_id,
            Job.evaluation_dataset_id.is_not_distinct_from(job.evaluation_dataset_id),
        )
        .order_by(Plan.created_at, Plan.id)
    )
    asked = _asked(session, job)
    for measured, choices, owner in others:
        same = choices == plan.choices and (owner.id == job.id or _asked(session, owner) == asked)
        if same and measured is not None and measured.get("version") == MEASURE_VERSION:
            found: dict[str, Any] = measured
            return found
    return None


def _asked(session: Session, job: Job) -> dict[str, object]:
    """What decides how a job's plans are measured: all that its entries depend on, of the samples as far as it matters."""
    source = tasks.source_of(session, job)
    return vars(source) | {"choice": source.choice.key()}
