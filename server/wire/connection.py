"""One peer's connection as state: bytes in, events out; events in, buffers out. No sockets, no clock, no waiting.

A connection has two directions: requests go from client to server, replies from server to client. Each has a state,
and one table, `TRANSITIONS`, says for both ends what may be said in which state: what we receive is checked against
it, and so is what we send. Everything that changes a state is in this file. Rules 15 to 18 are the dialect between
Gadgetron (the parent, which speaks first like a client) and an external node (which answers like a server).

Rules
 1. Requests begin in CONFIG (but see 14): one configuration comes, by name (1) or as text (2), and leads to HEADER.
    A second is refused.
 2. In HEADER one scan header (3) comes and leads to DATA. A header before the configuration, or a second one, is
    refused.
 3. In DATA come readouts (1008), waveforms (1026) and images (1022: image sessions), in any mixture; before it, none.
 4. TEXT (5) may come in every open state, also before the configuration, and is never taken for one.
 5. QUERY (6) may come in every open state of requests, and never as a reply.
 6. RESPONSE (7) and DEPENDENCY_QUERY (1019) are replies only. Replies have one open state, REPLY: 4, 5, 7, 8, 1008,
    1019, 1022 and 1026 in any order.
 7. ERROR (8) may come in every open state of both directions and leads nowhere: CLOSE follows.
 8. CLOSE (4) may come in every open state, also before the configuration or the header, and leads to CLOSED.
 9. In CLOSED nothing may be sent; what is received is drained: counted as read, never looked at.
10. When the bytes end without CLOSE: between two messages this counts as CLOSE that was not announced (scanners that
    abort, python clients); inside a message it is an error (truncated).
11. An id that is unknown, or that the direction does not know, cannot be skipped, for messages carry no common
    length. This, and every other error in what is received, leads to BROKEN: raised once, then drained like CLOSED.
12. Errors are found as soon as the bytes that show them are there: the order of messages after the id, sizes after
    the fixed part and before memory is taken, contents at the end of the message. Messages before the error are
    delivered before it.
13. The directions do not touch each other: after CLOSE from the peer, and after an error, we may still send.
14. A stream in a file or on a pipe (`gadgetron --from_stream`, ismrmrd's tools) is requests without a peer that
    answers. It begins in STREAM, where the configuration may be left out, and so may the header where there are only
    images: 1 and 2 lead to HEADER, 3 and the messages of DATA lead to DATA. What we read and what we write are such
    streams, both.
15. A parent begins in NODE_CONFIG with a configuration as text (2), which leads to NODE_HEADER, where the scan header
    (3) leads to NODE_DATA. There is no configuration by name.
16. In NODE_DATA come readouts, waveforms and images as in rule 3, and recon data (1023), image arrays (1024) and
    buckets (1050), which no other direction knows.
17. A node replies in NODE_REPLY with any of these, and with ERROR (8) where it failed. TEXT (5) is never said in either
    direction: Gadgetron takes it for an illegal message and the reconstruction fails.
18. Rules 5, 7 and 8 hold as they stand; RESPONSE goes only to a parent that asked. The end of the bytes without CLOSE
    is told as in rule 10; what it means is the session's to say (a parent always announces its CLOSE).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from pipelines.gadgetron import Bucket, ImageArray, ReconData
from pipelines.mrd import Acquisitions, Image, Meta, Waveform
from server.errors import ProtocolError
from server.wire import buckets, codec, gadgetron, images, readouts, waveforms
from server.wire.buffer import ReceiveBuffer
from server.wire.hints import describe_unknown
from server.wire.messages import Buffers, Close, Event, MessageId, WireLimits
from server.wire.walk import Walk


class Role(Enum):
    """Which end we are: a server and a node receive requests and send replies, a client and a parent the other way.

    A stream reads a file or pipe and writes another (rule 14).
    """

    SERVER = "server"
    CLIENT = "client"
    NODE = "node"
    PARENT = "parent"
    STREAM = "stream"


class State(Enum):
    """State of one direction."""

    STREAM = "beginning of a stream"
    CONFIG = "configuration expected"
    HEADER = "header expected"
    DATA = "data"
    REPLY = "replies"
    NODE_CONFIG = "configuration for a node expected"
    NODE_HEADER = "header for a node expected"
    NODE_DATA = "data for a node"
    NODE_REPLY = "replies of a node"
    CLOSED = "closed"
    BROKEN = "broken"


def _open_requests(state: State) -> dict[int, State]:
    """What may come in every open state of requests (rules 4, 5, 7 and 8)."""
    return {MessageId.TEXT: state, **_open_to_nodes(state)}


def _open_to_nodes(state: State) -> dict[int, State]:
    """The same of a parent's requests (rules 17 and 18)."""
    return {MessageId.QUERY: state, MessageId.ERROR: state, MessageId.CLOSE: State.CLOSED}


def _data(state: State) -> dict[int, State]:
    """What carries measurements and results (rules 3 and 6)."""
    return {MessageId.ACQUISITION: state, MessageId.IMAGE: state, MessageId.WAVEFORM: state}


def _node_data(state: State) -> dict[int, State]:
    """What carries measurements and results between Gadgetron and a node (rule 16)."""
    return _data(state) | dict.fromkeys((MessageId.RECON_DATA, MessageId.IMAGE_ARRAY, MessageId.BUCKET), state)


TRANSITIONS: Final[Mapping[State, Mapping[int, State]]] = MappingProxyType(
    {
        State.STREAM: {
            **_open_requests(State.STREAM),
            **_data(State.DATA),
            MessageId.CONFIG_FILE: State.HEADER,
            MessageId.CONFIG_TEXT: State.HEADER,
            MessageId.HEADER: State.DATA,
        },
        State.CONFIG: {
            **_open_requests(State.CONFIG),
            MessageId.CONFIG_FILE: State.HEADER,
            MessageId.CONFIG_TEXT: State.HEADER,
        },
        State.HEADER: {**_open_requests(State.HEADER), MessageId.HEADER: State.DATA},
        State.DATA: {**_open_requests(State.DATA), **_data(State.DATA)},
        State.REPLY: {
            **_data(State.REPLY),
            MessageId.TEXT: State.REPLY,
            MessageId.RESPONSE: State.REPLY,
            MessageId.DEPENDENCY_QUERY: State.REPLY,
            MessageId.ERROR: State.REPLY,
            MessageId.CLOSE: State.CLOSED,
        },
        State.NODE_CONFIG: {**_open_to_nodes(State.NODE_CONFIG), MessageId.CONFIG_TEXT: State.NODE_HEADER},
        State.NODE_HEADER: {**_open_to_nodes(State.NODE_HEADER), MessageId.HEADER: State.NODE_DATA},
        State.NODE_DATA: {**_open_to_nodes(State.NODE_DATA), **_node_data(State.NODE_DATA)},
        State.NODE_REPLY: {
            **_node_data(State.NODE_REPLY),
            MessageId.RESPONSE: State.NODE_REPLY,
            MessageId.ERROR: State.NODE_REPLY,
            MessageId.CLOSE: State.CLOSED,
        },
        State.CLOSED: {},
        State.BROKEN: {},
    }
)
"""State and id -> next state; what is missing is refused."""

_FIRST: Final = {
    Role.SERVER: (State.CONFIG, State.REPLY),
    Role.CLIENT: (State.REPLY, State.CONFIG),
    Role.NODE: (State.NODE_CONFIG, State.NODE_REPLY),
    Role.PARENT: (State.NODE_REPLY, State.NODE_CONFIG),
    Role.STREAM: (State.STREAM, State.STREAM),
}
"""First state of what is received, and of what is sent."""

_ENDED: Final = frozenset((State.CLOSED, State.BROKEN))
_REPLIES: Final = frozenset((State.REPLY, State.NODE_REPLY))
_OF_NODES: Final = frozenset((State.NODE_CONFIG, State.NODE_HEADER, State.NODE_DATA, State.NODE_REPLY))


class Connection:
    """One end of a connection.

    Receiving: let the transport write into `writable()`, say how much with `received`, then take events with
    `next_event` until it gives None. The arrays of an `Acquisitions`, `Bucket` or `ReconData` event lie in the receive
    buffer and are valid until the next `writable()`; whoever keeps them copies. Other events own what they hold.

    Sending: each method returns the parts of one gathered write, or raises ProtocolError.
    """

    __slots__ = ("_buffer", "_ended", "_limits", "_needed", "_receiving", "_sending", "_untouched", "_walk")

    def __init__(self, role: Role, limits: WireLimits | None = None) -> None:
        """Begin a connection in the given role, with the default limits if none are given."""
        self._limits = WireLimits() if limits is None else limits
        self._buffer = ReceiveBuffer(self._limits.buffer_bytes, self._limits.ceiling)
        self._receiving, self._sending = _FIRST[role]
        self._needed = codec.ID_BYTES
        self._untouched, self._ended = True, False
        self._walk: Walk | None = None

    @property
    def state(self) -> State:
        """State of the direction that we receive."""
        return self._receiving

    @property
    def sending(self) -> State:
        """State of the direction that we send."""
        return self._sending

    @property
    def capacity(self) -> int:
        """Bytes of memory that the receive buffer holds."""
        return self._buffer.capacity

    @property
    def pending(self) -> int:
        """Bytes received that no event has covered yet."""
        return self._buffer.end - self._buffer.start

    # ---- receiving -------------------------------------------------------------------------------------------------

    def writable(self) -> memoryview:
        """Where the transport puts the next bytes, at least one. Makes the arrays of earlier events invalid.

        Raises:
            BufferError: complete messages fill the buffer; take them with `next_event` first.
        """
        if self._receiving in _ENDED:
            self._buffer.discard()
        return self._buffer.writable(self._needed)

    def received(self, n: int) -> None:
        """The transport has put `n` bytes into what `writable` gave.

        Raises:
            ValueError: that is more than there was room for.
        """
        self._buffer.received(n)

    def end_of_input(self) -> None:
        """The peer has ended its stream; `next_event` says what that means (rule 10)."""
        self._ended = True

    def release(self) -> None:
        """Let go of the receive buffer; nothing more will be received."""
        self._buffer.release()

    def next_event(self) -> Event | None:
        """The next complete message, or run of readouts; None when more bytes are needed or no more will be read.

        Raises:
            ProtocolError: the peer broke a rule; raised once.
            LimitError: a size that it announced is over a limit; nothing was allocated.
        """
        if self._receiving in _ENDED:
            self._buffer.discard()
            return None
        try:
            return self._parse()
        except ProtocolError:
            self._receiving = State.BROKEN
            self._buffer.discard()
            raise

    def _parse(self) -> Event | None:
        buffer = self._buffer
        data, start = buffer.data, buffer.start
        available = buffer.end - start
        if available < self._needed:
            return self._end(available) if self._ended else None
        message_id = codec.read_id(data, start)
        next_state = TRANSITIONS[self._receiving].get(message_id)
        if next_state is None:
            raise _refused(message_id, self._receiving, "the peer sent", is_first=self._untouched)
        event, needed = self._walk_on(message_id) if message_id in codec.WALKS else self._read(message_id)
        if event is None:
            self._needed = needed
            return self._end(available) if self._ended else None
        buffer.consume(needed * len(event) if isinstance(event, Acquisitions) else needed, needed)
        self._needed, self._untouched = codec.ID_BYTES, False
        self._receiving = next_state
        return event

    def _read(self, message_id: int) -> tuple[Event | None, int]:
        """The message at the front, or a run of readouts, if all of it is there, and the bytes that it needs."""
        data, start, end, limits = self._buffer.data, self._buffer.start, self._buffer.end, self._limits
        layout = codec.LAYOUTS[message_id]
        needed = layout.fixed
        if end - start >= needed:
            needed = layout.size(data, start, limits)
        if end - start < needed:
            return None, needed
        if message_id == MessageId.ACQUISITION:
            return readouts.decode_run(data, start, end, needed, limits), needed
        return layout.decode(data, start, needed), needed

    def _walk_on(self, message_id: int) -> tuple[Event | None, int]:
        """The same for messages whose length shows only on the way through them."""
        if self._walk is None:
            self._walk = Walk(codec.WALKS[message_id](self._limits))
        event = self._walk.look(self._buffer.data[self._buffer.start : self._buffer.end])
        needed = self._walk.needed
        if event is not None:
            self._walk = None
        return event, needed

    def _end(self, available: int) -> Event:
        """Rule 10."""
        if available == 0:
            self._receiving = State.CLOSED
            return Close(announced=False)
        what = "an id"
        if available >= codec.ID_BYTES:
            what = f"a message {MessageId(codec.read_id(self._buffer.data, self._buffer.start)).name}"
        raise ProtocolError(
            f"the peer ended its stream inside {what}, after {available} of at least {self._needed} bytes",
            kind="truncated",
            advice="Check why the client or the network broke off; what was complete before it has been used.",
        )

    # ---- sending ---------------------------------------------------------------------------------------------------

    def config_file(self, name: str) -> Buffers:
        """Name the configuration (id 1)."""
        return self._send(MessageId.CONFIG_FILE, codec.encode_config_file(name))

    def config_text(self, text: str) -> Buffers:
        """Send the configuration as text (id 2)."""
        return self._send(MessageId.CONFIG_TEXT, codec.encode_text(MessageId.CONFIG_TEXT, text))

    def header(self, xml: bytes) -> Buffers:
        """Send the scan header (id 3)."""
        return self._send(MessageId.HEADER, codec.encode_bytes(MessageId.HEADER, xml))

    def acquisitions(self, batch: Acquisitions) -> Buffers:
        """Send readouts (id 1008 each)."""
        return self._send(MessageId.ACQUISITION, readouts.encode_run(batch))

    def waveform(self, waveform: Waveform) -> Buffers:
        """Send a waveform (id 1026)."""
        return self._send(MessageId.WAVEFORM, waveforms.encode_waveform(waveform))

    def image(self, image: Image) -> Buffers:
        """Send an image with its attributes (id 1022)."""
        return self._send(MessageId.IMAGE, images.encode_image(image))

    def recon_data(self, recon: ReconData) -> Buffers:
        """Send buffered k-space (id 1023)."""
        return self._send(MessageId.RECON_DATA, gadgetron.encode_recon_data(recon))

    def image_array(self, images: ImageArray) -> Buffers:
        """Send an image array (id 1024)."""
        return self._send(MessageId.IMAGE_ARRAY, gadgetron.encode_image_array(images))

    def bucket(self, bucket: Bucket) -> Buffers:
        """Send a bucket (id 1050)."""
        return self._send(MessageId.BUCKET, buckets.encode_bucket(bucket))

    def text(self, text: str) -> Buffers:
        """Send a line for the log of the other side (id 5)."""
        return self._send(MessageId.TEXT, codec.encode_text(MessageId.TEXT, text))

    def query(self, correlation: int, text: str) -> Buffers:
        """Ask something outside the scan (id 6)."""
        return self._send(MessageId.QUERY, codec.encode_query(correlation, text))

    def response(self, correlation: int, text: str) -> Buffers:
        """Answer a query (id 7)."""
        return self._send(MessageId.RESPONSE, codec.encode_response(correlation, text))

    def dependency(self, meta: Meta) -> Buffers:
        """Say whether the data that a scan depends on are there (id 1019)."""
        return self._send(MessageId.DEPENDENCY_QUERY, codec.encode_dependency(meta))

    def error(self, text: str) -> Buffers:
        """Report a failure to a Gadgetron parent (id 8); MRD clients and scanners do not know it and want TEXT."""
        return self._send(MessageId.ERROR, codec.encode_error(text))

    def close(self) -> Buffers:
        """Say that we have nothing more to say (id 4)."""
        return self._send(MessageId.CLOSE, codec.encode_close())

    def _send(self, message_id: MessageId, buffers: Buffers) -> Buffers:
        next_state = TRANSITIONS[self._sending].get(message_id)
        if next_state is None:
            raise _refused(message_id, self._sending, "we may not send", is_first=False)
        self._sending = next_state
        return buffers


def _refused(message_id: int, state: State, who: str, *, is_first: bool) -> ProtocolError:
    """Why the table has no entry for this id in this state."""
    if message_id not in codec.LAYOUTS and message_id not in codec.WALKS:
        what, advice = describe_unknown(message_id, is_first=is_first)
        return ProtocolError(f"{who} what cannot be read: {what}", kind="bad_id", advice=advice)
    name = MessageId(message_id).name
    if state in _ENDED:
        return ProtocolError(f"{who} {name} after the end")
    if message_id in codec.WALKS and state not in _OF_NODES:
        advice = "Let Gadgetron connect to the port for Gadgetron (setting gadgetron.port)."
        return ProtocolError(f"{who} {name}, which only Gadgetron and its nodes say", kind="bad_id", advice=advice)
    if message_id == MessageId.TEXT:
        return ProtocolError(f"{who} TEXT, which Gadgetron and its nodes never say", kind="bad_id")
    if state in _REPLIES:
        return ProtocolError(f"{who} {name} as a reply; only a client says that", kind="bad_id")
    if message_id in (MessageId.RESPONSE, MessageId.DEPENDENCY_QUERY):
        return ProtocolError(f"{who} {name} as a request; only a server says that", kind="bad_id")
    if message_id == MessageId.CONFIG_FILE and state in _OF_NODES:
        advice = "Scanners and MRD clients connect to the port for scans (setting listen.port)."
        return ProtocolError(f"{who} CONFIG_FILE; Gadgetron sends its nodes CONFIG_TEXT", kind="bad_id", advice=advice)
    if message_id in (MessageId.CONFIG_FILE, MessageId.CONFIG_TEXT):
        return ProtocolError(f"{who} a second configuration ({name}); only one is allowed")
    before = state in (State.CONFIG, State.NODE_CONFIG)
    if message_id == MessageId.HEADER:
        what = "the header before the configuration" if before else "a second header; only one is allowed"
        return ProtocolError(f"{who} {what}")
    return ProtocolError(f"{who} {name} before the {'configuration and header' if before else 'header'}")
