"""How a client reaches a server: a socket as it is, which is fastest, or TLS around it. Knows no MRD."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from server.errors import ClientError
from server.tls import TlsClientError, client_context

_STREAM_BYTES: Final = 1 << 21
"""What TLS may read ahead."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How a client speaks TLS.

    Attributes:
        ca: authorities to trust, or the server's certificate itself; those of this machine unless given.
        certificate: ours, for servers that ask for one.
        key: its key; in the certificate's file unless given.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class Pipe(Protocol):
    """A connection to a server."""

    async def send(self, data: bytes) -> None:
        """Send; waits while the server does not read. Raises OSError when it is gone."""
        ...

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive some bytes; 0 at the end. Raises ConnectionError when it broke, ClientError when TLS failed."""
        ...

    def close(self) -> None:
        """Close."""
        ...


async def reach(host: str, port: int, tls: Tls | None, timeout_s: float) -> Pipe:
    """Connect.

    Raises:
        ClientError: nobody listens there, the name is unknown, or nobody answers in time.
        TlsClientError: a file for TLS is wrong, or the server does not speak TLS, or not one that we trust.
    """
    context = client_context(tls.ca, tls.certificate, tls.key) if tls is not None else None
    try:
        async with asyncio.timeout(timeout_s):
            sock = await _connect(host, port)
            return _Plain(sock) if context is None else await _shake_hands(sock, host, context)
    except ssl.SSLError as error:
        raise _explain(error, host, port) from error
    except (TimeoutError, OSError) as error:
        raise ClientError(
            f"no server answers at {host} port {port} ({_reason(error)})",
            code="no_server",
            advice="Start one with `echotrain serve`, or give its address with --host and --port.",
        ) from error


class _Plain:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def receive_into(self, buffer: memoryview) -> int:
        return await asyncio.get_running_loop().sock_recv_into(self._sock, buffer)

    def close(self) -> None:
        self._sock.close()


class _Encrypted:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._has_received = False

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive_into(self, buffer: memoryview) -> int:
        try:
            data = await self._reader.read(len(buffer))
        except ssl.SSLError as error:
            raise _explain(error) from error
        except ConnectionError as error:
            if self._has_received:
                raise
            # Under TLS 1.3 a server looks at our certificate after we think that the handshake is done.
            raise _refused("closed the connection behind the handshake") from error
        if not data and not self._has_received:
            raise _refused("closed the connection behind the handshake")
        self._has_received = True
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        # Not in good order: the server has said all that it had to say, or nobody listens any more.
        self._writer.transport.abort()


async def _shake_hands(sock: socket.socket, host: str, context: ssl.SSLContext) -> Pipe:
    try:
        return _Encrypted(
            *await asyncio.open_connection(sock=sock, ssl=context, server_hostname=host, limit=_STREAM_BYTES)
        )
    except ssl.SSLError:
        raise
    except (ConnectionError, EOFError) as error:
        raise TlsClientError(
            f"the server ended the handshake of TLS ({_reason(error)})",
            advice="It may not speak TLS on this port, or wants a version or a certificate that we do not have.",
        ) from error


def _explain(error: ssl.SSLError, host: str = "", port: int = 0) -> TlsClientError:
    where = f" at {host} port {port}" if host else ""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in {62, 64}:  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
            return TlsClientError(
                f"the certificate of the server{where} is for another name ({error.verify_message.rstrip('.')})",
                advice="Give --host as the certificate names it.",
            )
        return TlsClientError(
            f"the certificate of the server{where} is not trusted ({error.verify_message})",
            advice="Give the authority that signed it with --ca, unless it is the wrong server.",
        )
    if reason in {"WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "PACKET_LENGTH_TOO_LONG"}:
        return TlsClientError(f"the server{where} does not speak TLS", advice="Leave --tls away, or check the port.")
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return _refused("wants a certificate of the client")
    if "PROTOCOL_VERSION" in reason or reason == "UNSUPPORTED_PROTOCOL":
        return TlsClientError(f"the server{where} speaks no TLS 1.2 or later", advice="Update the server.")
    if "ALERT" in reason:
        return _refused(f"refused our certificate or our TLS ({reason.lower().replace('_', ' ')})")
    return TlsClientError(f"TLS with the server{where} failed ({reason.lower().replace('_', ' ') or error})")


def _refused(what: str) -> TlsClientError:
    return TlsClientError(f"the server {what}", advice="Give yours, which it must know, with --certificate and --key.")


async def _connect(host: str, port: int) -> socket.socket:
    """The first address of the name that accepts, IPv6 and IPv4."""
    loop = asyncio.get_running_loop()
    last: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise last or OSError("the name has no address")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
