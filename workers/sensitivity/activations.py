"""Activations: their ranges, observed for all units in one float pass, and the quantizers made from them.

What is quantized is the tensor a weight is multiplied with, at each use of the unit. Ranges belong to tensors, not to
units: projections that read the same tensor (q, k, v) share one observer, and at equal bit-widths one quantizer; a
module called twice has a range for each call. The float model is observed, so that a range depends on neither the
candidates of other units nor the order in which they are measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workers.contracts import Candidate, PerTensor, RangeMethod, Scheme
from workers.errors import RequestRefused
from workers.graph.program import Override, Program
from workers.graph.units import Unit, UnitTable
from workers.quant import CodeRange, HistogramObserver
from workers.quant.activation import ActivationQuantizer
from workers.sensitivity.batches import Batches

Choices = Sequence[tuple[str, Candidate]]
QuantizedOperands = Mapping[int, Mapping[torch.fx.Node, ActivationQuantizer]]
"""Step index -> node it reads -> what quantizes the node's value for that step."""


ACTIVATION_SCHEME = Scheme(granularity=PerTensor(), symmetric=False, range_method=RangeMethod.MSE)
"""Per tensor, asymmetric, the range of least squared error: best or as good as the best at 3, 4, 6 and 8 bits on
EfficientNet-Lite0 (``docs/activations.md`` has the comparison)."""


class ActivationRanges:
    """What was observed of the units' inputs, and the quantizers that follow from it.

    The histograms are kept, so that any bit-width can be asked for later without another pass. Bounded: 64 KiB a tensor.

    Args:
        observers: Node name of a tensor -> its histogram.
    """

    def __init__(self, observers: Mapping[str, HistogramObserver]) -> None:
        self._observers = dict(observers)
        self._quantizers: dict[tuple[str, int, Scheme], ActivationQuantizer] = {}

    @property
    def tensors(self) -> tuple[str, ...]:
        """Node names of the tensors observed."""
        return tuple(self._observers)

    def quantizer(self, tensor: str, bits: int, scheme: Scheme = ACTIVATION_SCHEME) -> ActivationQuantizer:
        """The quantizer of a tensor at a bit-width.

        Args:
            tensor: Node name.
            bits: 2 to 16.
            scheme: How the range is chosen; the granularity is not looked at.

        Raises:
            RequestRefused: The tensor was not observed, or the bit-width is not offered.
            MeasurementFailed: Nothing of it counted.
        """
        key = tensor, bits, scheme
        if key not in self._quantizers:
            if tensor not in self._observers:
                raise RequestRefused(
                    f"tensor {tensor!r} is no input of a unit", "tensor", tensor, list(self._observers)
                )
            candidate = Candidate(bits=bits, scheme=scheme)
            low, high = self._observers[tensor].range(candidate)
            self._quantizers[key] = ActivationQuantizer(
                codes=CodeRange.of_candidate(candidate), range_min=float(low), range_max=float(high)
            )
        return self._quantizers[key]

    def merge(self, other: "ActivationRanges") -> None:
        """Take in what was observed of the same tensors on other samples."""
        for tensor, observer in other._observers.items():  # noqa: SLF001 - of the same class
            self._observers[tensor].merge(observer)
        self._quantizers.clear()


def observe(
    program: Program, table: UnitTable, batches: Batches, *, mask: Tensor | None = None
) -> ActivationRanges:
    """Observe the inputs of all units in one pass of the float model over the samples.

    Every sample counts once, however the samples are cut into batches. Fillers of fixed batches, repeated samples that they
    are, could change no smallest or largest value; they are left out of tensors whose first axis is that of the samples.

    Args:
        program: The model.
        table: Its units.
        batches: The samples.
        mask: ``[samples of the data, positions]``, bool: the positions that count. Applies to tensors whose first two axes
            are samples and positions; of others (merged or transposed ones) everything counts.

    Raises:
        MeasurementFailed: An activation is NaN or infinite, or an operator failed.
    """
    observers: dict[str, HistogramObserver] = {}
    places: dict[int, dict[torch.fx.Node, HistogramObserver]] = {}
    for unit in table.units:
        for use in unit.uses:
            for node in use.inputs:
                if node.name not in observers:
                    observers[node.name] = HistogramObserver(f"{node.name} (input of {unit.info.name})")
                    places.setdefault(use.step, {})[node] = observers[node.name]
    for batch in range(len(batches)):
        counts = counting(batches, batch, mask, program.device)
        operands = {
            step: {node: partial(_record, observer, counts) for node, observer in here.items()}
            for step, here in places.items()
        }
        environment = program.environment(batches.inputs_of(batch))
        program.advance(environment, 0, max(places, default=-1) + 1, Override(operands=operands))
    return ActivationRanges(observers)


def quantized_operands(
    table: UnitTable, choices: Choices, ranges: ActivationRanges | None
) -> QuantizedOperands:
    """What the steps of units see in place of their inputs.

    Args:
        table: The units.
        choices: Unit names and candidates; those with float activations change nothing.
        ranges: From `observe`, of the same model.

    Returns:
        For `Program.override`. Where one operator takes two weights whose candidates differ, the lower bit-width holds.

    Raises:
        RequestRefused: There is no such unit, a unit has no activations to quantize, or ``ranges`` is missing.
    """
    operands: dict[int, dict[torch.fx.Node, ActivationQuantizer]] = {}
    for name, candidate in choices:
        if candidate.activation_bits is None:
            continue
        for use in _with_activations(table.unit(name), candidate).uses:
            for node in use.inputs:
                if ranges is None:
                    raise RequestRefused(
                        f"unit {name!r} is to have activations of {candidate.activation_bits} bits, "
                        "and no samples are named on which to observe their range",
                        "observation",
                        None,
                        "the path of calibration data",
                    )
                here = operands.setdefault(use.step, {})
                quantizer = ranges.quantizer(node.name, candidate.activation_bits)
                if node not in here or quantizer.codes.levels < here[node].codes.levels:
                    here[node] = quantizer
    return operands


def quantize_activations(choices: Iterable[tuple[str, Candidate]]) -> bool:
    """Whether any of the candidates quantizes activations."""
    return any(candidate.activation_bits is not None for _, candidate in choices)


def _with_activations(unit: Unit, candidate: Candidate) -> Unit:
    if not unit.info.activations:
        raise RequestRefused(
            f"unit {unit.info.name!r} ({unit.info.operator}) reads no floating-point input that could be quantized",
            "activation_candidates",
            str(candidate),
            "a candidate without activation bits",
        )
    return unit


class Counting:
    """Which part of a batch's tensors counts: all, where samples or positions cannot be told by the first axes' sizes.

    Args:
        kept: Samples of the batch that count; fillers follow them.
        fed: Samples of the batch.
        mask: ``[fed, positions]``, bool, or ``None``.
    """

    def __init__(self, kept: int, fed: int, mask: Tensor | None) -> None:
        self.kept, self.fed, self.mask = kept, fed, mask

    def of(self, values: Tensor) -> Tensor:
        """What counts of a tensor: positions become rows where there is a mask."""
        if self.mask is not None and values.shape[:2] == self.mask.shape:
            return values[self.mask]
        if self.kept < self.fed and values.shape[:1] == (self.fed,):
            return values[: self.kept]
        return values

    def zeroed(self, values: Tensor) -> Tensor:
        """A tensor of the same shape that is 0 where it does not count."""
        if self.mask is not None and values.shape[:2] == self.mask.shape:
            return values * self.mask.reshape(*self.mask.shape, *(1,) * (values.dim() - 2))
        if self.kept < self.fed and values.shape[:1] == (self.fed,):
            return torch.cat([values[: self.kept], torch.zeros_like(values[self.kept :])])
        return values

    def without_mask(self) -> "Counting":
        """For tensors whose second axis is not that of positions."""
        return Counting(self.kept, self.fed, None)


def counting(batches: Batches, batch: int, mask: Tensor | None, device: torch.device) -> Counting:
    """What counts of a batch.

    Args:
        batches: The samples.
        batch: Which batch.
        mask: ``[samples of the data, positions]``, bool, or ``None``.
        device: Of the tensors it will be applied to.
    """
    kept = batches.kept(batch)
    fed = batches.size if batches.fixed else kept
    if mask is not None:
        rows = batches.rows_of(mask, batch)
        mask = torch.nn.functional.pad(rows, (0, 0, 0, fed - kept)).to(device)
    return Counting(kept, fed, mask)


def _record(observer: HistogramObserver, counting: Counting, value: Any) -> Any:
    observer.update(counting.of(value))
    return value
