"""Options of TCP sockets: no delay, and peers whose machine or network is gone are found in seconds.

Idle, keepalive asks after `keepalive_s` of silence. While something is on its way, TCP_USER_TIMEOUT says how long it
may go unacknowledged; Linux ends keepalive by the same clock, and not by the number of questions, where it is set.
With packets dropped in a network namespace: found after 8.6 s idle, 8.4 s sending (tests/end_to_end/test_half_open.py).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

from server.config import Timeouts

_LOOKS: Final = 4
"""How often within `unacknowledged_s` the window of a peer is looked at."""

_INFO_BYTES: Final = 148
"""Of Linux's `struct tcp_info`, up to tcpi_notsent_bytes."""
_UNACKED_AT: Final = 24
_NOTSENT_AT: Final = 144


def set_options(sock: socket.socket, timeouts: Timeouts) -> None:
    """No delay on small writes; notice in seconds that a peer is gone, idle (keepalive) or sent to (user timeout)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Constants that exist on Linux only; elsewhere the system's defaults hold.
    for name, value in (
        ("TCP_KEEPIDLE", int(timeouts.keepalive_s)),
        ("TCP_KEEPINTVL", max(1, int(timeouts.keepalive_s / 2))),
        ("TCP_KEEPCNT", 3),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    _set_user_timeout(sock, timeouts.unacknowledged_s)


def reset_on_close(sock: socket.socket) -> None:
    """Make closing send a reset, so that a flood of refused connections leaves nothing behind."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class WindowWatch:
    """Spares a peer that lives but does not read the short TCP_USER_TIMEOUT, which Linux (5.11 on) counts for it too.

    Many clients send a whole scan before they read their first image. Their machine acknowledges all that while and
    says that it has no room (a closed window); such a peer has `send_s`.
    """

    def __init__(self, sock: socket.socket, timeouts: Timeouts) -> None:
        self._sock = sock
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._was_closed = False
        self._next: asyncio.TimerHandle | None = None
        if hasattr(socket, "TCP_INFO") and hasattr(socket, "TCP_USER_TIMEOUT"):
            self._wait()

    def stop(self) -> None:
        """Look no more."""
        if self._next is not None:
            self._next.cancel()

    def _wait(self) -> None:
        self._next = self._loop.call_later(self._timeouts.unacknowledged_s / _LOOKS, self._look)

    def _look(self) -> None:
        try:
            closed = _waits_for_window(self._sock)
            if closed != self._was_closed:
                seconds = self._timeouts.send_s if closed else 0.0
                _set_user_timeout(self._sock, max(seconds, self._timeouts.unacknowledged_s))
                self._was_closed = closed
        except OSError:
            return  # The socket is closed.
        self._wait()


def _waits_for_window(sock: socket.socket) -> bool:
    """Whether something waits that the peer has no room for: nothing is on its way, yet not all is sent."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    if len(info) < _INFO_BYTES:
        return False
    unacked = int(struct.unpack_from("=I", info, _UNACKED_AT)[0])
    notsent = int(struct.unpack_from("=I", info, _NOTSENT_AT)[0])
    return unacked == 0 and notsent > 0


def _set_user_timeout(sock: socket.socket, seconds: float) -> None:
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
