"""Processes that must not outlive the supervisor.

The supervisor holds the writing end of a pipe; each child holds the reading end and ends when it reads the end of
the file. That works on every POSIX system and however the supervisor ends, SIGKILL included.
"""

import contextlib
import os
import threading

VARIABLE = "BITWRIGHT_PARENT_FD"
"""Tells a child the number of its reading end."""


def die_with_parent() -> None:
    """End this process at once when the supervisor that started it is gone; does nothing in one started by hand."""
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return
    descriptor = int(number)
    os.set_inheritable(descriptor, False)
    threading.Thread(target=_wait, args=(descriptor,), name="parent", daemon=True).start()


def _wait(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.read(descriptor, 1)
    os._exit(1)
