"""What clients receive about models."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.kit.pages import MAX_LIMIT
from app.models import ModelState


class InputRead(BaseModel):
    """An input or output. ``null`` in the shape: any size; the first axis is the samples'."""

    name: str
    dtype: str
    shape: list[int | None]


class UnitRead(BaseModel):
    """A weight that gets one choice."""

    name: str = Field(description="Qualified name of the parameter.")
    operator: str
    shape: list[int]
    weights: int
    output_channel_axis: int
    group_axis: int = Field(description="Axis along which groups are formed.")
    macs: int = Field(description="Multiply-accumulates per sample, over all uses.")
    tied: list[str] = Field(description="Other names of the same storage.")
    derived: bool = Field(description="Computed from parameters (weight norm, scaling).")
    activations: int = Field(
        default=0,
        description="Inputs that its uses multiply it with and that can be quantized; 0 for look-ups.",
    )
    reached_macs: int | None = Field(
        default=None,
        description="Multiply-accumulates per sample that its change reaches: what measuring it runs again.",
    )


class UnsupportedRead(BaseModel):
    """A weight that is left in float, and why."""

    name: str
    operator: str
    shape: list[int]
    weights: int
    reason: str


class ModelSummary(BaseModel):
    """A model in a list."""

    id: str
    name: str
    sha256: str
    size_bytes: int
    location: str | None = Field(description="Where it lies when it was registered by reference.")
    state: ModelState
    created_at: datetime
    units: int | None = Field(description="Number of units; null until inspected.")
    weights: int | None = Field(description="Weights of all units; null until inspected.")


class ModelRead(BaseModel):
    """A model with what intake found in it; the lists are empty until it is inspected."""

    id: str
    name: str
    sha256: str
    size_bytes: int
    location: str | None = Field(description="Where it lies when it was registered by reference.")
    state: ModelState
    created_at: datetime
    problem: dict[str, Any] | None = Field(description="Why it was refused, as a problem document.")
    inputs: list[InputRead] = Field(description="Keys, dtypes and shapes that datasets must have.")
    outputs: list[InputRead] = Field(
        description="A job may name any of them by name or index, to be compared."
    )
    batch_size: int | None = Field(description="The exported batch if it is fixed; null if any may be fed.")
    units: list[UnitRead] = Field(description="What can be quantized, in execution order.")
    unsupported: list[UnsupportedRead] = Field(description="What cannot, and why.")
    weights: int | None
    float_bits: int | None = Field(description="Storage of everything as stored, in bits.")
    unit_float_bits: int | None = Field(description="The units' part of it.")


class ModelList(BaseModel):
    """A page of models, newest first."""

    items: list[ModelSummary]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last one.")


class ModelFilter(BaseModel):
    """Which models to list."""

    model_config = ConfigDict(extra="forbid")

    state: ModelState | None = Field(default=None, description="Only models in this state.")
    limit: int = Field(default=50, ge=1, le=MAX_LIMIT, description="Models on a page.")
    cursor: str | None = Field(default=None, max_length=512, description="`next_cursor` of the page before.")
