"""What a worker process keeps between shards: models, data, the float model's outputs, and the last prefixes.

Shards of one job come to a worker one after the other and need the same things. Files are known by path, size
and time of change. Everything is bounded: few models and data sets, one set of prefixes, and the float model's outputs for as
many blocks of samples of one model as half of the memory for activations holds: rounds come back to them.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from workers.contracts import Candidate, ComputeDtype, MeasureRequest, Metric, Observation, PlanRequest
from workers.errors import RequestRefused
from workers.graph.allocator import keep_freed_memory
from workers.graph.model import GraphModel
from workers.graph.outputs import choose_output, pack_outputs
from workers.graph.precision import in_float32
from workers.graph.program import Program
from workers.graph.units import UnitTable, find_units
from workers.intake.dataset import Dataset, read_dataset
from workers.intake.models import read_model
from workers.mixtures import parse_mixture
from workers.quant import InputMoments, QuantizedWeights
from workers.sensitivity.activations import ActivationRanges, observe, quantize_activations
from workers.sensitivity.batches import Batches, Selection
from workers.sensitivity.batching import batch_size_for
from workers.sensitivity.exact import Setup
from workers.sensitivity.mixture import MixedReference, Packing, mixed_variances
from workers.sensitivity.moments import collect_moments
from workers.sensitivity.prefixes import Prefixes
from workers.sensitivity.recent import RecentlyUsed
from workers.sensitivity.reference import FloatOutputs, Reference, output_variance
from workers.sensitivity.stacking import Stacking

_MOST_SETUPS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready to run.

    Args:
        model: As read.
        program: For one device.
        table: Its units.
        weights: Quantizes them.
    """

    model: GraphModel
    program: Program
    table: UnitTable
    weights: QuantizedWeights = field(default_factory=QuantizedWeights)


@dataclass(frozen=True, kw_only=True)
class _Caches:
    models: RecentlyUsed[LoadedModel] = field(default_factory=lambda: RecentlyUsed(2))
    datasets: RecentlyUsed[Dataset] = field(default_factory=lambda: RecentlyUsed(3))
    variances: RecentlyUsed[tuple[float, ...]] = field(default_factory=lambda: RecentlyUsed(8))
    activations: RecentlyUsed[ActivationRanges] = field(default_factory=lambda: RecentlyUsed(2))
    outputs: RecentlyUsed[FloatOutputs] = field(default_factory=lambda: RecentlyUsed(2))
    moments: RecentlyUsed[dict[str, InputMoments]] = field(default_factory=lambda: RecentlyUsed(1))
    setups: RecentlyUsed[Setup] = field(default_factory=lambda: RecentlyUsed(_MOST_SETUPS))
    prefixes: RecentlyUsed[Prefixes] = field(default_factory=lambda: RecentlyUsed(1))
    stackings: RecentlyUsed[Stacking] = field(default_factory=lambda: RecentlyUsed(1))


_CACHES = _Caches()


def load_model(
    path: str,
    device: str,
    output: str | None = None,
    compute_dtype: ComputeDtype = ComputeDtype.FLOAT32,
) -> LoadedModel:
    """A model file, ready to run on a device (``"auto"``: CUDA when there), with the output to compare put first.

    Args:
        path: The file.
        device: Where it is to run.
        output: Name or index of the output to compare, or several with weights (`workers.mixtures`).
        compute_dtype: What a model of half precision is computed in.

    Raises:
        ModelRefused: The file breaks a rule of the reader.
        RequestRefused: There is no such device.
        OSError: The file cannot be read.
    """
    where = resolve_device(device)
    if where.type == "cpu":
        keep_freed_memory()

    def load() -> LoadedModel:
        model = read_model(Path(path))
        if compute_dtype is ComputeDtype.FLOAT32:
            model = in_float32(model)
        mixture = parse_mixture(output)
        if mixture is None:
            model = choose_output(model, output)
        else:
            model = pack_outputs(model, [each.name for each in mixture])
        return LoadedModel(model=model, program=Program(model, where), table=find_units(model))

    return _CACHES.models.get((_identity(path), str(where), output, compute_dtype), load)


def load_batches(path: str, loaded: LoadedModel, selection: Selection) -> Batches:
    """A data file that fits a model, cut into batches.

    Raises:
        DatasetRefused: The file breaks the format or does not fit.
        RequestRefused: Less than one sample, or more than there are.
        OSError: The file cannot be read.
    """
    inputs = loaded.model.inputs
    dataset = _CACHES.datasets.get((_identity(path), inputs), lambda: read_dataset(Path(path), inputs))
    tensors = [dataset.inputs[info.name] for info in inputs]
    return Batches.of(
        tensors,
        dataset.labels,
        selection,
        fixed_batch=loaded.model.batch_size,
        usual_batch=batch_size_for(loaded.model, tensors),
        mask=dataset.mask,
    )


def load_activations(
    request: MeasureRequest | PlanRequest,
    loaded: LoadedModel,
    observation: Observation,
    choices: Iterable[tuple[str, Candidate]],
) -> ActivationRanges | None:
    """The ranges of a model's activations, observed once and kept; ``None`` if no candidate quantizes any.

    Args as for `load_moments`.

    Raises:
        WorkerError: See `load_batches` and `workers.sensitivity.activations.observe`.
        OSError: The file cannot be read.
    """
    if not quantize_activations(choices):
        return None
    selection = _observed(request, observation)

    def run() -> ActivationRanges:
        return observe(loaded.program, loaded.table, load_batches(observation.path, loaded, selection))

    key = (
        _identity(request.model_path),
        _identity(observation.path),
        selection,
        request.compute_dtype,
        str(resolve_device(request.device)),
    )
    return _CACHES.activations.get(key, run)


def load_float_outputs(request: PlanRequest, loaded: LoadedModel) -> FloatOutputs:
    """The float model's outputs for the data that a plan is measured on.

    Raises:
        WorkerError: See `load_batches`.
        OSError: The file cannot be read.
    """
    selection = selection_of(request)
    key = (
        _identity(request.model_path),
        _identity(request.data_path),
        selection,
        request.output,
        request.compute_dtype,
        str(resolve_device(request.device)),
    )
    return _CACHES.outputs.get(
        key,
        lambda: FloatOutputs(
            program=loaded.program, batches=load_batches(request.data_path, loaded, selection)
        ),
    )


def load_moments(
    request: MeasureRequest | PlanRequest,
    loaded: LoadedModel,
    observation: Observation,
    choices: Iterable[tuple[str, Candidate]],
) -> dict[str, InputMoments] | None:
    """The second moments that the schemes of some candidates need, collected once and kept.

    Args:
        request: Names the model, the device, and the samples per pass.
        loaded: The model.
        observation: The samples.
        choices: Unit names and candidates.

    Returns:
        Unit name -> moments, for all units, with the matrices that are needed; ``None`` if no scheme needs any.

    Raises:
        WorkerError: See `load_batches` and `workers.sensitivity.moments.collect_moments`.
        OSError: The file cannot be read.
    """
    needing = [(name, candidate.scheme) for name, candidate in choices if candidate.scheme.needs_inputs]
    if not needing:
        return None
    matrices = frozenset(
        loaded.table.unit(name).info.name for name, scheme in needing if scheme.needs_input_matrix
    )
    selection = _observed(request, observation)

    def run() -> dict[str, InputMoments]:
        batches = load_batches(observation.path, loaded, selection)
        return collect_moments(loaded.program, loaded.table, batches, matrices=matrices)

    key = (
        _identity(request.model_path),
        _identity(observation.path),
        selection,
        matrices,
        request.compute_dtype,
        str(resolve_device(request.device)),
    )
    return _CACHES.moments.get(key, run)


def _observed(request: MeasureRequest | PlanRequest, observation: Observation) -> Selection:
    return Selection(
        samples=observation.samples,
        indices=observation.indices,
        seed=observation.seed,
        batch_size=request.batch_size,
    )


def prepare(request: MeasureRequest) -> Setup:
    """Load what a request names, run the float model, and observe of its inputs what the candidates need.

    Raises:
        WorkerError: See `load_model`, `load_batches`, `Reference.measure`, `load_activations` and `load_moments`.
    """
    setup = _CACHES.setups.get(_setup_key(request), lambda: _prepare(request))
    _bound_outputs(setup, request.memory_bytes // 2)
    observation = request.observation or Observation(
        path=request.calibration_path, seed=request.seed, samples=request.samples, indices=request.indices
    )
    loaded = load_model(request.model_path, request.device, request.output, request.compute_dtype)
    activations = load_activations(request, loaded, observation, request.wanted)
    moments = load_moments(request, loaded, observation, request.wanted)
    nothing = activations is None and moments is None
    return setup if nothing else replace(setup, activations=activations, moments=moments)


def _bound_outputs(newest: Setup, limit_bytes: int) -> None:
    """Forget the float model's outputs for what was not used for longest, until the rest takes so much at most."""
    taken = 0

    def fits(setup: Setup) -> bool:
        nonlocal taken
        taken += setup.reference.kept_bytes
        return setup is newest or taken <= limit_bytes

    _CACHES.setups.keep_while(fits)


def _prepare(request: MeasureRequest) -> Setup:
    loaded = load_model(request.model_path, request.device, request.output, request.compute_dtype)
    # Before making: what belongs to another measurement would take room beside it.
    _CACHES.prefixes.clear()
    _CACHES.setups.keep_while(lambda setup: setup.program is loaded.program)
    batches = load_batches(
        request.calibration_path,
        loaded,
        selection_of(request),
    )
    # The reference saves a pass per entry where the prefixes save a part of one: it goes first.
    reference = _reference(request, loaded, batches)
    if request.sketch is not None:
        reference = reference.with_sketches(request.sketch, request.seed)
    return Setup(
        program=loaded.program,
        table=loaded.table,
        batches=batches,
        reference=reference,
        weights=loaded.weights,
    )


def _reference(request: MeasureRequest, loaded: LoadedModel, batches: Batches) -> Reference | MixedReference:
    metric, memory_bytes = Metric(request.metric), request.memory_bytes // 2
    variances = _whole_variances(request, loaded)
    mixture = parse_mixture(request.output)
    if mixture is not None:
        packing = Packing.of(loaded.model, mixture, batches)
        return MixedReference.measure(
            loaded.program, batches, metric, packing, memory_bytes=memory_bytes, variances=variances
        )
    variance = None if variances is None else variances[0]
    return Reference.measure(loaded.program, batches, metric, memory_bytes=memory_bytes, variance=variance)


def _whole_variances(request: MeasureRequest, loaded: LoadedModel) -> tuple[float, ...] | None:
    """What errors on a block are related to, so that blocks can be combined; ``None`` where no block is asked for."""
    mixture = parse_mixture(request.output)
    compared = [Metric(request.metric)] if mixture is None else [output.metric for output in mixture]
    if request.block is None or Metric.MSE not in compared:
        return None
    whole = replace(request, block=None, sketch=None)

    def measured() -> tuple[float, ...]:
        batches = load_batches(request.calibration_path, loaded, selection_of(whole))
        if mixture is None:
            return (output_variance(loaded.program, batches),)
        return mixed_variances(loaded.program, batches, Packing.of(loaded.model, mixture, batches))

    return _CACHES.variances.get(_setup_key(whole), measured)


def selection_of(request: MeasureRequest | PlanRequest) -> Selection:
    """The samples that a request names."""
    return Selection(
        samples=request.samples,
        indices=request.indices,
        seed=request.seed,
        batch_size=request.batch_size,
        block=request.block if isinstance(request, MeasureRequest) else None,
    )


def take_prefixes(request: MeasureRequest, setup: Setup) -> Prefixes:
    """The prefixes the last shard of the same measurement left behind, or new ones."""
    kept = _CACHES.prefixes.take(_setup_key(request))
    _CACHES.prefixes.clear()  # those of another measurement would take room beside the new ones
    if kept is not None:
        return kept
    outputs = sum(kept.reference.kept_bytes for kept in _CACHES.setups.values())
    room = max(0, request.memory_bytes - outputs)
    return Prefixes(setup.program, setup.batches, memory_bytes=room)


def keep_prefixes(request: MeasureRequest, prefixes: Prefixes) -> None:
    """Leave prefixes to the next shard."""
    _CACHES.prefixes.put(_setup_key(request), prefixes)


def load_stacking(request: MeasureRequest, setup: Setup) -> Stacking:
    """What earlier shards of the same measurement learnt of running candidates together."""
    return _CACHES.stackings.get(
        _setup_key(request),
        lambda: Stacking(setup.program, setup.batches, memory_bytes=request.memory_bytes),
    )


def forget() -> None:
    """Drop everything that is kept."""
    for cache in vars(_CACHES).values():
        cache.clear()


def resolve_device(device: str) -> torch.device:
    """The device of a name.

    Raises:
        RequestRefused: It is not ``"auto"``, and torch cannot compute on it here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise RequestRefused(
            f"cannot compute on device {device!r}: {error}", "device", device, ["auto", "cpu", "cuda"]
        ) from error
    return found


def _identity(path: str) -> tuple[str, int, int, int]:
    resolved = Path(path).resolve()
    found = resolved.stat()
    return str(resolved), found.st_ino, found.st_size, found.st_mtime_ns


def _setup_key(request: MeasureRequest) -> Hashable:
    return (
        _identity(request.model_path),
        _identity(request.calibration_path),
        request.output,
        request.compute_dtype,
        request.metric,
        selection_of(request),
        request.sketch,
        request.memory_bytes,
        str(resolve_device(request.device)),
    )
