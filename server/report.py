"""What one session did, for the log, the metrics and the list of live sessions. Numbers and names; never data."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from pipelines.domain import reason_of
from pipelines.errors import HeaderError
from pipelines.extra_series import is_extra
from pipelines.gadgetron import Bucket, ImageArray, ReconData
from pipelines.mrd import Acquisitions, Image, ImageType, Waveform
from pipelines.preview import is_preview
from server.errors import ProtocolError
from server.execution.executor import JobResult
from server.ingest import Ingest
from server.logs import logger
from server.metrics import Metrics, pipeline_label
from server.outcome import ClientLeftError, explain, log_message, outcome_of, trace_of
from server.wire.messages import Close, ConfigFile, ConfigText, Event, Header, Query, Text

_MESSAGE_TYPES: Final[dict[type, str]] = {
    ConfigFile: "config",
    ConfigText: "config",
    Header: "header",
    Acquisitions: "acquisition",
    Waveform: "waveform",
    Image: "image",
    Bucket: "bucket",
    ReconData: "recon_data",
    ImageArray: "image_array",
    Text: "text",
    Query: "query",
    Close: "close",
}
"""What received messages are called in the metrics."""

_KINDS = {kind.value: kind.name.lower() for kind in ImageType}


@dataclass(slots=True, eq=False)
class Report:
    """The account of one session.

    Attributes:
        metrics: where everything is counted as well.
        session: its id.
        pipeline: name in the registry; empty while none is chosen, and when none is wanted.
        first_image_s: from the completion of the first group to the first byte of its image.
        last_image_s: from the end of the input to CLOSE.
        fates: readouts by what became of them.
        outside_domain: results outside the domain of their model, by reason.
        fallbacks: groups whose images another pipeline made, by reason.
    """

    metrics: Metrics
    session: str
    pipeline: str = ""
    opened_at: float = field(default_factory=time.monotonic)
    input_ended_at: float | None = None
    first_image_s: float | None = None
    last_image_s: float | None = None
    acquisitions: int = 0
    waveforms: int = 0
    received_images: int = 0
    recon_data: int = 0
    texts: int = 0
    groups: int = 0
    images: int = 0
    warnings: int = 0
    retried: int = 0
    fates: dict[str, int] = field(default_factory=dict[str, int])
    outside_domain: dict[str, int] = field(default_factory=dict[str, int])
    fallbacks: dict[str, int] = field(default_factory=dict[str, int])
    _accounted: tuple[int, int, float, float] = (0, 0, 0.0, 0.0)

    @property
    def label(self) -> str:
        """The pipeline as a label."""
        return pipeline_label(self.pipeline)

    def describe(self, socket: Ingest) -> dict[str, object]:
        """The session as it is now."""
        return {
            "session": self.session,
            "pipeline": self.pipeline,
            "age_s": round(time.monotonic() - self.opened_at, 3),
            "input": "open" if self.input_ended_at is None else "ended",
            "acquisitions": self.acquisitions,
            "groups": self.groups,
            "images": self.images,
            "received_bytes": socket.received_bytes,
            "sent_bytes": socket.sent_bytes,
        }

    def note_event(self, event: Event) -> None:
        """A message has come; a run of readouts counts as so many."""
        n = 1
        match event:
            case Acquisitions():
                n = len(event)
                self.acquisitions += n
            case Bucket():
                self.acquisitions += len(event)
            case Waveform():
                self.waveforms += 1
            case Image():
                self.received_images += 1
            case ImageArray():
                self.received_images += event.headers.size
            case ReconData():
                self.recon_data += 1
            case _:
                pass
        self.metrics.received_messages.labels(_MESSAGE_TYPES.get(type(event), "other")).inc(n)

    def note_result(self, result: JobResult, *, was_quick: bool = False) -> None:
        """A job has ended well.

        One for a preview counts as a single stage: other figures are of the images that were asked for.
        """
        if was_quick:
            seconds = sum(seconds for stage, seconds in result.stages_s.items() if stage != "queue")
            self.metrics.stage_seconds.labels(self.label, "preview").observe(seconds)
            return
        if result.fallback:
            self.fallbacks[result.fallback] = self.fallbacks.get(result.fallback, 0) + 1
            self.metrics.fallbacks.labels(self.label, result.fallback).inc()
        for stage, seconds in result.stages_s.items():
            if stage == "queue":
                self.metrics.queue_wait_seconds.labels(self.label).observe(seconds)
            else:
                self.metrics.stage_seconds.labels(self.label, stage).observe(seconds)
        if result.attempts > 1:
            self.retried += 1
            self.metrics.jobs_retried.labels(self.label, "ok").inc()
        # What a worker says is text; only known reasons become labels.
        for reason in {reason_of(text) for text in result.outside_domain}:
            self.outside_domain[str(reason)] = self.outside_domain.get(str(reason), 0) + 1
            self.metrics.outside_domain.labels(self.label, reason).inc()

    def note_first_image(self, completed_at: float) -> None:
        """An image is about to be sent; only the first one counts."""
        if self.first_image_s is None:
            self.first_image_s = time.monotonic() - completed_at
            self.metrics.first_image_seconds.labels(self.label).observe(self.first_image_s)

    def note_image(self, image: Image, send_s: float) -> None:
        """An image was sent."""
        self.images += 1
        if is_preview(image):
            kind = "preview"
        elif image.meta.get("ReconDegraded") == ["true"]:
            kind = "fallback"
        elif "ReconUncertaintyKind" in image.meta:
            kind = "uncertainty"
        else:
            kind = "extra" if is_extra(image) else _KINDS.get(int(image.header["image_type"]), "other")
        self.metrics.stage_seconds.labels(self.label, "send").observe(send_s)
        self.metrics.sent_images.labels(self.label, kind).inc()

    def account(self, socket: Ingest) -> None:
        """Add what moved since the last call to the metrics."""
        now = (socket.received_bytes, socket.sent_bytes, socket.paused_s, socket.blocked_s)
        received, sent, paused, blocked = (new - old for new, old in zip(now, self._accounted, strict=True))
        self._accounted = now
        self.metrics.received_bytes.inc(received)
        self.metrics.sent_bytes.inc(sent)
        self.metrics.backpressure_seconds.labels("read_paused").inc(paused)
        self.metrics.backpressure_seconds.labels("write_blocked").inc(blocked)

    def close(self, error: Exception | None, socket: Ingest) -> None:
        """Count and log the end: one record for the session, and one more if it ended with an error."""
        metrics, log = self.metrics, logger().bind(session=self.session)
        now = time.monotonic()
        if self.input_ended_at is not None:
            self.last_image_s = now - self.input_ended_at
        outcome = "degraded" if error is None and self.fallbacks else outcome_of(error)
        metrics.sessions.labels(self.label, outcome).inc()
        metrics.session_seconds.labels(self.label).observe(now - self.opened_at)
        if isinstance(error, ProtocolError):
            metrics.protocol_errors.labels(error.kind).inc()
        elif isinstance(error, HeaderError):
            metrics.protocol_errors.labels("bad_header").inc()
        if error is None:
            metrics.last_success.labels(self.label).set_to_current_time()
            if self.last_image_s is not None:
                metrics.last_image_seconds.labels(self.label).observe(self.last_image_s)
        elif not isinstance(error, ClientLeftError):
            code, _ = explain(error)
            log.error("session_error", code=code, message=log_message(error), trace=trace_of(error))
        log.info(
            "session_end",
            outcome=outcome,
            pipeline=self.pipeline,
            peer_port=socket.peer_port,
            duration_s=round(now - self.opened_at, 4),
            first_image_s=_rounded(self.first_image_s),
            last_image_s=_rounded(self.last_image_s),
            acquisitions=self.acquisitions,
            waveforms=self.waveforms,
            received_images=self.received_images,
            recon_data=self.recon_data,
            texts=self.texts,
            groups=self.groups,
            images=self.images,
            warnings=self.warnings,
            retried=self.retried,
            counts=self.fates,
            outside_domain=self.outside_domain,
            fallbacks=self.fallbacks,
            received_bytes=socket.received_bytes,
            sent_bytes=socket.sent_bytes,
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
