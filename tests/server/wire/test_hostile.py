"""What a broken or hostile peer may send: always an event or a coded error, never memory for an announcement."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ProtocolError
from server.wire.connection import Connection, Role, State
from server.wire.messages import (
    Close,
    ConfigFile,
    ConfigText,
    Event,
    Header,
    Image,
    MessageId,
    PeerError,
    Query,
    Response,
    Text,
    WireLimits,
)
from tests.server.wire import examples

SMALL = WireLimits(
    buffer_bytes=4096, message_bytes=32768, config_bytes=2000, header_bytes=2000, text_bytes=2000, attribute_bytes=2000
)
BIG = 2**63


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _acquisition(samples: int, channels: int, dimensions: int = 0) -> bytes:
    batch = examples.readouts()
    data = bytearray(examples.message_bytes(batch)[:342])
    data[36:38], data[40:42], data[178:180] = _u16(samples), _u16(channels), _u16(dimensions)
    return bytes(data)


def _waveform(samples: int, channels: int) -> bytes:
    data = bytearray(examples.message_bytes(examples.waveform())[:42])
    data[30:32], data[32:34] = _u16(samples), _u16(channels)
    return bytes(data)


def _image(
    matrix: tuple[int, int, int] = (2, 2, 1),
    channels: int = 1,
    data_type: int = 5,
    in_header: int = 0,
    attributes: int = 0,
) -> bytes:
    header = examples.image().header.copy()
    header["matrix_size"], header["channels"], header["data_type"] = matrix, channels, data_type
    header["attribute_string_len"] = in_header
    return _u16(1022) + header.tobytes() + _u64(attributes)


# ---- strangers


@pytest.mark.parametrize(
    ("data", "looks_like", "advice"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP", "admin port"),
        (b"POST / HTTP/1.1\r\n", "HTTP", "admin port"),
        (b"PRI * HTTP/2.0\r\n", "HTTP", "admin port"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS", "switch TLS off"),
        (b"yardl\x01\x00\x00\x00", "MRD version 2", "echotrain convert"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH", "host and port"),
        (b"\x00\x01default.xml", "big-endian", "little-endian"),
        (b"\x03\xf0", "big-endian", "little-endian"),
    ],
)
def test_a_stranger_is_told_what_it_looks_like_and_what_to_do(data: bytes, looks_like: str, advice: str):
    for cuts in ([], range(1, len(data))):
        ((_, _, kind, text, told),) = examples.feed(Connection(Role.SERVER), data, cuts)

        assert kind == "bad_id"
        assert looks_like in text
        assert advice in told


def test_only_the_first_bytes_of_a_connection_are_taken_for_a_stranger():
    ((_, _, _, text, _),) = examples.feed(examples.receiving_in(State.DATA), b"GET / HTTP/1.1\r\n")

    assert "HTTP" not in text
    assert "17735 is unknown" in text


# ---- announced sizes

OVER_LIMITS = {
    "config text": (State.CONFIG, _u16(2) + _u32(2**32 - 1)),
    "header": (State.HEADER, _u16(3) + _u32(2**32 - 1)),
    "text": (State.CONFIG, _u16(5) + _u32(2**32 - 1)),
    "query": (State.DATA, _u16(6) + _u64(0) + _u64(1) + _u64(BIG)),
    "response": (State.REPLY, _u16(7) + _u64(1) + _u64(BIG)),
    "error": (State.DATA, _u16(8) + _u64(2**64 - 1)),
    "samples and channels": (State.DATA, _acquisition(65535, 65535)),
    "channels": (State.DATA, _acquisition(1, 513)),
    "bytes of a readout": (State.DATA, _acquisition(65535, 512)),
    "trajectory dimensions": (State.DATA, _acquisition(1, 1, 65535)),
    "waveform": (State.DATA, _waveform(65535, 65535)),
    "pixels": (State.REPLY, _image((65535, 65535, 65535), 65535)),
    "pixels of one channel": (State.REPLY, _image((8193, 8192, 1))),
    "bytes of an image": (State.REPLY, _image((8192, 8192, 1), data_type=8)),
    "attributes": (State.REPLY, _image(attributes=2**62)),
    "attributes just over": (State.REPLY, _image(attributes=(4 << 20) + 1)),
    "attributes and header": (State.REPLY, _image(in_header=2**32 - 1, attributes=2**32 - 1)),
}


@pytest.mark.parametrize(("state", "data"), OVER_LIMITS.values(), ids=list(OVER_LIMITS))
def test_what_is_over_a_limit_is_refused_before_memory_is_taken(state: State, data: bytes):
    connection = examples.receiving_in(state)
    capacity = connection.capacity
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ((_, code, kind, text, _),) = examples.feed(connection, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (code, kind) == ("over_limit", "over_limit")
    assert "the limit" in text
    assert connection.capacity == capacity
    assert peak - before < 100_000


@pytest.mark.parametrize(("state", "data"), OVER_LIMITS.values(), ids=list(OVER_LIMITS))
def test_the_limit_is_found_at_the_byte_that_completes_the_size(state: State, data: bytes):
    whole = examples.feed(examples.receiving_in(state), data)

    assert examples.feed(examples.receiving_in(state), data, range(1, len(data))) == whole


def test_sizes_at_the_limit_are_read():
    text = "x" * SMALL.text_bytes

    assert examples.feed(Connection(Role.SERVER, SMALL), examples.message_bytes(Text(text))) == [Text(text)]
    ((*_, said, _),) = examples.feed(Connection(Role.SERVER, SMALL), examples.message_bytes(Text(text + "x")))
    assert "2001 bytes; the limit is 2000" in said


def test_a_size_within_the_limits_costs_only_what_arrives():
    limits = WireLimits()
    connection = examples.receiving_in(State.REPLY, limits)
    examples.feed(connection, _image((8000, 8000, 1)))  # 256 MB announced: memory is reserved, pages are not touched

    connection.writable()

    assert connection.capacity <= limits.ceiling


# ---- contents


@pytest.mark.parametrize(
    ("state", "data", "kind", "words"),
    [
        (State.CONFIG, _u16(1) + b"x" * 1024, "bad_length", "without a NUL"),
        (State.CONFIG, _u16(1) + b"\xff\xfe" + bytes(1022), "bad_utf8", "not UTF-8"),
        (State.CONFIG, _u16(1) + b"a\x1b[31mb\n" + bytes(1016), "bad_utf8", r"control characters: 'a\x1b[31mb\n'"),
        (State.CONFIG, _u16(2) + _u32(2) + b"\xc3\x28", "bad_utf8", "not UTF-8"),
        (State.DATA, _u16(6) + _u64(1) + _u64(1) + _u64(0), "bad_header", "reserved field is 1"),
        (State.REPLY, _image(data_type=0), "bad_header", "data_type 0"),
        (State.REPLY, _image(data_type=9), "bad_header", "data_type 9"),
        (State.REPLY, _image(data_type=99), "bad_header", "data_type 99"),
        (State.REPLY, _image((0, 2, 1)), "bad_header", "without pixels (matrix 0 x 2 x 1 and 1 channels)"),
        (State.REPLY, _image(channels=0), "bad_header", "without pixels"),
        (State.REPLY, _image(in_header=5, attributes=6), "bad_length", "5 in the header, 6 behind it"),
        (State.REPLY, _image(in_header=5, attributes=0), "bad_length", "5 in the header, 0 behind it"),
        (State.REPLY, _image(attributes=8) + b"<<<&b;<c" + bytes(16), "bad_xml", "not safe, well-formed XML"),
    ],
)  # fmt: skip
def test_a_broken_message_is_refused_by_name(state: State, data: bytes, kind: str, words: str):
    for cuts in ([], range(1, len(data))):
        ((_, _, said_kind, text, _),) = examples.feed(examples.receiving_in(state), data, cuts)

        assert said_kind == kind
        assert words in text
        assert text.isprintable()


@pytest.mark.parametrize(
    ("flag", "name"), [(53, "COMPRESSION1"), (54, "COMPRESSION2"), (55, "COMPRESSION3"), (56, "COMPRESSION4")]
)
def test_a_compressed_acquisition_is_refused_by_name(flag: int, name: str):
    data = bytearray(examples.message_bytes(examples.readouts()))
    data[4:12] = _u64(1 << flag - 1 | 1 << 7)

    ((_, _, kind, text, advice),) = examples.feed(examples.receiving_in(State.DATA), bytes(data))

    assert kind == "bad_header"
    assert f"compressed acquisition ({name})" in text
    assert "Switch compression off" in advice


def test_other_flags_are_not_taken_for_compression():
    batch = examples.readouts(3)
    batch.headers["flags"] = 2**64 - 1 & ~examples.COMPRESSION_BITS

    assert examples.feed(examples.receiving_in(State.DATA), examples.message_bytes(batch)) == examples.plain(batch)


def test_readouts_without_samples_or_channels_are_delivered_as_such():
    for samples, channels, dimensions in ((0, 1, 0), (4, 0, 0), (0, 0, 0), (0, 1, 3), (4, 0, 2)):
        data = (_acquisition(samples, channels, dimensions) + bytes(4 * samples * dimensions)) * 3

        heard = examples.feed(examples.receiving_in(State.DATA), data)

        assert [value[:2] for value in heard] == [("readout", (channels, samples))] * 3


def test_a_message_that_only_looks_like_the_readouts_before_it_ends_the_run():
    record = examples.message_bytes(examples.readouts())
    text = _u16(5) + _u32(len(record) - 6) + record[6:]  # same length, same bytes where readouts have their shape

    heard = examples.feed(examples.receiving_in(State.DATA), record * 2 + text + record)

    assert heard[:2] + heard[3:] == examples.plain(examples.readouts()) * 3
    assert isinstance(heard[2], Text)


# ---- strings


@pytest.mark.parametrize("tail", [b"", b"\0", b"\0\0\0"], ids=["without NUL", "one NUL", "many NULs"])
def test_texts_are_read_with_and_without_nuls_behind_them(tail: bytes):
    def counted(message_id: int, prefix: bytes, size: int, body: bytes) -> bytes:
        return _u16(message_id) + prefix + len(body + tail).to_bytes(size, "little") + body + tail

    request = counted(6, _u64(0) + _u64(9), 8, b"q") + counted(2, b"", 4, b"{}") + counted(5, b"", 4, b"hi")
    request += counted(3, b"", 4, b"<h/>") + counted(8, b"", 8, b"no")
    reply = counted(7, _u64(9), 8, b"a")

    assert examples.feed(Connection(Role.SERVER), request) == [
        Query(9, "q"), ConfigText("{}"), Text("hi"), Header(b"<h/>"), PeerError("no"),
    ]  # fmt: skip
    assert examples.feed(Connection(Role.CLIENT), reply) == [Response(9, "a")]


def test_empty_texts_are_read():
    data = _u16(5) + _u32(0) + _u16(1) + bytes(1024) + _u16(3) + _u32(0)

    assert examples.feed(Connection(Role.SERVER), data) == [Text(""), ConfigFile(""), Header(b"")]


def test_a_config_name_ends_at_its_first_nul():
    assert examples.feed(Connection(Role.SERVER), _u16(1) + b"sense\0garbage\xff".ljust(1024, b"\0")) == [
        ConfigFile("sense")
    ]


def test_texts_for_people_that_are_not_utf8_are_shown_with_replacements():
    assert examples.feed(Connection(Role.SERVER), _u16(5) + _u32(3) + b"a\xffb") == [Text("a\ufffdb")]


def test_an_attribute_length_that_the_header_leaves_out_is_taken_from_behind_it():
    xml = b"<ismrmrdMeta><meta><name>a</name><value>1</value></meta></ismrmrdMeta>\0"
    client = examples.receiving_in(State.REPLY)
    data = _image(in_header=0, attributes=len(xml)) + xml + bytes(16)
    room = client.writable()
    room[: len(data)] = data
    client.received(len(data))

    picture = client.next_event()

    assert isinstance(picture, Image)
    assert picture.meta == {"a": ["1"]}
    assert picture.header["attribute_string_len"] == len(xml)


# ---- our own mistakes


def test_messages_that_contradict_themselves_are_not_sent():
    batch = examples.readouts(2, 2, 4, 2)
    other = examples.readouts(2, 2, 5, 2)
    picture, wave = examples.image(), examples.waveform()
    compressed = examples.readouts()
    compressed.headers["flags"] = 1 << 53
    cases: list[Event] = [
        type(batch)(other.headers, batch.samples, batch.trajectory),
        type(batch)(batch.headers, batch.samples, None),
        type(batch)(batch.headers[:1], batch.samples, batch.trajectory),
        compressed,
        Image(picture.header, picture.pixels[:, :, :1]),
        Image(picture.header, picture.pixels.astype(np.float64)),
        Image(picture.header, picture.pixels, {"": ["x"]}),
        type(wave)(wave.header, wave.samples[:, :1]),
        Text("\ud800"),
    ]
    for event in cases:
        with pytest.raises(ProtocolError, match="we may not send"):
            examples.send(examples.sending_in(State.DATA), event)
    for name in ("a\nb", "x" * 1024, "\ud800", "\0"):
        with pytest.raises(ProtocolError, match="we may not send a configuration name"):
            Connection(Role.CLIENT).config_file(name)


def test_the_padding_of_a_waveform_carries_no_old_memory():
    wave = examples.waveform()
    header = np.full(40, 0xAA, np.uint8).view(wave.header.dtype)[0].copy()
    header["channels"], header["number_of_samples"] = wave.samples.shape

    data = examples.message_bytes(type(wave)(header, wave.samples))

    assert data[2:4] == b"\xaa\xaa"
    assert data[4:10] == bytes(6)
    assert data[40:42] == bytes(2)


# ---- anything at all


def _swallow(role: Role, data: bytes, cuts: list[int]) -> Connection:
    """Feed, end, and check what must hold whatever came."""
    connection = Connection(role, SMALL)
    heard = examples.feed(connection, data, cuts)
    connection.end_of_input()
    heard += examples.take(connection)
    errors = [value for value in heard if isinstance(value, tuple) and value[0] == "error"]
    closes = [value for value in heard if isinstance(value, Close)]
    assert len(errors) + len(closes) == 1
    assert heard[-1] in errors + closes
    assert connection.state is (State.BROKEN if errors else State.CLOSED)
    assert connection.capacity <= SMALL.ceiling
    return connection


@given(examples.requests(), st.data())
@settings(max_examples=200)
def test_a_session_with_flipped_bits_ends_with_an_error_or_a_close(events: list[Event], data: st.DataObject):
    stream = bytearray(examples.encode(Role.CLIENT, events))
    for bit in data.draw(st.lists(st.integers(0, 8 * len(stream) - 1), min_size=1, max_size=4)):
        stream[bit // 8] ^= 1 << bit % 8
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))

    _swallow(Role.SERVER, bytes(stream), cuts)


@given(examples.replies, st.data())
@settings(max_examples=100)
def test_replies_with_flipped_bits_end_with_an_error_or_a_close(events: list[Event], data: st.DataObject):
    stream = bytearray(examples.encode(Role.SERVER, events))
    for bit in data.draw(st.lists(st.integers(0, 8 * len(stream) - 1), min_size=1, max_size=4)):
        stream[bit // 8] ^= 1 << bit % 8

    _swallow(Role.CLIENT, bytes(stream), [])


def test_a_session_cut_at_any_byte_ends_with_an_error_or_a_close():
    stream = examples.encode(Role.CLIENT, [examples.MINIMAL[i] for i in (5, 2, 3, 1008, 1026, 1022, 6)])
    for stop in range(len(stream)):
        _swallow(Role.SERVER, stream[:stop], [])


@given(
    st.lists(st.one_of(st.sampled_from([_u16(i) for i in MessageId]), st.binary(max_size=60)), max_size=12).map(
        b"".join
    )
)
@settings(max_examples=200)
def test_junk_ends_with_an_error_or_a_close(junk: bytes):
    for role in Role:
        _swallow(role, junk, [])
        _swallow(role, examples.encode(Role.CLIENT, [ConfigFile("a"), Header(b"b")]) + junk, [])
