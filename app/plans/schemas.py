"""What clients send and receive about plans."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.jobs.schemas import BudgetText, LimitText, Name, UnitName
from app.models import PlanRole

_EXAMPLE: dict[str, Any] = {"budget": "3.5 bits", "pins": {"classifier.weight": 8}, "measure": True}


class PlanCreate(BaseModel):
    """Another budget, other pins or ties, on a job's measurements. What is left out stays as in the job."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [_EXAMPLE]})

    budget: BudgetText = Field(description='With a unit, e.g. "3.5 bits" or "12 MB".')
    budget_counts: str | None = Field(
        default=None,
        description="`weights` or `file`.",
        json_schema_extra={"enum": ["weights", "file", None]},
    )
    pins: dict[UnitName, int] | None = Field(
        default=None, max_length=100_000, description="Instead of the job's pins."
    )
    ties: list[list[UnitName]] | None = Field(
        default=None, max_length=10_000, description="Instead of the job's ties."
    )
    exclude: list[UnitName] | None = Field(
        default=None, max_length=100_000, description="Further units that stay in float."
    )
    limits: dict[str, LimitText] | None = Field(
        default=None, max_length=8, description="Instead of the job's limits."
    )
    name: Name = Field(default="", description="For people; the budget when empty.")
    measure: bool = Field(default=False, description="Have a worker apply the plan and measure it.")


class Choice(BaseModel):
    """What a unit gets."""

    bits: int
    scheme: str
    activation_bits: int | None = Field(default=None, description="Of the unit's inputs; null: float.")


class PlanRead(BaseModel):
    """One candidate for each unit, with certificate, prediction and measurement. Sizes are in bits."""

    id: str
    job: str
    name: str
    role: PlanRole
    spec: dict[str, Any] = Field(description="What the plan had to satisfy.")
    budget: str | None
    budget_bits: int | None
    status: str = Field(
        description="`optimal`, `feasible`, `infeasible`, `no_solution` or `error`.", examples=["optimal"]
    )
    objective: float | None = Field(description="Sum of the predicted costs, in the metric's unit.")
    lower_bound: float | None = Field(description="No plan within the budget is predicted to cost less.")
    relative_gap: float | None = Field(description="Of objective to bound; 0 is proven optimal.")
    size_bits: int | None = Field(description="Weights times bit-width.")
    file_size_bits: int | None = Field(
        description="The whole file: with scales, zero points and all that stays in float."
    )
    average_bits: float | None = Field(description="Per searched weight.")
    origin: str = Field(description="`search`; `interactions` or `uniform` when such a plan measured better.")
    solver: dict[str, Any] = Field(
        description="Backend, version, proof, multiplier, seconds; `limited`: limit -> what the plan takes of it."
    )
    choices: dict[str, Choice]
    bit_operations: int | None = Field(
        description="Weight bits times activation bits of every multiply-accumulate, of one sample; floats count in full."
    )
    predicted: dict[str, float] = Field(description="Metric -> predicted cost.")
    measured: dict[str, Any] = Field(description="Metric -> {calibration, evaluation}; empty until measured.")
    measured_standard_error: dict[str, Any]
    created_at: datetime


class PlanList(BaseModel):
    """A job's plans: those of its budgets, baselines, then later ones."""

    items: list[PlanRead]
