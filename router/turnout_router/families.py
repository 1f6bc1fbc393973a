"""Metric families of Prometheus' client, described by the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from turnout.metrics import Metric


def counter_family(metric: Metric) -> CounterMetricFamily:
    """Return an empty family for the counter *metric*."""
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def gauge_family(metric: Metric) -> GaugeMetricFamily:
    """Return an empty family for the gauge *metric*."""
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def histogram_family(metric: Metric) -> HistogramMetricFamily:
    """Return an empty family for the histogram *metric*."""
    return HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
