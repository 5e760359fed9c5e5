"""Values that cross the border of the workers: torch-free, frozen, JSON-serialisable.

Words (see the design): a *unit* gets one choice; a *candidate* is bit-width and quantizer scheme of a unit;
a *sensitivity* is the cost of one candidate in one unit, everything else float.
"""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from workers.sampling import SampleBlock, SketchRequest
from workers.schemes import (
    CANDIDATE_GRAMMAR,
    MAX_BITS,
    MIN_BITS,
    SCHEME_GRAMMAR,
    Candidate,
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    RangeMethod,
    Rounding,
    Scheme,
)

__all__ = [
    "CANDIDATE_GRAMMAR",
    "MAX_BITS",
    "MIN_BITS",
    "SCHEME_GRAMMAR",
    "Candidate",
    "ComputeDtype",
    "Entry",
    "EstimateRequest",
    "Estimator",
    "Granularity",
    "InputInfo",
    "MeasureRequest",
    "Measured",
    "Metric",
    "ModelDescription",
    "Observation",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PlanRequest",
    "RangeMethod",
    "Rounding",
    "Scheme",
    "UnitInfo",
    "UnsupportedWeight",
]


class Metric(StrEnum):
    """What is compared between the float and the quantized model; higher is worse for each."""

    KL = "kl"
    """Mean KL divergence of the outputs' softmax, float against quantized, in nats (per token where there are tokens)."""
    MSE = "mse"
    """Mean squared error of the outputs over the variance of the float outputs (no unit)."""
    LOSS = "loss"
    """Rise of the mean cross entropy against the labels, in nats; may be negative."""


class ComputeDtype(StrEnum):
    """What a model with half-precision weights is computed in; metrics are in float32 or float64 in any case."""

    FLOAT32 = "float32"
    """Differences between a float and a quantized model are small against the rounding of half types."""
    MODEL = "model"
    """What the file says: the costs include that rounding, as a deployment in this type has it."""


class Estimator(StrEnum):
    """Ways to estimate sensitivities without a pass per entry; costs are in passes over the samples, for all entries."""

    PROBE = "probe"
    """Gauss-Newton probe: random-sign cotangents at the outputs, taken back; in the metric's unit. 3 to 6 per probe."""
    WEIGHT_MSE = "weight-mse"
    """Mean squared error of the weights. No pass, no data."""
    WEIGHT_SQNR = "weight-sqnr"
    """Noise-to-signal power ratio of the weights (10^(-SQNR/10)). No pass, no data."""
    OUTPUT_ERROR = "output-error"
    """Squared error of the unit's own output, tr(dW H dW') with H the inputs' second moments. 1, and 1 per candidate."""
    OUTPUT_HESSIAN = "output-hessian"
    """The same weighed by squared gradients at the unit's output (Model Optimizer). 2, and 1 per candidate."""
    HESSIAN_TRACE = "hessian-trace"
    """Mean Hessian trace by Hutchinson's method times the squared weight error (HAWQ-V2). 3, and 4 per draw."""
    FISHER = "fisher"
    """Diagonal of the Fisher information times the squared weight changes. About 4."""
    FIT = "fit"
    """Trace of the Fisher information times the mean squared weight error. About 4."""


@dataclass(frozen=True, kw_only=True)
class InputInfo:
    """One input of a model. ``shape`` holds ``None`` where any size is accepted; axis 0 is the samples' axis."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class UnitInfo:
    """One weight tensor (or several tied ones) that gets one choice.

    Args:
        name: Qualified name of the parameter.
        operator: The operator that uses it first, e.g. ``conv2d``, ``linear``, ``embedding``.
        shape: Of the weight as stored.
        weights: Number of weights.
        output_channel_axis: Axis of ``shape`` along which output channels lie.
        group_axis: Axis of ``shape`` along which groups are formed (the input axis).
        macs: Multiply-accumulates per sample, summed over all uses (0 for look-ups).
        tied: Other qualified names of the same storage.
        derived: The weight is computed from parameters (weight norm, scaling); the computed tensor is quantized.
        activations: Number of floating-point inputs its uses multiply it with; 0 for look-ups, whose indices no
            candidate can quantize.
        reached_macs: Multiply-accumulates per sample of all units' uses that a change of this one reaches, its own
            among them: what measuring it runs again. ``None``: not known.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    weights: int
    output_channel_axis: int
    group_axis: int
    macs: int
    tied: tuple[str, ...] = ()
    derived: bool = False
    activations: int = 0
    reached_macs: int | None = None


@dataclass(frozen=True, kw_only=True)
class UnsupportedWeight:
    """A weight that is left in float, and why."""

    name: str
    operator: str
    shape: tuple[int, ...]
    weights: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What intake tells of a model.

    Args:
        inputs: In the order of the model's signature.
        batch_size: The exported batch if it is fixed, ``None`` if any batch may be fed.
        outputs: Shape and dtype of each output for one sample, ``None`` for sizes that vary.
        units: What can be quantized, in execution order.
        unsupported: What cannot, with reasons.
        weights: Sum of the units' weights.
        float_bits: Storage of all parameters and constant buffers as stored, in bits, ties counted once.
        unit_float_bits: The part of ``float_bits`` that belongs to the units.
    """

    inputs: tuple[InputInfo, ...]
    batch_size: int | None
    outputs: tuple[InputInfo, ...]
    units: tuple[UnitInfo, ...]
    unsupported: tuple[UnsupportedWeight, ...]
    weights: int
    float_bits: int
    unit_float_bits: int

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""

        def rows(kind: Any, items: list[dict[str, Any]]) -> tuple[Any, ...]:
            return tuple(
                kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}) for item in items
            )

        return cls(
            inputs=rows(InputInfo, data["inputs"]),
            batch_size=data["batch_size"],
            outputs=rows(InputInfo, data["outputs"]),
            units=rows(UnitInfo, data["units"]),
            unsupported=rows(UnsupportedWeight, data["unsupported"]),
            weights=data["weights"],
            float_bits=data["float_bits"],
            unit_float_bits=data["unit_float_bits"],
        )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished measurement: the cost of one candidate in one unit, everything else float.

    Measurements of blocks are combined by `workers.sensitivity.statistics.combine`.

    Args:
        size_bits: ``weights * bits``, the article's size.
        storage_bits: ``size_bits`` plus scales and zero points.
        mean: Mean cost over the samples, in the metric's unit.
        standard_error: Of the mean, over samples (``None`` with less than two).
        samples: Number of samples measured; 0 if no sample of a block has a label.
        seconds: Wall-clock time spent on this entry.
        squares: Sum of the squared distances of the samples' costs from the mean.
        block: The samples measured; ``None`` for all chosen ones.
        runs: Mean costs of runs of samples, little-endian float64 (`workers.sensitivity.statistics.run_means`).
        sketch: The output change, little-endian float32, if it was asked for and is finite: inner products of two
            entries' sketches estimate their interaction (`workers.sensitivity.gram`).
    """

    unit: str
    bits: int
    scheme: str
    metric: Metric
    size_bits: int
    storage_bits: int
    mean: float
    standard_error: float | None
    samples: int
    seconds: float
    squares: float = 0.0
    block: SampleBlock | None = None
    runs: bytes = b""
    sketch: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The samples from which the ranges of activations are taken: as a rule, those the costs were measured on.

    Args:
        path: The safetensors file on this machine.
        seed: As in `MeasureRequest`, like the next two.
        samples: How many to use; ``None`` for all.
        indices: Which there are to choose from; ``None`` for all.
    """

    path: str
    seed: int = 0
    samples: int | None = None
    indices: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class MeasureRequest:
    """What to measure, and within which bounds.

    Args:
        model_path: The model file on this machine.
        calibration_path: The safetensors file on this machine.
        metric: What is compared.
        wanted: Unit name and candidate, in the order in which they are to be measured (execution order is cheapest).
        seed: Chooses the samples when ``samples`` is below the number there are.
        samples: How many calibration samples to use; ``None`` for all.
        indices: Which samples of the file there are to choose from, ascending; ``None`` for all. The rest is held out.
        batch_size: Samples per pass (ignored when the model's batch is fixed); ``None``: by a rule (`batch_size_for`).
        memory_bytes: Bound on the live activations kept between passes.
        device: ``"auto"`` takes CUDA when there.
        output: Name or index of the output that is compared; ``None``: the first floating-point one of the samples.
        compute_dtype: What models of half precision are computed in.
        block: Which of the chosen samples to measure on; ``None`` for all.
        sketch: Keep output changes; ``None`` for costs alone.
        observation: Where the ranges of activations come from; ``None`` for the very samples measured. Name it when these
            are only a part of the calibration data, so that all parts quantize alike.
    """

    model_path: str
    calibration_path: str
    metric: Metric
    wanted: tuple[tuple[str, Candidate], ...]
    seed: int = 0
    samples: int | None = None
    indices: tuple[int, ...] | None = None
    batch_size: int | None = 32
    memory_bytes: int = 2 << 30
    device: str = "auto"
    output: str | None = None
    compute_dtype: ComputeDtype = ComputeDtype.FLOAT32
    block: SampleBlock | None = None
    sketch: SketchRequest | None = None
    observation: Observation | None = None


@dataclass(frozen=True, kw_only=True)
class EstimateRequest:
    """One estimate of the costs of all entries at once.

    Args:
        model_path: The model file on this machine.
        calibration_path: The safetensors file on this machine.
        metric: What is estimated: ``kl`` or ``mse``.
        estimator: How.
        wanted: Unit names and candidates.
        probes: How many sets of random signs, where the estimator draws any.
        seed: As in `MeasureRequest`, like what follows.
        samples: How many calibration samples to use.
        indices: Which there are to choose from.
        batch_size: As in `MeasureRequest`, like ``output`` and ``compute_dtype``.
        memory_bytes: Bound on what is kept between passes.
        device: ``"auto"`` takes CUDA when there.
        block: Which of the chosen samples.
        around: A plan, unit name -> candidate, in place of the float model: the changes are those of single choices of it.
            For the estimator ``probe`` and weights alone.
    """

    model_path: str
    calibration_path: str
    metric: Metric
    estimator: str
    wanted: tuple[tuple[str, Candidate], ...]
    probes: int = 4
    seed: int = 0
    samples: int | None = None
    indices: tuple[int, ...] | None = None
    batch_size: int | None = 32
    memory_bytes: int = 2 << 30
    device: str = "auto"
    output: str | None = None
    compute_dtype: ComputeDtype = ComputeDtype.FLOAT32
    block: SampleBlock | None = None
    observation: Observation | None = None
    around: dict[str, Candidate] | None = None


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """One plan to apply to the whole model and to measure.

    Args:
        choices: Unit name -> candidate; units not named stay in float.
        indices: Which samples of the file there are to choose from, as in `MeasureRequest`.
        observation: Where the ranges of activations come from; needed if a choice quantizes them. Never the data that the
            plan is measured on, unless nothing else is there.
        output: As in `MeasureRequest`, like ``compute_dtype``.
    """

    model_path: str
    data_path: str
    choices: dict[str, Candidate] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = (Metric.KL,)
    seed: int = 0
    samples: int | None = None
    indices: tuple[int, ...] | None = None
    batch_size: int | None = 32
    device: str = "auto"
    observation: Observation | None = None
    output: str | None = None
    compute_dtype: ComputeDtype = ComputeDtype.FLOAT32


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured quantity of a jointly quantized model on one data set."""

    mean: float
    standard_error: float | None
    samples: int
