"""Whether a data file fits a model, from what its row tells: no file is read."""

from collections.abc import Mapping
from typing import Any

from workers.contracts import ModelDescription
from workers.errors import DatasetRefused
from workers.intake.dataset_header import IGNORED_LABEL, LABELS, DatasetHeader, StoredTensor, check_against


def check_dataset(tensors: Mapping[str, Any], samples: int, description: ModelDescription) -> None:
    """Names, types, shapes and labels against the model's inputs and outputs.

    Args:
        tensors: Name -> {dtype, shape}, as in the dataset's row; labels also tell their smallest and largest.
        samples: Length of the first axis.
        description: Of the model.

    Raises:
        DatasetRefused: Another set of names, another type or shape than an input's, or labels that do not fit.
    """
    header = DatasetHeader(
        samples=samples,
        tensors={
            name: StoredTensor(dtype=t["dtype"], shape=tuple(t["shape"]), start=0, end=0)
            for name, t in tensors.items()
        },
    )
    check_against(header, description.inputs, description.outputs)
    _check_labels(tensors, description)


def has_labels(tensors: Mapping[str, Any]) -> bool:
    """Whether the data file brings labels."""
    return LABELS in tensors


def _check_labels(tensors: Mapping[str, Any], description: ModelDescription) -> None:
    largest = tensors.get(LABELS, {}).get("maximum")
    outputs = description.outputs
    classes = outputs[0].shape[-1] if outputs and outputs[0].shape else None
    if largest is not None and classes is not None and largest >= classes:
        raise DatasetRefused(
            f"the data have the label {largest}; the model has {classes} classes",
            LABELS,
            largest,
            f"0 to {classes - 1}, or {IGNORED_LABEL} for tokens that do not count",
            {"rule": "label-range"},
        )
