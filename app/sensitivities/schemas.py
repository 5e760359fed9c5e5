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
    """What is known of a job's candidates so far, in execution order, then by bit-width."""

    job: str
    metric: str = Field(description="What costs are in.")
    done: int = Field(description="Entries that are measured. An entry is a candidate on a block of samples.")
    total: int = Field(
        description="Entries that the job has asked to be measured so far. With metric `auto` it asks for more from round to "
        "round (0 while all is estimated, and for estimates only); candidates that are not measured are estimated."
    )
    complete: bool = Field(
        description="Everything asked for so far is there, estimates included: plans can be made."
    )
    items: list[SensitivityRead]


class FrontierPoint(BaseModel):
    """The best predicted cost at a size."""

    size_bits: int = Field(description="In bits, of what the job's budgets bind.")
    average_bits: float = Field(description="Per searched weight, in bits.")
    objective: float = Field(description="Sum of the predicted costs, in the metric's unit.")


class Frontier(BaseModel):
    """The best predicted cost at each size, by rising size; at most 2000 points.

    Each point is proven best at its size. All of a small model are here; of a larger one those on the convex hull, or some of
    all, and those at the job's budgets. Until the job has plans: those on the hull.
    """

    job: str
    metric: str = Field(description="What costs are in.")
    budget_counts: str
    items: list[FrontierPoint]
