"""The client side of a session: sends a scan, receives the images at the same time. Knows no files and no pictures.

`send`, `simulate`, `demo`, the benchmarks and the end-to-end tests all speak to servers through this file. Sending and
receiving run side by side, because a server may send at any time and stops reading when nobody takes its images. What
the server says (texts, CLOSE or none) comes back in the `ScanReply`; `ScanReply.check` turns a bad end into an error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from pipelines.mrd import Acquisitions, Image, Waveform
from server.connecting import Pipe, Tls, reach
from server.errors import ClientError, ProtocolError
from server.wire.connection import Connection, Role
from server.wire.messages import Buffers, Close, PeerError, Response, Text, WireLimits

DEFAULT_PORT: Final = 9002
_BYTES_PER_WRITE: Final = 1 << 20
"""Readouts handed to the kernel at a time: large enough to be fast, small enough to stop early."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a scan has come: readouts and bytes handed to the network, images received."""

    acquisitions: int
    bytes_sent: int
    images: int


@dataclass(slots=True)
class ScanReply:
    """What came back. Times are seconds since the configuration was sent; None where it did not happen.

    Attributes:
        images: in the order of arrival.
        texts: TEXT and ERROR messages of the server.
        closed: whether the server said CLOSE; without it images may be missing.
        acquisitions_sent: readouts handed to the network; fewer than the scan has when the server ended early.
        bytes_sent: of everything, headers included.
        bytes_received: of everything.
        sent_s: when the last byte was handed to the network.
        first_image_s: when the first image had arrived whole.
        last_image_s: when the last image had arrived whole.
        closed_s: when CLOSE, or the end of the connection, arrived.
    """

    images: list[Image] = field(default_factory=list[Image])
    texts: list[str] = field(default_factory=list[str])
    closed: bool = False
    acquisitions_sent: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    sent_s: float | None = None
    first_image_s: float | None = None
    last_image_s: float | None = None
    closed_s: float | None = None

    @property
    def errors(self) -> list[str]:
        """Texts that report a failure: `ERROR code: sentence` (ours) or `... ERROR: ...` (Gadgetron)."""
        return [text for text in self.texts if "ERROR" in text]

    def check(self) -> Self:
        """This reply, if the session ended well.

        Raises:
            ClientError: the server reported a failure, did not say CLOSE, or sent no image; its `reply` is this one.
        """
        received = f"after {len(self.images)} image{'' if len(self.images) == 1 else 's'}"
        if self.errors:
            message = f"the server reported: {self.errors[0]}"
            raise ScanFailedError(message, self, code="server_error", advice=f"This came {received}.")
        if not self.closed:
            raise ScanFailedError(f"the server ended without CLOSE {received}; some may be missing", self)
        if not self.images:
            raise ScanFailedError("the server closed in good order but sent no images", self)
        return self


class ScanFailedError(ClientError):
    """A session that ended badly, with what had come until then."""

    def __init__(self, message: str, reply: ScanReply, *, code: str | None = None, advice: str | None = None) -> None:
        super().__init__(message, code=code, advice=advice)
        self.reply = reply


class Client:
    """One session with a server; use it as an asynchronous context manager, once.

    Args:
        host: name or address.
        port: of the MRD listener.
        connect_timeout_s: for the connection to be accepted.
        silence_s: how long nothing may move in either direction before the session is given up; a reconstruction has to
            fit in.
        limits: of what the server may announce.
        tls: how to speak TLS; not at all unless given.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        connect_timeout_s: float = 10.0,
        silence_s: float = 600.0,
        limits: WireLimits | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._address = (host, port)
        self._connect_timeout_s = connect_timeout_s
        self._silence_s = silence_s
        self._limits = limits or WireLimits()
        self._connection = Connection(Role.CLIENT, self._limits)
        self._tls = tls
        self._pipe: Pipe | None = None
        self._deadline: asyncio.Timeout | None = None
        self._started = 0.0

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ClientError: nobody listens there, the name is unknown, nobody answers in time, or TLS fails.
        """
        self._pipe = await reach(*self._address, self._tls, self._connect_timeout_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    async def send_scan(
        self,
        config: str,
        header: bytes,
        batches: Iterable[Acquisitions],
        parameters: Mapping[str, object] | None = None,
        progress: Callable[[Progress], None] | None = None,
        waveforms: Iterable[Waveform] = (),
        images: Iterable[Image] = (),
    ) -> ScanReply:
        """Send a scan, or images, and receive what comes back until the server closes.

        Args:
            config: pipeline or alias.
            header: XML of the scan header.
            batches: readouts in the order of measurement; read as fast as the server takes them.
            parameters: of the pipeline; they travel with its name as JSON.
            progress: called after each piece sent and each image received.
            waveforms: sent among the readouts by time stamp.
            images: for a pipeline that takes images; sent last.

        Raises:
            ScanFailedError: nothing moved for `silence_s`, or the server broke the protocol; with what had come so far.
        """
        reply = ScanReply()
        first = self._connection.config_file(config)
        if parameters:
            # The name is checked by the same rules as CONFIG_FILE, then sent together with the parameters.
            self._connection = Connection(Role.CLIENT, self._limits)
            text = json.dumps({"version": "1.0.0", "pipeline": config, "parameters": dict(parameters)})
            first = self._connection.config_text(text)
        sending = self._send_scan(reply, first, header, batches, waveforms, images, progress)
        return await self._converse(reply, sending, progress)

    async def query(self, text: str) -> str:
        """Ask the server something outside a scan, `gadgetron::info` say; ends the session.

        Raises:
            ScanFailedError: no answer came.
        """
        reply = ScanReply()
        answers: list[str] = []
        parts = [self._connection.query(1, text), self._connection.close()]

        async def ask() -> None:
            for part in parts:
                await self._write(reply, part)

        await self._converse(reply, ask(), None, answers)
        if not answers:
            raise ScanFailedError("the server did not answer the query", reply)
        return answers[0]

    # ---- the two directions ----------------------------------------------------------------------------------------

    async def _converse(
        self,
        reply: ScanReply,
        sending: Coroutine[Any, Any, None],
        progress: Callable[[Progress], None] | None,
        answers: list[str] | None = None,
    ) -> ScanReply:
        """Run both directions until the server has closed, or one fails."""
        loop = asyncio.get_running_loop()
        self._started = loop.time()
        sender = loop.create_task(sending)
        receiver = loop.create_task(self._receive(reply, progress, answers if answers is not None else []))
        try:
            async with asyncio.timeout(self._silence_s) as self._deadline:
                await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_COMPLETED)
                if not receiver.done():
                    sender.result()
                await receiver
        except TimeoutError as error:
            raise ScanFailedError(
                f"nothing has moved for {self._silence_s:g} s after {len(reply.images)} images; given up",
                reply,
                code="timeout",
            ) from error
        except ProtocolError as error:
            raise ScanFailedError(f"the server broke the protocol: {error}", reply, code="protocol") from error
        finally:
            self._deadline = None
            for task in (sender, receiver):
                task.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)
        return reply

    async def _send_scan(
        self,
        reply: ScanReply,
        config: Buffers,
        header: bytes,
        batches: Iterable[Acquisitions],
        waveforms: Iterable[Waveform],
        images: Iterable[Image],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        await self._write(reply, config)
        await self._write(reply, self._connection.header(header))
        waiting = iter(waveforms)
        waveform = next(waiting, None)
        for batch in batches:
            for piece in _pieces(batch):
                now = int(piece.headers["acquisition_time_stamp"][-1])
                while waveform is not None and int(waveform.header["time_stamp"]) <= now:
                    await self._write(reply, self._connection.waveform(waveform))
                    waveform = next(waiting, None)
                await self._write(reply, self._connection.acquisitions(piece))
                reply.acquisitions_sent += len(piece)
                _report(progress, reply)
        while waveform is not None:
            await self._write(reply, self._connection.waveform(waveform))
            waveform = next(waiting, None)
        for image in images:
            await self._write(reply, self._connection.image(image))
        await self._write(reply, self._connection.close())
        reply.sent_s = self._elapsed()

    async def _write(self, reply: ScanReply, buffers: Buffers) -> None:
        """Hand a message to the kernel; waits while the server does not read."""
        data = b"".join(buffers)
        try:
            await self._require_pipe().send(data)
        except (ConnectionError, OSError):
            # The server has closed; why stands in what it sent before, which the receiving side still reads.
            await asyncio.Event().wait()
        reply.bytes_sent += len(data)
        self._moved()

    async def _receive(self, reply: ScanReply, progress: Callable[[Progress], None] | None, answers: list[str]) -> None:
        """Take events until CLOSE or the end of the connection."""
        connection, pipe = self._connection, self._require_pipe()
        while True:
            event = connection.next_event()
            match event:
                case None:
                    try:
                        n = await pipe.receive_into(connection.writable())
                    except ConnectionError:
                        n = 0
                    if n == 0:
                        connection.end_of_input()
                    connection.received(n)
                    reply.bytes_received += n
                    self._moved()
                case Image():
                    reply.images.append(event)
                    reply.last_image_s = self._elapsed()
                    if reply.first_image_s is None:
                        reply.first_image_s = reply.last_image_s
                    _report(progress, reply)
                case Text(text):
                    reply.texts.append(text)
                case PeerError(text):
                    reply.texts.append(f"ERROR: {text}")
                case Response(_, text):
                    answers.append(text)
                case Close(announced):
                    reply.closed = announced
                    reply.closed_s = self._elapsed()
                    return
                case _:
                    # Readouts and waveforms may be passed through by a server; nobody here wants them.
                    continue

    def _moved(self) -> None:
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._silence_s)

    def _elapsed(self) -> float:
        return asyncio.get_running_loop().time() - self._started

    def _require_pipe(self) -> Pipe:
        if self._pipe is None:
            raise ClientError("the client is not connected; use `async with Client(...)`")
        return self._pipe


def _pieces(batch: Acquisitions) -> Iterator[Acquisitions]:
    """Runs of at most about `_BYTES_PER_WRITE`."""
    if len(batch) == 0:
        return
    trajectory_bytes = 0 if batch.trajectory is None else batch.trajectory.shape[1]
    each = 342 + batch.n_coils * batch.n_samples * 8 + trajectory_bytes
    step = max(1, _BYTES_PER_WRITE // each)
    for start in range(0, len(batch), step):
        part = slice(start, start + step)
        trajectory = None if batch.trajectory is None else batch.trajectory[part]
        yield Acquisitions(batch.headers[part], batch.samples[part], trajectory)


def _report(progress: Callable[[Progress], None] | None, reply: ScanReply) -> None:
    if progress is not None:
        progress(Progress(reply.acquisitions_sent, reply.bytes_sent, len(reply.images)))
