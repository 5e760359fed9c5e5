"""What clients send and receive about jobs (the HTTP edge)."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.jobs.offer import MENUS
from app.jobs.progress import ShownStage
from app.kit.pages import MAX_LIMIT
from app.models import JobState, Stage
from workers.contracts import SCHEME_GRAMMAR, ComputeDtype, Estimator, Metric
from workers.menus import Target

PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
Name = Annotated[str, StringConstraints(max_length=255, pattern=PRINTABLE)]
Id = Annotated[str, StringConstraints(max_length=64, pattern=PRINTABLE)]
UnitName = Annotated[str, StringConstraints(max_length=1024)]
BudgetText = Annotated[str, StringConstraints(max_length=64, pattern=PRINTABLE)]
OutputName = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
LimitText = Annotated[str, StringConstraints(max_length=64, pattern=PRINTABLE)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Passes = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_EXAMPLE: dict[str, Any] = {
    "model": "mdl_01jd8y0v3k6zq2m4n5p7r8s9ta",
    "dataset": "dat_01jd8y1b2c3d4e5f6g7h8j9kmn",
    "evaluation_dataset": None,
    "budgets": ["4 bits", "12 MB"],
    "candidates": [2, 3, 4, 5, 6, 8],
    "scheme": "channel-asymmetric",
    "metric": "auto",
    "pins": {"classifier.weight": 8},
    "holdout": 0.25,
    "name": "EfficientNet-Lite0 at 4 bits",
}
_WIDER_EXAMPLE: dict[str, Any] = {
    "model": "mdl_01jd8y0v3k6zq2m4n5p7r8s9ta",
    "dataset": "dat_01jd8y1b2c3d4e5f6g7h8j9kmn",
    "evaluation_dataset": "dat_01jd8y1b2c3d4e5f6g7h8j9kmp",
    "budgets": ["3 MB"],
    "budget_counts": "file",
    "candidates": [3, 4, 8],
    "schemes": ["channel-asymmetric", "group:64-symmetric-mse"],
    "activation_candidates": [4, 8],
    "limits": {"bit_operations": "12G"},
    "metric": "auto",
    "compare": "mse",
    "regret": 0.02,
    "probes": 8,
}


class OutputShareCreate(BaseModel):
    """One of several outputs that are compared."""

    model_config = ConfigDict(extra="forbid", strict=True)

    weight: float = Field(gt=0, allow_inf_nan=False, description="Its share in the cost.")
    compare: str | None = Field(
        default=None,
        description="What it is compared by; null: `kl` where it may hold a distribution, else `mse`.",
        json_schema_extra={"enum": ["kl", "mse", None]},
    )


class JobCreate(BaseModel):
    """A search: which model, on which data, what is on offer, under which budgets and rules."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [_EXAMPLE, _WIDER_EXAMPLE]}
    )

    model: str = Field(max_length=64, description="Id of a registered model.")
    dataset: str = Field(max_length=64, description="Id of the calibration dataset.")
    evaluation_dataset: str | None = Field(
        default=None,
        max_length=64,
        description="Id of a dataset, disjoint from the calibration data, on which the finished plans are measured.",
    )
    budgets: list[BudgetText] = Field(
        min_length=1,
        max_length=32,
        description='With a unit each: "4 bits" (average per searched weight), "12 MB" (10^6 bytes), "12 MiB", '
        '"123456 bits total", "3.5x" or "0.4 of float" (against the stored float weights). The first one\'s plan is handed over.',
    )
    budget_counts: str = Field(
        default="weights",
        description="What budgets bind: `weights` (searched weights times bit-width) or `file` (the whole file).",
        json_schema_extra={"enum": ["weights", "file"]},
    )
    candidates: list[int] | None = Field(
        default=None,
        max_length=15,
        description="Bit-widths on offer, whole numbers from 2 to 16; null: 2, 3, 4, 5, 6 and 8, as far as a target stores "
        "them.",
        json_schema_extra={"items": {"type": "integer", "minimum": 2, "maximum": 16}},
    )
    scheme: str | None = Field(
        default=None,
        max_length=64,
        description=f"Quantizer: `{SCHEME_GRAMMAR}`; `channel-asymmetric` when nothing is given.",
    )
    schemes: list[Annotated[str, StringConstraints(max_length=64)]] = Field(
        default=[],
        max_length=64,
        description="Instead of `scheme`: several quantizers, each offered at every bit-width; each unit takes the one "
        "that suits it.",
    )
    target: str | None = Field(
        default=None,
        description="Instead of schemes: what is to run the model. Each unit is offered what that can store; units that it "
        "does not quantize stay in float (`left_in_float`).",
        json_schema_extra={"enum": [*(t.value for t in Target), None]},
    )
    menu: str | None = Field(
        default=None,
        description="How much of what the target can store is offered. `short` (null): what is worth its time as a rule. "
        "`full`: every format, range method and rounding, at many times the cost.",
        json_schema_extra={"enum": [*MENUS, None]},
    )
    output: str | None = Field(
        default=None,
        max_length=1024,
        description="Name or index of the model's output that is compared; null: the first floating-point one.",
        examples=["logits", "1"],
    )
    outputs: dict[OutputName, Annotated[float, Field(gt=0, allow_inf_nan=False)] | OutputShareCreate] = Field(
        default={},
        max_length=64,
        description="Instead of `output`: several outputs, by name or index, with a weight each; what is compared is the "
        "weighted sum. An output is compared by `kl` where it may hold a distribution over its last axis, else by `mse` "
        'over its own variance; `{"weight": 0.5, "compare": "mse"}` says which.',
        examples=[{"logits": 1.0, "boxes": {"weight": 0.5, "compare": "mse"}}],
    )
    compute_dtype: str = Field(
        default=ComputeDtype.FLOAT32.value,
        description="What a model with half-precision weights is computed in while it is measured: `float32`, or `model` "
        "for the type of the file. What is compared is computed in float32 or better in any case.",
        json_schema_extra={"enum": [d.value for d in ComputeDtype]},
    )
    activation_candidates: list[int] = Field(
        default=[],
        max_length=15,
        description="Bit-widths on offer for the inputs of units, 2 to 16; each candidate is then a pair. Look-ups have no "
        "inputs to quantize. Empty: float.",
        json_schema_extra={"items": {"type": "integer", "minimum": 2, "maximum": 16}},
    )
    limits: dict[str, LimitText] = Field(
        default={},
        max_length=8,
        description="Further limits on plans. `bit_operations`: weight bits times activation bits for each "
        "multiply-accumulate of the searched units, of one sample; a number, with K, M, G, T or P for thousands, "
        'e.g. "1.2G".',
    )
    metric: str = Field(
        default="auto",
        description="How costs are come by. `auto`: estimate all, measure what the estimates leave open. `kl`, `mse`, `loss` "
        "(needs labels): measure all; with `regret` on no more samples than plans need. The others are estimators: estimate "
        "all, measure none.",
        json_schema_extra={"enum": ["auto", *(m.value for m in (*Metric, *Estimator))]},
    )
    compare: str | None = Field(
        default=None,
        description="What `auto` and estimators compare, and plans are judged by: `kl`, or `mse` for outputs that are not "
        "logits. null: `kl` where the output may hold a distribution over its last axis, else `mse`. With another "
        "`metric`: that one, or null.",
        json_schema_extra={"enum": ["kl", "mse", None]},
    )
    regret: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Measuring goes on until the plans of all budgets most likely (nine times of ten, as far as is known) cost "
        "at most this share more than the best, of their predicted cost. null: 0.01 with `auto`; with `kl`, `mse` and `loss` everything is measured on all "
        "samples. Estimators have none.",
    )
    max_passes: Passes | None = Field(
        default=None,
        description="With a `regret`: measures at most this much, in float passes over the samples, whatever that asks for; null: "
        "no bound. Estimates do not count; the first samples, on which `kl`, `mse` and `loss` measure everything, do.",
    )
    probes: int = Field(
        default=4,
        ge=1,
        le=64,
        description="`auto` and `probe`: how many sets of random signs estimates rest on.",
    )
    refine_rounds: int = Field(
        default=3,
        ge=0,
        le=16,
        description="How often plans may be measured again around, each time for a better one; 0: never. Where "
        "costs are predicted in what is compared; no more often than `refine_passes` pay for.",
    )
    refine_passes: Passes | None = Field(
        default=None,
        description="Passes over the samples that measuring again around plans may take, probes included, of all budgets together; "
        "null: three fifths of what the costs took, and more where a pass takes little.",
    )
    pins: dict[UnitName, int] = Field(
        default={}, max_length=100_000, description="Unit -> bit-width its weight must take."
    )
    ties: list[list[UnitName]] = Field(
        default=[],
        max_length=10_000,
        description="Groups of units that share one choice, e.g. fused q, k, v.",
    )
    exclude: list[UnitName] = Field(
        default=[], max_length=100_000, description="Units that stay in float and are not searched."
    )
    seed: Seed = Field(
        default=0,
        description="Chooses the samples when not all are used or some are held out, their order in blocks, and the "
        "signs of probes.",
    )
    samples: int | None = Field(
        default=None, description="How many calibration samples to use; null for all."
    )
    holdout: float = Field(
        default=0.0,
        allow_inf_nan=False,
        description="Without an evaluation dataset: fraction (0 to 0.9) of the calibration samples set aside for it.",
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Samples per forward pass; null: as many as fit the widest value into 256 MiB, a power of two up to 32.",
    )
    memory_bytes: int | None = Field(
        default=None,
        ge=1 << 20,
        lt=1 << 53,
        description="Bound on activations kept between passes, per worker, in bytes; null for the service's setting.",
    )
    name: Name = Field(default="", description="For people.")
    owner: Name = Field(
        default="", description="Whose job it is; waiting jobs of different owners take turns."
    )
    priority: int = Field(default=0, ge=-100, le=100, description="Higher runs first.")


class JobFilter(BaseModel):
    """Which jobs to list."""

    # A filter that is misspelt must not list everything.
    model_config = ConfigDict(extra="forbid")

    state: JobState | None = Field(default=None, description="Only jobs in this state.")
    model: Id | None = Field(default=None, description="Only jobs of this model.")
    owner: Name | None = Field(default=None, description="Only this owner's jobs.")
    limit: int = Field(default=50, ge=1, le=MAX_LIMIT, description="Jobs on a page.")
    cursor: str | None = Field(default=None, max_length=512, description="`next_cursor` of the page before.")


class ProgressRead(BaseModel):
    """How far the current stage is. Times are in seconds."""

    stage: ShownStage | None = Field(
        description="What is being done: `probe` (candidates are estimated), `measure`, `solve`, `verify` (plans are "
        "measured), `refine` (they are measured again around; the job's stage is `verify` meanwhile); null when nothing is "
        "any more. With `auto` `measure` may follow on `solve`, and after `refine` what was found is verified."
    )
    done: int
    total: int = Field(description="So far: `auto` asks for further entries as it goes on.")
    unit: str = Field(
        description="What is counted: `parts` (of the estimate, or of what is done around plans), `entries` or `plans`.",
        examples=["entries"],
    )
    fraction: float = Field(
        ge=0, le=1, description="Share of the stage's work that is done, that in the workers' hands included."
    )
    eta_seconds: float | None = Field(
        ge=0, description="Time the stage still takes at the speed so far; null until known."
    )
    elapsed_seconds: float = Field(description="Since the job was started.")
    detail: str | None = Field(
        description="While entries are measured as far as choices need them: in which round, as another one may follow. "
        "While plans are measured again around: which step of which budget, and how many of its parts are done.",
        examples=["round 2", "step 1 around the plan of 4 bits, 3 of 5 parts"],
    )


class JobRead(BaseModel):
    """A job as it stands."""

    id: str
    name: str
    owner: str
    priority: int
    state: JobState
    stage: Stage | None
    model: str = Field(description="Id of the model.")
    dataset: str = Field(description="Id of the calibration dataset.")
    evaluation_dataset: str | None
    request: dict[str, Any] = Field(
        description="The request, checked, with all defaults filled in; `predicts` says what predicted costs are in."
    )
    progress: ProgressRead
    problem: dict[str, Any] | None = Field(
        description="Why the job failed, as a problem document (RFC 9457)."
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class JobList(BaseModel):
    """A page of jobs, newest first."""

    items: list[JobRead]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last one.")
