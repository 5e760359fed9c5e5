"""The models whose plans are compared: how they are built, what they are measured on, and what people use them for.

Calibration and evaluation samples never come from the same photo or document (see ``examples/``). Of the evaluation
samples a part is taken, evenly spread, since every plan is measured on all of them.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quality_tasks import Computed, Cosine, Share, Task
from safetensors.numpy import load_file

from app.export import write_dataset
from app.local import Files
from app.report import quantities

ESTIMATORS = (
    "probe",
    "fisher",
    "fit",
    "weight-mse",
    "weight-sqnr",
    "output-error",
    "output-hessian",
    "hessian-trace",
)
METRICS = ("auto", "exact", "racing", *ESTIMATORS)
"""``exact`` measures every candidate on all samples, ``racing`` on as many as the plans need; the others as in a request."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model with its data.

    Args:
        name: On the command line.
        title: For people.
        compare: What plans are judged by.
        samples: Calibration samples used unless told otherwise.
        evaluation_samples: The same for evaluation.
        sample: What a sample is called, in the plural.
        task: What the model is for, given the files and which evaluation samples they hold.
        module: In ``examples/``, where it is not called as the case with underscores.
        metrics: Those compared unless told otherwise.
        schemes: Likewise; the first one is searched by all metrics.
    """

    name: str
    title: str
    compare: str
    samples: int
    evaluation_samples: int
    sample: str
    task: Callable[[Files, NDArray[np.int64], Path], Task]
    module: str = ""
    metrics: tuple[str, ...] = METRICS
    schemes: tuple[str, ...] = ("channel-asymmetric", "channel-symmetric-mse", "group:32-asymmetric")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A case whose files are there, and how many evaluation samples they hold."""

    case: Case
    files: Files
    task: Task
    evaluated: int


def _psnr(files: Files, taken: NDArray[np.int64], folder: Path) -> Task:
    import esrgan  # noqa: PLC0415 - the module that builds this model alone

    wanted = esrgan.pairs(esrgan.EVALUATION_PHOTOS, esrgan.EVALUATION_CROPS, seed=1)[1][taken]
    return Computed(
        title="PSNR, dB",
        files=files,
        figure=lambda images: esrgan.psnr(images, wanted),
        known=folder / "psnr.json",
    )


def _accuracy(files: Files, taken: NDArray[np.int64], folder: Path) -> Task:
    import stamps  # noqa: PLC0415 - the module that fetches these photos alone

    evaluated = stamps.stamps()[1]
    right = tuple(evaluated[i].classes for i in taken)
    return Computed(
        title="top-1 accuracy",
        files=files,
        figure=lambda outputs: stamps.accuracy(outputs, right),
        known=folder / "accuracy.json",
        words=quantities.percent,
    )


CASES = (
    Case(
        name="efficientnet-lite0",
        title="EfficientNet-Lite0",
        compare="kl",
        samples=80,
        evaluation_samples=73,
        sample="photos",
        task=_accuracy,
        module="stamps",
    ),
    Case(
        name="minilm",
        title="all-MiniLM-L6-v2",
        compare="mse",
        samples=24,
        evaluation_samples=64,
        sample="passages",
        task=lambda files, *_: Cosine(files=files),
        metrics=tuple(m for m in METRICS if m != "hessian-trace"),  # it is that of a cross entropy
    ),
    Case(
        name="esrgan",
        title="ESRGAN-slim x2",
        compare="mse",
        samples=32,
        evaluation_samples=32,
        sample="crops of photos",
        task=_psnr,
        metrics=tuple(m for m in METRICS if m != "hessian-trace"),
    ),
    Case(
        name="smollm2",
        title="SmolLM2-135M-Instruct",
        compare="kl",
        samples=8,
        evaluation_samples=16,
        sample="windows of 128 tokens",
        task=lambda *_: Share(
            title="next-token accuracy", metric="top1_accuracy", float_metric="float_top1_accuracy"
        ),
        # An exact table takes an hour, second derivatives of a language model 10 GiB.
        metrics=tuple(m for m in METRICS if m not in {"exact", "hessian-trace"}),
        # Groups of 32 would give back the four-bit weights that the model was published with.
        schemes=("channel-asymmetric", "group:64-asymmetric-mse"),
    ),
)


def prepare(case: Case, folder: Path, evaluation_samples: int) -> Prepared:
    """Build a case's files where they are not there yet.

    Args:
        case: Which.
        folder: Where the files of all cases are.
        evaluation_samples: How many are evaluated on; all if there are fewer.
    """
    place = folder / case.name
    assets = importlib.import_module(case.module or case.name.replace("-", "_")).build(place)
    path, taken = evaluation_part(assets.evaluation, evaluation_samples)
    files = Files(model=assets.model, calibration=assets.calibration, evaluation=path)
    return Prepared(case=case, files=files, task=case.task(files, taken, place), evaluated=len(taken))


def evaluation_part(path: Path, count: int) -> tuple[Path, NDArray[np.int64]]:
    """A data file with a part of another's samples, evenly spread, and which they are."""
    tensors: Mapping[str, Any] = load_file(path)
    available = len(next(iter(tensors.values())))
    taken = np.arange(min(count, available)) * available // min(count, available)
    part = path.with_name(f"{path.stem}-{len(taken)}.safetensors")
    inputs = {name: values[taken] for name, values in tensors.items() if name != "labels"}
    labels = tensors["labels"][taken] if "labels" in tensors else None
    write_dataset(part, inputs, labels)
    return part, taken
