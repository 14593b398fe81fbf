"""The receive buffer: views without copies, few moves, growth within limits."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.mrd import Acquisitions
from server.wire.buffer import ReceiveBuffer
from server.wire.connection import Connection, Role, State
from server.wire.messages import WireLimits
from tests.server.wire import examples


def _receive(connection: Connection, data: bytes) -> memoryview:
    room = connection.writable()
    room[: len(data)] = data
    connection.received(len(data))
    return room


def test_samples_headers_and_trajectories_are_views_of_what_the_transport_wrote():
    server = examples.receiving_in(State.DATA)
    room = _receive(server, examples.message_bytes(examples.readouts(5, 3, 16, 2)))

    run = server.next_event()

    assert isinstance(run, Acquisitions)
    assert len(run) == 5
    for view in (run.headers, run.samples, run.trajectory):
        assert np.shares_memory(view, np.asarray(room))
        assert not view.flags.writeable


def test_images_and_waveforms_own_their_memory():
    server = examples.receiving_in(State.DATA)
    stream = examples.message_bytes(examples.image()) + examples.message_bytes(examples.waveform())
    room = _receive(server, stream)
    picture, wave = server.next_event(), server.next_event()

    room[: len(stream)] = bytes(len(stream))

    assert examples.plain(picture) == examples.plain(examples.image())
    assert examples.plain(wave) == examples.plain(examples.waveform())
    assert picture.pixels.flags.aligned
    assert picture.pixels.flags.writeable


def test_only_the_incomplete_tail_moves_and_it_moves_once():
    buffer = ReceiveBuffer(base=1 << 16, ceiling=1 << 20)
    whole = memoryview(np.random.default_rng(1).integers(0, 256, 60_000, np.uint8).data).cast("B")
    buffer.writable(2)[:60_000] = whole
    buffer.received(60_000)
    buffer.consume(50_000, 50_000)

    first = buffer.writable(20_000)  # 20 000 do not fit behind byte 50 000
    assert (buffer.start, buffer.end) == (0, 10_000)
    assert buffer.data[:10_000] == whole[50_000:]
    assert len(first) == (1 << 16) - 10_000
    buffer.received(5_000)
    buffer.writable(20_000)
    assert (buffer.start, buffer.end) == (0, 15_000)


def test_nothing_moves_while_there_is_room():
    buffer = ReceiveBuffer(base=1 << 16, ceiling=1 << 20)
    buffer.writable(2)
    buffer.received(20_000)
    buffer.consume(10_000, 10_000)

    buffer.writable(12_000)

    assert (buffer.start, buffer.end) == (10_000, 20_000)


def test_a_message_that_does_not_fit_behind_is_moved_while_little_of_it_is_there():
    buffer = ReceiveBuffer(base=1 << 16, ceiling=1 << 20)
    buffer.writable(2)
    buffer.received(40_000)
    buffer.consume(30_000, 30_000)

    buffer.writable((1 << 16) - 30_000 + 1)

    assert (buffer.start, buffer.end) == (0, 10_000)


def test_a_large_message_grows_the_buffer_once_and_lands_in_place():
    server = examples.receiving_in(State.DATA, WireLimits(buffer_bytes=8192))
    batch = examples.readouts(1, 16, 4000)
    stream = memoryview(examples.message_bytes(batch))
    places = set()
    while stream:
        room = server.writable()
        places.add(np.asarray(room).__array_interface__["data"][0] + len(room))
        n = min(len(room), 3000, len(stream))
        room[:n] = stream[:n]
        server.received(n)
        stream = stream[n:]
        if stream:
            assert server.next_event() is None

    assert examples.take(server) == examples.plain(batch)
    assert len(places) == 2  # the end of the first memory, and of the grown one
    assert server.capacity == 1 << 19


def test_large_memory_is_kept_while_large_messages_come_and_given_back_after():
    server = examples.receiving_in(State.DATA, WireLimits(buffer_bytes=8192))
    large, small = examples.readouts(1, 16, 4000), examples.readouts(1)
    for _ in range(3):
        assert examples.feed(server, examples.message_bytes(large)) == examples.plain(large)
        assert server.capacity == 1 << 19

    for _ in range(3):
        examples.feed(server, examples.message_bytes(small))
    server.writable()

    assert server.capacity == 8192


def test_the_buffer_never_grows_over_its_ceiling():
    limits = WireLimits(buffer_bytes=8192, message_bytes=300_000)
    server = examples.receiving_in(State.DATA, limits)
    batch = examples.readouts(1, 9, 4100)  # 295 542 bytes; the next power of two is over the limit

    assert examples.feed(server, examples.message_bytes(batch)) == examples.plain(batch)
    assert server.capacity == 300_000


def test_receiving_on_without_taking_events_is_refused():
    server = Connection(Role.SERVER, WireLimits(buffer_bytes=4096))
    room = server.writable()
    room[:] = examples.message_bytes(examples.MINIMAL[4]) * (len(room) // 2)
    server.received(len(room))

    with pytest.raises(BufferError, match="take events"):
        server.writable()


def test_more_bytes_than_there_was_room_for_are_refused():
    server = Connection(Role.SERVER)
    with pytest.raises(ValueError, match="bytes received into room for"):
        server.received(len(server.writable()) + 1)


@pytest.mark.parametrize("limits", [{"channels": 0}, {"buffer_bytes": -1}, {"message_bytes": 4095}])
def test_limits_that_make_no_sense_are_refused(limits: dict[str, int]):
    with pytest.raises(ValueError, match="wire limit"):
        WireLimits(**limits)
