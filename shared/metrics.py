"""Every Prometheus name and label of Hilum; what a scrape reads from the database is computed at the scrape."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

from shared.backlog import Backlog

REGISTRY = CollectorRegistry()

REQUESTS = Counter("hilum_http_requests", "HTTP requests answered", ["method", "route", "status"], registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "hilum_http_request_seconds",
    "time from the first byte of a request to the last of its answer; waiting routes wait on purpose",
    ["method", "route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
WAITING = Gauge("hilum_http_waiting", "requests that wait for a job now", registry=REGISTRY)
LISTENING = Gauge("hilum_http_listening", "event streams and event polls held open now", registry=REGISTRY)


def of_backlog(backlog: Backlog) -> Iterable[GaugeMetricFamily]:
    """The state of the queue as gauges."""
    depth = GaugeMetricFamily("hilum_jobs_unfinished", "jobs that have not ended", labels=["status", "priority"])
    for (status, priority), count in backlog.unfinished.items():
        depth.add_metric([status, priority], count)
    age = GaugeMetricFamily("hilum_oldest_queued_seconds", "age of the oldest queued job", labels=["priority"])
    for priority, seconds in backlog.oldest_s.items():
        age.add_metric([priority], seconds)
    overdue = GaugeMetricFamily("hilum_jobs_overdue", "queued jobs past their waiting limit")
    overdue.add_metric([], backlog.overdue)
    explaining = GaugeMetricFamily("hilum_explanations_unfinished", "explanations not ended", labels=["status"])
    for status, count in backlog.explanations.items():
        explaining.add_metric([status], count)
    workers = GaugeMetricFamily("hilum_workers", "workers seen in the last 30 s")
    workers.add_metric([], backlog.workers)
    return depth, age, overdue, explaining, workers
