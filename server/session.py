"""One connection from handshake to close; the sole owner of its socket.

Two halves in one event loop: `handle` takes events as they come and starts jobs; the task `_run` awaits the jobs in
order and sends their images. However the input ends, what was complete before is delivered first, then one coded error
text if there is one, then CLOSE. The session logs once, counts once, tells the peer once, and gives back all memory.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import Final

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.frame import Group
from pipelines.errors import HeaderError
from pipelines.mrd import Acquisitions, Image, Waveform
from pipelines.scan_header import ScanHeader, parse_scan_header
from server import query
from server.backpressure import Waiting
from server.config import Settings
from server.errors import LimitError, ProtocolError, ServerError
from server.execution.executor import Executor, Job, JobResult
from server.ingest import Ingest
from server.jobs import OrderedJobs
from server.logs import logger, printable
from server.metrics import Metrics, pipeline_label, product_version
from server.outcome import TEXT_LENGTH, ClientLeftError, error_text, explain, outcome_of, trace_of
from server.selection import Selection, refine, select
from server.wire.connection import Connection, Role
from server.wire.messages import Close, ConfigFile, ConfigText, Event, Header, PeerError, Query, Response, Text

_MESSAGE_TYPES: Final[dict[type, str]] = {
    ConfigFile: "config",
    ConfigText: "config",
    Header: "header",
    Acquisitions: "acquisition",
    Waveform: "waveform",
    Image: "image",
    Text: "text",
    Query: "query",
    Close: "close",
}


@dataclass(slots=True)
class Counts:
    """What a session has done so far."""

    acquisitions: int = 0
    waveforms: int = 0
    texts: int = 0
    groups: int = 0
    images: int = 0
    warnings: int = 0
    retried: int = 0
    by_fate: dict[str, int] = field(default_factory=dict[str, int])


class Session:
    """One connection.

    Attributes:
        id: random; for logs, images and support. Says nothing about a patient.
        counts: what happened so far.
        outcome: how the session ended; empty while it lives.
    """

    def __init__(self, settings: Settings, executor: Executor, metrics: Metrics, waiting: Waiting) -> None:
        self.id = secrets.token_hex(8)
        self.counts = Counts()
        self.outcome = ""
        self.opened_at = time.monotonic()
        self.first_image_s: float | None = None
        self.last_image_s: float | None = None
        self._settings = settings
        self._executor = executor
        self._metrics = metrics
        self._waiting = waiting
        self._connection = Connection(Role.SERVER, settings.limits.for_wire())
        self.socket = Ingest(self._connection, settings.timeouts, self)
        self._jobs = OrderedJobs(executor, settings.timeouts.reconstruction_s, waiting.change)
        self._selection: Selection | None = None
        self._scan: ScanHeader | None = None
        self._assembler: Assembler | None = None
        self._error: Exception | None = None
        self._input_ended_at: float | None = None
        self._is_running = False
        self._is_interrupted = False
        self._is_ending = False
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._warned: set[str] = set()
        self._accounted = (0, 0, 0.0, 0.0)
        self._log = logger().bind(session=self.id)

    @property
    def pipeline(self) -> str:
        """Name of the pipeline; empty when none is chosen or none is wanted."""
        return self._selection.entry.name if self._selection is not None and self._selection.entry is not None else ""

    def describe(self) -> dict[str, object]:
        """The session as it is now, for the list of live sessions; without patient data."""
        return {
            "session": self.id,
            "pipeline": self.pipeline,
            "age_s": round(time.monotonic() - self.opened_at, 3),
            "input": "ended" if self._input_ended_at is not None else "open",
            "acquisitions": self.counts.acquisitions,
            "groups": self.counts.groups,
            "images": self.counts.images,
            "waiting_jobs": len(self._jobs),
            "waiting_bytes": self._jobs.waiting_bytes,
            "received_bytes": self.socket.received_bytes,
            "sent_bytes": self.socket.sent_bytes,
        }

    # --- input: callbacks of the socket ----------------------------------------------------------------------------

    def connected(self) -> None:
        """Start the half that sends."""
        self._metrics.sessions_active.inc()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"session {self.id}")

    def handle(self, event: Event) -> None:
        """Act on one event.

        Raises:
            ServerError, PipelineError: the event cannot be served; the session ends with this error.
        """
        n = len(event) if isinstance(event, Acquisitions) else 1
        self._metrics.received_messages.labels(_MESSAGE_TYPES.get(type(event), "other")).inc(n)
        match event:
            case Acquisitions():
                self._take_acquisitions(event)
            case Waveform():
                self._take_waveform(event)
            case ConfigFile():
                self._choose(select(event.name, self._settings.pipelines))
            case ConfigText():
                self._choose(select(event.text, self._settings.pipelines))
            case Header():
                self._take_header(event)
            case Text():
                self._take_text(event)
            case Query():
                self._count_text()
                self._reply(event)
            case Close():
                self._take_close(event)
            case PeerError():
                raise ProtocolError("the client reported an error of its own and stopped", kind="bad_order")
            case Image() | Response():
                raise ProtocolError(
                    f"{_MESSAGE_TYPES.get(type(event), 'response')}s were sent; this server takes raw readouts",
                    kind="bad_order",
                    advice="Choose raw data as what the scanner emits.",
                )

    def input_failed(self, error: Exception) -> None:
        """Nothing more is taken from the peer; what is complete is still delivered, then this error."""
        if self._input_ended_at is None:
            self._error = error
            if self._assembler is not None:
                self._assembler.abandon()
            self._end_input()

    def lost(self) -> None:
        """The socket is closed; if the session is not over, nobody is left to hear the rest."""
        self._waiting.forget(self)
        if not self._is_ending and self._task is not None:
            self._error = ClientLeftError("the client closed the connection")
            self.input_failed(self._error)
            self._interrupt()

    def reconsider(self) -> None:
        """Go on reading if there is room again."""
        if not self._is_over_budget():
            self.socket.resume()
        else:
            self._waiting.tell_when_less(self)

    def _choose(self, selection: Selection) -> None:
        self._selection = selection
        for warning in selection.warnings:
            self._warn(warning)

    def _take_header(self, event: Header) -> None:
        if self._selection is not None and self._selection.entry is not None:
            self._scan = parse_scan_header(event.xml, max_bytes=self._settings.limits.xml_bytes)
            self._begin_assembly()

    def _take_text(self, event: Text) -> None:
        self._count_text()
        is_configuration = event.text.lstrip().startswith("{")
        is_behind_header = self._scan is not None and not self.counts.acquisitions and not self.counts.waveforms
        if is_configuration and is_behind_header and self._selection is not None:
            self._choose(refine(event.text, self._selection, self._settings.pipelines))
            self._begin_assembly()

    def _count_text(self) -> None:
        self.counts.texts += 1
        if self.counts.texts > self._settings.limits.texts:
            raise LimitError(f"more than {self._settings.limits.texts} texts and queries in one session")

    def _take_acquisitions(self, event: Acquisitions) -> None:
        self.counts.acquisitions += len(event)
        if self._assembler is not None:
            self._submit(self._assembler.add(event))

    def _take_waveform(self, event: Waveform) -> None:
        self.counts.waveforms += 1
        if self._assembler is not None:
            self._assembler.add_waveform(event)

    def _begin_assembly(self) -> None:
        """Make the assembler, which holds nothing before the first readout; an impossible header fails here."""
        self._assembler = None
        if self._selection is not None and self._selection.entry is not None and self._scan is not None:
            limits = self._settings.limits.for_assembly()
            self._assembler = Assembler(self._scan, self._selection.entry.grouping, self._executor.slots, limits)

    def _take_close(self, event: Close) -> None:
        if not event.announced:
            if self._selection is None or (self._selection.entry is not None and self._scan is None):
                raise ClientLeftError("the client closed the connection before it sent a scan")
            self._warn("the connection was closed without CLOSE; taken as the end of the scan")
        if self._assembler is not None:
            self._submit(self._assembler.finish())
        self._end_input()

    def _submit(self, groups: list[Group]) -> None:
        if self._assembler is None or self._selection is None or self._selection.entry is None:
            return
        for warning in self._assembler.take_warnings():
            self._warn(warning)
        for group in groups:
            self.counts.groups += 1
            provenance = {
                "ReconSoftwareVersion": product_version(),
                "ReconSession": self.id,
            }
            self._jobs.submit(Job(self.id, self._selection.entry.name, self._selection.parameters, group, provenance))
        if groups and self._is_over_budget():
            self.socket.pause()
            self._waiting.tell_when_less(self)

    def _is_over_budget(self) -> bool:
        limits = self._settings.limits
        return len(self._jobs) > 0 and (
            self._waiting.is_over
            or self._jobs.waiting_bytes > limits.session_waiting_bytes
            or len(self._jobs) > limits.session_waiting_jobs
        )

    def _end_input(self) -> None:
        self._input_ended_at = time.monotonic()
        self._jobs.finish()
        self.socket.discard()

    def _warn(self, text: str) -> None:
        self.counts.warnings += 1
        self.socket.post(self._connection.text(f"WRN {printable(text, TEXT_LENGTH)}"))

    def _reply(self, event: Query) -> None:
        health = self._executor.health()
        text = query.answer(event.text, health, is_ready=health.is_usable)
        self.socket.post(self._connection.response(event.correlation, text))

    # --- output: one task ------------------------------------------------------------------------------------------

    def stop(self, error: ServerError) -> None:
        """End now with this error, without waiting for jobs; for a server that is shutting down."""
        self.input_failed(error)
        if self._task is not None and not self._is_ending:
            self._error = error
            self._interrupt()

    async def ended(self) -> None:
        """Wait until the session is over and its socket closed."""
        await self._over.wait()

    def account(self) -> None:
        """Add what moved since the last call to the metrics."""
        socket, metrics = self.socket, self._metrics
        now = (socket.received_bytes, socket.sent_bytes, socket.paused_s, socket.blocked_s)
        received, sent, paused, blocked = (new - old for new, old in zip(now, self._accounted, strict=True))
        self._accounted = now
        metrics.received_bytes.inc(received)
        metrics.sent_bytes.inc(sent)
        metrics.backpressure_seconds.labels("read_paused").inc(paused)
        metrics.backpressure_seconds.labels("write_blocked").inc(blocked)

    def _interrupt(self) -> None:
        self._is_interrupted = True
        # A task that is cancelled before its first step never runs, and so would never end the session.
        if self._task is not None and self._is_running:
            self._task.cancel()

    async def _run(self) -> None:
        self._is_running = True
        try:
            if not self._is_interrupted:
                await self._deliver()
        except asyncio.CancelledError:
            # Only `lost` and `stop` cancel, and both have said why.
            if self._error is None:
                raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the peer and the log hear of it
            self._error = error
        finally:
            self._is_ending = True
            try:
                if self._error is not None:
                    self.input_failed(self._error)
                await self._jobs.stop()
                await self._finish()
            finally:
                self.socket.abort()
                self.account()
                self._metrics.sessions_active.dec()
                self._over.set()

    async def _deliver(self) -> None:
        """Send the images of every job, in order; ends when the input has ended and all is sent."""
        clock = time.monotonic
        while (done := await self._jobs.next()) is not None:
            result, completed_at = done
            self._observe(result)
            for image in result.images:
                started = clock()
                buffers = self._connection.image(image)
                if self.first_image_s is None:
                    self.first_image_s = clock() - completed_at
                    self._metrics.first_image_seconds.labels(self._label).observe(self.first_image_s)
                await self.socket.write(buffers)
                self._metrics.stage_seconds.labels(self._label, "send").observe(clock() - started)
                self._metrics.sent_images.labels(self._label, _kind(image)).inc()
                self.counts.images += 1

    async def _finish(self) -> None:
        """Say the last words, record the end, and close."""
        error = self._error
        self.outcome = outcome_of(error)
        if self._assembler is not None:
            self.counts.by_fate = {str(fate): n for fate, n in self._assembler.counts.items() if n}
            self._assembler.abandon()
        if self.socket.is_open:
            if error is not None:
                self.socket.post(self._connection.text(error_text(error)))
            self.socket.post(self._connection.close())
        if self._input_ended_at is not None:
            self.last_image_s = time.monotonic() - self._input_ended_at
        self._record(error)
        await self.socket.end()

    def _observe(self, result: JobResult) -> None:
        for stage, seconds in result.stages_s.items():
            if stage == "queue":
                self._metrics.queue_wait_seconds.labels(self._label).observe(seconds)
            else:
                self._metrics.stage_seconds.labels(self._label, stage).observe(seconds)
        if result.attempts > 1:
            self.counts.retried += 1
            self._metrics.jobs_retried.labels(self._label, "ok").inc()
        for warning in result.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._warn(warning)

    def _record(self, error: Exception | None) -> None:
        metrics, counts = self._metrics, self.counts
        duration_s = time.monotonic() - self.opened_at
        metrics.sessions.labels(self._label, self.outcome).inc()
        metrics.session_seconds.labels(self._label).observe(duration_s)
        if isinstance(error, ProtocolError):
            metrics.protocol_errors.labels(error.kind).inc()
        elif isinstance(error, HeaderError):
            metrics.protocol_errors.labels("bad_header").inc()
        if error is None:
            metrics.last_success.labels(self._label).set_to_current_time()
            if self.last_image_s is not None:
                metrics.last_image_seconds.labels(self._label).observe(self.last_image_s)
        elif not isinstance(error, ClientLeftError):
            code, message = explain(error)
            self._log.error("session_error", code=code, message=message, trace=trace_of(error))
        self._log.info(
            "session_end",
            outcome=self.outcome,
            pipeline=self.pipeline,
            peer_port=self.socket.peer_port,
            duration_s=round(duration_s, 4),
            first_image_s=_rounded(self.first_image_s),
            last_image_s=_rounded(self.last_image_s),
            acquisitions=counts.acquisitions,
            waveforms=counts.waveforms,
            texts=counts.texts,
            groups=counts.groups,
            images=counts.images,
            warnings=counts.warnings,
            retried=counts.retried,
            counts=counts.by_fate,
            received_bytes=self.socket.received_bytes,
            sent_bytes=self.socket.sent_bytes,
        )

    @property
    def _label(self) -> str:
        return pipeline_label(self.pipeline)


def _kind(image: Image) -> str:
    return "uncertainty" if "ReconUncertaintyKind" in image.meta else "magnitude"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
