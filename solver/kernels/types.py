"""Decorator and signatures of the compiled functions."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba import float64, int32, int64, types

Function = TypeVar("Function", bound=Callable[..., Any])

# Read-only in the signature: arrays of users may be, and writable ones convert.
COSTS = types.Array(float64, 2, "C", readonly=True)
SIZES = types.Array(int64, 2, "C", readonly=True)
INTS = int64[::1]
HALF_INTS = int32[::1]
REALS = float64[::1]

VERSION: str = numba.__version__


def compiled(signature: Any) -> Callable[[Function], Function]:
    """Compile ahead, from the cache where that can be written."""

    def decorate(function: Function) -> Function:
        try:
            result: Function = numba.njit(signature, cache=True, nogil=True)(function)
        except RuntimeError:  # no directory to keep a cache in
            result = numba.njit(signature, nogil=True)(function)
        return result

    return decorate
