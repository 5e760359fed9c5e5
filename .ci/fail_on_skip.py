"""A pytest plugin for continuous integration: a run in which a test was skipped has failed."""

import pytest

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each test that was skipped (an expected failure also reports so; it ran)."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note each file that was skipped as a whole."""
    if report.skipped:
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn success into failure when anything was skipped (workers of a parallel run leave that to the main one)."""
    if _skipped and not hasattr(session.config, "workerinput") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which they were."""
    if _skipped:
        terminalreporter.section("skipped, which is a failure here", red=True)
        for nodeid in sorted(set(_skipped)):
            terminalreporter.line(nodeid)
