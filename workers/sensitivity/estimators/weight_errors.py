"""Scores that look at the weights alone. No data, no pass; they know nothing of what a weight is for."""

import torch
from torch import Tensor

from workers.graph.program import Program
from workers.sensitivity.estimators.changes import Quantizer, round_to_nearest
from workers.sensitivity.estimators.entries import Entries


def weight_mse(program: Program, entries: Entries, quantize: Quantizer = round_to_nearest) -> Tensor:
    """Mean squared error of each entry's weight.

    Args:
        program: The model.
        entries: What to score.
        quantize: Makes a candidate's weight.

    Returns:
        ``[entries]``, float64.

    Source:
        The objective of range search by squared error, e.g. Banner et al. 2019, "Post-training 4-bit quantization
        of convolution networks for rapid-deployment". Passes: 0.
    """
    return _errors(program, entries, quantize, relative=False)


def weight_noise_ratio(program: Program, entries: Entries, quantize: Quantizer = round_to_nearest) -> Tensor:
    """Noise power over signal power of each entry's weight, ``10^(-SQNR / 10)``; 0 for an exact one.

    Args:
        program: The model.
        entries: What to score.
        quantize: Makes a candidate's weight.

    Returns:
        ``[entries]``, float64.

    Source:
        Lin, Talathi, Annapureddy 2016, "Fixed point quantization of deep convolutional networks", section 3.
        Passes: 0.
    """
    return _errors(program, entries, quantize, relative=True)


def _errors(program: Program, entries: Entries, quantize: Quantizer, *, relative: bool) -> Tensor:
    result = torch.zeros(entries.count, dtype=torch.float64)
    for number, unit in enumerate(entries.units):
        power = float(program.constant(unit.node).double().square().mean()) if relative else 1.0
        for row, change in entries.weight_changes(number, program, quantize):
            error = float(change.square().mean())
            result[row] = error / power if error else 0.0
    return result
