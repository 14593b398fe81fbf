"""The socket of one session: bytes into the wire's buffer, buffers out of it, pauses, timeouts, and an orderly end.

Receiving is one copy: the kernel writes into the connection's own buffer (`asyncio.BufferedProtocol`), events view it.
Everything here runs in callbacks of the event loop; only `write` and `end` wait. Knows no pipelines and no jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from server.config import Timeouts
from server.errors import SessionTimeoutError
from server.socket_options import WindowWatch, set_options
from server.wire.connection import Connection
from server.wire.messages import Buffers, Event

SCRATCH_BYTES = 1 << 16
_NOTHING = memoryview(bytearray())
WRITE_HIGH_WATER_BYTES = 1 << 18
"""`write` returns once less than this waits in the transport: enough to keep the socket busy between two images."""


class Receiver(Protocol):
    """What a socket tells its session."""

    def connected(self) -> None:
        """The socket is open."""
        ...

    def handle(self, event: Event) -> None:
        """One event; whatever it raises ends the input."""
        ...

    def input_failed(self, error: Exception) -> None:
        """The input broke a rule, or was late; nothing more will be read from it."""
        ...

    def lost(self) -> None:
        """The socket is closed, in good order or not."""
        ...


class Ingest(asyncio.BufferedProtocol):
    """One socket.

    Attributes:
        peer_port: port of the peer, to find the connection in a packet trace; 0 when unknown.
        received_bytes: so far, thrown away ones included.
        sent_bytes: handed to the kernel or waiting to be.
        paused_s: for how long the socket was not read because too much was waiting.
        blocked_s: for how long `write` waited for the peer.
    """

    def __init__(
        self,
        connection: Connection,
        timeouts: Timeouts,
        receiver: Receiver,
        already: bytes = b"",
        tap: Callable[[memoryview], None] | None = None,
    ) -> None:
        """A socket that is not connected yet.

        Args:
            connection: the wire.
            timeouts: of the settings.
            receiver: who hears what comes.
            already: what was read from the socket before it was ours.
            tap: sees every byte before the wire does, and copies what it wants.
        """
        self.peer_port = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.paused_s = 0.0
        self.blocked_s = 0.0
        self._connection = connection
        self._timeouts = timeouts
        self._receiver = receiver
        self._already = memoryview(already)
        self._tap = tap
        self._room: memoryview | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._scratch: memoryview | None = None
        self._paused_at: float | None = None
        self._at_end = False
        self._has_spoken = False
        self._opened = self._last_bytes = self._loop.time()
        self._begun: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._window: WindowWatch | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._eof = asyncio.Event()
        self._closed = asyncio.Event()

    # --- called by asyncio -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the socket's options and start the clock."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        # Asked now: a transport that is closed cannot tell any more.
        name = transport.get_extra_info("peername")
        self.peer_port = int(cast("tuple[str, int]", name)[1]) if isinstance(name, tuple) else 0
        sock = self._transport.get_extra_info("socket")
        set_options(sock, self._timeouts)
        self._window = WindowWatch(sock, self._timeouts)
        self._watch = self._loop.call_later(self._timeouts.first_message_s, self._check_time)
        self._receiver.connected()
        # What somebody else has read from the socket before it was ours comes first.
        while self._already:
            room = self.get_buffer(len(self._already))
            n = min(len(room), len(self._already))
            room[:n] = self._already[:n]
            self._already = self._already[n:]
            self.buffer_updated(n)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where the kernel writes next."""
        if self._scratch is not None:
            return self._scratch
        self._room = self._connection.writable()
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have arrived."""
        self.received_bytes += nbytes
        self._last_bytes = self._loop.time()
        if self._scratch is None:
            if self._tap is not None and self._room is not None:
                self._tap(self._room[:nbytes])
            self._room = None
            self._connection.received(nbytes)
            self._handle_events()

    def eof_received(self) -> bool:
        """The peer closed its side; ours stays open for the images, unless TLS, which knows no half, closes both."""
        self._at_end = True
        self._eof.set()
        if self._scratch is None:
            self._connection.end_of_input()
            self._handle_events()
        return self._transport is not None and self._transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The socket is gone."""
        if self._watch is not None:
            self._watch.cancel()
        if self._window is not None:
            self._window.stop()
        self._end_pause()
        for event in (self._writable, self._eof, self._closed):
            event.set()
        self._receiver.lost()
        # At once: whatever still refers to this socket in a circle stays until the garbage collector comes by.
        self._connection.release()
        self._scratch = _NOTHING

    def pause_writing(self) -> None:
        """The peer is slower than we are."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._writable.set()

    # --- called by the session -------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether something can still be sent."""
        return self._transport is not None and not self._closed.is_set() and not self._transport.is_closing()

    @property
    def keeps_up(self) -> bool:
        """Whether the peer takes what is sent, so that little of it waits here."""
        return self._writable.is_set()

    def pause(self) -> None:
        """Stop reading, so that TCP slows the peer; `resume` goes on with what has already come."""
        if self._paused_at is None and self.is_open and self._transport is not None:
            self._paused_at = self._loop.time()
            if not self._at_end:
                self._transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        if not self._end_pause():
            return
        self._handle_events()
        if self._paused_at is None and self.is_open and not self._at_end and self._transport is not None:
            self._transport.resume_reading()

    def discard(self) -> None:
        """From now on read and throw away: a peer that is still sending must get to our answer, not to a reset."""
        if self._scratch is None:
            self._scratch = memoryview(bytearray(SCRATCH_BYTES))
            self.resume()

    def post(self, buffers: Buffers) -> None:
        """Send something short without waiting for it."""
        if self.is_open and self._transport is not None:
            self.sent_bytes += sum(len(buffer) for buffer in buffers)
            self._transport.writelines(buffers)

    async def write(self, buffers: Buffers) -> None:
        """Send as one gathered write, and wait until the peer has taken nearly all of it.

        Raises:
            SessionTimeoutError: the peer did not take it in `timeouts.send_s`.
        """
        self.post(buffers)
        if self._writable.is_set():
            return
        started = self._loop.time()
        try:
            async with asyncio.timeout(self._timeouts.send_s):
                await self._writable.wait()
        except TimeoutError as error:
            message = f"the client did not take an image within {self._timeouts.send_s:g} s"
            raise SessionTimeoutError(message) from error
        finally:
            self.blocked_s += self._loop.time() - started

    async def end(self) -> None:
        """Close our side, wait a while for the peer to close its own, throwing away what it sends, and close."""
        self.discard()
        if self.is_open and self._transport is not None:
            if self._transport.can_write_eof():
                self._transport.write_eof()
            try:
                async with asyncio.timeout(self._timeouts.linger_s):
                    await self._eof.wait()
            except TimeoutError:
                # The peer keeps its side open; it has had time to read our answer.
                pass
        await self.close()

    async def close(self) -> None:
        """Close without delay; what has not been sent by now is dropped."""
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()
        await self._closed.wait()

    def abort(self) -> None:
        """Reset the connection."""
        if self._transport is not None:
            self._transport.abort()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _handle_events(self) -> None:
        try:
            while self._paused_at is None and self._scratch is None:
                event = self._connection.next_event()
                if event is None:
                    break
                self._has_spoken = True
                self._begun = None
                self._receiver.handle(event)
            if self._begun is None and self._paused_at is None and self._connection.pending:
                self._begun = self._last_bytes
        except Exception as error:  # noqa: BLE001 - the session tells the peer, logs and counts; a callback has no caller
            self._receiver.input_failed(error)

    def _end_pause(self) -> bool:
        if self._paused_at is None:
            return False
        now = self._loop.time()
        self.paused_s += now - self._paused_at
        # Time in which we did not read is not the peer's silence.
        self._last_bytes = now
        self._begun = None
        self._paused_at = None
        return True

    def _check_time(self) -> None:
        if self._scratch is not None or self._at_end:
            return
        now = self._loop.time()
        if self._paused_at is not None:
            self._watch = self._loop.call_later(self._timeouts.message_s, self._check_time)
            return
        if not self._has_spoken:
            due = self._opened + self._timeouts.first_message_s
            message = f"no whole message within {self._timeouts.first_message_s:g} s of the connection"
        elif self._begun is not None:
            due = self._begun + self._timeouts.message_s
            message = f"a message was begun and not finished within {self._timeouts.message_s:g} s"
        else:
            due = self._last_bytes + self._timeouts.idle_s
            message = f"nothing came for {self._timeouts.idle_s:g} s and the scan was not closed"
        if now >= due:
            self._receiver.input_failed(SessionTimeoutError(message))
            return
        # A message may begin at any time, so look again no later than its own limit.
        self._watch = self._loop.call_later(min(due - now, self._timeouts.message_s), self._check_time)
