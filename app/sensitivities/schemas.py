"""What clients receive about measurements."""

from pydantic import BaseModel, Field


class SensitivityRead(BaseModel):
    """Cost of one candidate of one unit, everything else float."""

    unit: str
    bits: int
    scheme: str
    metric: str
    size_bits: int = Field(description="Weights times bit-width, in bits.")
    storage_bits: int = Field(description="The same with scales and zero points, in bits.")
    mean: float = Field(description="Mean cost over the samples, in the metric's unit; higher is worse.")
    standard_error: float | None = Field(description="Of the mean, over samples; null for one sample.")
    samples: int
    seconds: float = Field(description="Wall-clock time spent on this entry, in seconds; 0 for estimates.")
    source: str = Field(description="`measured`, or `estimated` by a probe or another estimator.")
    activation_bits: int | None = Field(
        default=None, description="Bit-width of the unit's inputs; null: float."
    )


class SensitivityList(BaseModel):
    """What is known of a job's candidates so far, in execution order, then by bit-width; counts are of measured entries."""

    job: str
    metric: str = Field(description="What costs are in.")
    done: int = Field(description="Entries measured.")
    total: int = Field(description="Entries asked for so far; 0 where all is estimated.")
    complete: bool = Field(description="Whether all that was asked for so far is there.")
    items: list[SensitivityRead]


class FrontierPoint(BaseModel):
    """The best predicted cost at a size."""

    size_bits: int = Field(description="In bits, of what the job's budgets bind.")
    average_bits: float = Field(description="Per searched weight, in bits.")
    objective: float = Field(description="Sum of the predicted costs, in the metric's unit.")


class Frontier(BaseModel):
    """The lower convex hull of size against predicted cost, by rising size."""

    job: str
    metric: str = Field(description="What costs are in.")
    budget_counts: str
    items: list[FrontierPoint]
