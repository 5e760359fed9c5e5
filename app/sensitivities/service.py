"""What a job has measured, and the frontier that follows from it."""

import csv
import io

from sqlalchemy.orm import Session

from app.jobs.service import get_job
from app.plans.service import job_description
from app.results import frontier_json
from app.sensitivities import repository
from app.sensitivities.knowledge import is_complete, known, row_json
from app.sensitivities.schemas import Frontier, FrontierPoint, SensitivityList, SensitivityRead


def read(session: Session, job_id: str) -> SensitivityList:
    """What is measured so far.

    Raises:
        NotFound: There is no such job.
    """
    job = get_job(session, job_id)
    description = job_description(session, job)
    entries = repository.count(session, job.id)
    return SensitivityList(
        job=job.id,
        metric=job.request["predicts"],
        done=entries.done,
        total=entries.total,
        complete=is_complete(session, job, description),
        items=[SensitivityRead(**row_json(row)) for row in known(session, job, description)],
    )


def read_csv(session: Session, job_id: str) -> str:
    """The same as a table: RFC 4180, one header row.

    Raises:
        NotFound: There is no such job.
    """
    job = get_job(session, job_id)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(SensitivityRead.model_fields))
    writer.writeheader()
    writer.writerows(row_json(row) for row in known(session, job, job_description(session, job)))
    return text.getvalue()


def read_frontier(session: Session, job_id: str) -> Frontier:
    """The best predicted cost at every size.

    Raises:
        NotFound: There is no such job.
        ResultNotReady: Not everything is measured yet.
    """
    job = get_job(session, job_id)
    points = frontier_json(session, job)
    return Frontier(
        job=job.id,
        metric=job.request["predicts"],
        budget_counts=job.request["budget_counts"],
        items=[FrontierPoint(**point) for point in points],
    )
