"""Signal-to-quantization-noise ratio, measured and predicted (MATH.md section 5)."""

import math

import torch
from torch import Tensor

from workers.errors import RequestRefused


def sqnr_db(reference: Tensor, quantized: Tensor) -> float:
    """``10 log10(E[r^2] / E[(r - r~)^2])`` in dB, summed in float64.

    Args:
        reference: Real values, any shape.
        quantized: What they became, same shape.

    Returns:
        Infinite for an exact result (also of zeros only); minus infinity for noise on zeros only.

    Raises:
        RequestRefused: The shapes differ or are empty.
    """
    if reference.shape != quantized.shape or reference.numel() == 0:
        raise RequestRefused(
            f"no SQNR between shapes {tuple(reference.shape)} and {tuple(quantized.shape)}",
            "shape",
            list(quantized.shape),
            list(reference.shape),
        )
    signal = reference.to(torch.float64)
    noise = float((signal - quantized.to(torch.float64)).square().mean())
    power = float(signal.square().mean())
    if noise == 0:
        return math.inf
    return 10 * (math.log10(power) - math.log10(noise)) if power > 0 else -math.inf


def predicted_sqnr_db(*, mean_square: float, step: float) -> float:
    """``10 log10(12 s^2 / D^2)``: SQNR of an unclipped uniform quantizer, whose noise is ``D^2 / 12``.

    Holds while the signal spreads over several steps.

    Args:
        mean_square: ``E[r^2]``, the variance of a signal of mean 0, positive.
        step: ``D``, the quantizer's scale, positive.

    Returns:
        SQNR in dB.

    Raises:
        RequestRefused: An argument is not positive and finite.
    """
    _require_positive(mean_square=mean_square, step=step)
    return 10 * math.log10(12 * mean_square) - 20 * math.log10(step)


def predicted_sqnr_for_range_db(*, bits: int, width: float, standard_deviation: float) -> float:
    """SQNR of an unclipped uniform quantizer of ``2^b`` levels over a range.

    ``20 log10(2^b - 1) + 10.79 - 20 log10((r_max - r_min) / s)``, about ``6.02 b + 10.79 - 20 log10(...)``: a uniform
    signal gives ``6.02 b``, a full-scale sine ``6.02 b + 1.76``, a Gaussian cut at 4 s ``6.02 b - 7.27``.

    Args:
        bits: Bit-width, 1 or more.
        width: ``r_max - r_min``, positive, in the signal's unit.
        standard_deviation: ``s`` of the signal (of mean 0), positive, in the same unit.

    Returns:
        SQNR in dB.

    Raises:
        RequestRefused: An argument is not positive and finite.
    """
    _require_positive(bits=bits, width=width, standard_deviation=standard_deviation)
    return predicted_sqnr_db(mean_square=standard_deviation**2, step=width / (2**bits - 1))


def _require_positive(**values: float) -> None:
    for field, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise RequestRefused(
                f"{field} {value} is not positive and finite", field, str(value), "a positive number"
            )
