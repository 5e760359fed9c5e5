"""Keeping freed memory. Torch-free.

On a CPU, torch allocates each intermediate value with ``malloc`` and frees it soon after. The C library of
GNU systems hands blocks of 32 MiB and more back to the kernel at once, and maps (and clears) fresh pages for
the next one: with images of 224 x 224 in batches of 32, EfficientNet-Lite0 spends 38 of 55 ms per image in
the kernel; with freed memory kept, none of 15.

Threads other than the first allocate from arenas of their own, which cannot keep blocks of that size.
Processes that compute in such threads need `ENVIRONMENT` from their start; `keep_freed_memory` serves
processes that compute in their first thread.
"""

import ctypes
import functools
import sys

_KEEP_BELOW = 1 << 30
_KEEP_FREE = 1 << 32

ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(_KEEP_BELOW),
    "MALLOC_TRIM_THRESHOLD_": str(_KEEP_FREE),
}
"""Environment variables for new processes; without effect where the C library is another."""

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


@functools.cache
def keep_freed_memory() -> bool:
    """Make this process keep freed memory for its next allocations.

    Returns:
        Whether the C library took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, _KEEP_BELOW),
        (_M_TRIM_THRESHOLD, (1 << 31) - 1),  # a C int
    )
    taken = [mallopt(option, value) == 1 for option, value in settings]
    return all(taken)
