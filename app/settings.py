"""All settings of the service, in one typed object. Environment variables begin with ``BITWRIGHT_``."""

import os
from functools import cached_property
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "bitwright"


class Settings(BaseSettings):
    """Settings of API, dispatcher and workers.

    Every field is documented in `docs/configuration.md`; a test holds the two together.
    """

    model_config = SettingsConfigDict(env_prefix="BITWRIGHT_", extra="ignore", frozen=True)

    data_dir: Path = Field(
        default_factory=_default_data_dir, description="Database (SQLite), artifacts, certificates, logs."
    )
    database_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL; SQLite inside the data directory when not given. PostgreSQL: postgresql+psycopg://…",
    )
    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(
        default=8400, ge=0, le=65535, description="Port the API listens on; 0 takes a free one."
    )
    scheduler_address: str | None = Field(
        default=None,
        description="tls://host:port of the scheduler; `bitwright serve` starts its own when not given.",
    )
    tls_dir: Path | None = Field(
        default=None,
        description="CA, certificate and key of the engine; inside the data directory when not given.",
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Worker processes `bitwright serve` starts; 0: one for each core, at most 8.",
    )
    worker_threads: int = Field(default=1, ge=1, le=256, description="Threads of computation in each worker.")
    max_upload_bytes: int = Field(default=16 << 30, gt=0, description="Largest accepted upload, in bytes.")
    allowed_locations: tuple[Path, ...] = Field(
        default=(),
        description="Directories from which models and data may be registered by reference (JSON list).",
    )
    inspect_wait_s: float = Field(
        default=60.0, ge=0, description="How long an upload waits for its model to be inspected, in seconds."
    )
    shard_attempts: int = Field(
        default=3, ge=1, description="How often a failing task is tried before its job fails."
    )
    memory_bytes: int = Field(
        default=2 << 30, gt=0, description="Bound on activations kept between passes, per worker, in bytes."
    )
    lease_ttl_s: float = Field(default=3.0, gt=0, description="Life of the dispatcher's lease, in seconds.")
    tick_s: float = Field(
        default=0.1, gt=0, description="Pause between two rounds of the dispatcher, in seconds."
    )

    @cached_property
    def resolved_database_url(self) -> str:
        """The URL in use."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'bitwright.db').as_posix()}"

    @cached_property
    def artifacts_dir(self) -> Path:
        """Where uploaded files are kept by content hash."""
        return self.data_dir / "artifacts"

    @cached_property
    def resolved_tls_dir(self) -> Path:
        """Where the engine's certificates are kept (mode 0700)."""
        return self.tls_dir or self.data_dir / "tls"
