"""Quantizers in words: bit-widths, schemes, candidates. Torch-free, frozen, with one text form each."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from workers.errors import RequestRefused

MIN_BITS = 2
MAX_BITS = 16


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
    L3 = "l3"
    """The range of least mean cubed magnitude of the error."""
    WEIGHTED_MSE = "weighted-mse"
    """The range of least squared error, each weight's counted by the second moment of the input it is multiplied by."""


class Rounding(StrEnum):
    """How the values within the range become codes."""

    NEAREST = "nearest"
    """Each to the nearest level."""
    GPTQ = "gptq"
    """One input after the other, each rounding error made up for by the weights of the inputs still to come."""


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
    r"(?:-(?P<range>minmax|kl|mse|l3|weighted-mse|percentile(?::(?P<pct>\d{1,3}(?:\.\d{1,6})?))?))?"
    r"(?P<full>-full)?(?:-(?P<corrected>corrected)|-(?P<rounding>gptq))?"
)
SCHEME_GRAMMAR = (
    "(tensor|channel|group:N)-(symmetric|asymmetric)"
    "[-(minmax|percentile[:A]|kl|mse|l3|weighted-mse)][-full][-corrected|-gptq]"
)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A quantizer without its bit-width. Text form, e.g. ``channel-asymmetric`` or ``group:64-symmetric-mse``.

    Args:
        granularity: What shares one scale and zero point.
        symmetric: Zero point 0 and a range symmetric about 0.
        range_method: How the range is chosen; min-max unless the text says otherwise.
        percentile: ``a`` in percent, in (0, 50); used by the percentile range only.
        full_range: Symmetric only: codes in [-2^(b-1), 2^(b-1)-1] instead of the narrow range.
        corrected: The mean of each output channel is put back to that of the float weights. Not together with GPTQ,
            which moves the mean on purpose.
        rounding: How values become codes.
    """

    granularity: Granularity
    symmetric: bool
    range_method: RangeMethod = RangeMethod.MINMAX
    percentile: float = 0.1
    full_range: bool = False
    corrected: bool = False
    rounding: Rounding = Rounding.NEAREST

    @property
    def needs_inputs(self) -> bool:
        """Whether quantizing takes the second moments of the unit's inputs."""
        return self.range_method is RangeMethod.WEIGHTED_MSE or self.needs_input_matrix

    @property
    def needs_input_matrix(self) -> bool:
        """Whether quantizing takes the whole second-moment matrix of the unit's inputs."""
        return self.rounding is Rounding.GPTQ

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
            corrected=bool(match["corrected"]),
            rounding=Rounding(match["rounding"] or "nearest"),
        )

    def __str__(self) -> str:
        text = f"{self.granularity}-{'symmetric' if self.symmetric else 'asymmetric'}"
        if self.range_method is RangeMethod.PERCENTILE:
            text += f"-percentile:{self.percentile:.6f}".rstrip("0").rstrip(".")
        elif self.range_method is not RangeMethod.MINMAX:
            text += f"-{self.range_method.value}"
        text += "-full" if self.full_range else ""
        text += "-corrected" if self.corrected else ""
        return text + (f"-{self.rounding.value}" if self.rounding is not Rounding.NEAREST else "")


_CANDIDATE = re.compile(r"(?P<bits>\d{1,2})(?:a(?P<activation>\d{1,2}))?:(?P<scheme>.+)", re.ASCII)
CANDIDATE_GRAMMAR = f"BITS[aACTIVATION_BITS]:SCHEME, where SCHEME is {SCHEME_GRAMMAR}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A bit-width with its scheme. Text form, e.g. ``4:channel-asymmetric``, or ``4a8:channel-asymmetric``.

    Args:
        bits: Of the weight, 2 to 16.
        scheme: How the weight is quantized.
        activation_bits: Of the unit's inputs, 2 to 16; ``None`` leaves them in float.
    """

    bits: int
    scheme: Scheme
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        _require_offered(self.bits, "bit-width", "candidates")
        if self.activation_bits is not None:
            _require_offered(self.activation_bits, "activation bit-width", "activation_candidates")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form.

        Raises:
            RequestRefused: The text does not follow ``CANDIDATE_GRAMMAR``, or a width is outside 2 to 16.
        """
        match = _CANDIDATE.fullmatch(text)
        if match is None:
            raise RequestRefused(f"unknown candidate {text!r}", "candidate", text, CANDIDATE_GRAMMAR)
        activation = match["activation"]
        return cls(
            bits=int(match["bits"]),
            scheme=Scheme.parse(match["scheme"]),
            activation_bits=None if activation is None else int(activation),
        )

    def __str__(self) -> str:
        activation = "" if self.activation_bits is None else f"a{self.activation_bits}"
        return f"{self.bits}{activation}:{self.scheme}"


def _require_offered(bits: int, what: str, field: str) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise RequestRefused(
            f"{what} {bits} is not offered", field, bits, f"whole numbers from {MIN_BITS} to {MAX_BITS}"
        )
