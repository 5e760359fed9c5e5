"""Decorator and signatures of the compiled functions."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba import float32, float64, types

Function = TypeVar("Function", bound=Callable[..., Any])

# Read-only in the signature: memory-mapped weights are, and writable ones convert.
ROW = types.Array(float32, 1, "C", readonly=True)
ROWS = types.Array(float32, 2, "C", readonly=True)
REALS = types.Array(float64, 1, "C", readonly=True)
HALVES = float32[::1]
TABLE = float32[:, ::1]

TINY = np.finfo(np.float32).tiny
"""No scale is smaller."""


def compiled(signature: Any, **options: Any) -> Callable[[Function], Function]:
    """Compile ahead, from the cache where that can be written."""

    def decorate(function: Function) -> Function:
        try:
            result: Function = numba.njit(signature, cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no directory to keep a cache in
            result = numba.njit(signature, nogil=True, **options)(function)
        return result

    return decorate
