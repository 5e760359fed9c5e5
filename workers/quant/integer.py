"""Matrix product on integer codes (MATH.md section 4).

``C = A B ~ S_A S_B [ q_A q_B - Z_A colsum(q_B) - rowsum(q_A) Z_B + n Z_A Z_B ]``, ``n`` the inner dimension.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from workers.contracts import Candidate, PerChannel, PerTensor
from workers.errors import RequestRefused
from workers.quant.affine import CodeRange
from workers.quant.fake_quantize import quantize_codes
from workers.quant.quantizer import quantization_parameters

ACCUMULATOR_LIMIT = 2**31


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedMatrix:
    """A matrix as codes.

    Args:
        values: Codes ``[rows, columns]``, int8 or uint8.
        scale: ``[1]``, or ``[rows]`` or ``[columns]`` if ``channel_axis`` is 0 or 1; floating point.
        zero_point: Like ``scale``, integer.
        codes: The range of the codes.
        channel_axis: Axis along which scales differ; ``None`` for one scale.

    Raises:
        RequestRefused: The codes are not a matrix of 8-bit integers, or the scales do not fit it.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    codes: CodeRange
    channel_axis: int | None = None

    def __post_init__(self) -> None:
        if self.values.dim() != 2 or self.values.dtype not in (torch.int8, torch.uint8):
            raise RequestRefused(
                f"codes of shape {tuple(self.values.shape)} and type {self.values.dtype} are no 8-bit matrix",
                "values",
                [*self.values.shape, str(self.values.dtype)],
                "two axes, int8 or uint8",
            )
        if self.channel_axis not in (None, 0, 1):
            raise RequestRefused(
                f"a matrix has no axis {self.channel_axis}", "channel_axis", self.channel_axis, [None, 0, 1]
            )
        expected = [1 if self.channel_axis is None else self.values.shape[self.channel_axis]]
        for field, tensor in (("scale", self.scale), ("zero_point", self.zero_point)):
            if list(tensor.shape) != expected:
                raise RequestRefused(
                    f"{field} of shape {tuple(tensor.shape)} does not fit codes {tuple(self.values.shape)}",
                    field,
                    list(tensor.shape),
                    expected,
                )

    @classmethod
    def of(cls, matrix: Tensor, candidate: Candidate, *, channel_axis: int, name: str) -> Self:
        """Quantize a matrix.

        Args:
            matrix: ``[rows, columns]``, floating point, finite.
            candidate: At most 8 bits, per tensor or per channel.
            channel_axis: Axis of the channels; unused per tensor.
            name: The layer, for messages.

        Raises:
            ModelRefused: NaN or infinite values; names the layer.
            RequestRefused: More than 8 bits, scales per group (they lie along the inner dimension), or a scheme with
                corrected means, input statistics or compensated rounding.
        """
        if candidate.scheme.corrected or candidate.scheme.needs_inputs:
            raise RequestRefused(
                f"the integer product of {name!r} takes plain scales and zero points",
                "scheme",
                str(candidate.scheme),
                "a scheme without corrected, weighted-mse and gptq",
            )
        granularity = candidate.scheme.granularity
        if not isinstance(granularity, PerTensor | PerChannel):
            raise RequestRefused(
                f"scales per group cannot be factored out of the product of {name!r}",
                "granularity",
                str(granularity),
                ["tensor", "channel"],
            )
        parameters = quantization_parameters(
            matrix, candidate, output_channel_axis=channel_axis, group_axis=1 - channel_axis, name=name
        )
        return cls(
            values=quantize_codes(matrix, parameters),
            scale=parameters.scale,
            zero_point=parameters.zero_point,
            codes=parameters.codes,
            channel_axis=channel_axis if isinstance(granularity, PerChannel) else None,
        )

    @property
    def largest_code(self) -> int:
        """Largest magnitude a code may have."""
        return max(-self.codes.quant_min, self.codes.quant_max)


def integer_matmul(left: QuantizedMatrix, right: QuantizedMatrix) -> Tensor:
    """The product of two quantized matrices, computed on their codes with an int32 accumulator.

    Scales may differ along the rows of ``left`` and the columns of ``right``: they multiply from outside.

    Args:
        left: ``[m, n]``, one scale or one per row.
        right: ``[n, p]``, one scale or one per column.

    Returns:
        ``[m, p]`` in the scales' type: the product of the dequantized matrices, to float rounding.

    Raises:
        RequestRefused: The inner dimensions differ, scales lie along the inner dimension, or the accumulator could
            overflow: ``n * max|q_A| * max|q_B| >= 2^31``.
    """
    _require_factorable(left, right)
    _require_room(left, right)
    inner = left.values.shape[1]
    zero_left = left.zero_point.to(torch.int64)[:, None]
    zero_right = right.zero_point.to(torch.int64)[None, :]
    column_sums = right.values.sum(0, keepdim=True, dtype=torch.int64)
    row_sums = left.values.sum(1, keepdim=True, dtype=torch.int64)
    total = accumulate(left.values, right.values).to(torch.int64)
    total = total - zero_left * column_sums - row_sums * zero_right + inner * zero_left * zero_right
    scale = left.scale[:, None] * right.scale[None, :]
    return total.to(scale.dtype) * scale


def accumulate(left: Tensor, right: Tensor) -> Tensor:
    """Integer product of two code matrices whose every sum stays below 2^31.

    Args:
        left: ``[m, n]``, int8 or uint8.
        right: ``[n, p]``, int8 or uint8.

    Returns:
        int32 ``[m, p]``, exact.
    """
    product = _integer_product if left.device.type == "cpu" else _float64_product
    return product(left, right)


def _integer_product(left: Tensor, right: Tensor) -> Tensor:
    return left.to(torch.int32) @ right.to(torch.int32)


def _float64_product(left: Tensor, right: Tensor) -> Tensor:
    """For devices without a general integer product: float64 holds every int32 exactly."""
    return (left.to(torch.float64) @ right.to(torch.float64)).to(torch.int32)


def _require_factorable(left: QuantizedMatrix, right: QuantizedMatrix) -> None:
    shapes = [list(left.values.shape), list(right.values.shape)]
    if left.values.shape[1] != right.values.shape[0]:
        raise RequestRefused(
            f"matrices of shapes {shapes} cannot be multiplied", "shape", shapes, "[m, n] and [n, p]"
        )
    for side, matrix, inner in (("left", left, 1), ("right", right, 0)):
        if matrix.channel_axis == inner:
            raise RequestRefused(
                f"the {side} matrix has scales along the inner dimension, which cannot be factored out of the sum",
                "channel_axis",
                inner,
                [None, 1 - inner],
            )


def _require_room(left: QuantizedMatrix, right: QuantizedMatrix) -> None:
    inner = left.values.shape[1]
    bound = inner * left.largest_code * right.largest_code
    if bound >= ACCUMULATOR_LIMIT:
        allowed = (ACCUMULATOR_LIMIT - 1) // (left.largest_code * right.largest_code)
        raise RequestRefused(
            f"an inner dimension of {inner} with codes up to {left.largest_code} and {right.largest_code} may reach "
            f"{bound}, which a 32-bit accumulator cannot hold",
            "inner_dimension",
            inner,
            f"at most {allowed}",
        )
