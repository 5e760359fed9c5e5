"""A pytest plugin for continuous integration: a process that does not end once its tests have is ended, with their verdict.

Where each of its threads is, is written first: what keeps it is a defect, though none that a test has found.
"""

import faulthandler
import os
import sys
import threading
import time

import pytest

SECONDS = 120

_sessions: list[pytest.Session] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note whose verdict it will be."""
    _sessions.append(session)


def pytest_unconfigure() -> None:
    """All tests have run, and all fixtures have been torn down."""
    sys.stdout.flush()  # what was printed of the tests
    threading.Thread(target=_end, name="end", daemon=True).start()
    # Where code that never comes back to Python lets no other thread run, the verdict is lost.
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=sys.__stderr__)


def _end() -> None:
    time.sleep(SECONDS)
    print(f"The tests have ended, but not the process, for {SECONDS} s:", file=sys.__stderr__, flush=True)
    faulthandler.dump_traceback(file=sys.__stderr__)
    os._exit(int(_sessions[0].exitstatus) if _sessions else 1)
