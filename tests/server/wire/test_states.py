"""The state table against the rules at the head of `connection.py`: every state with every id, received and sent."""

from __future__ import annotations

import itertools

import pytest

from server.errors import ProtocolError
from server.wire import codec
from server.wire.connection import TRANSITIONS, Connection, Role, State
from server.wire.messages import UNSUPPORTED_NAMES, Close, MessageId, Text
from tests.server.wire import examples

# Written from the rules, not from the table: what is allowed, and where it leads when not back to the same state.
ALLOWED = {
    State.STREAM: {1, 2, 3, 4, 5, 6, 8, 1008, 1022, 1026},
    State.CONFIG: {1, 2, 4, 5, 6, 8},
    State.HEADER: {3, 4, 5, 6, 8},
    State.DATA: {4, 5, 6, 8, 1008, 1022, 1026},
    State.REPLY: {4, 5, 7, 8, 1008, 1019, 1022, 1026},
    State.CLOSED: set(),
    State.BROKEN: set(),
}
LEADS_TO = {
    **{(state, message_id): State.HEADER for state in (State.STREAM, State.CONFIG) for message_id in (1, 2)},
    **{(State.STREAM, message_id): State.DATA for message_id in (3, 1008, 1022, 1026)},
    (State.HEADER, 3): State.DATA,
}
OPEN = [State.STREAM, State.CONFIG, State.HEADER, State.DATA, State.REPLY]
PAIRS = list(itertools.product(State, MessageId))


def _next(state: State, message_id: MessageId) -> State:
    return State.CLOSED if message_id == MessageId.CLOSE else LEADS_TO.get((state, message_id), state)


def test_the_table_holds_what_the_rules_say_and_nothing_else():
    assert {state: set(row) for state, row in TRANSITIONS.items()} == ALLOWED
    for state, row in TRANSITIONS.items():
        assert row == {message_id: _next(state, MessageId(message_id)) for message_id in row}


def test_every_id_can_be_read():
    assert set(codec.LAYOUTS) == set(MessageId)
    assert not set(UNSUPPORTED_NAMES) & set(MessageId)


@pytest.mark.parametrize(("state", "message_id"), PAIRS, ids=lambda value: value.name)
def test_what_is_received_follows_the_rules(state: State, message_id: MessageId):
    connection = examples.receiving_in(state)
    event = examples.MINIMAL[message_id]

    heard = examples.feed(connection, examples.message_bytes(event))

    if message_id in ALLOWED[state]:
        assert heard == examples.plain(event)
        assert connection.state is _next(state, message_id)
    elif state in OPEN:
        ((_, code, kind, text, advice),) = heard
        wrong_end = message_id in {MessageId.RESPONSE, MessageId.DEPENDENCY_QUERY} or state is State.REPLY
        assert (code, kind) == ("protocol", "bad_id" if wrong_end else "bad_order")
        assert text.startswith("the peer sent ")
        assert advice
        assert connection.state is State.BROKEN
    else:
        assert heard == []
        assert connection.state is state


@pytest.mark.parametrize(
    ("state", "message_id"),
    [pair for pair in PAIRS if pair[0] is not State.BROKEN],  # only what is received can be broken
    ids=lambda value: value.name,
)
def test_what_is_sent_follows_the_rules(state: State, message_id: MessageId):
    connection = examples.sending_in(state)
    event = examples.MINIMAL[message_id]

    if message_id in ALLOWED[state]:
        examples.send(connection, event)
        assert connection.sending is _next(state, message_id)
    else:
        with pytest.raises(ProtocolError, match="we may not send"):
            examples.send(connection, event)
        assert connection.sending is state


@pytest.mark.parametrize("state", OPEN, ids=lambda state: state.name)
@pytest.mark.parametrize("message_id", [0, 9, 1000, 1001, 1009, 1018, 1023, 1024, 1030, 1050, 4096, 4242, 65535])
def test_an_id_that_cannot_be_read_is_named_after_its_two_bytes(state: State, message_id: int):
    connection = examples.receiving_in(state)

    ((_, _, kind, text, _),) = examples.feed(connection, message_id.to_bytes(2, "little"))

    assert kind == "bad_id"
    assert f"message id {message_id} " in text
    assert UNSUPPORTED_NAMES.get(message_id, "unknown") in text
    assert connection.state is State.BROKEN


@pytest.mark.parametrize(
    ("state", "message_id", "words"),
    [
        (State.CONFIG, MessageId.HEADER, "the header before the configuration"),
        (State.CONFIG, MessageId.ACQUISITION, "ACQUISITION before the configuration and header"),
        (State.HEADER, MessageId.ACQUISITION, "ACQUISITION before the header"),
        (State.HEADER, MessageId.WAVEFORM, "WAVEFORM before the header"),
        (State.HEADER, MessageId.IMAGE, "IMAGE before the header"),
        (State.HEADER, MessageId.CONFIG_FILE, "a second configuration (CONFIG_FILE)"),
        (State.DATA, MessageId.CONFIG_TEXT, "a second configuration (CONFIG_TEXT)"),
        (State.DATA, MessageId.HEADER, "a second header"),
        (State.DATA, MessageId.RESPONSE, "RESPONSE as a request; only a server says that"),
        (State.DATA, MessageId.DEPENDENCY_QUERY, "DEPENDENCY_QUERY as a request; only a server says that"),
        (State.REPLY, MessageId.QUERY, "QUERY as a reply; only a client says that"),
    ],
)
def test_the_error_says_what_came_too_early_or_twice(state: State, message_id: MessageId, words: str):
    data = examples.message_bytes(examples.MINIMAL[message_id])

    heard = examples.feed(examples.receiving_in(state), data[:2])  # the id is enough

    assert words in heard[0][3]


@pytest.mark.parametrize("state", OPEN, ids=lambda state: state.name)
def test_an_end_between_messages_is_a_close_that_was_not_announced(state: State):
    connection = examples.receiving_in(state)
    connection.end_of_input()

    assert examples.take(connection) == [Close(announced=False)]
    assert connection.state is State.CLOSED
    assert examples.take(connection) == []


@pytest.mark.parametrize("state", OPEN, ids=lambda state: state.name)
def test_an_end_inside_a_message_is_an_error_after_the_messages_before_it(state: State):
    message = examples.message_bytes(examples.MINIMAL[MessageId.TEXT])
    for stop in range(1, len(message)):
        connection = examples.receiving_in(state)
        room = connection.writable()
        stream = message + message[:stop]
        room[: len(stream)] = stream
        connection.received(len(stream))
        connection.end_of_input()

        before, error = examples.take(connection)

        assert before == Text("hello")
        assert error[1:3] == ("protocol", "truncated")
        assert ("TEXT" in error[3]) == (stop >= 2)
        assert connection.state is State.BROKEN


@pytest.mark.parametrize("state", [State.CLOSED, State.BROKEN], ids=lambda state: state.name)
def test_an_end_after_the_end_is_nothing(state: State):
    connection = examples.receiving_in(state)
    examples.feed(connection, b"GET / HTTP/1.1\r\n")
    connection.end_of_input()

    assert examples.take(connection) == []
    assert connection.state is state


@pytest.mark.parametrize("state", [State.CLOSED, State.BROKEN], ids=lambda state: state.name)
def test_bytes_after_the_end_are_drained_without_taking_memory(state: State):
    connection = examples.receiving_in(state)
    capacity = connection.capacity

    assert examples.feed(connection, b"\xf0\x03" + b"\xff" * (5 << 20)) == []
    assert connection.capacity == capacity
    assert connection.pending == 0


def test_close_with_bytes_behind_it_in_one_piece_hides_them():
    server = Connection(Role.SERVER)

    assert examples.feed(server, b"\x04\x00\xff\xff\xff\xff") == [Close()]
    assert server.state is State.CLOSED


def test_an_error_is_raised_once_and_we_may_still_answer():
    server = Connection(Role.SERVER)
    assert len(examples.feed(server, b"\xff\xff" * 100)) == 1

    assert server.text("ERROR bad_id: ...")
    assert server.close()
    assert server.sending is State.CLOSED


def test_both_directions_of_a_stream_begin_in_the_same_state():
    stream = Connection(Role.STREAM)

    assert (stream.state, stream.sending) == (State.STREAM, State.STREAM)


def test_a_message_that_cannot_be_sent_leaves_the_state_alone():
    client = Connection(Role.CLIENT)
    with pytest.raises(ProtocolError):
        client.config_file("x" * 1024)

    assert client.sending is State.CONFIG
    assert client.config_file("x" * 1023)
