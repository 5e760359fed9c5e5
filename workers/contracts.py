"""Values that cross the border of the workers: torch-free, frozen, JSON-serialisable.

Words (see the design): a *unit* gets one choice; a *candidate* is bit-width and quantizer scheme of a unit;
a *sensitivity* is the cost of one candidate in one unit, everything else float.
"""

import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from workers.errors import RequestRefused
from workers.sampling import SampleBlock, SketchRequest

MIN_BITS = 2
MAX_BITS = 16


class Metric(StrEnum):
    """What is compared between the float and the quantized model; higher is worse for each."""

    KL = "kl"
    """Mean KL divergence of the outputs' softmax, float against quantized, in nats (per token where there are tokens)."""
    MSE = "mse"
    """Mean squared error of the outputs over the variance of the float outputs (no unit)."""
    LOSS = "loss"
    """Rise of the mean cross entropy against the labels, in nats; may be negative."""


class RangeMethod(StrEnum):
    """How the represented range of a slice is chosen (MATH.md section 2)."""

    MINMAX = "minmax"
    """The slice's smallest and largest value."""
    PERCENTILE = "percentile"
    """The a-th and (100 - a)-th percentile, a in percent."""
    KL = "kl"
    """The clipping threshold of least KL divergence between the histogram and its quantized form."""
    MSE = "mse"
    """The range of least mean squared error."""


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def __str__(self) -> str:
        return "tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale per output channel (the axis is the unit's)."""

    def __str__(self) -> str:
        return "channel"


@dataclass(frozen=True)
class PerGroup:
    """One scale per ``group_size`` consecutive weights along the input axis; the last group may be short."""

    group_size: int

    def __str__(self) -> str:
        return f"group:{self.group_size}"


Granularity = PerTensor | PerChannel | PerGroup

_SCHEME = re.compile(
    r"(?P<gran>tensor|channel|group:(?P<group>\d{1,6}))-(?P<sym>symmetric|asymmetric)"
    r"(?:-(?P<range>minmax|kl|mse|percentile(?::(?P<pct>\d+(?:\.\d+)?))?))?(?P<full>-full)?"
)
SCHEME_GRAMMAR = "(tensor|channel|group:N)-(symmetric|asymmetric)[-(minmax|percentile[:A]|kl|mse)][-full]"


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A quantizer without its bit-width. Text form, e.g. ``channel-asymmetric`` or ``group:64-symmetric-mse``.

    Args:
        granularity: What shares one scale and zero point.
        symmetric: Zero point 0 and a range symmetric about 0.
        range_method: How the range is chosen; min-max unless the text says otherwise.
        percentile: ``a`` in percent, in (0, 50); used by the percentile range only.
        full_range: Symmetric only: codes in [-2^(b-1), 2^(b-1)-1] instead of the narrow range.
    """

    granularity: Granularity
    symmetric: bool
    range_method: RangeMethod = RangeMethod.MINMAX
    percentile: float = 0.1
    full_range: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form.

        Raises:
            RequestRefused: The text does not follow ``SCHEME_GRAMMAR``.
        """
        match = _SCHEME.fullmatch(text)
        if match is None:
            raise RequestRefused(f"unknown quantizer scheme {text!r}", "scheme", text, SCHEME_GRAMMAR)
        group, pct = match["group"], match["pct"]
        granularity: Granularity
        if group is not None:
            granularity = PerGroup(int(group))
        else:
            granularity = PerTensor() if match["gran"] == "tensor" else PerChannel()
        percentile = float(pct) if pct else 0.1
        if isinstance(granularity, PerGroup) and granularity.group_size < 2:
            raise RequestRefused(
                f"group size {group} in {text!r} is too small", "scheme", text, "a group size of 2 or more"
            )
        if not 0 < percentile < 50:
            raise RequestRefused(
                f"percentile {pct} in {text!r} is out of range", "scheme", text, "0 < A < 50 (percent)"
            )
        symmetric = match["sym"] == "symmetric"
        if match["full"] and not symmetric:
            raise RequestRefused(
                f"'-full' in {text!r} needs a symmetric scheme", "scheme", text, SCHEME_GRAMMAR
            )
        method = RangeMethod((match["range"] or "minmax").split(":")[0])
        return cls(
            granularity=granularity,
            symmetric=symmetric,
            range_method=method,
            percentile=percentile,
            full_range=bool(match["full"]),
        )

    def __str__(self) -> str:
        text = f"{self.granularity}-{'symmetric' if self.symmetric else 'asymmetric'}"
        if self.range_method is RangeMethod.PERCENTILE:
            text += f"-percentile:{self.percentile:g}"
        elif self.range_method is not RangeMethod.MINMAX:
            text += f"-{self.range_method.value}"
        return text + ("-full" if self.full_range else "")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A bit-width with its scheme."""

    bits: int
    scheme: Scheme

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise RequestRefused(
                f"bit-width {self.bits} is not offered",
                "candidates",
                self.bits,
                f"whole numbers from {MIN_BITS} to {MAX_BITS}",
            )

    def __str__(self) -> str:
        return f"{self.bits}:{self.scheme}"


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
    sketch: bytes | None = None


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
        batch_size: Samples per pass (ignored when the model's batch is fixed).
        memory_bytes: Bound on the live activations kept between passes.
        device: ``"auto"`` takes CUDA when there.
        output: Name or index of the output that is compared; ``None``: the first floating-point one of the samples.
        block: Which of the chosen samples to measure on; ``None`` for all.
        sketch: Keep output changes; ``None`` for costs alone.
    """

    model_path: str
    calibration_path: str
    metric: Metric
    wanted: tuple[tuple[str, Candidate], ...]
    seed: int = 0
    samples: int | None = None
    indices: tuple[int, ...] | None = None
    batch_size: int = 32
    memory_bytes: int = 2 << 30
    device: str = "auto"
    output: str | None = None
    block: SampleBlock | None = None
    sketch: SketchRequest | None = None


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """One plan to apply to the whole model and to measure.

    Args:
        choices: Unit name -> candidate; units not named stay in float.
        indices: Which samples of the file there are to choose from, as in `MeasureRequest`.
        output: As in `MeasureRequest`.
    """

    model_path: str
    data_path: str
    choices: dict[str, Candidate] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = (Metric.KL,)
    seed: int = 0
    samples: int | None = None
    indices: tuple[int, ...] | None = None
    batch_size: int = 32
    device: str = "auto"
    output: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured quantity of a jointly quantized model on one data set."""

    mean: float
    standard_error: float | None
    samples: int
