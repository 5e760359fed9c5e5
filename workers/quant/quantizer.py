"""Quantize a weight by one candidate after another; what candidates share is computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workers.contracts import Candidate, Granularity, RangeMethod, Rounding
from workers.quant.affine import CodeRange, compute_dtype, require_finite
from workers.quant.correction import corrected
from workers.quant.fake_quantize import (
    QuantizationParameters,
    apply,
    dequantize_codes,
    quantize_codes,
    represent,
)
from workers.quant.gptq import compensated_codes
from workers.quant.moments import InputMoments
from workers.quant.ranges import RangeChooser, needs_inputs
from workers.quant.slices import SliceLayout


class WeightQuantizer:
    """A weight, ready to be quantized by any candidate.

    Each result depends on the weight, the candidate and the inputs alone, not on what was asked before. What is kept
    between candidates (slices, sorted values, histograms, one granularity at a time) takes a few times the memory of
    the weight.

    Args:
        weight: Any shape, floating point, finite; half precision is searched and quantized in float32.
        output_channel_axis: Axis of the output channels.
        group_axis: Axis along which groups are formed.
        name: The layer, for messages.
        inputs: Second moments of the unit's inputs, for schemes that need them.

    Raises:
        ModelRefused: The weight holds NaN or infinities; names the layer.
        RequestRefused: The weight is not floating point.
    """

    @torch.no_grad()
    def __init__(
        self,
        weight: Tensor,
        *,
        output_channel_axis: int,
        group_axis: int,
        name: str,
        inputs: InputMoments | None = None,
    ) -> None:
        self.weight = weight
        self.output_channel_axis, self.group_axis = output_channel_axis, group_axis
        self.name, self.inputs = name, inputs
        self.values = weight.detach().to(compute_dtype(weight.dtype))
        require_finite(self.values, name)
        self._cut: tuple[Granularity, SliceLayout, list[RangeChooser]] | None = None
        self._last: tuple[Candidate, QuantizationParameters] | None = None
        self._weighted_cut: tuple[Granularity, list[RangeChooser]] | None = None

    @torch.no_grad()
    def parameters(self, candidate: Candidate) -> QuantizationParameters:
        """Choose the range of each slice, and the scale and zero point that represent it.

        Raises:
            RequestRefused: The weight is empty, an axis does not exist, or the scheme needs inputs that are not there.
        """
        # Neither correction nor rounding moves the range.
        scheme = replace(candidate.scheme, corrected=False, rounding=Rounding.NEAREST)
        plain = replace(candidate, scheme=scheme, activation_bits=None)
        if self._last is None or self._last[0] != plain:
            self._last = plain, self._represent(plain)
        if not candidate.scheme.corrected:
            return self._last[1]
        return corrected(
            self.values,
            self._last[1],
            axis=self.output_channel_axis,
            largest=torch.finfo(self.weight.dtype).max,
        )

    def _represent(self, candidate: Candidate) -> QuantizationParameters:
        layout, choosers = self._slices(candidate.scheme.granularity)
        if candidate.scheme.range_method is RangeMethod.WEIGHTED_MSE:
            choosers = self._weighted(layout, candidate)
        ranges = [chooser.range(candidate) for chooser in choosers]
        return represent(
            (layout.join([low for low, _ in ranges]), layout.join([high for _, high in ranges])),
            layout,
            CodeRange.of_candidate(candidate),
            dtype=self.weight.dtype,
            name=self.name,
        )

    @torch.no_grad()
    def codes(self, candidate: Candidate, parameters: QuantizationParameters) -> Tensor:
        """The integer codes under a candidate, with `parameters` of the same."""
        if candidate.scheme.rounding is Rounding.NEAREST:
            return quantize_codes(self.weight, parameters)
        if self.inputs is None:
            raise needs_inputs(candidate)
        return compensated_codes(
            self.weight,
            parameters,
            self.inputs,
            output_channel_axis=self.output_channel_axis,
            group_axis=self.group_axis,
        )

    @torch.no_grad()
    def fake_quantize(self, candidate: Candidate) -> Tensor:
        """What the weight becomes under a candidate: same shape and type, contiguous, new storage, no gradient."""
        parameters = self.parameters(candidate)
        if candidate.scheme.rounding is Rounding.NEAREST:
            return apply(self.weight, parameters)
        codes = self.codes(candidate, parameters)
        return dequantize_codes(codes, parameters).to(self.weight.dtype)

    def _slices(self, granularity: Granularity) -> tuple[SliceLayout, list[RangeChooser]]:
        if self._cut is None or self._cut[0] != granularity:
            layout = SliceLayout.of(
                self.weight.shape,
                granularity,
                output_channel_axis=self.output_channel_axis,
                group_axis=self.group_axis,
            )
            self._cut = granularity, layout, [RangeChooser(block) for block in layout.blocks(self.values)]
        return self._cut[1:]

    def _weighted(self, layout: SliceLayout, candidate: Candidate) -> list[RangeChooser]:
        if self.inputs is None:
            raise needs_inputs(candidate)
        if self._weighted_cut is None or self._weighted_cut[0] != candidate.scheme.granularity:
            importance = self.inputs.importance(self.weight.shape, self.name).to(self.values)
            choosers = [
                RangeChooser(rows, weights)
                for rows, weights in zip(layout.blocks(self.values), layout.blocks(importance), strict=True)
            ]
            self._weighted_cut = candidate.scheme.granularity, choosers
        return self._weighted_cut[1]


def quantization_parameters(  # noqa: PLR0913 - what a quantized weight depends on
    weight: Tensor,
    candidate: Candidate,
    *,
    output_channel_axis: int,
    group_axis: int,
    name: str,
    inputs: InputMoments | None = None,
) -> QuantizationParameters:
    """Choose the range of each slice, and the scale and zero point that represent it.

    Args:
        weight: Any shape, floating point, finite; half precision is searched and quantized in float32.
        candidate: Bit-width and scheme.
        output_channel_axis: Axis of the output channels.
        group_axis: Axis along which groups are formed.
        name: The layer, for messages.
        inputs: Second moments of the unit's inputs, for schemes that need them.

    Returns:
        The parameters, on the device of ``weight``.

    Raises:
        ModelRefused: The weight holds NaN or infinities; names the layer.
        RequestRefused: The weight is empty or not floating point, an axis does not exist, or the scheme needs inputs
            that are not there.
    """
    quantizer = WeightQuantizer(
        weight, output_channel_axis=output_channel_axis, group_axis=group_axis, name=name, inputs=inputs
    )
    return quantizer.parameters(candidate)


def fake_quantize(  # noqa: PLR0913 - what a quantized weight depends on
    weight: Tensor,
    candidate: Candidate,
    *,
    output_channel_axis: int,
    group_axis: int,
    name: str,
    inputs: InputMoments | None = None,
) -> Tensor:
    """Quantize and dequantize a weight: what it becomes under a candidate.

    Args:
        weight: Any shape, floating point, finite.
        candidate: Bit-width and scheme.
        output_channel_axis: Axis of the output channels.
        group_axis: Axis along which groups are formed.
        name: The layer, for messages.
        inputs: Second moments of the unit's inputs, for schemes that need them.

    Returns:
        Same shape and type, contiguous, new storage, no gradient.

    Raises:
        ModelRefused: The weight holds NaN or infinities; names the layer.
        RequestRefused: The weight is empty or not floating point, an axis does not exist, the scheme needs inputs
            that are not there, or its rounding does not suit the weight.
    """
    quantizer = WeightQuantizer(
        weight, output_channel_axis=output_channel_axis, group_axis=group_axis, name=name, inputs=inputs
    )
    return quantizer.fake_quantize(candidate)


def fake_quantize_all(  # noqa: PLR0913 - what a quantized weight depends on
    weight: Tensor,
    candidates: Sequence[Candidate],
    *,
    output_channel_axis: int,
    group_axis: int,
    name: str,
    inputs: InputMoments | None = None,
) -> Iterator[Tensor]:
    """What a weight becomes under each of several candidates, the work they share done once.

    Equal bit for bit to `fake_quantize` of each. Candidates of one granularity are best given next to each other.

    Args:
        weight: Any shape, floating point, finite.
        candidates: Bit-widths and schemes.
        output_channel_axis: Axis of the output channels.
        group_axis: Axis along which groups are formed.
        name: The layer, for messages.
        inputs: Second moments of the unit's inputs, for schemes that need them.

    Yields:
        One tensor per candidate, in their order, as `fake_quantize` gives.

    Raises:
        ModelRefused, RequestRefused: See `fake_quantize`.
    """
    quantizer = WeightQuantizer(
        weight, output_channel_axis=output_channel_axis, group_axis=group_axis, name=name, inputs=inputs
    )
    for candidate in candidates:
        yield quantizer.fake_quantize(candidate)
