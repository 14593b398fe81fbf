"""Two ends of a connection as a state machine: any messages in any order, delivered in any pieces, with junk between.

The model is a list: what was sent and allowed is heard, in this order and nothing else; what is not allowed is refused
by the sender and changes nothing; after the first thing that is broken the receiver says so once and is silent.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.errors import ProtocolError
from server.wire.connection import TRANSITIONS, Connection, Role, State
from server.wire.messages import Close, MessageId, WireLimits
from tests.server.wire import examples

LIMITS = WireLimits(buffer_bytes=4096, message_bytes=32768)
PAIRS = [(Role.CLIENT, Role.SERVER), (Role.SERVER, Role.CLIENT), (Role.PARENT, Role.NODE), (Role.NODE, Role.PARENT)]


class Conversation(RuleBasedStateMachine):
    """One direction of a connection."""

    @initialize(roles=st.sampled_from(PAIRS))
    def connect(self, roles: tuple[Role, Role]) -> None:
        self.sender, self.receiver = Connection(roles[0]), Connection(roles[1], LIMITS)
        self.on_the_way = b""
        self.expected: list[object] = []
        self.heard: list[object] = []
        self.is_spoilt = False
        self.has_ended = False

    @rule(message_id=st.sampled_from(MessageId))
    def say(self, message_id: MessageId) -> None:
        event, state = examples.MINIMAL[message_id], self.sender.sending
        if message_id not in TRANSITIONS[state]:
            with pytest.raises(ProtocolError, match="we may not send"):
                examples.send(self.sender, event)
            assert self.sender.sending is state
            return
        self.on_the_way += b"".join(examples.send(self.sender, event))
        if not self.is_spoilt:
            self.expected += examples.plain(event)

    @precondition(lambda self: not self.has_ended)
    @rule(n=st.integers(1, 3000))
    def deliver(self, n: int) -> None:
        self.heard += examples.feed(self.receiver, self.on_the_way[:n])
        self.on_the_way = self.on_the_way[n:]

    @precondition(lambda self: not self.has_ended)
    @rule(junk=st.sampled_from([b"\xff\xff", b"\x00\x00", b"\x00\x00GET / HTTP/1.1", b"\x16\x03\x01\x02\x00"]))
    def spoil(self, junk: bytes) -> None:
        """Behind whole messages, so that it is taken for an id."""
        self.is_spoilt = True
        self.on_the_way += junk

    @rule()
    def end(self) -> None:
        if not self.has_ended:
            self.heard += examples.feed(self.receiver, self.on_the_way)
            self.on_the_way = b""
        self.has_ended = True
        self.receiver.end_of_input()
        self.heard += examples.take(self.receiver)

    @invariant()
    def what_is_heard_is_what_was_said(self) -> None:
        whole = [value for value in self.heard if not self._is_end(value)]
        said = [value for value in self.expected if not self._is_end(value)]
        assert whole == said[: len(whole)]
        if not self.on_the_way:
            assert len(whole) == len(said)

    @invariant()
    def there_is_one_end_and_nothing_behind_it(self) -> None:
        ends = [value for value in self.heard if self._is_end(value)]
        assert len(ends) <= 1
        assert not ends or self.heard[-1] is ends[0]
        if self.has_ended:
            assert len(ends) == 1
        assert bool(ends) == (self.receiver.state in {State.CLOSED, State.BROKEN})

    @invariant()
    def memory_stays_within_its_limit(self) -> None:
        assert self.receiver.capacity <= LIMITS.ceiling

    @staticmethod
    def _is_end(value: object) -> bool:
        return isinstance(value, Close) or (isinstance(value, tuple) and value[0] == "error")


Conversation.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestConversation = Conversation.TestCase
