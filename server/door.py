"""The door of a port: accepts, sends away who may not come in, shakes hands where TLS is spoken, then admits.

Nothing of a session exists before a peer is through: an address outside the allow-list costs one `accept` and one
`close`; a peer in the handshake is one socket, with a deadline. Knows no MRD.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Final

from server.config import Timeouts
from server.handshake import GreetingError, greet
from server.logs import logger
from server.metrics import Metrics
from server.networks import Networks
from server.socket_options import reset_on_close, set_options

MAX_GREETINGS: Final = 256
"""Peers in the handshake of TLS at a time, 256 KiB each in uvloop; more than that are closed without a word."""

_ACCEPTS_AT_ONCE: Final = 64
"""Then others have their turn in the event loop."""

_RETRY_S: Final = 1.0
_QUIET_S: Final = 60.0
"""Between two records of the same reason."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Door:
    """Listening sockets of one port.

    Args:
        sockets: listening ones.
        admit: makes what speaks to a peer that is through.
        networks: who may come in.
        metrics: where those sent away are counted.
        timeouts: of the handshake.
        context: of TLS; None for none.
        refuse_plain: makes what tells a peer without TLS that there is TLS here.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        admit: Callable[[], asyncio.BaseProtocol],
        networks: Networks,
        metrics: Metrics,
        timeouts: Timeouts,
        context: ssl.SSLContext | None = None,
        refuse_plain: Callable[[], asyncio.BaseProtocol] | None = None,
    ) -> None:
        self.port = int(sockets[0].getsockname()[1])
        self._sockets = sockets
        self._admit = admit
        self._refuse_plain = refuse_plain or admit
        self._networks = networks
        self._metrics = metrics
        self._timeouts = timeouts
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._coming: set[asyncio.Task[None]] = set()
        self._quiet: dict[str, tuple[float, int]] = {}
        self._is_open = True
        for listening in sockets:
            listening.setblocking(False)
            self._loop.add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Accept nobody more; who is in the handshake is left standing."""
        self._is_open = False
        for listening in self._sockets:
            self._loop.remove_reader(listening)
            listening.close()
        if self._context is not None:
            for task in self._coming:
                task.cancel()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                # It stays readable: without a pause this would spin.
                logger().error("cannot_accept", message=error.strerror or "")
                self._loop.remove_reader(listening)
                self._loop.call_later(_RETRY_S, self._resume, listening)
                return
            self._meet(sock, str(address[0]))

    def _resume(self, listening: socket.socket) -> None:
        if self._is_open:
            self._loop.add_reader(listening, self._accept, listening)

    def _meet(self, sock: socket.socket, address: str) -> None:
        if address not in self._networks:
            self._send_away("not_allowed", address, "the address is not in the allow-list")
        elif self._context is not None and len(self._coming) >= MAX_GREETINGS:
            self._send_away("too_many", address, f"{MAX_GREETINGS} peers are in the handshake of TLS")
        else:
            sock.setblocking(False)
            task = self._loop.create_task(self._bring_in(sock, address), name="bring in")
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)
            return
        reset_on_close(sock)
        sock.close()

    async def _bring_in(self, sock: socket.socket, address: str) -> None:
        try:
            if self._context is None:
                await self._loop.connect_accepted_socket(self._admit, sock)
            else:
                set_options(sock, self._timeouts)
                await greet(sock, self._context, self._admit, self._refuse_plain, self._timeouts)
        except GreetingError as error:
            self._send_away(error.reason, address, str(error))
        except OSError:
            # The peer has reset the connection meanwhile.
            sock.close()

    def _send_away(self, reason: str, address: str, message: str) -> None:
        """Count a peer that does not get in; a record at once, then at most one a minute that says how many."""
        self._metrics.turned_away.labels(reason).inc()
        now = self._loop.time()
        due, n = self._quiet.get(reason, (now, 0))
        if now < due:
            self._quiet[reason] = due, n + 1
            return
        self._quiet[reason] = now + _QUIET_S, 0
        logger().warning("turned_away", reason=reason, host=address, message=message, counts=n + 1)
