"""What clients receive about datasets."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from app.kit.pages import MAX_LIMIT


class TensorRead(BaseModel):
    """One tensor of a data file."""

    dtype: str
    shape: list[int] = Field(description="The first axis is the samples'.")
    minimum: int | None = Field(default=None, description="Smallest label.")
    maximum: int | None = Field(default=None, description="Largest label.")


class DatasetRead(BaseModel):
    """A calibration or evaluation file."""

    id: str
    name: str
    sha256: str
    size_bytes: int
    location: str | None = Field(description="Where it lies when it was registered by reference.")
    samples: int
    tensors: dict[str, TensorRead] = Field(description="By input name; `labels` where there are any.")
    created_at: datetime


class DatasetList(BaseModel):
    """A page of datasets, newest first."""

    items: list[DatasetRead]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last one.")


class DatasetFilter(BaseModel):
    """Which page of datasets to list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=MAX_LIMIT, description="Datasets on a page.")
    cursor: str | None = Field(default=None, max_length=512, description="`next_cursor` of the page before.")
