"""The first tables: models, datasets, jobs, tasks, measurements, plans, keys, leases.

Revision: 0001, the first.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)
_DOUBLE = sa.Float(precision=53)
_TABLES = (
    "models",
    "datasets",
    "jobs",
    "plans",
    "plan_trials",
    "tasks",
    "trial_parts",
    "measurements",
    "probe_results",
    "job_entries",
    "idempotency_keys",
    "leases",
)


def upgrade() -> None:
    """Create everything."""
    _files()
    _jobs()
    _plans()
    _trials()
    _tasks()
    _trial_parts()
    _measurements()
    _small_tables()


def downgrade() -> None:
    """Drop everything."""
    for table in reversed(_TABLES):
        op.drop_table(table)


def _enum(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=16)


def _files() -> None:
    op.create_table(
        "models",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("location", sa.Text(), nullable=True),
        sa.Column("state", _enum("modelstate", "inspecting", "ready", "refused"), nullable=False),
        sa.Column("description", _JSON, nullable=True),
        sa.Column("problem", _JSON, nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("sha256", name=op.f("uq_models_sha256")),
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("location", sa.Text(), nullable=True),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("tensors", _JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("sha256", name=op.f("uq_datasets_sha256")),
    )


def _jobs() -> None:
    states = _enum("jobstate", "queued", "running", "done", "failed", "cancelled")
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("model_id", sa.String(40), nullable=False),
        sa.Column("dataset_id", sa.String(40), nullable=False),
        sa.Column("evaluation_dataset_id", sa.String(40), nullable=True),
        sa.Column("request", _JSON, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", states, nullable=False),
        sa.Column("stage", _enum("stage", "probe", "measure", "solve", "verify"), nullable=True),
        sa.Column("problem", _JSON, nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("stage_started_at", _TIME, nullable=True),
        sa.Column("measured_at", _TIME, nullable=True),
        sa.Column("solved_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_jobs_model_id_models")),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_jobs_dataset_id_datasets")),
        sa.ForeignKeyConstraint(
            ["evaluation_dataset_id"], ["datasets.id"], name=op.f("fk_jobs_evaluation_dataset_id_datasets")
        ),
    )
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
    op.create_index("ix_jobs_state_created_at", "jobs", ["state", "created_at"])
    for column in ("model_id", "dataset_id", "evaluation_dataset_id"):
        op.create_index(f"ix_jobs_{column}", "jobs", [column])


def _plans() -> None:
    op.create_table(
        "plans",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("role", _enum("planrole", "requested", "alternative", "uniform", "adhoc"), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("spec_sha256", sa.String(64), nullable=False),
        sa.Column("budget", sa.String(64), nullable=True),
        sa.Column("budget_bits", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("objective", _DOUBLE, nullable=True),
        sa.Column("lower_bound", _DOUBLE, nullable=True),
        sa.Column("relative_gap", _DOUBLE, nullable=True),
        sa.Column("size_bits", sa.BigInteger(), nullable=True),
        sa.Column("file_size_bits", sa.BigInteger(), nullable=True),
        sa.Column("choices", _JSON, nullable=False),
        sa.Column("predicted", _JSON, nullable=False),
        sa.Column("measured", _JSON, nullable=True),
        sa.Column("solver", _JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
        sa.UniqueConstraint("job_id", "spec_sha256", name=op.f("uq_plans_job_id_spec_sha256")),
        sa.CheckConstraint(
            "relative_gap IS NULL OR relative_gap >= 0", name=op.f("ck_plans_gap_not_negative")
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_plans_job_id_jobs"), ondelete="CASCADE"
        ),
    )
    op.create_index("ix_plans_job_id", "plans", ["job_id"])


def _trials() -> None:
    op.create_table(
        "plan_trials",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("base", _JSON, nullable=False),
        sa.Column("choices", _JSON, nullable=False),
        sa.Column("outcome", _JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "ordinal", "number", name=op.f("pk_plan_trials")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_plan_trials_job_id_jobs"), ondelete="CASCADE"
        ),
    )


def _tasks() -> None:
    states = _enum("taskstate", "pending", "running", "done", "failed", "cancelled")
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column(
            "kind",
            _enum("taskkind", "inspect", "probe", "measure", "solve", "verify", "refine"),
            nullable=False,
        ),
        sa.Column("job_id", sa.String(40), nullable=True),
        sa.Column("model_id", sa.String(40), nullable=True),
        sa.Column("plan_id", sa.String(40), nullable=True),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("state", states, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(255), nullable=True),
        sa.Column("problem", _JSON, nullable=True),
        sa.Column("fraction", _DOUBLE, nullable=False),
        sa.Column("pace_seconds", _DOUBLE, nullable=True),
        sa.Column("expected_at", _TIME, nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        *(
            sa.ForeignKeyConstraint(
                [f"{parent}_id"],
                [f"{parent}s.id"],
                name=op.f(f"fk_tasks_{parent}_id_{parent}s"),
                ondelete="CASCADE",
            )
            for parent in ("job", "model", "plan")
        ),
    )
    op.create_index("ix_tasks_state_kind", "tasks", ["state", "kind"])
    op.create_index("ix_tasks_job_id_kind", "tasks", ["job_id", "kind"])
    for column in ("model_id", "plan_id"):
        op.create_index(f"ix_tasks_{column}", "tasks", [column])


def _trial_parts() -> None:
    op.create_table(
        "trial_parts",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", _enum("partkind", "start", "probe", "base", "step", "crossed"), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("work", _DOUBLE, nullable=False),
        sa.Column("choices", _JSON, nullable=True),
        sa.Column("costs", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "ordinal", "number", "kind", "place", name=op.f("pk_trial_parts")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_trial_parts_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("fk_trial_parts_task_id_tasks"), ondelete="CASCADE"
        ),
    )
    op.create_index("ix_trial_parts_task_id", "trial_parts", ["task_id"])


def _measurements() -> None:
    op.create_table(
        "measurements",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("bits", sa.Integer(), nullable=False),
        sa.Column("scheme", sa.String(64), nullable=False),
        sa.Column("activation_bits", sa.Integer(), nullable=True),
        sa.Column("metric", sa.String(16), nullable=False),
        sa.Column("block_start", sa.Integer(), nullable=False),
        sa.Column("block_stop", sa.Integer(), nullable=False),
        sa.Column("size_bits", sa.BigInteger(), nullable=False),
        sa.Column("storage_bits", sa.BigInteger(), nullable=False),
        sa.Column("mean", _DOUBLE, nullable=False),
        sa.Column("standard_error", _DOUBLE, nullable=True),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("seconds", _DOUBLE, nullable=False),
        sa.Column("runs", sa.LargeBinary(), nullable=False),
        sa.Column("sketch", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_measurements")),
    )
    op.create_index("ix_measurements_model_sha256", "measurements", ["model_sha256"])
    op.create_table(
        "probe_results",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("probes", sa.Integer(), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("values", sa.LargeBinary(), nullable=False),
        sa.Column("storage_bits", _JSON, nullable=False),
        sa.Column("seconds", _DOUBLE, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_probe_results")),
    )
    op.create_index("ix_probe_results_model_sha256", "probe_results", ["model_sha256"])


def _small_tables() -> None:
    op.create_table(
        "job_entries",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("bits", sa.Integer(), nullable=False),
        sa.Column("scheme", sa.String(64), nullable=False),
        sa.Column("activation_bits", sa.Integer(), nullable=True),
        sa.Column("block_start", sa.Integer(), nullable=False),
        sa.Column("block_stop", sa.Integer(), nullable=False),
        sa.Column("work", _DOUBLE, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "ordinal", name=op.f("pk_job_entries")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_entries_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("fk_job_entries_task_id_tasks"), ondelete="CASCADE"
        ),
    )
    op.create_index("ix_job_entries_task_id", "job_entries", ["task_id"])
    op.create_index("ix_job_entries_key", "job_entries", ["key"])
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency_keys")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_idempotency_keys_job_id_jobs"), ondelete="CASCADE"
        ),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(255), nullable=False),
        sa.Column("until", _DOUBLE, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
