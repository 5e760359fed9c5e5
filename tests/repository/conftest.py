"""Scripts find what lies beside them by the interpreter's path; other tests, and processes they start, must not."""

import sys

import pytest


@pytest.fixture(autouse=True, scope="module")
def _path_of_its_own():
    """The path as it was, once a file's tests are done: ``benchmarks/solver.py`` would hide the package of that name."""
    kept = list(sys.path)
    yield
    sys.path[:] = kept
