"""A pytest plugin for continuous integration: a run whose process does not end has failed, and tells why."""

import faulthandler
import sys

SECONDS = 120


def pytest_unconfigure() -> None:
    """All tests have run. What still keeps the process then is a thread; where each of them is, is written."""
    sys.stdout.flush()  # what was printed of the tests
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
