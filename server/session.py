"""One connection from handshake to close; the sole owner of its socket.

Two halves in one event loop: `handle` takes events as they come and starts jobs; the task `_run` awaits the jobs in
order and sends their images. However the input ends, what was complete before is delivered first, then one coded error
text if there is one, then CLOSE. The session logs once, counts once, tells the peer once, and gives back all memory.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

from pipelines.assembly.frame import Group
from pipelines.errors import HeaderError
from pipelines.gadgetron import Bucket, ImageArray, ReconData
from pipelines.image_group import ImageGroup
from pipelines.mrd import Acquisitions, Image, Waveform
from pipelines.preview import as_preview
from pipelines.scaling import SeriesScaler
from server import query
from server.backpressure import Waiting
from server.capture import NO_RECORDING, CaptureStore
from server.config import Settings
from server.dialect import Dialect, ScannerDialect
from server.errors import LimitError, ProtocolError, ServerError
from server.execution.executor import Executor
from server.header_reading import read_header, scaler_for
from server.ingest import Ingest
from server.intake import NothingIntake
from server.jobs import OrderedJobs, Returned
from server.metrics import Metrics
from server.node_intake import AnyIntake, NodeImageIntake, NodeReadoutIntake
from server.noise_desk import NoiseDesk
from server.noise_store import NoiseStore
from server.orders import order
from server.outcome import ClientLeftError, explain, forget_frames, outcome_of
from server.report import Report
from server.selection import Selection, refine
from server.wire.messages import (
    Close,
    ConfigFile,
    ConfigText,
    DependencyAnswer,
    Event,
    Header,
    PeerError,
    Query,
    Response,
    Text,
)


class Session:
    """One connection.

    Attributes:
        id: random; for logs, images and support. Says nothing about a patient.
        report: what happened so far.
        socket: its end of the connection.
    """

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        metrics: Metrics,
        waiting: Waiting,
        noise: NoiseStore,
        dialect: Dialect | None = None,
        already: bytes = b"",
        capture: CaptureStore | None = None,
    ) -> None:
        """A session whose socket is not connected yet.

        Args:
            settings: of the server.
            executor: where groups are reconstructed.
            metrics: what is counted.
            waiting: bytes that wait, of all sessions.
            noise: measurements of earlier scans.
            dialect: how to speak to the peer; as to a scanner unless given.
            already: what was read from the socket before it was ours.
            capture: where received bytes are kept; nowhere unless given.
        """
        self.id = secrets.token_hex(8)
        self.report = Report(metrics, self.id)
        self._settings = settings
        self._executor = executor
        self._metrics = metrics
        self._waiting = waiting
        self._noise = NoiseDesk(noise, self.id, self._tell)
        self._dialect: Dialect = ScannerDialect(settings) if dialect is None else dialect
        self._connection = self._dialect.connect()
        self._recording = NO_RECORDING if capture is None else capture.begin(self.id, self._warn)
        self.socket = Ingest(self._connection, settings.timeouts, self, already, self._recording.tap)
        self._jobs = OrderedJobs(
            executor,
            settings.timeouts.reconstruction_s,
            self._waiting_changed,
            self._tell_progress,
            self._tell_lost_preview,
        )
        self._selection: Selection | None = None
        self._xml: bytes | None = None
        self._header_error: HeaderError | None = None
        self._intake: AnyIntake = NothingIntake()
        self._scaler: SeriesScaler | None = None
        self._error: Exception | None = None
        self._is_running = False
        self._is_interrupted = False
        self._is_ending = False
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._warned: set[str] = set()

    @property
    def error(self) -> Exception | None:
        """What went wrong, once the session is over."""
        return self._error

    def describe(self) -> dict[str, object]:
        """The session as it is now, for the list of live sessions; without patient data."""
        waiting = {"waiting_jobs": len(self._jobs), "waiting_bytes": self._jobs.waiting_bytes}
        return self.report.describe(self.socket) | waiting

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
        if self._header_error is not None and not isinstance(event, Text | Query):
            raise self._header_error
        self.report.note_event(event)
        match event:
            case Acquisitions():
                self._submit(self._intake.acquisitions(event))
            case Waveform():
                self._take_waveform(event)
            case ConfigFile(text) | ConfigText(text):
                self._choose(self._dialect.select(text))
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
            case Image() | Bucket() | ReconData() | ImageArray():
                self._take_whole(event)
            case Response() | DependencyAnswer():
                raise ProtocolError("a response was sent, but this server asks nothing", kind="bad_order")

    def input_failed(self, error: Exception) -> None:
        """Nothing more is taken from the peer; what is complete is still delivered, then this error."""
        if self.report.input_ended_at is None:
            self._error = error
            # The readouts that came together with the bad one may have completed groups.
            self._submit(self._intake.take_ready())
            self._intake.abandon()
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

    def _waiting_changed(self, n_bytes: int) -> None:
        self._waiting.change(n_bytes)
        if not self._jobs:
            # Others may hold so much that nobody is told; a session without jobs must not wait for them.
            self.reconsider()

    def _choose(self, selection: Selection) -> None:
        self._selection = selection
        self.report.pipeline = selection.entry.name if selection.entry is not None else ""
        for warning in selection.warnings:
            self._warn(warning)
        if not selection.needs_header:
            self._begin_intake()

    def _take_header(self, event: Header) -> None:
        self._xml = event.xml
        self._recording.header(event.xml)
        self._begin_intake()

    def _take_text(self, event: Text) -> None:
        self._count_text()
        is_configuration = event.text.lstrip().startswith("{")
        has_data = self.report.acquisitions or self.report.waveforms or self.report.received_images
        is_behind_header = self._xml is not None and not has_data
        if is_configuration and is_behind_header and self._selection is not None:
            self._choose(refine(event.text, self._selection, self._settings.pipelines))
            self._begin_intake()
        elif is_configuration and self._selection is not None and self._selection.entry is not None:
            self._warn_once("a JSON configuration is read only right behind the header, before the first data; ignored")

    def _count_text(self) -> None:
        self.report.texts += 1
        if self.report.texts > self._settings.limits.texts:
            raise LimitError(f"more than {self._settings.limits.texts} texts and queries in one session")

    def _take_waveform(self, event: Waveform) -> None:
        self._intake.waveform(event)
        self._submit(self._intake.take_ready())

    def _take_whole(self, event: Image | Bucket | ReconData | ImageArray) -> None:
        """Take an image, or what Gadgetron has gathered; a configuration for nothing leaves the latter."""
        self._recording.holds_images()
        if isinstance(event, Image):
            self._submit(self._intake.image(event))
        elif isinstance(self._intake, NodeReadoutIntake | NodeImageIntake):
            self._submit(self._intake.message(event))

    def _begin_intake(self) -> None:
        """Choose where data go; nothing is held before the first readout. An impossible header fails here."""
        self._intake, self._scaler, self._header_error = NothingIntake(), None, None
        selection = self._selection
        if selection is None or (selection.needs_header and self._xml is None):
            return
        reading = read_header(self._xml, selection, self._settings)
        if reading.warning:
            self._warn_once(reading.warning)
        self._header_error = reading.error
        if reading.error is not None:
            return
        if self._dialect.may_scale:
            self._scaler = scaler_for(reading.scan, selection, self._settings)
        self._intake = self._dialect.intake(selection, reading.scan, self._executor.slots, self._noise)

    def _take_close(self, event: Close) -> None:
        if not event.announced and self._dialect.announces_close:
            self.stop(ClientLeftError("the peer ended the connection without CLOSE"))
            return
        if not event.announced:
            if self._selection is None or (self._selection.needs_header and self._xml is None):
                raise ClientLeftError("the client closed the connection before it sent a scan")
            self._warn("the connection was closed without CLOSE; taken as the end of the scan")
        self._submit(self._intake.finish())
        self._end_input()

    def _submit(self, groups: Sequence[Group | ImageGroup | Returned]) -> None:
        for warning in self._intake.take_warnings():
            self._warn(warning)
        if self._selection is None or self._selection.entry is None:
            return
        for group in groups:
            if isinstance(group, Returned):
                self._jobs.hand_on(group)
                continue
            self.report.groups += 1
            self._jobs.submit(order(self.id, self._selection.entry, self._selection, group, self._settings.pipelines))
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
        self.report.input_ended_at = time.monotonic()
        self._jobs.finish()
        self.socket.discard()

    def _warn(self, text: str) -> None:
        self.report.warnings += 1
        self.socket.post(self._dialect.warning(self._connection, self.id, text))

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)

    def _tell_progress(self, text: str) -> None:
        """Pass on how far a job is; a peer that is slower than we are has no use for it."""
        if self.socket.keeps_up:
            self.socket.post(self._dialect.progress(self._connection, text))

    def _tell_lost_preview(self, error: Exception) -> None:
        self._warn_once(f"no preview of an image: {explain(error)[1]}")

    def _tell(self, answer: Text | DependencyAnswer) -> None:
        self.socket.post(self._dialect.answer(self._connection, answer))

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
                self.report.account(self.socket)
                self._metrics.sessions_active.dec()
                forget_frames(self._error)
                self._over.set()

    async def _deliver(self) -> None:
        """Send the images of every job, in order; ends when the input has ended and all is sent."""
        while (done := await self._jobs.next()) is not None:
            result = done.result
            if isinstance(result, Returned):
                await self.socket.write(self._dialect.returned(self._connection, result))
                continue
            self.report.note_result(result, was_quick=done.is_preview)
            for warning in result.warnings:
                self._warn_once(warning)
            for made in result.images:
                started = time.monotonic()
                image = as_preview(made, self.report.pipeline) if done.is_preview else made
                stored = self._in_stored_units(image)
                self._recording.image(stored)
                buffers = self._dialect.image(self._connection, stored, self._selection)
                self.report.note_first_image(done.completed_at)
                await self.socket.write(buffers)
                self.report.note_image(image, time.monotonic() - started)

    def _in_stored_units(self, image: Image) -> Image:
        if self._scaler is None:
            return image
        stored = self._scaler(image)
        for warning in self._scaler.take_warnings():
            self._warn(warning)
        return stored

    async def _finish(self) -> None:
        """Say the last words, record the end, and close."""
        self.report.fates = {str(fate): n for fate, n in self._intake.counts.items() if n}
        self._intake.abandon()
        if self.socket.is_open:
            if self._error is not None:
                self.socket.post(self._dialect.failure(self._connection, self._error))
            self.socket.post(self._connection.close())
        self.report.close(self._error, self.socket)
        self._recording.end(outcome_of(self._error))
        await self.socket.end()
