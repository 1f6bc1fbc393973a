"""What the operator exposes on /metrics."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from turnout import metrics as catalog

TASKS: Final = ("admin", "lease", "namespaces", "queue", "resync", "scaling", "scrapes", "watches")
"""Long-lived tasks, as label ``task`` names them."""


class Metrics:
    """All metrics, in a registry of their own. Label ``deployment`` is ``NAMESPACE/NAME``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.leader = self._gauge(catalog.OPERATOR_LEADER)
        self.namespaces = self._gauge(catalog.OPERATOR_NAMESPACES)
        self.namespace_leases(0, 0)
        self.reconcile_seconds = Histogram(
            catalog.OPERATOR_RECONCILE_SECONDS.name,
            catalog.OPERATOR_RECONCILE_SECONDS.help,
            catalog.OPERATOR_RECONCILE_SECONDS.labels,
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0),
            registry=self.registry,
        )
        self.reconcile_errors = self._counter(catalog.OPERATOR_RECONCILE_ERRORS)
        self.api_requests = self._counter(catalog.OPERATOR_API_REQUESTS)
        self.queue = self._gauge(catalog.OPERATOR_QUEUE_LENGTH)
        self.unreadable = self._gauge(catalog.OPERATOR_NAMESPACE_UNREADABLE)
        self.desired = self._gauge(catalog.OPERATOR_DESIRED_REPLICAS)
        self.ready = self._gauge(catalog.OPERATOR_READY_REPLICAS)
        self.goodput = self._gauge(catalog.OPERATOR_GOODPUT)
        self.decisions = self._counter(catalog.OPERATOR_SCALING_DECISIONS)
        self.scrape_failures = self._counter(catalog.OPERATOR_SCRAPE_FAILURES)
        self.task_failures = self._counter(catalog.OPERATOR_TASK_FAILURES)
        for task in TASKS:
            self.task_failures.labels(task)

    def task_failed(self, task: str) -> None:
        """Count what a long-lived task raised."""
        self.task_failures.labels(task).inc()

    def namespace_leases(self, own: int, others: int) -> None:
        """Say in how many namespaces this release acts, and in how many another one does."""
        self.namespaces.labels("own").set(own)
        self.namespaces.labels("other").set(others)

    def count_request(self, verb: str, resource: str, status: int) -> None:
        """Count a request to the API server."""
        self.api_requests.labels(verb, resource, str(status)).inc()

    def forget(self, deployment: str) -> None:
        """Drop the series of a deployment that is gone."""
        for metric in (self.desired, self.ready, self.goodput, self.decisions):
            metric.remove_by_labels({"deployment": deployment})

    def _gauge(self, metric: catalog.Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)

    def _counter(self, metric: catalog.Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)
