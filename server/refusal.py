"""Connections that are told why they are refused, a bounded number of them at a time."""

from __future__ import annotations

import asyncio
from typing import Final, cast

from server.config import Timeouts
from server.dialect import Dialect
from server.errors import ServerError
from server.socket_options import set_options
from server.wire.connection import Connection
from server.wire.messages import WireLimits

MAX_REFUSALS: Final = 1024
"""Refused connections that are being told so at a time; more than that are closed without a word."""

REFUSAL_LINGER_S: Final = 1.0

_SMALL: Final = WireLimits(buffer_bytes=4096, message_bytes=4096)
"""For connections that only say no."""


class Refusal(asyncio.Protocol):
    """A connection that is told why it is refused, and read until it closes so that it hears it."""

    def __init__(self, error: ServerError, dialect: Dialect, others: set[Refusal], timeouts: Timeouts) -> None:
        self._error = error
        self._dialect = dialect
        self._others = others
        self._timeouts = timeouts
        self._transport: asyncio.Transport | None = None
        self._due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say it, close our side, and give the peer a moment."""
        self._transport = cast("asyncio.Transport", transport)
        if len(self._others) >= MAX_REFUSALS:
            self._transport.abort()
            return
        self._others.add(self)
        set_options(self._transport.get_extra_info("socket"), self._timeouts)
        connection = Connection(self._dialect.role, _SMALL)
        self._transport.writelines([*self._dialect.failure(connection, self._error), *connection.close()])
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._due = asyncio.get_running_loop().call_later(REFUSAL_LINGER_S, self.close)

    def data_received(self, data: bytes) -> None:
        """Whatever it is, it is not read."""

    def eof_received(self) -> bool:
        """The peer has closed its side, so it has our answer."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Forget it."""
        self._others.discard(self)
        if self._due is not None:
            self._due.cancel()

    def close(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()
