"""Metrics for Prometheus: requests are counted here, everything else is read from the tables when asked."""

import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.db import Database
from app.kit.sql import AWAY
from app.models import TaskState
from app.system import repository

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_logger = logging.getLogger("app.metrics")


class Metrics:
    """The metrics of one API process."""

    def __init__(self, database: Database) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = Histogram(
            "bitwright_http_request_duration_seconds",
            "Time to answer HTTP requests.",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_Tables(database))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note a finished request."""
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).observe(seconds)

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Tables(Collector):
    """What the tables hold, read at the moment of asking."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterator[Metric]:
        """Nothing before it is asked for: there may be no database yet."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the tables; with the database away, tell just that."""
        up = GaugeMetricFamily("bitwright_database_up", "Whether the database can be reached.")
        try:
            with self._database.read() as session:
                found = repository.counts(session)
        except AWAY:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        jobs = GaugeMetricFamily("bitwright_jobs", "Jobs by state.", labels=["state"])
        for state, number in found.jobs.items():
            jobs.add_metric([state], number)
        yield jobs
        tasks = GaugeMetricFamily("bitwright_tasks", "Tasks by kind and state.", labels=["kind", "state"])
        for (kind, state), number in found.tasks.items():
            tasks.add_metric([kind, state], number)
        yield tasks
        waiting = sum(n for (_, state), n in found.tasks.items() if state == TaskState.PENDING)
        depth = GaugeMetricFamily("bitwright_queue_depth", "Tasks that wait for a worker.")
        depth.add_metric([], waiting)
        yield depth
        measured = GaugeMetricFamily("bitwright_measurements", "Finished (unit, candidate) measurements.")
        measured.add_metric([], found.measurements)
        yield measured
