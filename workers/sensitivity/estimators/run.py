"""Estimates as a worker is asked for them: by files and names."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.contracts import Candidate, ComputeDtype, EstimateRequest, Estimator, MeasureRequest
from workers.errors import RequestRefused
from workers.graph.units import Unit
from workers.sensitivity.engine import sizes
from workers.sensitivity.estimators.around import probe_around
from workers.sensitivity.estimators.changes import Quantizer
from workers.sensitivity.estimators.headway import Progress
from workers.sensitivity.estimators.pairs import Pairs
from workers.sensitivity.estimators.precision import native_half
from workers.sensitivity.estimators.probe import PositionMasks, ProbeOptions, probe
from workers.sensitivity.estimators.scores import scores
from workers.sensitivity.exact import Setup
from workers.sensitivity.mixture import MixedReference
from workers.sensitivity.reference import Reference, first_output
from workers.sensitivity.session import load_batches, load_model, prepare, selection_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimated:
    """What was estimated.

    Args:
        values: ``[probes, entries, samples]``, float64: squares estimate costs, products interactions.
        storage_bits: Of each entry, scales and zero points included.
        gradients: ``[entries, samples]``, float64: first-order changes around a plan, where one was given.
    """

    values: NDArray[np.float64]
    storage_bits: tuple[int, ...]
    gradients: NDArray[np.float64] | None = None


def estimate(request: EstimateRequest, progress: Progress | None = None) -> Estimated:
    """Estimate the costs of all entries at once.

    A pair of a weight's and its inputs' bit-widths changes the outputs, to first order, by the sum of what either does.

    Args:
        request: What to estimate on what.
        progress: See `workers.sensitivity.estimators.probe.ProbeOptions`; estimators from weights alone tell nothing.

    Raises:
        WorkerError: See `workers.sensitivity.session.prepare` and `workers.sensitivity.estimators.probe.probe`.
        OSError: A file cannot be read.
    """
    setup = prepare(_as_measure(request))
    if request.around is not None:
        return _estimate_around(request, setup, request.around, progress)
    pairs = Pairs.of(request.wanted, setup.table)
    options = replace(_options(request, setup, progress), activation_changes=pairs.changes(setup.activations))
    storage = _storage(request, setup)
    if request.estimator != Estimator.PROBE:
        _require_one_output(setup, request.estimator)
        scored = scores(setup, request.wanted, Estimator(request.estimator), options)
        return Estimated(values=scored.clamp_min(0).sqrt()[None, :, None].numpy(), storage_bits=storage)
    values = [pairs.values(found) for found in probe(setup, pairs.weights, options)]
    return Estimated(values=torch.stack(values).numpy(), storage_bits=storage)


def batch_size_of(request: EstimateRequest) -> int:
    """How many samples a pass takes.

    Raises:
        WorkerError: The model or the data cannot be used.
        OSError: A file cannot be read.
    """
    measure = _as_measure(request)
    loaded = load_model(measure.model_path, measure.device, measure.output, measure.compute_dtype)
    return load_batches(measure.calibration_path, loaded, selection_of(measure)).size


def _require_one_output(setup: Setup, estimator: str) -> None:
    allowed = (Estimator.PROBE, Estimator.WEIGHT_MSE, Estimator.WEIGHT_SQNR)
    if isinstance(setup.reference, MixedReference) and estimator not in allowed:
        raise RequestRefused(
            f"{estimator!r} estimates what changes one output", "metric", estimator, list(allowed)
        )


def _estimate_around(
    request: EstimateRequest, setup: Setup, plan: dict[str, Candidate], progress: Progress | None
) -> Estimated:
    if request.estimator != Estimator.PROBE:
        raise RequestRefused(
            f"{request.estimator!r} does not estimate changes around a plan",
            "estimator",
            request.estimator,
            [Estimator.PROBE.value],
        )
    options = _options(request, setup, progress)
    found = probe_around(setup, plan, request.wanted, replace(options, together=request.probes + 1))
    return Estimated(
        values=found.values.numpy(),
        storage_bits=_storage(request, setup),
        gradients=found.gradients.numpy(),
    )


def _options(request: EstimateRequest, setup: Setup, progress: Progress | None) -> ProbeOptions:
    return ProbeOptions(
        probes=request.probes,
        together=request.probes,
        seed=request.seed,
        dtype=_half(request, setup),
        changes_bytes=request.memory_bytes,
        quantize=_quantizer(setup),
        position_masks=_masks(setup),
        progress=progress,
    )


def _half(request: EstimateRequest, setup: Setup) -> torch.dtype | None:
    """What products are rounded to: where the device gains by it, unless the model is computed in its own type."""
    return native_half(setup.program.device) if request.compute_dtype is ComputeDtype.FLOAT32 else None


def _storage(request: EstimateRequest, setup: Setup) -> tuple[int, ...]:
    return tuple(sizes(setup.table.unit(name), candidate)[1] for name, candidate in request.wanted)


def _as_measure(request: EstimateRequest) -> MeasureRequest:
    """The same files and samples, as measuring names them: a worker keeps what it loaded for both."""
    return MeasureRequest(
        model_path=request.model_path,
        calibration_path=request.calibration_path,
        metric=request.metric,
        wanted=request.wanted,
        seed=request.seed,
        samples=request.samples,
        indices=request.indices,
        batch_size=request.batch_size,
        memory_bytes=request.memory_bytes,
        device=request.device,
        output=request.output,
        compute_dtype=request.compute_dtype,
        block=request.block,
        observation=request.observation,
    )


def _quantizer(setup: Setup) -> Quantizer:
    """As candidates are measured: with what their schemes need to know of the inputs."""

    def quantize(unit: Unit, weight: Tensor, candidate: Candidate) -> Tensor:
        inputs = None if setup.moments is None else setup.moments.get(unit.info.name)
        return setup.weights.fake_quantize(unit.info, weight, candidate, inputs)

    return quantize


def _masks(setup: Setup) -> PositionMasks | None:
    """Which output positions of a batch count, of several outputs one after the other."""
    if setup.batches.mask is None:
        return None

    @lru_cache(maxsize=1)  # a batch may be fed in parts
    def mask(batch: int) -> Tensor | None:
        output = setup.reference.outputs[batch]
        if output is None:
            inputs = setup.batches.inputs_of(batch)
            output = first_output(setup.program.run(inputs), setup.batches, batch)
        if isinstance(setup.reference, Reference):
            return setup.batches.counted_of(batch, output)
        packing = setup.reference.packing
        each = [
            output.new_ones((len(output), positions), dtype=torch.bool)
            if counted is None
            else counted.flatten(1)
            for counted, positions in zip(
                packing.counted(setup.batches, batch, output), packing.positions(), strict=True
            )
        ]
        return torch.cat(each, 1)

    return mask
