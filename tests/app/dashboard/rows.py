"""The rows of a made-up job in a database."""

from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from app.kit.ids import content_sha256, new_id
from app.models import (
    Dataset,
    Job,
    JobEntry,
    JobState,
    Measurement,
    Model,
    ModelState,
    Plan,
    PlanRole,
    Stage,
    Task,
    TaskKind,
    TaskState,
    utc_now,
)
from tests.app.dashboard.samples import SCHEME, Document


def store(session: Session, document: Document, *, created_ago_s: float = 200.0, unique: str = "") -> Job:
    """The rows of a job whose result document is the given one; identifiers are new ones.

    Args:
        session: For writing.
        document: As `result_document` or `running` makes it.
        created_ago_s: Age of the job in seconds.
        unique: Makes the files' hashes differ from those of other stored documents.
    """
    created = utc_now() - timedelta(seconds=created_ago_s)
    model = _store_model(session, document, unique)
    data = [_store_dataset(session, document[kind], unique) for kind in ("calibration", "evaluation")]
    seconds = document["seconds"]
    started = created + timedelta(seconds=1)

    def later(*stages: str) -> Any:
        if any(seconds[s] is None for s in stages) or document["state"] != "done":
            return None
        return started + timedelta(seconds=sum(seconds[s] for s in stages))

    job = Job(
        id=new_id("job"),
        model_id=model.id,
        dataset_id=data[0].id,
        evaluation_dataset_id=data[1].id,
        request=document["settings"],
        name=document["name"],
        state=JobState(document["state"]),
        stage=Stage(document["stage"]) if document["stage"] else None,
        problem=document["problem"],
        created_at=created,
        started_at=None if document["state"] == "queued" else started,
        measured_at=later("measure"),
        solved_at=later("measure", "solve"),
        finished_at=later("total"),
    )
    session.add(job)
    session.flush()
    _store_entries(session, job, document, model.sha256)
    for plan in (*document["plans"], *document["baselines"]):
        session.add(plan_row(job, plan))
    session.flush()
    return job


def _store_model(session: Session, document: Document, unique: str) -> Model:
    described = document["model"]
    model = Model(
        id=new_id("mdl"),
        sha256=content_sha256([described["sha256"], unique]),
        size_bytes=described["float_bits"] // 8,
        name=described["name"],
        state=ModelState.READY,
        description={
            "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 3, 224, 224]}],
            "batch_size": None,
            "outputs": [{"name": "y", "dtype": "float32", "shape": [None, 1000]}],
            "units": [{**u, "group_axis": 1} for u in document["units"]],
            "unsupported": described["unsupported"],
            "weights": described["weights"],
            "float_bits": described["float_bits"],
            "unit_float_bits": described["unit_float_bits"],
        },
    )
    session.add(model)
    session.flush()
    return model


def _store_dataset(session: Session, described: dict[str, Any], unique: str) -> Dataset:
    dataset = Dataset(
        id=new_id("dat"),
        sha256=content_sha256([described["sha256"], unique]),
        size_bytes=1000,
        name=described["name"],
        samples=described["samples"],
        tensors={"x": {"dtype": "float32", "shape": [described["samples"], 3, 224, 224]}},
    )
    session.add(dataset)
    session.flush()
    return dataset


def _store_entries(session: Session, job: Job, document: Document, model_sha256: str) -> None:
    """All the entries the job needs, and the measurements the document has."""
    task = Task(
        id=new_id("tsk"),
        kind=TaskKind.MEASURE,
        job_id=job.id,
        state=TaskState.RUNNING,
        started_at=job.started_at,
    )
    session.add(task)
    session.flush()
    measured = {(e["unit"], e["bits"]): e for e in document["sensitivities"]}
    wanted = [(u["name"], bits) for u in document["units"] for bits in document["settings"]["candidates"]]
    for ordinal, (unit, bits) in enumerate(wanted):
        key = content_sha256([job.id, unit, bits])
        session.add(
            JobEntry(
                job_id=job.id,
                ordinal=ordinal,
                task_id=task.id,
                key=key,
                unit=unit,
                bits=bits,
                scheme=SCHEME,
                block_stop=128,
                work=1.0,
            )
        )
        if (unit, bits) in measured:
            session.add(measurement(key, model_sha256, measured[unit, bits]))


def measurement(key: str, model_sha256: str, entry: dict[str, Any]) -> Measurement:
    """The row of one finished entry."""
    values = {k: v for k, v in entry.items() if k != "source"}
    return Measurement(key=key, model_sha256=model_sha256, block_stop=entry["samples"], **values)


def plan_row(job: Job, plan: Document) -> Plan:
    """The row of a plan."""
    return Plan(
        id=new_id("pln"),
        job_id=job.id,
        role=PlanRole(plan["role"]),
        ordinal=0 if plan["role"] == "uniform" else job.request["budgets"].index(plan["budget"]),
        name=plan["name"],
        spec=plan["spec"],
        spec_sha256=content_sha256([plan["role"], plan["spec"]]),
        budget=plan["budget"],
        budget_bits=plan["budget_bits"],
        status=plan["status"],
        objective=plan["objective"],
        lower_bound=plan["lower_bound"],
        relative_gap=plan["relative_gap"],
        size_bits=plan["size_bits"],
        file_size_bits=plan["file_size_bits"],
        choices=plan["choices"],
        predicted=plan["predicted"],
        measured={"values": plan["measured"], "standard_error": plan["measured_standard_error"]},
        solver={**plan["solver"], "origin": plan["origin"]},
    )
