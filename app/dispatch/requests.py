"""What workers are asked, from a job's rows and files: requests of plain values, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.dispatch.files import verified_path
from app.dispatch.work import JobFiles, ProbeTask, WantedEntry, candidate_of
from app.jobs.keys import Split, split_samples
from app.jobs.offer import Offer
from app.jobs.tasks import Block
from app.plans.refining import PROBES, Choices
from app.settings import Settings
from workers.contracts import (
    ComputeDtype,
    EstimateRequest,
    Estimator,
    MeasureRequest,
    Metric,
    Observation,
    PlanRequest,
)
from workers.sampling import SampleBlock, SketchRequest
from workers.sensitivity.blocks import positions_of

CALIBRATION, EVALUATION = "calibration", "evaluation"


def measure_request(settings: Settings, files: JobFiles, wanted: Sequence[WantedEntry]) -> MeasureRequest:
    """Entries of one block of samples."""
    return MeasureRequest(
        wanted=tuple((entry.unit, entry.candidate) for entry in wanted),
        block=sample_block(files, wanted[0].block),
        sketch=SketchRequest(),
        **_on_calibration(settings, files),
    )


def estimate_request(settings: Settings, files: JobFiles, task: ProbeTask, block: Block) -> EstimateRequest:
    """A job's probes on a block of the samples."""
    return EstimateRequest(
        estimator=files.request["estimator"],
        wanted=task.offer,
        probes=files.request["probes"],
        block=sample_block(files, block),
        **_on_calibration(settings, files),
    )


def around_request(
    settings: Settings, files: JobFiles, offer: Offer, base: Choices, block: Block
) -> EstimateRequest:
    """Probes around a plan, on a block of the samples."""
    return EstimateRequest(
        estimator=Estimator.PROBE.value,
        wanted=offer,
        probes=PROBES,
        block=sample_block(files, block),
        around={unit: candidate_of(choice) for unit, choice in base.items()},
        **_on_calibration(settings, files),
    )


def _on_calibration(settings: Settings, files: JobFiles) -> dict[str, Any]:
    """What measuring and estimating have in common: the model, the samples, what is compared, and how it is run."""
    request = files.request
    return {
        "model_path": str(verified_path(settings, files.model)),
        "calibration_path": str(verified_path(settings, files.calibration)),
        "metric": Metric(request["compare"]),
        "seed": request["seed"],
        "samples": request["samples"],
        "indices": split_of(files).calibration,
        "batch_size": request["batch_size"],
        "output": request.get("output"),
        "compute_dtype": _compute_dtype(request),
        "memory_bytes": min(request["memory_bytes"], settings.memory_bytes),
        "observation": observation(settings, files),
    }


def _compute_dtype(request: Mapping[str, Any]) -> ComputeDtype:
    return ComputeDtype(request.get("compute_dtype", ComputeDtype.FLOAT32))


def observation(settings: Settings, files: JobFiles) -> Observation:
    """What is observed of units' inputs, on: all samples that are calibrated on, whatever part of them is measured."""
    return Observation(
        path=str(verified_path(settings, files.calibration)),
        seed=files.request["seed"],
        samples=files.request["samples"],
        indices=split_of(files).calibration,
    )


def sample_block(files: JobFiles, block: Block) -> SampleBlock | None:
    """A block of the samples; ``None`` when it is all of them."""
    used = sample_counts(files)[CALIBRATION]
    return None if block == (0, used) else SampleBlock(start=block[0], stop=block[1])


def samples_within(files: JobFiles, block: Block, larger: Block) -> NDArray[np.int64]:
    """Where a block's samples are among those of a larger one, int64: both are in the order of the file."""
    used, seed = sample_counts(files)[CALIBRATION], files.request["seed"]
    own, all_of_them = (positions_of(SampleBlock(start=a, stop=b), used, seed) for a, b in (block, larger))
    return np.searchsorted(all_of_them, own)


def sample_counts(files: JobFiles) -> dict[str, int]:
    """How many samples are calibrated on and evaluated on, by role; 0 where there are none."""
    asked, split = files.request["samples"], split_of(files)
    available = files.calibration.samples if split.calibration is None else len(split.calibration)
    evaluated = len(split.evaluation or ()) if files.evaluation is None else files.evaluation.samples
    return {
        CALIBRATION: available if asked is None else min(asked, available),
        EVALUATION: evaluated,
    }


def split_of(files: JobFiles) -> Split:
    """Which samples of the calibration file are calibrated on, and which are held out."""
    return split_samples(files.calibration.samples, files.request["holdout"], files.request["seed"])


def plan_requests(settings: Settings, files: JobFiles, choices: dict[str, Any]) -> dict[str, PlanRequest]:
    """What a plan is measured on, by role: the calibration samples, and those to evaluate on when there are any."""
    split = split_of(files)
    calibration = calibration_request(settings, files, choices)
    requests = {CALIBRATION: calibration}
    if files.evaluation is not None:
        path = str(verified_path(settings, files.evaluation))
        requests[EVALUATION] = replace(calibration, data_path=path, samples=None, indices=None)
    elif split.evaluation is not None:
        requests[EVALUATION] = replace(calibration, samples=None, indices=split.evaluation)
    return requests


def calibration_request(settings: Settings, files: JobFiles, choices: dict[str, Any]) -> PlanRequest:
    """A plan to be measured on the samples that are calibrated on."""
    request = files.request
    return PlanRequest(
        model_path=str(verified_path(settings, files.model)),
        data_path=str(verified_path(settings, files.calibration)),
        choices={unit: candidate_of(choice) for unit, choice in choices.items()},
        metrics=(Metric(request["compare"]),),
        seed=request["seed"],
        samples=request["samples"],
        indices=split_of(files).calibration,
        batch_size=request["batch_size"],
        output=request.get("output"),
        compute_dtype=_compute_dtype(request),
        observation=observation(settings, files),
    )
