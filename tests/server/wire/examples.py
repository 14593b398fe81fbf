"""Messages for the tests of the wire: generated ones, minimal ones, and ways to feed them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from hypothesis import strategies as st

from pipelines.gadgetron import SAMPLING_DESCRIPTION, Bucket, ImageArray, ReconBit, ReconBuffer, ReconData
from pipelines.mrd import (
    ACQUISITION_HEADER,
    COUNTERS,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Acquisitions,
    Image,
    ImageDataType,
    Waveform,
)
from server.errors import ProtocolError
from server.wire.connection import Connection, Role, State
from server.wire.messages import (
    Buffers,
    Close,
    ConfigFile,
    ConfigText,
    DependencyAnswer,
    Event,
    Header,
    MessageId,
    PeerError,
    Query,
    Response,
    Text,
    WireLimits,
)

COMPRESSION_BITS = 0xF << 52

# ---- generated messages

u64 = st.integers(0, 2**64 - 1)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: not text.endswith("\0"))
names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zs", "Zl", "Zp", "Co", "Cn"]), max_size=200)
xml_text = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\t\n\r", exclude_characters="￾￿"), max_size=20
)
metas = st.dictionaries(xml_text.filter(bool), st.lists(xml_text, min_size=1, max_size=3), max_size=4)


def noise(seed: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    """Any bits at all, so that every field is compared; read as `dtype`."""
    n = int(np.prod(shape, dtype=int)) * dtype.itemsize
    return np.random.default_rng(seed).integers(0, 256, n, np.uint8).view(dtype).reshape(shape)


@st.composite
def acquisitions(draw: st.DrawFn, most: int = 6) -> Acquisitions:
    n, coils, samples = draw(st.integers(1, most)), draw(st.integers(0, 3)), draw(st.integers(0, 9))
    dimensions = draw(st.integers(0, 3))
    seed = draw(st.integers(0, 2**32))
    headers = noise(seed, ACQUISITION_HEADER, (n,))
    headers["flags"] &= np.uint64(~COMPRESSION_BITS & 2**64 - 1)
    headers["number_of_samples"], headers["active_channels"] = samples, coils
    headers["trajectory_dimensions"] = dimensions
    values = noise(seed + 1, np.dtype(np.uint8), (n, coils, samples * 8))
    trajectory = noise(seed + 2, np.dtype(np.uint8), (n, samples * dimensions * 4)) if dimensions else None
    return Acquisitions(headers, values, trajectory)


@st.composite
def images(draw: st.DrawFn) -> Image:
    shape = tuple(draw(st.integers(1, 4)) for _ in range(4))
    data_type = draw(st.sampled_from(ImageDataType))
    seed = draw(st.integers(0, 2**32))
    header = noise(seed, IMAGE_HEADER, ())
    header["data_type"], header["channels"], header["matrix_size"] = data_type, shape[0], shape[:0:-1]
    return Image(header, noise(seed + 1, data_type.dtype, shape), draw(metas))


@st.composite
def waveforms(draw: st.DrawFn) -> Waveform:
    shape = (draw(st.integers(0, 3)), draw(st.integers(0, 9)))
    seed = draw(st.integers(0, 2**32))
    header = noise(seed, WAVEFORM_HEADER, ())
    header["channels"], header["number_of_samples"] = shape
    return Waveform(header, noise(seed + 1, np.dtype("<u4"), shape))


data_messages = st.one_of(acquisitions(), images(), waveforms())
request_texts = st.one_of(st.builds(Text, words), st.builds(Query, u64, words), st.builds(PeerError, words))
reply_texts = st.one_of(
    st.builds(Text, words),
    st.builds(Response, u64, words),
    st.builds(PeerError, words),
    st.builds(DependencyAnswer, metas),
)
configs = st.one_of(st.builds(ConfigFile, names), st.builds(ConfigText, words))
headers = st.builds(Header, st.binary(max_size=60).map(lambda xml: xml.rstrip(b"\0")))


@st.composite
def requests(draw: st.DrawFn) -> list[Event]:
    """All that a client may say, in an order that is allowed."""
    texts = st.lists(request_texts, max_size=2)
    data = st.lists(st.one_of(data_messages, request_texts), max_size=6)
    return [*draw(texts), draw(configs), *draw(texts), draw(headers), *draw(data), Close()]


replies = st.lists(st.one_of(data_messages, reply_texts), max_size=6).map(lambda events: [*events, Close()])
"""All that a server may say."""

# ---- sending and feeding


def send(connection: Connection, event: Event) -> Buffers:  # noqa: C901 - one case for each message
    """The event through the sender it belongs to."""
    match event:
        case ConfigFile(name):
            return connection.config_file(name)
        case ConfigText(text):
            return connection.config_text(text)
        case Header(xml):
            return connection.header(xml)
        case Text(text):
            return connection.text(text)
        case Query(correlation, text):
            return connection.query(correlation, text)
        case Response(correlation, text):
            return connection.response(correlation, text)
        case DependencyAnswer(meta):
            return connection.dependency(meta)
        case PeerError(text):
            return connection.error(text)
        case Acquisitions():
            return connection.acquisitions(event)
        case Waveform():
            return connection.waveform(event)
        case Image():
            return connection.image(event)
        case Close():
            return connection.close()
        case _:
            return _send_to_gadgetron(connection, event)


def _send_to_gadgetron(connection: Connection, event: ReconData | ImageArray | Bucket) -> Buffers:
    match event:
        case ReconData():
            return connection.recon_data(event)
        case ImageArray():
            return connection.image_array(event)
        case Bucket():
            return connection.bucket(event)


def encode(role: Role, events: Iterable[Event]) -> bytes:
    """What the role says, as one piece."""
    connection = Connection(role)
    return b"".join(part for event in events for part in send(connection, event))


def feed(connection: Connection, data: bytes, cuts: Sequence[int] = ()) -> list[object]:
    """What becomes of the bytes, delivered in pieces that end at the cuts; an error stands where it was raised."""
    seen: list[object] = []
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        rest = memoryview(data)[start:stop]
        while rest:
            room = connection.writable()
            n = min(len(room), len(rest))
            room[:n] = rest[:n]
            connection.received(n)
            rest = rest[n:]
            seen += take(connection)
    return seen


def take(connection: Connection) -> list[object]:
    """All events that are there, in a form that can be compared and kept."""
    seen: list[object] = []
    try:
        while (event := connection.next_event()) is not None:
            seen += plain(event)
    except ProtocolError as error:
        seen.append(("error", error.code, error.kind, str(error), error.advice))
    return seen


def plain(event: Event) -> list[object]:
    """The event as values that compare by content; a run as its readouts, since runs depend on how the bytes arrive."""
    match event:
        case Acquisitions(headers, samples, trajectory):
            shape = (event.n_coils, event.n_samples)
            tracks = [b""] * len(event) if trajectory is None else [track.tobytes() for track in trajectory]
            return [
                ("readout", shape, *parts)
                for parts in zip((h.tobytes() for h in headers), (s.tobytes() for s in samples), tracks, strict=True)
            ]
        case Image(header, pixels, meta):
            fields = {
                name: header[name].tobytes() for name in IMAGE_HEADER.names or () if name != "attribute_string_len"
            }
            return [("image", fields, pixels.dtype, pixels.shape, pixels.tobytes(), meta)]
        case ReconData(bits):
            buffers = [buffer for bit in bits for buffer in (bit.data, bit.reference)]
            return [("recon data", *(None if buffer is None else _plain_buffer(buffer) for buffer in buffers))]
        case ImageArray(data, headers, meta, waves, acquisition_headers):
            waves = None if waves is None else plain_all(waves)
            return [("image array", *_plain_arrays(data, headers, acquisition_headers), meta, waves)]
        case Bucket(data, reference, data_statistics, reference_statistics, waves):
            parts = [plain_all(part) for part in (data, reference, waves)]
            return [("bucket", *parts, data_statistics, reference_statistics)]
        case Waveform(header, samples):
            fields = {name: header[name].tobytes() for name in WAVEFORM_HEADER.names or ()}
            return [("waveform", fields, samples.shape, samples.tobytes())]
        case _:
            return [event]


def _plain_arrays(*arrays: np.ndarray | None) -> list[object]:
    return [None if array is None else (array.dtype.itemsize, array.shape, array.tobytes()) for array in arrays]


def _plain_buffer(buffer: ReconBuffer) -> tuple[object, ...]:
    sampling = [buffer.sampling[name].tobytes() for name in SAMPLING_DESCRIPTION.names or ()]
    return (*_plain_arrays(buffer.data, buffer.headers, buffer.trajectory, buffer.density), *sampling)


def plain_all(events: Iterable[Event]) -> list[object]:
    return [value for event in events for value in plain(event)]


# ---- minimal messages, and connections in a state


def readouts(n: int = 1, coils: int = 1, samples: int = 2, dimensions: int = 0, seed: int = 0) -> Acquisitions:
    """Readouts of normal noise with ordinary headers."""
    rng = np.random.default_rng(seed)
    headers = np.zeros(n, ACQUISITION_HEADER)
    headers["version"], headers["scan_counter"] = 1, np.arange(n)
    headers["number_of_samples"], headers["active_channels"] = samples, coils
    headers["available_channels"], headers["trajectory_dimensions"] = coils, dimensions
    headers["idx"][COUNTERS[0]] = np.arange(n)
    values = rng.standard_normal((n, coils, samples, 2)).astype(np.float32).view(np.complex64)[..., 0]
    trajectory = rng.standard_normal((n, samples, dimensions)).astype(np.float32) if dimensions else None
    return Acquisitions.from_arrays(headers, values, trajectory)


def image(shape: tuple[int, int, int, int] = (1, 1, 2, 2), data_type: ImageDataType = ImageDataType.FLOAT) -> Image:
    """A small image."""
    header = np.zeros((), IMAGE_HEADER)
    header["version"], header["data_type"], header["channels"] = 1, data_type, shape[0]
    header["matrix_size"], header["image_type"] = shape[:0:-1], 1
    return Image(header, np.arange(np.prod(shape)).reshape(shape).astype(data_type.dtype), {"DataRole": ["Image"]})


def waveform(channels: int = 1, samples: int = 2) -> Waveform:
    """A short waveform."""
    header = np.zeros((), WAVEFORM_HEADER)
    header["channels"], header["number_of_samples"] = channels, samples
    return Waveform(header, np.arange(channels * samples, dtype="<u4").reshape(channels, samples))


def recon_buffer(shape: tuple[int, ...] = (1, 1, 1, 1, 1, 2, 2), dimensions: int = 0, seed: int = 0) -> ReconBuffer:
    """A small buffer of normal noise whose headers count the lines."""
    rng = np.random.default_rng(seed)
    loc, s, n, coils, z, y, x = shape
    headers = np.zeros((loc, s, n, z, y), ACQUISITION_HEADER)
    headers["version"], headers["number_of_samples"], headers["active_channels"] = 1, x, coils
    headers["idx"][COUNTERS[0]] = np.arange(y)
    sampling = np.zeros((), SAMPLING_DESCRIPTION)
    sampling["encoded_matrix"], sampling["recon_matrix"] = (x, y, z), (x, y, z)
    sampling["limits"]["center"], sampling["limits"]["maximum"] = (x // 2, y // 2, z // 2), (x - 1, y - 1, z - 1)
    data = rng.standard_normal((*shape, 2)).astype(np.float32).view(np.complex64)[..., 0]
    trajectory = rng.standard_normal((loc, s, n, z, y, x, dimensions)).astype(np.float32) if dimensions else None
    return ReconBuffer(data, headers, sampling, trajectory)


def image_array(shape: tuple[int, ...] = (1, 1, 1, 1, 1, 2, 2)) -> ImageArray:
    """A small image array."""
    headers = np.full(shape[:3], image((shape[3], *shape[4:])).header)
    headers["data_type"] = ImageDataType.CXFLOAT
    data = (np.arange(np.prod(shape)) * (1 + 1j)).reshape(shape).astype(np.complex64)
    return ImageArray(data, headers, (b"<ismrmrdMeta/>",) * headers.size)


MINIMAL: dict[MessageId, Event] = {
    MessageId.CONFIG_FILE: ConfigFile("sense"),
    MessageId.CONFIG_TEXT: ConfigText("<a/>"),
    MessageId.HEADER: Header(b"<ismrmrdHeader/>"),
    MessageId.CLOSE: Close(),
    MessageId.TEXT: Text("hello"),
    MessageId.QUERY: Query(7, "gadgetron::info"),
    MessageId.RESPONSE: Response(7, "fine"),
    MessageId.DEPENDENCY_QUERY: DependencyAnswer({"status": ["success"]}),
    MessageId.ERROR: PeerError("no"),
    MessageId.ACQUISITION: readouts(),
    MessageId.IMAGE: image(),
    MessageId.WAVEFORM: waveform(),
    MessageId.RECON_DATA: ReconData((ReconBit(recon_buffer()),)),
    MessageId.IMAGE_ARRAY: image_array(),
    MessageId.BUCKET: Bucket((readouts(),)),
}
"""One small message of each id."""

_TO_DATA = (MINIMAL[MessageId.CONFIG_FILE], MINIMAL[MessageId.HEADER])
_TO_NODE_DATA = (MINIMAL[MessageId.CONFIG_TEXT], MINIMAL[MessageId.HEADER])
OTHER_END = {
    Role.SERVER: Role.CLIENT,
    Role.CLIENT: Role.SERVER,
    Role.NODE: Role.PARENT,
    Role.PARENT: Role.NODE,
    Role.STREAM: Role.STREAM,
}
_WAYS: dict[State, tuple[Role, tuple[Event, ...]]] = {
    State.STREAM: (Role.STREAM, ()),
    State.CONFIG: (Role.SERVER, ()),
    State.HEADER: (Role.SERVER, _TO_DATA[:1]),
    State.DATA: (Role.SERVER, _TO_DATA),
    State.REPLY: (Role.CLIENT, ()),
    State.NODE_CONFIG: (Role.NODE, ()),
    State.NODE_HEADER: (Role.NODE, _TO_NODE_DATA[:1]),
    State.NODE_DATA: (Role.NODE, _TO_NODE_DATA),
    State.NODE_REPLY: (Role.PARENT, ()),
    State.CLOSED: (Role.SERVER, (*_TO_DATA, Close())),
    State.BROKEN: (Role.SERVER, _TO_DATA),
}


def message_bytes(event: Event) -> bytes:
    """The bytes of one message, from whichever end may say it."""
    for state in (State.CONFIG, State.HEADER, State.DATA, State.REPLY, State.NODE_REPLY):
        try:
            return b"".join(send(sending_in(state), event))
        except ProtocolError:
            continue
    raise AssertionError(f"nobody may send {event}")


def receiving_in(state: State, limits: WireLimits | None = None) -> Connection:
    """A connection whose received direction is in this state."""
    role, _ = _WAYS[state]
    connection = Connection(role, limits)
    feed(connection, _way_to(state))
    if state is State.BROKEN:
        feed(connection, b"\xff\xff")
    assert connection.state is state
    return connection


@cache
def _way_to(state: State) -> bytes:
    role, way = _WAYS[state]
    return encode(OTHER_END[role], way)


def sending_in(state: State) -> Connection:
    """A connection whose sent direction is in this state."""
    role, way = _WAYS[state]
    connection = Connection(OTHER_END[role])
    for event in way:
        send(connection, event)
    assert connection.sending is state
    return connection
