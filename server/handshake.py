"""The handshake of TLS with one accepted socket, before anything of a session exists.

asyncio closes a socket whose handshake fails without sending TLS's own alert, so that the peer would hear of a broken
connection instead of, say, a missing certificate. Here the alert is sent through a second descriptor of the socket. A
peer that begins without TLS is told so in MRD.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Final

from server.config import Timeouts
from server.tls import HandshakeError

REASONS: Final = ("no_certificate", "bad_certificate", "tls_version", "tls_failed", "tls_timeout", "plain")
"""Why a handshake may fail."""

_BEGINS_TLS: Final = b"\x16"
"""The record type of a ClientHello; ids of MRD in front of a scan are 1, 2, 5 or 6, little-endian."""

_LAST_WORDS_S: Final = 1.0


class GreetingError(Exception):
    """A peer that does not get in; `reason` is one of `REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Entrance(asyncio.Protocol):
    """Stands at the end of a handshake; gives its transport to what `admit` makes then."""

    def __init__(self, admit: Callable[[], asyncio.BaseProtocol]) -> None:
        self._admit = admit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done."""
        protocol = self._admit()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


async def greet(
    sock: socket.socket,
    context: ssl.SSLContext,
    admit: Callable[[], asyncio.BaseProtocol],
    refuse_plain: Callable[[], asyncio.BaseProtocol],
    timeouts: Timeouts,
) -> None:
    """Shake hands, then admit; the socket is closed where this fails.

    Raises:
        GreetingError: the peer speaks no TLS, too old a TLS, shows no certificate or a wrong one, or is too slow.
        OSError: it has left.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        async with asyncio.timeout(timeouts.first_message_s):
            first = await _first_byte(sock)
    except TimeoutError as error:
        sock.close()
        message = f"nothing came within {timeouts.first_message_s:g} s of the connection"
        raise GreetingError("tls_timeout", message) from error
    except BaseException:
        sock.close()
        raise
    if not first:
        sock.close()
        raise GreetingError("tls_failed", "the peer closed the connection at once")
    if first != _BEGINS_TLS:
        await loop.connect_accepted_socket(refuse_plain, sock)
        raise GreetingError("plain", "the peer does not speak TLS")
    with sock.dup() as twin:
        try:
            await loop.connect_accepted_socket(
                lambda: Entrance(admit),
                sock,
                ssl=context,
                ssl_handshake_timeout=max(0.1, timeouts.first_message_s - (loop.time() - started)),
                ssl_shutdown_timeout=timeouts.linger_s,
            )
        except HandshakeError as error:
            await _say_last_words(twin, error.alert)
            raise GreetingError(*_explain(error)) from error
        except ConnectionAbortedError as error:
            raise GreetingError("tls_timeout", "the handshake was not finished in time") from error
        except (ConnectionError, ssl.SSLError) as error:
            raise GreetingError("tls_failed", "the peer ended the handshake; it may not trust this server") from error


def _explain(error: HandshakeError) -> tuple[str, str]:
    reason = error.reason or ""
    if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in reason:
        return "no_certificate", "the peer shows no certificate"
    if reason.startswith("CERTIFICATE_VERIFY_FAILED"):
        return "bad_certificate", f"the peer's certificate is refused{reason.removeprefix('CERTIFICATE_VERIFY_FAILED')}"
    if reason in {"UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "WRONG_SSL_VERSION", "UNKNOWN_PROTOCOL"}:
        return "tls_version", "the peer speaks no TLS 1.2 or later"
    if "ALERT" in reason:
        return "tls_failed", f"the peer refused us ({reason.lower().replace('_', ' ')})"
    return "tls_failed", f"the handshake failed ({reason.lower().replace('_', ' ')})"


async def _first_byte(sock: socket.socket) -> bytes:
    """The first byte, left where it is; empty where the peer has closed."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock)
    return sock.recv(1, socket.MSG_PEEK)


async def _say_last_words(twin: socket.socket, alert: bytes) -> None:
    """Send the alert and read until the peer closes: closing on unread data would send a reset that overtakes it."""
    loop = asyncio.get_running_loop()
    twin.setblocking(False)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_LAST_WORDS_S):
            await loop.sock_sendall(twin, alert)
            twin.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(twin, 4096):
                pass
