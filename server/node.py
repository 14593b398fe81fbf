"""One session with Gadgetron as a process: connected to it, served, and ended with a status. No port of our own.

For `echotrain serve --connect-to` and for Gadgetron's `<execute>` (`gadgetron_node.py`). Workers start while Gadgetron
already sends; they end with the session, and with this process however it ends.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from typing import Final

from server.backpressure import Waiting
from server.config import Settings
from server.dialect import ParentDialect
from server.errors import ClientError, DrainingError, SettingsError
from server.execution.from_settings import make_executor
from server.logs import logger
from server.metrics import Metrics, product_version
from server.noise_store import NoiseStore
from server.session import Session

CONNECT_S: Final = 20.0
"""For how long a parent that does not listen yet is tried again; Gadgetron itself tries 18 s."""

_RETRY_S: Final = 0.25


async def connect(host: str, port: int) -> socket.socket:
    """A connection to a waiting Gadgetron.

    Raises:
        ClientError: nobody listened there in time.
    """
    loop, due = asyncio.get_running_loop(), time.monotonic() + CONNECT_S
    while True:
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            for family, kind, number, _, address in found:
                sock = socket.socket(family, kind, number)
                sock.setblocking(False)
                try:
                    await loop.sock_connect(sock, address)
                except OSError:
                    sock.close()
                    if (family, address) == (found[-1][0], found[-1][4]):
                        raise
                else:
                    return sock
        except OSError as error:
            if time.monotonic() >= due:
                raise ClientError(
                    f"no Gadgetron accepts connections on {host}:{port} ({error.strerror or type(error).__name__})",
                    code="no_parent",
                    advice="Start Gadgetron's side first, and check host and port.",
                ) from error
        await asyncio.sleep(_RETRY_S)


async def serve_parent(settings: Settings, sock: socket.socket, *, preferred: str = "", already: bytes = b"") -> bool:
    """Serve one session on a connected socket; SIGTERM and SIGINT end it with an error.

    Args:
        settings: of the server.
        sock: connected to Gadgetron; closed at the end.
        preferred: pipeline where Gadgetron's configuration names none.
        already: what was read from the socket before.

    Returns:
        Whether it ended well: Gadgetron closed it, and everything was answered.
    """
    loop = asyncio.get_running_loop()
    executor = make_executor(settings)
    session = Session(
        settings,
        executor,
        Metrics(),
        Waiting(settings.limits.most_waiting_bytes),
        NoiseStore(None, expiry_s=settings.noise.expiry_s, most_entries=1),
        ParentDialect(settings, preferred),
        already,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, session.stop, DrainingError("the node was told to stop"))
    logger().info("node_session", session=session.id, version=product_version(), device=settings.workers.device)
    await executor.start()
    try:
        await loop.create_connection(lambda: session.socket, sock=sock)
        await session.ended()
    finally:
        await executor.stop()
    return session.error is None


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `PORT` or `HOST:PORT`.

    Raises:
        SettingsError: it is neither.
    """
    host, _, port = text.rpartition(":")
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise SettingsError(f"--connect-to {text!r} is not PORT or HOST:PORT")
    return host.strip("[]") or "localhost", int(port)
