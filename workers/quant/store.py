"""Quantizes the same weights by the same candidates again and again; ranges are searched once.

Estimating, measuring and verifying quantize a unit by the same candidates, once for each block of samples. What is kept
is not the quantized weight but what is costly about it: scales and zero points (and the codes where they are not just
the nearest ones). They take a sixteenth of the weight or less; applying them takes one pass over it.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from workers.contracts import Candidate, Rounding, UnitInfo
from workers.quant.fake_quantize import QuantizationParameters, apply, dequantize_codes
from workers.quant.moments import InputMoments
from workers.quant.quantizer import WeightQuantizer

KEPT_BYTES = 512 << 20
"""Bound on what is kept of one model: a full menu of five million weights takes 400 MiB, a short one a tenth."""
_LARGEST_PREPARED_BYTES = 64 << 20
"""Of larger weights nothing is kept in slices from one candidate to the next."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    """What is kept of one candidate of one unit.

    Args:
        weight: The weight it is for; like the inputs it is compared by identity.
        inputs: The moments it was found with, if the scheme needs any.
        parameters: Scales, zero points and corrections.
        codes: Where rounding is costly.
    """

    weight: Tensor
    inputs: InputMoments | None
    parameters: QuantizationParameters
    codes: Tensor | None

    @property
    def bytes(self) -> int:
        found = self.parameters
        tensors = (found.scale, found.zero_point, found.range_min, found.range_max, found.offset, self.codes)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class QuantizedWeights:
    """Weights of one model as their candidates store them. Safe among threads.

    Args:
        capacity_bytes: Bound on what is kept; what was not used for longest goes first.
    """

    def __init__(self, capacity_bytes: int = KEPT_BYTES) -> None:
        self._room = capacity_bytes
        self._kept: OrderedDict[tuple[str, Candidate], _Kept] = OrderedDict()
        self._prepared: WeightQuantizer | None = None
        self._lock = threading.RLock()

    @property
    def kept(self) -> int:
        """How many candidates something is kept of."""
        return len(self._kept)

    def fake_quantize(
        self, info: UnitInfo, weight: Tensor, candidate: Candidate, inputs: InputMoments | None = None
    ) -> Tensor:
        """What a unit's weight becomes under a candidate: `workers.quant.fake_quantize` bit for bit.

        Args:
            info: The unit; its name tells weights apart.
            weight: Its weight; as long as it is the same object, what is known of it is used.
            candidate: Bit-width and scheme.
            inputs: Second moments of the unit's inputs, for schemes that need them.

        Returns:
            Same shape and type, contiguous, new storage, no gradient.

        Raises:
            ModelRefused, RequestRefused: See `workers.quant.fake_quantize`.
        """
        candidate = replace(candidate, activation_bits=None)
        needed = inputs if candidate.scheme.needs_inputs else None
        with self._lock:
            known = self._kept.get((info.name, candidate))
            if known is None or known.weight is not weight or known.inputs is not needed:
                known = self._find(info, weight, candidate, inputs)
                self._keep((info.name, candidate), known)
            else:
                self._kept.move_to_end((info.name, candidate))
        if known.codes is None:
            return apply(weight, known.parameters)
        return dequantize_codes(known.codes, known.parameters).to(weight.dtype)

    def _find(
        self, info: UnitInfo, weight: Tensor, candidate: Candidate, inputs: InputMoments | None
    ) -> _Kept:
        prepared = self._prepared
        if prepared is None or prepared.weight is not weight or prepared.inputs is not inputs:
            self._prepared = None  # before making: both might not fit into memory
            prepared = WeightQuantizer(
                weight,
                output_channel_axis=info.output_channel_axis,
                group_axis=info.group_axis,
                name=info.name,
                inputs=inputs,
            )
            if weight.nbytes <= _LARGEST_PREPARED_BYTES:
                self._prepared = prepared
        parameters = prepared.parameters(candidate)
        nearest = candidate.scheme.rounding is Rounding.NEAREST
        return _Kept(
            weight=weight,
            inputs=inputs if candidate.scheme.needs_inputs else None,
            parameters=parameters,
            codes=None if nearest else prepared.codes(candidate, parameters),
        )

    def _keep(self, key: tuple[str, Candidate], found: _Kept) -> None:
        old = self._kept.pop(key, None)
        self._room += 0 if old is None else old.bytes
        self._room -= found.bytes
        self._kept[key] = found
        while self._room < 0:
            self._room += self._kept.popitem(last=False)[1].bytes


def by_shared_work(candidates: Sequence[Candidate]) -> Iterable[int]:
    """Numbers of candidates in the order in which they share most: slices, then ranges, then rounding."""

    def key(number: int) -> tuple[str, str, int, float, bool]:
        scheme = candidates[number].scheme
        method = f"{scheme.range_method}-{scheme.symmetric}-{scheme.full_range}"
        return str(scheme.granularity), method, candidates[number].bits, scheme.percentile, scheme.corrected

    return sorted(range(len(candidates)), key=key)
