"""Menus: which candidates a unit is offered, given what is to run the model. Torch-free.

A menu holds what a target can execute *exactly as measured*: the codes, the slices and the zero points. How a range
was chosen and how values were rounded leaves no trace in a file, so that both are free everywhere.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from workers.contracts import UnitInfo
from workers.schemes import (
    MAX_BITS,
    MIN_BITS,
    Candidate,
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    RangeMethod,
    Rounding,
    Scheme,
)


class Target(StrEnum):
    """What is to run the model."""

    ANY = "any"
    """Anything this project can quantize: for simulation, or runtimes of one's own."""
    INT8_KERNELS = "int8-kernels"
    """Integer kernels of mobile and CPU runtimes: one scale per channel, no zero points for weights."""
    GGUF = "gguf"
    """llama.cpp's plain block types: groups of 32."""
    GPTQ_AWQ = "gptq-awq"
    """Packed integers with scales and zero points per group, as GPTQ and AWQ files hold them."""
    COMPRESSED_TENSORS = "compressed-tensors"
    """The format of llm-compressor, as vLLM runs it."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way a target stores weights.

    Args:
        bits: Bit-widths.
        granularity: What shares a scale.
        symmetric: No zero point.
        full_range: Symmetric only: all codes are in use.
        offset: The zero point may be any real number, so that corrected means need no storage of their own kind.
    """

    bits: tuple[int, ...]
    granularity: Granularity
    symmetric: bool
    full_range: bool = False
    offset: bool = False


_ALL_BITS = tuple(range(MIN_BITS, MAX_BITS + 1))
_PRODUCTS = ("linear", "mm", "addmm", "matmul")

_FORMATS: dict[Target, tuple[Format, ...]] = {
    Target.ANY: (
        Format(bits=_ALL_BITS, granularity=PerTensor(), symmetric=False, offset=True),
        Format(bits=_ALL_BITS, granularity=PerChannel(), symmetric=True, offset=True),
        Format(bits=_ALL_BITS, granularity=PerChannel(), symmetric=False, offset=True),
        *(
            Format(bits=_ALL_BITS, granularity=PerGroup(size), symmetric=False, offset=True)
            for size in (32, 64, 128)
        ),
    ),
    # TensorFlow Lite's 8-bit quantization specification: weights of convolutions and fully connected layers are int8 in
    # [-127, 127], zero point 0, one scale per output channel. XNNPACK's qc4w kernels (4-bit weights per channel) take
    # [-7, 7] the same way.
    Target.INT8_KERNELS: (Format(bits=(4, 8), granularity=PerChannel(), symmetric=True),),
    # llama.cpp, ggml/src/ggml-common.h: 32 weights a block (QK4_0, QK4_1, QK5_0, QK5_1, QK8_0). The _0 types are
    # d * q with q in [-8, 7], [-16, 15] and [-127, 127]; the _1 types d * q + m with q from 0 and any m. The k types
    # quantize their scales again (super-blocks of 256), which no scheme here describes: they are left out.
    Target.GGUF: (
        Format(bits=(4, 5), granularity=PerGroup(32), symmetric=True, full_range=True),
        Format(bits=(8,), granularity=PerGroup(32), symmetric=True),
        Format(bits=(4, 5), granularity=PerGroup(32), symmetric=False, offset=True),
    ),
    # GPTQModel, nn_modules/qlinear/torch.py: SUPPORTS_BITS 2, 3, 4, 8; SUPPORTS_GROUP_SIZE -1 (a channel), 16, 32, 64, 128;
    # SUPPORTS_SYM both. Symmetric files put the zero point in the middle of 2^b codes. AWQ files: 4 bits of the same.
    Target.GPTQ_AWQ: tuple(
        Format(bits=(2, 3, 4, 8), granularity=granularity, symmetric=symmetric, full_range=symmetric)
        for granularity in (PerChannel(), PerGroup(32), PerGroup(64), PerGroup(128))
        for symmetric in (True, False)
    ),
    # vLLM, compressed_tensors_wNa16.py: WNA16_SUPPORTED_TYPES_MAP 4 (uint4b8) and 8 (uint8b128), all codes in use, and
    # WNA16_ZP_SUPPORTED_TYPES_MAP 4 and 8 with zero points; marlin_utils.py: MARLIN_SUPPORTED_GROUP_SIZES -1, 32, 64, 128.
    # (Later releases take 2, 3, 5, 6 and 7 bits without zero points; no kernel is promised for them.)
    Target.COMPRESSED_TENSORS: tuple(
        Format(bits=(4, 8), granularity=granularity, symmetric=symmetric, full_range=symmetric)
        for granularity in (PerChannel(), PerGroup(32), PerGroup(64), PerGroup(128))
        for symmetric in (True, False)
    ),
}

# Which operators' weights a target takes; ``None`` for all. llama.cpp quantizes matrices and token tables; the other two
# replace linear layers (their look-ups stay in float).
_OPERATORS: dict[Target, tuple[str, ...] | None] = {
    Target.ANY: None,
    Target.INT8_KERNELS: None,
    Target.GGUF: (*_PRODUCTS, "embedding"),
    Target.GPTQ_AWQ: _PRODUCTS,
    Target.COMPRESSED_TENSORS: _PRODUCTS,
}

# Range method and percentile. The short list is what measurement shows to matter; see docs/schemes.md.
_SHORT = ((RangeMethod.MINMAX, None), (RangeMethod.MSE, None))
_THOROUGH = (
    *_SHORT,
    (RangeMethod.L3, None),
    (RangeMethod.KL, None),
    (RangeMethod.PERCENTILE, 0.1),
    (RangeMethod.PERCENTILE, 1.0),
)


_SEARCHED_BITS = 4
"""Short menus search ranges up to this bit-width: with more levels, clipping buys little (docs/schemes.md)."""
_SHORT_GROUPS = (32, 128)


def offered_bits(target: Target) -> tuple[int, ...]:
    """The bit-widths in which a target can store weights, ascending."""
    return tuple(sorted({bits for form in _FORMATS[Target(target)] for bits in form.bits}))


def short_menu(target: Target, unit: UnitInfo, bits: Sequence[int]) -> tuple[Candidate, ...]:
    """The part of `menu` that pays for itself: what a search offers unless asked for more.

    Searching a range takes five times as long as finding the smallest and largest value, and each format is another
    search. So ranges are searched at few bits only; of formats that slice alike, the one with zero points is offered;
    groups are of 32 or 128; whole tensors, which channels beat nearly always, are left out.

    Args:
        target: What is to run the model.
        unit: The unit.
        bits: Bit-widths wanted.

    Returns:
        As `menu`.
    """
    candidates = menu(target, unit, bits)
    slices = {(c.bits, c.scheme.granularity) for c in candidates if not c.scheme.symmetric}
    return tuple(
        candidate
        for candidate in candidates
        if not candidate.scheme.corrected
        and not (candidate.scheme.symmetric and (candidate.bits, candidate.scheme.granularity) in slices)
        and _is_short(candidate.scheme.granularity)
        and (candidate.bits <= _SEARCHED_BITS or candidate.scheme.range_method is RangeMethod.MINMAX)
    )


def _is_short(granularity: Granularity) -> bool:
    if isinstance(granularity, PerGroup):
        return granularity.group_size in _SHORT_GROUPS
    return isinstance(granularity, PerChannel)


def menu(  # noqa: PLR0913 - one keyword for each thing that is known of the unit
    target: Target,
    unit: UnitInfo,
    bits: Sequence[int],
    *,
    moments: bool = False,
    matrix: bool = False,
    thorough: bool = False,
) -> tuple[Candidate, ...]:
    """The candidates of one unit.

    Args:
        target: What is to run the model.
        unit: The unit.
        bits: Bit-widths wanted; those the target cannot execute are left out.
        moments: The second moments of the unit's inputs are known: offer ranges weighted by them.
        matrix: Their whole matrix is known: offer error-compensating rounding.
        thorough: Offer every range method instead of min-max and least squared error only.

    Returns:
        Candidates without duplicates, by bit-width, then as the target lists its formats; none where the target leaves such
        a weight in float.
    """
    target = Target(target)
    operators = _OPERATORS[target]
    if operators is not None and (unit.operator not in operators or len(unit.shape) != 2):
        return ()
    found: dict[Candidate, None] = {}
    for width in sorted(set(bits)):
        for form in _FORMATS[target]:
            if width in form.bits and _suits(form.granularity, unit, whole=target is not Target.ANY):
                ranges = _THOROUGH if thorough else _SHORT
                for scheme in _schemes(form, ranges, moments=moments, matrix=matrix and _is_matrix(unit)):
                    found[Candidate(bits=width, scheme=scheme)] = None
    return tuple(found)


def _schemes(
    form: Format,
    ranges: Sequence[tuple[RangeMethod, float | None]],
    *,
    moments: bool,
    matrix: bool,
) -> Iterator[Scheme]:
    if moments:
        ranges = (*ranges, (RangeMethod.WEIGHTED_MSE, None))
    for method, percentile in ranges:

        def scheme(
            rounding: Rounding = Rounding.NEAREST,
            *,
            corrected: bool = False,
            method: RangeMethod = method,
            percentile: float | None = percentile,
        ) -> Scheme:
            chosen = {} if percentile is None else {"percentile": percentile}
            return Scheme(
                granularity=form.granularity,
                symmetric=form.symmetric,
                full_range=form.full_range,
                range_method=method,
                rounding=rounding,
                corrected=corrected,
                **chosen,
            )

        yield scheme()
        if form.offset:
            yield scheme(corrected=True)
        if matrix:
            yield scheme(Rounding.GPTQ)


def _suits(granularity: Granularity, unit: UnitInfo, *, whole: bool) -> bool:
    """Whether groups are smaller than what they divide, and (if asked) divide it without rest."""
    if not isinstance(granularity, PerGroup):
        return True
    if unit.group_axis == unit.output_channel_axis:
        return False
    before = (axis for axis in range(unit.group_axis) if axis != unit.output_channel_axis)
    runs = unit.shape[unit.output_channel_axis] * math.prod(unit.shape[axis] for axis in before)
    length = unit.weights // runs
    if whole:
        # A run of exactly one group is fine where the file has nothing but groups.
        return length % granularity.group_size == 0
    return length > granularity.group_size


def _is_matrix(unit: UnitInfo) -> bool:
    rest = [
        size
        for axis, size in enumerate(unit.shape)
        if axis not in (unit.output_channel_axis, unit.group_axis)
    ]
    return math.prod(rest) == 1 and unit.operator not in ("embedding", "embedding_bag")
