"""What clients send and receive (the HTTP edge)."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

_Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
MAX_TIME_LIMIT_S = 60.0
"""Longest search that a request may ask for, in seconds."""

PRICES = "Also answer for each budget what more bits would buy, and at which budgets each unit changes."
TARGET = "Also answer the smallest plan that costs no more than this."
ERRORS = "Column of the costs' standard errors: also answer how likely each choice is the right one."
RISK = "So many standard errors are added to the costs."

_EXAMPLE: dict[str, Any] = {
    "rows": [
        {"unit": "conv1", "candidate": "4", "cost": 0.5, "size_bits": 400, "latency_ms": 0.1},
        {"unit": "conv1", "candidate": "8", "cost": 0.1, "size_bits": 800, "latency_ms": 0.2},
        {"unit": "fc", "candidate": "4", "cost": 0.2, "size_bits": 4000, "latency_ms": 0.4},
        {"unit": "fc", "candidate": "8", "cost": 0.1, "size_bits": 8000, "latency_ms": 0.8},
    ],
    "budgets": ["5000 bits total"],
    "limits": {"latency_ms": 1.0},
}


class TableRow(BaseModel):
    """One candidate of one unit; further members are columns that `limits` may name."""

    model_config = ConfigDict(extra="allow", strict=True)

    unit: _Text
    candidate: _Text | int = Field(description="A name, or a bit-width.")
    cost: float = Field(description="What choosing it costs; negative is allowed.")
    size_bits: int = Field(ge=0, description="In bits.")


class WidthCountCreate(BaseModel):
    """How many units take a bit-width."""

    model_config = ConfigDict(extra="forbid", strict=True)

    width: int = Field(ge=1, description="In bits.")
    minimum: int | None = Field(default=None, ge=0)
    maximum: int | None = Field(default=None, ge=0)


class SolveCreate(BaseModel):
    """A table of costs that were measured anywhere, and what a plan has to satisfy."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [_EXAMPLE]})

    rows: list[TableRow] = Field(min_length=1, description="One for each unit and candidate.")
    budgets: list[Annotated[str, StringConstraints(max_length=64)]] = Field(
        default=[],
        max_length=256,
        description='With a unit each, e.g. "123456 bits total"; none: no size limit.',
    )
    limits: dict[_Text, float] = Field(
        default={}, max_length=64, description="Further column -> largest sum over the chosen candidates."
    )
    pins: dict[_Text, _Text | int] = Field(
        default={}, max_length=100_000, description="Unit -> candidate it must take."
    )
    ties: list[list[_Text]] = Field(
        default=[], max_length=10_000, description="Groups of units that share one choice."
    )
    bounds: dict[_Text, tuple[int | None, int | None]] = Field(
        default={}, max_length=100_000, description="Unit -> least and largest bit-width; null for none."
    )
    width_counts: list[WidthCountCreate] = Field(
        default=[], max_length=64, description="Least and largest number of units at a bit-width."
    )
    max_widths: int | None = Field(
        default=None, ge=1, description="At most so many different bit-widths in a plan."
    )
    weights: int | None = Field(
        default=None, ge=1, lt=1 << 53, description='Number of weights, for "4 bits".'
    )
    float_bits: int | None = Field(default=None, ge=1, lt=1 << 60, description='Size in float, for "3.5x".')
    frontier: bool = Field(default=False, description="Also answer the plans of every size.")
    prices: bool = Field(default=False, description=PRICES)
    target_cost: float | None = Field(default=None, allow_inf_nan=False, description=TARGET)
    standard_errors: _Text | None = Field(default=None, description=ERRORS)
    risk: float = Field(default=0.0, ge=0, allow_inf_nan=False, description=RISK)
    time_limit_s: float = Field(
        default=10.0, gt=0, le=MAX_TIME_LIMIT_S, description="For each budget, in seconds."
    )


class SwitchRead(BaseModel):
    """From this budget on the unit takes this candidate."""

    budget_bits: int
    candidate: str


class PricesRead(BaseModel):
    """What more bits would buy, on the convex hull of size against cost."""

    per_bit: float = Field(description="Cost saved per further bit.")
    per_kilobyte: float = Field(description="Cost saved per further 1000 bytes.")
    next_budget_bits: int | None = Field(description="Budget of the next plan on the hull.")
    next_saving: float = Field(description="What that plan costs less.")
    switches: dict[str, list[SwitchRead]] = Field(description="Unit -> its candidates by rising budget.")


class SmallestRead(BaseModel):
    """The smallest plan that costs no more than the target."""

    target_cost: float
    status: str = Field(description="`optimal`: no smaller plan does; `feasible`, `infeasible`.")
    size_bits: int | None
    size_lower_bound: int = Field(description="No plan smaller than this costs so little.")
    objective: float | None
    least_cost: float = Field(description="Cost of the cheapest plan of any size.")
    choices: dict[str, str]


class SolvedRead(BaseModel):
    """A plan with its certificate."""

    budget: str | None = None
    budget_bits: int | None = None
    status: str = Field(description="`optimal`, `feasible`, `infeasible` or `no_solution`.")
    objective: float | None
    lower_bound: float | None = Field(description="No plan within the limits costs less.")
    relative_gap: float | None
    size_bits: int | None
    smallest_feasible_bits: int | None
    choices: dict[str, str] = Field(description="Unit -> candidate.")
    rows: dict[str, float] = Field(description="Limited column -> its sum in the plan.")
    smallest_rows: dict[str, float] = Field(
        description="When infeasible: smallest value of each row by itself."
    )
    conflict: list[str] = Field(description="When infeasible: rules that cannot hold together.")
    backend: str
    backend_version: str
    proof: str = Field(
        description="What the bound rests on: `lagrangian`, `search`, `solver`, `minimum`, `none`."
    )
    stopped: str = Field(description="Why the search ended: `proven`, `gap`, `time_limit`, `search_limit`.")
    multipliers: dict[str, float] = Field(description="Shadow prices: cost per unit of each row.")
    seconds: float
    prices: PricesRead | None = Field(default=None, description="Where asked for.")
    probabilities: dict[str, float] | None = Field(
        default=None, description="Unit -> probability that its choice is the right one; where asked for."
    )


class FrontierStep(BaseModel):
    """A plan of the frontier, told by what it changes against the one before."""

    size_bits: int
    objective: float
    exact: bool = Field(description="No plan of at most this size costs less (proven).")
    changes: dict[str, str]


class SolveRead(SolvedRead):
    """The first budget's plan, and all of them."""

    plans: list[SolvedRead]
    frontier: list[FrontierStep] | None = None
    smallest: SmallestRead | None = Field(default=None, description="Where a target cost was given.")
