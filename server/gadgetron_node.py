"""What Gadgetron starts for `<execute name="server.gadgetron_node" target="sense" type="python"/>`.

Gadgetron runs `python -m gadgetron PORT server.gadgetron_node sense`. The package `gadgetron` connects back, reads
configuration and header, and calls the attribute `sense` of this module with its connection. Every attribute is a
pipeline's name or alias, used where the configuration names none; a name that does not exist is answered with an error,
not with an import that fails, for then Gadgetron would only see the connection end well.

From there on the connection is ours: the package reads one message at a time and spins for ever when Gadgetron dies.
Settings come from the file that ECHOTRAIN_CONFIG names and from the environment. Exit statuses of the process: 0 the
session ended well, 1 it did not, 2 the settings are wrong.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from server import config, logs
from server.errors import SettingsError
from server.node import serve_parent
from server.outcome import error_text
from server.wire.connection import Connection, Role
from server.wire.messages import MessageId

_TEXT: Final = struct.Struct("<HI")


def __getattr__(name: str) -> Callable[[Any], None]:
    """The handler that prefers this pipeline."""
    if name.startswith("_"):
        raise AttributeError(name)
    return partial(handle, preferred=name)


def handle(connection: Any, *, preferred: str = "default") -> None:
    """Serve Gadgetron on the connection that the package has made.

    Args:
        connection: `gadgetron.external.Connection`, behind configuration and header.
        preferred: pipeline where the configuration names none.

    Raises:
        SystemExit: the session did not end well, or the settings are wrong; Gadgetron has been told.
    """
    sock: socket.socket = connection.socket.socket
    already = b"".join(
        _TEXT.pack(message_id, len(body)) + body
        for message_id, body in (
            (MessageId.CONFIG_TEXT, connection.raw_bytes.config),
            (MessageId.HEADER, connection.raw_bytes.header),
        )
    )
    connection.socket = _Nothing()  # the package would say CLOSE once more
    try:
        settings = config.load().settings
    except SettingsError as error:
        _refuse(sock, error)
        sys.exit(2)
    logs.configure(settings.logs.level)
    sock.setblocking(False)
    is_well = asyncio.run(serve_parent(settings, sock, preferred=preferred, already=already))
    if not is_well:
        sys.exit(1)


class _Nothing:
    """What the package closes at the end."""

    def close(self) -> None:
        """Nothing is left to close."""


def _refuse(sock: socket.socket, error: SettingsError) -> None:
    node = Connection(Role.NODE)
    with sock:
        sock.sendall(b"".join([*node.error(error_text(error)), *node.close()]))
        sys.stderr.write(f"echotrain: {error.code}: {error}. {error.advice}\n")
