"""Where running processes say how they can be reached: small JSON files in ``<data_dir>/run``."""

import json
import os
from pathlib import Path
from typing import Any

from app.settings import Settings


def run_dir(settings: Settings) -> Path:
    """The directory; created when missing."""
    path = settings.data_dir / "run"
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(settings: Settings, name: str, **values: Any) -> None:
    """Say something about a process; readers see the old text or the new one, never half of it."""
    path = run_dir(settings) / f"{name}.json"
    fresh = path.with_name(f".{name}.{os.getpid()}")
    fresh.write_text(json.dumps({"pid": os.getpid(), **values}))
    fresh.replace(path)


def read(settings: Settings, name: str) -> dict[str, Any] | None:
    """What a process said last, ``None`` if it has said nothing yet. It may be gone since."""
    try:
        values: dict[str, Any] = json.loads((settings.data_dir / "run" / f"{name}.json").read_text())
    except FileNotFoundError:
        return None
    return values


def remove(settings: Settings, name: str) -> None:
    """Forget what a process said."""
    (settings.data_dir / "run" / f"{name}.json").unlink(missing_ok=True)


def scheduler_address(settings: Settings) -> str | None:
    """Where the scheduler is: as configured, or else as the one on this machine said."""
    if settings.scheduler_address:
        return settings.scheduler_address
    said = read(settings, "scheduler")
    return None if said is None else said["address"]
