"""Encode-then-decode is the identity, whichever way the bytes are cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from server.wire.connection import Connection, Role, State
from server.wire.messages import Close, Event, WireLimits
from tests.server.wire import examples

TINY = WireLimits(buffer_bytes=4096)
"""Small buffer, so that messages wrap and the buffer has to move and grow."""


@given(examples.requests())
@settings(max_examples=120)
def test_what_a_client_says_is_what_the_server_hears(events: list[Event]):
    heard = examples.feed(Connection(Role.SERVER), examples.encode(Role.CLIENT, events))

    assert heard == examples.plain_all(events)


@given(examples.replies)
@settings(max_examples=80)
def test_what_a_server_says_is_what_the_client_hears(events: list[Event]):
    heard = examples.feed(Connection(Role.CLIENT), examples.encode(Role.SERVER, events))

    assert heard == examples.plain_all(events)


@given(examples.requests())
@settings(max_examples=25)
def test_bytes_may_come_one_by_one(events: list[Event]):
    data = examples.encode(Role.CLIENT, events)

    assert examples.feed(Connection(Role.SERVER, TINY), data, range(1, len(data))) == examples.plain_all(events)


@given(examples.requests(), st.data())
@settings(max_examples=100)
def test_bytes_may_be_cut_anywhere(events: list[Event], data: st.DataObject):
    stream = examples.encode(Role.CLIENT, events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))

    assert examples.feed(Connection(Role.SERVER, TINY), stream, cuts) == examples.plain_all(events)


@given(st.one_of(examples.data_messages, examples.reply_texts), st.data())
@settings(max_examples=80)
def test_a_message_is_delivered_when_it_is_complete_with_any_part_of_the_next_behind_it(
    event: Event, data: st.DataObject
):
    first = examples.encode(Role.SERVER, [event])
    second = examples.encode(Role.SERVER, [examples.image()])
    client = Connection(Role.CLIENT)
    behind = data.draw(st.integers(0, len(second) - 1))

    assert examples.feed(client, first[:-1]) == examples.plain(event)[:-1]  # a run's last readout is what is missing
    assert examples.feed(client, first[-1:] + second[:behind]) == examples.plain(event)[-1:]
    assert examples.feed(client, second[behind:]) == examples.plain(examples.image())


@given(st.lists(examples.acquisitions(most=40), max_size=6))
@settings(max_examples=40)
def test_neighbouring_readouts_of_one_shape_are_one_event(batches: list):
    client, server = Connection(Role.SERVER), examples.receiving_in(State.DATA)
    stream = b"".join(part for batch in batches for part in client.acquisitions(batch))
    shapes = [(b.n_coils, b.n_samples, int(b.headers["trajectory_dimensions"][0])) for b in batches]
    n_runs = sum(shape != before for shape, before in zip(shapes, [None, *shapes], strict=False))

    room = server.writable()
    room[: len(stream)] = stream
    server.received(len(stream))
    runs = []
    while (event := server.next_event()) is not None:
        runs.append(event)

    assert len(runs) == n_runs
    assert sum(len(run) for run in runs) == sum(len(batch) for batch in batches)


def test_a_run_is_no_longer_than_its_limit():
    server = examples.receiving_in(State.DATA, WireLimits(run_readouts=10))
    stream = examples.message_bytes(examples.readouts(25))
    room = server.writable()
    room[: len(stream)] = stream
    server.received(len(stream))

    lengths = [len(server.next_event()) for _ in range(3)]

    assert lengths == [10, 10, 5]
    assert server.next_event() is None


def test_a_run_ends_at_a_readout_that_is_compressed_and_the_error_follows_it():
    batch = examples.readouts(5)
    stream = bytearray(examples.message_bytes(batch))
    stream[3 * len(stream) // 5 + 10] |= 0x20  # flag 54 of the fourth

    heard = examples.feed(examples.receiving_in(State.DATA), bytes(stream))

    assert heard[:3] == examples.plain(batch)[:3]
    assert len(heard) == 4
    assert heard[3][2] == "bad_header"
    assert "COMPRESSION2" in heard[3][3]


def test_strided_and_large_samples_are_sent_as_they_are():
    rng = np.random.default_rng(3)
    whole = rng.integers(0, 256, (4, 6, 4096), np.uint8)
    for part in (whole[::2, ::3, :800], whole[:, ::2, 8:-8]):  # under and over the size from which writes are gathered
        batch = examples.readouts(len(part), part.shape[1], part.shape[2] // 8)
        batch = type(batch)(batch.headers, part)

        assert examples.feed(examples.receiving_in(State.DATA), examples.message_bytes(batch)) == examples.plain(batch)


def test_large_pixels_and_samples_are_sent_without_a_copy():
    batch = examples.readouts(2, 32, 512)
    picture = examples.image((1, 4, 64, 64))
    server = Connection(Role.SERVER)

    parts = server.acquisitions(batch)
    assert len(parts) == 4
    assert np.shares_memory(np.asarray(parts[1]), batch.samples)
    assert np.shares_memory(np.asarray(parts[3]), batch.samples)
    assert np.shares_memory(np.asarray(server.image(picture)[1]), picture.pixels)


def test_no_readouts_are_no_bytes():
    assert examples.sending_in(State.DATA).acquisitions(examples.readouts(0)) == []


def test_the_two_ends_agree_through_a_whole_session():
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    asked = [examples.MINIMAL[i] for i in (6, 5, 2, 3, 1026, 1008, 1022, 4)]
    answered = [examples.MINIMAL[i] for i in (7, 5, 1022, 4)]

    heard = examples.feed(server, b"".join(part for event in asked for part in examples.send(client, event)))
    answer = examples.feed(client, b"".join(part for event in answered for part in examples.send(server, event)))

    assert heard == examples.plain_all(asked)
    assert answer == examples.plain_all(answered)
    assert {client.state, client.sending, server.state, server.sending} == {State.CLOSED}
    assert heard[-1] == Close(announced=True)
