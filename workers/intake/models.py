"""Reading a model file of any kind that is accepted; the content tells which kind it is, never the name."""

from pathlib import Path
from typing import Final

from workers.errors import ModelRefused
from workers.graph.model import GraphModel
from workers.intake import huggingface, pt2
from workers.intake.archive import Archive, map_file
from workers.intake.exported import ExportCache
from workers.intake.limits import Limits
from workers.intake.packing import CONFIG

_DEFAULT_LIMITS: Final = Limits()


def read_model(path: Path, limits: Limits = _DEFAULT_LIMITS) -> GraphModel:
    """Read a model file without running anything in it.

    Args:
        path: A ``.pt2`` file, or a packed Hugging Face folder (`workers.intake.packing`).
        limits: Bounds on what the file may ask for.

    Returns:
        The model. Its tensors map the file, which must not change while they live.

    Raises:
        ModelRefused: The file breaks a rule; ``field`` names the entry or node, ``extra["rule"]`` the rule.
        OSError: The file cannot be read.
    """
    folder = _packed_folder(path, limits)
    return (
        pt2.read_model(path, limits)
        if folder is None
        else huggingface.read_folder(folder, limits, ExportCache(path))
    )


def _packed_folder(path: Path, limits: Limits) -> Archive | None:
    """The archive, if it is a packed folder."""
    try:
        archive = Archive.parse(map_file(path, limits), "model", limits)
    except ModelRefused:
        return None  # the reader of .pt2 files says what is wrong with it
    return archive if CONFIG in archive.entries else None
