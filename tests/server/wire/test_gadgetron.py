"""Messages between Gadgetron and a node: round trips, any split, hostile sizes, and the bytes of its C++ structures."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.gadgetron import STATISTICS, Bucket, ImageArray, ReconData
from server.wire.connection import Connection, Role, State
from server.wire.messages import Event, WireLimits
from tests.server.wire import examples
from tests.server.wire.gadgetron_examples import bucket_bytes, node_messages, node_replies, parent_requests

TINY = WireLimits(buffer_bytes=4096)


# ---- round trips


@given(parent_requests())
@settings(max_examples=80, deadline=None)
def test_what_a_parent_says_is_what_the_node_hears(events: list[Event]):
    heard = examples.feed(Connection(Role.NODE), examples.encode(Role.PARENT, events))

    assert heard == examples.plain_all(events)


@given(node_replies)
@settings(max_examples=60, deadline=None)
def test_what_a_node_says_is_what_the_parent_hears(events: list[Event]):
    heard = examples.feed(Connection(Role.PARENT), examples.encode(Role.NODE, events))

    assert heard == examples.plain_all(events)


@given(parent_requests(), st.data())
@settings(max_examples=60, deadline=None)
def test_the_bytes_of_a_parent_may_be_cut_anywhere(events: list[Event], data: st.DataObject):
    stream = examples.encode(Role.PARENT, events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))

    assert examples.feed(Connection(Role.NODE, TINY), stream, cuts) == examples.plain_all(events)


@given(node_messages)
@settings(max_examples=10, deadline=None)
def test_a_message_may_come_byte_by_byte(event: Event):
    data = examples.encode(Role.NODE, [event])

    assert examples.feed(examples.receiving_in(State.NODE_DATA, TINY), data, range(1, len(data))) == (
        examples.plain(event)
    )


@given(node_messages, node_messages)
@settings(max_examples=30, deadline=None)
def test_a_message_leaves_the_bytes_behind_it_alone(event: Event, behind: Event):
    data, more = examples.encode(Role.NODE, [event]), examples.encode(Role.NODE, [behind])

    for cut in (1, 2, len(more) // 2):
        parent = Connection(Role.PARENT)
        assert examples.feed(parent, data + more[:cut]) == examples.plain(event)
        assert examples.feed(parent, more[cut:]) == examples.plain(behind)


# ---- where the arrays lie


def _event(data: bytes, state: State = State.NODE_DATA) -> tuple[Connection, Event]:
    connection = examples.receiving_in(state, WireLimits(buffer_bytes=1 << 20))
    room = connection.writable()
    room[: len(data)] = data
    connection.received(len(data))
    event = connection.next_event()
    assert event is not None
    return connection, event


def test_the_samples_of_recon_data_and_buckets_are_viewed_and_those_of_image_arrays_are_owned():
    for message_id, is_view in ((1023, True), (1050, True), (1024, False)):
        connection, event = _event(examples.message_bytes(examples.MINIMAL[message_id]))
        memory = np.frombuffer(connection._buffer.data, np.uint8)
        match event:
            case ReconData(bits):
                array = bits[0].data.data
            case Bucket(data):
                array = data[0].samples
            case ImageArray(array):
                pass
        assert np.shares_memory(array, memory) is is_view


def test_axes_are_those_of_gadgetron_backwards():
    shape = (2, 3, 4, 5, 6, 7, 8)  # loc, s, n, coils, z, y, x
    buffer = examples.recon_buffer(shape)
    data = b"".join(examples.sending_in(State.NODE_REPLY).recon_data(ReconData((examples.ReconBit(buffer),))))

    rank, *sizes = struct.unpack_from("<8Q", data, 10)

    assert (rank, sizes) == (7, [8, 7, 6, 5, 4, 3, 2])  # E0, E1, E2, CHA, N, S, LOC
    column_major = np.frombuffer(data, "<c8", np.prod(shape), 10 + 64).reshape(sizes, order="F")
    assert column_major[1, 2, 3, 4, 3, 2, 1] == buffer.data[1, 2, 3, 4, 3, 2, 1]


def test_arrays_with_fewer_sizes_have_ones_in_front_and_those_without_sizes_are_empty():
    pixels = np.arange(6, dtype="<c8")
    data = struct.pack("<H3Q", 1024, 2, 3, 2) + pixels.tobytes() + struct.pack("<QQBB", 0, 0, 0, 0)

    _, event = _event(data)

    assert isinstance(event, ImageArray)
    assert event.data.shape == (1, 1, 1, 1, 1, 2, 3)
    assert np.array_equal(event.data.ravel(), pixels)
    assert event.headers.shape == (0, 0, 0)


# ---- buckets as Gadgetron writes them


def _parts(batch: examples.Acquisitions) -> list[tuple[bytes, bytes, bytes]]:
    tracks = [b""] * len(batch) if batch.trajectory is None else [track.tobytes() for track in batch.trajectory]
    return [
        (header.tobytes(), track, samples.tobytes())
        for header, track, samples in zip(batch.headers, tracks, batch.samples, strict=True)
    ]


def test_a_bucket_as_gadgetron_lays_it_out_is_read():
    data, reference = examples.readouts(5, 2, 8, 2), examples.readouts(3, 2, 6, seed=1)
    spaces = [[[0, 1, 2], [0], [0], [3], [], [], [], [], [7, 9]]]
    wave = examples.waveform(2, 5)
    waves = [(wave.header.tobytes(), wave.samples.tobytes())]

    _, event = _event(bucket_bytes(_parts(data), _parts(reference), (spaces, ()), waves))

    assert isinstance(event, Bucket)
    assert examples.plain_all(event.data) == examples.plain(data)
    assert examples.plain_all(event.reference) == examples.plain(reference)
    assert event.data_statistics == (dict(zip(STATISTICS, map(tuple, spaces[0]), strict=True)),)
    assert event.reference_statistics == ()
    assert examples.plain_all(event.waveforms) == examples.plain(wave)
    assert len(event) == 8


def test_our_bucket_is_byte_for_byte_that_of_gadgetron():
    data, reference = examples.readouts(4, 3, 8, 2), examples.readouts(2, 3, 8, seed=1)
    values = [(0, 1), (2,), (), (), (), (), (), (), (5, 6)]
    wave = examples.waveform(2, 5)
    bucket = Bucket((data,), (reference,), (dict(zip(STATISTICS, values, strict=True)),), (), (wave,))

    ours = examples.message_bytes(bucket)

    waves = [(wave.header.tobytes(), wave.samples.tobytes())]
    assert ours == bucket_bytes(_parts(data), _parts(reference), ([values], ()), waves)


def test_the_size_of_a_bucket_is_the_one_that_was_captured():
    # 32 readouts of 2 channels and 32 samples, statistics of one encoding space: 27,538 bytes from Gadgetron 4.7.2
    batch = examples.readouts(32, 2, 32)
    values = [range(32), [0], [0], [0], [0], [0], [0], [0], [0]]

    data = bucket_bytes(_parts(batch), (), ([values], ()))

    assert len(data) == 27_538
    assert struct.unpack_from("<13Q", data, 2) == (32, 10880, 16384, 0, 0, 0, 0, 0, 160, 8, 0, 0, 0)
    assert examples.plain_all(_event(data)[1].data) == examples.plain(batch)


def test_trajectories_that_gadgetron_left_uncropped_are_read_by_the_byte_count():
    cropped, whole = examples.readouts(6, 2, 4, 2), examples.readouts(6, 2, 8, 2)
    mixed = [
        (header, track, samples)
        for (header, _, samples), (_, track, _) in zip(_parts(cropped), _parts(whole), strict=True)
    ]
    behind = examples.message_bytes(examples.readouts())

    connection, event = _event(bucket_bytes(mixed, _parts(examples.readouts(2))) + behind)

    assert isinstance(event, Bucket)
    (run,) = event.data
    assert run.n_samples == 4
    assert run.trajectory is not None
    assert run.trajectory.tobytes() == whole.trajectory.tobytes()
    assert np.array_equal(run.samples, cropped.samples)
    assert examples.take(connection) == examples.plain(examples.readouts())


def test_readouts_of_several_shapes_are_cut_where_the_shape_changes():
    batches = [
        examples.readouts(3, 2, 8, seed=1),
        examples.readouts(2, 2, 6, 3, seed=2),
        examples.readouts(4, 1, 6, seed=3),
    ]

    _, event = _event(bucket_bytes([part for batch in batches for part in _parts(batch)]))

    assert [len(run) for run in event.data] == [3, 2, 4]
    assert examples.plain_all(event.data) == examples.plain_all(batches)


# ---- hostile sizes

BIG = 2**63


def _bucket_with(**changes: int) -> bytes:
    names = ("count", "headers", "samples", "tracks", "count2", "headers2", "samples2", "tracks2", "statistics")
    names += ("statistics2", "waves", "wave_headers", "wave_samples")
    return struct.pack("<H13Q", 1050, *(changes.get(name, 0) for name in names))


def _array(rank: int, *sizes: int) -> bytes:
    return struct.pack(f"<{1 + len(sizes)}Q", rank, *sizes)


EMPTY_BUFFER = _array(0) + b"\0\0" + _array(0) + bytes(56)
OVER_LIMITS = {
    "encoding spaces": struct.pack("<HQ", 1023, 2**60),
    "dimensions": struct.pack("<HQ", 1023, 1) + _array(2**60),
    "dimensions just over": struct.pack("<HQ", 1023, 1) + _array(8),
    "elements": struct.pack("<HQ", 1023, 1) + _array(7, *[2**62] * 7),
    "a product that overflows to 0": struct.pack("<HQ", 1023, 1) + _array(2, 2**32, 2**32),
    "a size read as negative": struct.pack("<HQ", 1023, 1) + _array(1, 2**64 - 1),
    "trajectory": struct.pack("<HQ", 1023, 1) + _array(0) + b"\1" + _array(1, 2**40),
    "headers": struct.pack("<HQ", 1023, 1) + _array(0) + b"\0\0" + _array(1, 2**40),
    "calibration": struct.pack("<HQ", 1023, 1) + EMPTY_BUFFER + b"\1" + _array(1, 2**50),
    "pixels": struct.pack("<H", 1024) + _array(1, 2**50),
    "image headers": struct.pack("<H", 1024) + _array(0) + _array(3, 2**20, 2**20, 2**20),
    "number of attributes": struct.pack("<H", 1024) + _array(0) * 2 + struct.pack("<Q", 2**40),
    "attributes": struct.pack("<H", 1024) + _array(0) * 2 + struct.pack("<QQ", 1, 2**62),
    "number of waveforms": struct.pack("<H", 1024) + _array(0) * 2 + struct.pack("<QBQ", 0, 1, 2**40),
    "waveform": struct.pack("<H", 1024) + _array(0) * 2 + struct.pack("<QBQ", 0, 1, 1) + bytes(28) + b"\xff" * 12,
    "acquisition headers": struct.pack("<H", 1024) + _array(0) * 2 + struct.pack("<QBB", 0, 0, 1) + _array(1, 2**33),
    "readouts": _bucket_with(count=2**40, headers=340 * 2**40),
    "samples": _bucket_with(samples=BIG),
    "tracks": _bucket_with(tracks=BIG),
    "statistics": _bucket_with(statistics=BIG),
    "waveforms": _bucket_with(waves=2**40, wave_headers=40 * 2**40),
    "waveform samples": _bucket_with(wave_samples=2**64 - 1),
}  # fmt: skip


@pytest.mark.parametrize("data", OVER_LIMITS.values(), ids=list(OVER_LIMITS))
def test_what_is_over_a_limit_is_refused_before_memory_is_taken(data: bytes):
    connection = examples.receiving_in(State.NODE_DATA)
    capacity = connection.capacity
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ((_, code, kind, text, _),) = examples.feed(connection, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (code, kind) == ("over_limit", "over_limit")
    assert "limit" in text
    assert connection.capacity == capacity
    assert peak - before < 100_000


@pytest.mark.parametrize("data", OVER_LIMITS.values(), ids=list(OVER_LIMITS))
def test_the_limit_is_found_however_the_bytes_come(data: bytes):
    whole = examples.feed(examples.receiving_in(State.NODE_DATA), data)

    assert examples.feed(examples.receiving_in(State.NODE_DATA), data, range(1, len(data))) == whole


def _with_statistics(block: bytes) -> bytes:
    return _bucket_with(statistics=len(block), statistics2=0) + block


CONTRADICTIONS = {
    "flag 7 before a trajectory": (struct.pack("<HQ", 1023, 1) + _array(0) + b"\7", "bad_header", "is 7, not 0 or 1"),
    "flag 255 before a calibration": (
        struct.pack("<HQ", 1023, 1) + EMPTY_BUFFER + b"\xff", "bad_header", "is 255, not 0 or 1",
    ),
    "count without headers": (_bucket_with(count=2**40), "bad_length", "0 bytes of headers"),
    "headers without count": (_bucket_with(headers=340), "bad_length", "announces 0 image readouts"),
    "waveforms without headers": (_bucket_with(waves=3), "bad_length", "announces 3 waveforms"),
    "statistics cut short": (
        _with_statistics(struct.pack("<Q", 1) + bytes(40)), "bad_length", "48 bytes of statistics",
    ),
    "statistics that promise too much": (
        _with_statistics(struct.pack("<QQ", 1, 2**40) + bytes(80)), "bad_length", "do not hold what they announce",
    ),
    "statistics of 4 bytes": (_with_statistics(bytes(4)), "bad_length", "4 bytes of statistics"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "kind", "words"), CONTRADICTIONS.values(), ids=list(CONTRADICTIONS))
def test_a_message_that_contradicts_itself_is_refused(data: bytes, kind: str, words: str):
    ((_, code, said_kind, text, _),) = examples.feed(examples.receiving_in(State.NODE_DATA), data)

    assert (code, said_kind) == ("protocol", kind)
    assert words in text


def test_a_bucket_whose_bytes_are_not_those_of_its_headers_is_refused():
    batch = examples.readouts(2, 1, 4, 2)
    parts = _parts(batch)
    (header, track, samples), _ = parts
    for wrong, words in (
        ([(header, track, samples[:-8]), parts[1]], "56 bytes of samples; its headers promise 64"),
        ([(header, track[:-4], samples), parts[1]], "60 bytes of trajectories; its headers promise 64"),
        ([(header, track + bytes(8), samples), parts[1]], "72 bytes of trajectories; its headers promise 64"),
    ):
        ((_, _, kind, text, _),) = examples.feed(examples.receiving_in(State.NODE_DATA), bucket_bytes(wrong))

        assert kind == "bad_length"
        assert words in text


def test_a_bucket_of_compressed_readouts_is_refused():
    batch = examples.readouts(2)
    batch.headers["flags"][1] = 1 << 53

    ((_, _, kind, text, _),) = examples.feed(examples.receiving_in(State.NODE_DATA), bucket_bytes(_parts(batch)))

    assert kind == "bad_header"
    assert "compressed" in text


def test_the_receive_buffer_grows_to_the_message_and_no_further():
    limits = WireLimits(buffer_bytes=4096, message_bytes=1 << 20)
    connection = examples.receiving_in(State.NODE_DATA, limits)
    bucket = Bucket((examples.readouts(40, 4, 500),))  # 654 kB
    data = examples.message_bytes(bucket)

    assert examples.feed(connection, data, range(1, len(data), 5000)) == examples.plain(bucket)
    assert len(data) <= connection.capacity <= limits.ceiling
    assert examples.feed(connection, examples.message_bytes(examples.readouts())) == examples.plain(examples.readouts())


@given(parent_requests(), st.data())
@settings(max_examples=80, deadline=None)
def test_a_session_of_a_parent_with_flipped_bits_ends_with_an_error_or_a_close(
    events: list[Event], data: st.DataObject
):
    stream = bytearray(examples.encode(Role.PARENT, events))
    for bit in data.draw(st.lists(st.integers(0, 8 * len(stream) - 1), min_size=1, max_size=4)):
        stream[bit // 8] ^= 1 << bit % 8
    node = Connection(Role.NODE, WireLimits(buffer_bytes=4096, message_bytes=1 << 16))

    heard = examples.feed(node, bytes(stream))
    node.end_of_input()
    heard += examples.take(node)

    assert node.state in (State.CLOSED, State.BROKEN)
    assert node.capacity <= 1 << 16
    assert heard
