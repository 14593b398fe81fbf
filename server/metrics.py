"""Every Prometheus metric, defined once. The front process owns the only registry; workers report through job results.

Rules: base units, one prefix, and no label that a peer can choose: pipelines come from the registry, anything else is
`other`. Knows no sessions and no sockets.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipelines.domain import DomainReason
from pipelines.registry import pipelines
from server.execution.executor import Health

_IMAGE_BUCKETS: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60)
_STAGE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SESSION_BUCKETS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)
_QUEUE_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60)
_LAG_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

OUTCOMES: Final = (
    "ok", "client_abort", "protocol_error", "timeout", "rejected_busy", "pipeline_error", "worker_lost", "drained",
    "server_error", "degraded",
)  # fmt: skip
"""How a session can end."""

CAPTURE_FAILURES: Final = ("disk", "too_slow", "header", "images")
"""Why a capture is given up (`server.capture`)."""

ERROR_KINDS: Final = (
    "bad_id", "bad_length", "over_limit", "truncated", "bad_xml", "bad_header", "bad_order", "bad_utf8", "nonfinite",
)  # fmt: skip
"""Rules that a peer can break (`server.errors.ProtocolError.kind`)."""

TURNED_AWAY: Final = (
    "not_allowed", "too_many", "no_certificate", "bad_certificate", "tls_version", "tls_failed", "tls_timeout", "plain",
)  # fmt: skip
"""Why a connection is closed before it is a session (`server/door.py`, `server/handshake.py`)."""


@cache
def product_version() -> str:
    """Version of this installation; asked for once, for it is read from files."""
    try:
        return version("echotrain")
    except PackageNotFoundError:
        return "0+source"


def pipeline_label(name: str | None) -> str:
    """A pipeline's name as a label; whatever is not in the registry is `other`."""
    return name if name in pipelines() else "other"


class Metrics:
    """All metrics on one registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._reports: list[Callable[[], None]] = []
        build = self._gauge("build_info", "Version of this server.", "version", "python")
        build.labels(product_version(), platform.python_version()).set(1)

        self.sessions_active = self._gauge("sessions_active", "Sessions open now.")
        self.sessions = self._counter("sessions", "Sessions ended.", "pipeline", "outcome")
        self.session_seconds = self._histogram("session_duration_seconds", "From connection to end.", _SESSION_BUCKETS)
        self.first_image_seconds = self._histogram(
            "first_image_seconds",
            "From the completion of the first group to the first byte of its image.",
            _IMAGE_BUCKETS,
        )
        self.last_image_seconds = self._histogram(
            "last_image_seconds", "From the end of the scan to CLOSE sent.", (*_IMAGE_BUCKETS, 120, 300)
        )
        self.stage_seconds = self._histogram("stage_duration_seconds", "Stages of jobs.", _STAGE_BUCKETS, "stage")
        self.queue_wait_seconds = self._histogram("queue_wait_seconds", "Wait of jobs for a worker.", _QUEUE_BUCKETS)
        self.jobs_retried = self._counter("jobs_retried", "Jobs run again.", "pipeline", "result")
        self.last_success = self._gauge("last_success_timestamp_seconds", "When a session last ended well.", "pipeline")

        self.received_messages = self._counter("received_messages", "Messages received.", "type")
        self.received_bytes = self._counter("received_bytes", "Bytes received.")
        self.sent_bytes = self._counter("sent_bytes", "Bytes sent.")
        self.sent_images = self._counter("sent_images", "Images sent.", "pipeline", "kind")
        self.outside_domain = self._counter(
            "outside_domain", "Results outside the domain of their model, once for each reason.", "pipeline", "reason"
        )
        self.fallbacks = self._counter(
            "fallback", "Groups whose images another pipeline made than the one asked for.", "pipeline", "reason"
        )
        self.protocol_errors = self._counter("protocol_errors", "Rules broken by peers.", "kind")

        self.noise_measurements = self._gauge("noise_measurements", "Noise measurements kept for later scans.")
        self.noise_store_failures = self._counter(
            "noise_store_failures", "Times that the directory of noise measurements failed.", "operation"
        )

        self.capture_failures = self._counter("capture_failures", "Captures of raw data given up.", "reason")

        self.buffered_bytes = self._gauge("buffered_bytes", "Bytes held.", "area")
        self.buffer_limit_bytes = self._gauge("buffer_limit_bytes", "Most bytes that may be held.", "area")
        self.backpressure_seconds = self._counter(
            "backpressure_seconds", "Time in which sockets were not read, or did not take.", "side"
        )
        self.loop_lag_seconds = Histogram(
            "echotrain_event_loop_lag_seconds",
            "How late the event loop runs.",
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )
        self.turned_away = self._counter("turned_away", "Connections closed before a session.", "reason")
        self.open_ports = self._gauge(
            "open_ports", "Ports that other machines reach without allow-list or TLS, as the settings say they may."
        )
        self.certificate_end = self._gauge(
            "tls_certificate_end_timestamp_seconds", "When our certificate ends; 0: no TLS."
        )
        self.ready = self._gauge("ready", "Whether scans are welcome.")
        self.draining = self._gauge("draining", "Whether the server is shutting down.")

        ProcessCollector(registry=self.registry)
        # Series that an alert looks for exist from the start: a counter that appears with its first event has no rate.
        for outcome in OUTCOMES:
            self.sessions.labels("other", outcome)
        for side in ("read_paused", "write_blocked"):
            self.backpressure_seconds.labels(side)
        for reason in CAPTURE_FAILURES:
            self.capture_failures.labels(reason)
        for operation in ("read", "write"):
            self.noise_store_failures.labels(operation)
        for reason in DomainReason:
            self.outside_domain.labels("other", reason)
        for why in TURNED_AWAY:
            self.turned_away.labels(why)
        for kind in ERROR_KINDS:
            self.protocol_errors.labels(kind)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"echotrain_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"echotrain_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"echotrain_{name}", text, ("pipeline", *labels), buckets=buckets, registry=self.registry)

    def before_scrape(self, report: Callable[[], None]) -> None:
        """Call this before every scrape, for gauges that are cheaper to read than to keep."""
        self._reports.append(report)

    def watch(self, health: Callable[[], Health]) -> None:
        """Report an executor's workers, queue and restarts at each scrape."""
        self.registry.register(_Workers(health))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        for report in self._reports:
            report()
        return generate_latest(self.registry)


class _Workers(Collector):
    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        health = self._health()
        workers = GaugeMetricFamily("echotrain_workers", "Workers by state.", labels=["state"])
        for state in sorted({"starting", "idle", "busy", "failed"} | set(health.workers)):
            workers.add_metric([state], health.workers.get(state, 0))
        restarts = CounterMetricFamily("echotrain_worker_restarts", "Workers replaced.", labels=["reason"])
        for reason in sorted({"crash"} | set(health.restarts)):
            restarts.add_metric([reason], health.restarts.get(reason, 0))
        yield workers
        yield restarts
        yield GaugeMetricFamily("echotrain_queue_depth", "Jobs waiting for a worker.", value=health.queued)
