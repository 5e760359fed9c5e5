"""What clients send and receive about plans."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.jobs.schemas import BudgetText, LimitText, Name, UnitName
from app.models import PlanRole

_EXAMPLE: dict[str, Any] = {"budget": "3.5 bits", "pins": {"classifier.weight": 8}, "measure": True}
_LIMITED_EXAMPLE: dict[str, Any] = {"budget": "12 MB", "limits": {"bit_operations": "1.2G"}}


class PlanCreate(BaseModel):
    """Another budget, other pins, ties or limits, on what a job knows of costs. What is left out stays as in the job."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [_EXAMPLE, _LIMITED_EXAMPLE]}
    )

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
        default=None, max_length=8, description="Instead of the job's limits; an empty one lifts them."
    )
    name: Name = Field(default="", description="For people; the budget when empty.")
    measure: bool = Field(default=False, description="Have a worker apply the plan and measure it.")


class Choice(BaseModel):
    """What a unit gets."""

    bits: int = Field(description="Bit-width of the weight.")
    scheme: str = Field(description="Its quantizer.", examples=["channel-asymmetric"])
    activation_bits: int | None = Field(
        default=None, description="Bit-width of the unit's inputs; null: float."
    )


class PlanRead(BaseModel):
    """One candidate for each unit, with certificate, prediction and measurement. Sizes are in bits."""

    id: str
    job: str
    name: str
    role: PlanRole = Field(
        description="`requested` (a budget of the job), `alternative` (for the same budget, made with interactions or measured again around), "
        "`uniform` (a baseline), `adhoc` (asked for later)."
    )
    spec: dict[str, Any] = Field(description="What the plan had to satisfy.")
    budget: str | None = Field(description="As written; null for a uniform plan.")
    budget_bits: int | None = Field(description="The same in bits of what the budget binds.")
    status: str = Field(
        description="`optimal`, `feasible`, `infeasible`, `no_solution` or `error`.", examples=["optimal"]
    )
    objective: float | None = Field(
        description="Sum of what the choices are predicted to cost one by one; interactions are left out."
    )
    lower_bound: float | None = Field(description="No plan within budget and limits has a smaller objective.")
    relative_gap: float | None = Field(description="Of objective to bound; 0 is proven optimal.")
    size_bits: int | None = Field(description="Weights times bit-width.")
    file_size_bits: int | None = Field(
        description="The whole file: with scales, zero points and all that stays in float."
    )
    average_bits: float | None = Field(description="Per searched weight.")
    origin: str = Field(
        description="`search`; `interactions`, `remeasured` or `uniform` where such a plan measured better and took this one's place, and "
        "for such plans themselves."
    )
    solver: dict[str, Any] = Field(
        description="`backend`, `version`, `proof`, `stopped`, `multiplier`, `seconds`; where they apply `limited` (what the "
        "plan takes of what is limited), `interactions` (cost predicted with them, and bound), `search` (what the search "
        "by added costs found, where another plan took its place), `minimum_bits` and `conflict` (why nothing fits)."
    )
    choices: dict[str, Choice] = Field(description="Unit -> what it gets; units left in float are not named.")
    bit_operations: int | None = Field(
        description="Weight bits times activation bits of every multiply-accumulate, of one sample; floats count in full."
    )
    predicted: dict[str, float] = Field(
        description="What costs are in -> predicted cost; of a plan made with interactions, these included."
    )
    measured: dict[str, Any] = Field(description="Metric -> {calibration, evaluation}; empty until measured.")
    measured_standard_error: dict[str, Any] = Field(description="The same shape.")
    created_at: datetime


class PlanList(BaseModel):
    """A job's plans: those of its budgets, alternatives, baselines, then later ones."""

    items: list[PlanRead]
