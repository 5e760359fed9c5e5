"""Comparing outputs by compiled code: which tensors it is for, and the calls of it.

It is used for float32 outputs on the CPU where numba is installed. Rows are compared one by one, so that results do not depend
on what else is compared, nor on the number of threads.
"""

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.quant.acceleration import suits_values
from workers.sampling import SketchForm

_ELEMENTS_PER_THREAD = 1 << 16


def suits(*values: Tensor) -> bool:
    """Whether tensors are compared by compiled code."""
    return all(suits_values(value) for value in values)


def warm_up() -> None:
    """Load the code, and compile it if that has not been done on this machine: seconds."""
    if suits(torch.zeros(1, 2)):
        _kernels()


def compare(before: Tensor, after: Tensor, form: SketchForm | None) -> tuple[Tensor, Tensor, Tensor]:
    """Divergences of rows.

    Args:
        before: ``[n, C]``, float32, on the CPU: outputs of the float model.
        after: The same of the quantized model.
        form: What changes are; ``None``: none are wanted.

    Returns:
        Divergences ``[n]``, float64; changes ``[n, C]`` (``[n, 0]`` if none are wanted); and which rows have to be
        compared otherwise, since something about them is not finite in float32.
    """
    rows, unusual = np.empty(len(before)), np.empty(len(before), np.bool_)
    changes = torch.empty(len(before), before.shape[1] if form is not None else 0)
    tops = before.amax(-1).numpy()
    table, left, right = changes.numpy(), before.contiguous().numpy(), after.contiguous().numpy()

    def run(part: slice) -> None:
        _kernels().compare(
            left[part],
            right[part],
            tops[part],
            form is SketchForm.HELLINGER,
            form is SketchForm.FISHER,
            rows[part],
            unusual[part],
            table[part],
        )

    _in_threads(run, len(before), before.shape[1])
    return torch.from_numpy(rows), changes, torch.from_numpy(unusual)


def project(changes: Tensor, signs: Tensor, places: Tensor) -> Tensor:
    """Sums of rows under windows of signs.

    Args:
        changes: ``[n, C]``, float32, on the CPU.
        signs: ``[length]``, float32.
        places: ``[n, width]``, int64: where in the signs the windows of C begin.

    Returns:
        ``[n, width]``, float32.
    """
    sums = np.empty(tuple(places.shape))
    table, starts = changes.contiguous().numpy(), places.contiguous().numpy()

    def run(part: slice) -> None:
        _kernels().project(table[part], signs.numpy(), starts[part], sums[part])

    _in_threads(run, len(changes), changes.shape[1] * places.shape[1])
    return torch.from_numpy(sums).float()


def _in_threads(run: Callable[[slice], None], rows: int, elements: int) -> None:
    """Run something for parts of the rows, in as many threads as torch may use if there is enough to do."""
    threads = max(1, min(torch.get_num_threads(), rows, rows * elements // _ELEMENTS_PER_THREAD))
    ends = [rows * (part + 1) // threads for part in range(threads)]
    parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    if threads == 1:
        run(parts[0])
    else:
        list(_threads(threads).map(run, parts))


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="compare")


@cache
def _kernels() -> Any:
    """Imported when it is needed: importing compiles."""
    return importlib.import_module("workers.sensitivity.kernels.changes")
