"""What the operator tells of itself on /metrics."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

TASKS: Final = ("admin", "lease", "namespaces", "queue", "resync", "scaling", "scrapes", "watches")
"""Long-lived tasks, as label ``task`` names them."""
_DEPLOYMENT = ("deployment",)
_POOL = ("deployment", "role")


class Metrics:
    """All metrics, in a registry of their own. Label ``deployment`` is ``NAMESPACE/NAME``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.leader = Gauge(
            "turnout_operator_leader",
            "1 while this operator holds the lease and acts.",
            registry=self.registry,
        )
        self.namespaces = Gauge(
            "turnout_operator_namespaces",
            "Namespaces by who acts there: this release (own), or another, while this one stands still (other; the "
            "whole cluster counts as one).",
            ("release",),
            registry=self.registry,
        )
        self.territory(0, 0)
        self.reconcile_seconds = Histogram(
            "turnout_operator_reconcile_seconds",
            "Time that one pass over one resource took.",
            ("kind",),
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0),
            registry=self.registry,
        )
        self.reconcile_errors = Counter(
            "turnout_operator_reconcile_errors_total",
            "Passes that failed and will be repeated.",
            ("kind",),
            registry=self.registry,
        )
        self.api_requests = Counter(
            "turnout_operator_api_requests_total",
            "Requests to the API server, watches aside; code 0 where there was no answer.",
            ("verb", "resource", "code"),
            registry=self.registry,
        )
        self.queue = Gauge(
            "turnout_operator_queue_length", "Resources that wait for a pass.", registry=self.registry
        )
        self.unreadable = Gauge(
            "turnout_operator_namespace_unreadable",
            "1 while the API server refuses this resource in this namespace (empty: in all of them).",
            ("namespace", "resource"),
            registry=self.registry,
        )
        self.desired = Gauge(
            "turnout_operator_desired_replicas",
            "Replicas that scaling asks for.",
            _POOL,
            registry=self.registry,
        )
        self.ready = Gauge(
            "turnout_operator_ready_replicas", "Workers that serve.", _POOL, registry=self.registry
        )
        self.goodput = Gauge(
            "turnout_operator_goodput_percent",
            "Share of recent requests that met both objectives, in percent; absent without traffic.",
            _DEPLOYMENT,
            registry=self.registry,
        )
        self.decisions = Counter(
            "turnout_operator_scaling_decisions_total",
            "Scaling decisions by what they did (up, down, rebalance, keep) and what limited them (empty: nothing).",
            ("deployment", "action", "limit"),
            registry=self.registry,
        )
        self.scrape_failures = Counter(
            "turnout_operator_scrape_failures_total",
            "Pages of workers or routers that could not be read.",
            ("target",),
            registry=self.registry,
        )
        self.task_failures = Counter(
            "turnout_operator_task_failures_total",
            "Exceptions that a long-lived task raised and survived; the log says which.",
            ("task",),
            registry=self.registry,
        )
        for task in TASKS:
            self.task_failures.labels(task)

    def task_failed(self, task: str) -> None:
        """Count what a long-lived task raised."""
        self.task_failures.labels(task).inc()

    def territory(self, own: int, others: int) -> None:
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
