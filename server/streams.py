"""Streams of MRD in files and on pipes: where bytes come from and where they go. Knows version 1 as events.

A stream is read in pieces as they come and written message by message, so that neither side waits for more than it
needs. Standard output belongs to the images alone: whatever else in this process prints goes to standard error.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from pipelines.mrd import Image
from server.errors import FileError, OutputClosedError, SettingsError
from server.wire.connection import Connection
from server.wire.messages import Buffers, Close, Event

STANDARD: Final = Path("-")
"""The name of standard input or output."""


class Input(Protocol):
    """What bytes are read from: at most one piece that is there, 0 at the end."""

    def readinto(self, room: memoryview, /) -> int | None:
        """Put bytes into the room and say how many."""
        ...


class Rewound:
    """An input whose first bytes were looked at and are read again."""

    def __init__(self, source: Input, n_bytes: int) -> None:
        """Look at up to `n_bytes`; waits for them, or for the end."""
        head = bytearray()
        piece = memoryview(bytearray(n_bytes))
        while len(head) < n_bytes and (n := source.readinto(piece[: n_bytes - len(head)])):
            head += piece[:n]
        self.head: bytes = bytes(head)
        self._rest = self.head
        self._source = source

    def readinto(self, room: memoryview, /) -> int | None:
        """The bytes looked at, then the others."""
        if not self._rest:
            return self._source.readinto(room)
        n = min(len(room), len(self._rest))
        room[:n], self._rest = self._rest[:n], self._rest[n:]
        return n


@contextmanager
def open_input(path: Path) -> Generator[Input]:
    """A file, a pipe, or standard input for `-`.

    Raises:
        FileError: it cannot be opened.
        SettingsError: standard input is a terminal.
    """
    if path == STANDARD and os.isatty(0):
        raise SettingsError("standard input is a terminal; give a file or a pipe to read from")
    try:
        source = io.FileIO(0, "rb", closefd=False) if path == STANDARD else path.open("rb", buffering=0)
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror or error})") from error
    with source:
        yield source


class Output:
    """Where the bytes of a stream go: all of them, or an error."""

    def __init__(self, target: io.FileIO, name: str) -> None:
        self._target = target
        self._name = name

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write all of the data.

        Raises:
            OutputClosedError: nobody reads any more.
            FileError: they cannot be kept.
        """
        size = memoryview(data).nbytes
        rest = memoryview(data).cast("B") if size else memoryview(b"")
        try:
            while rest:
                rest = rest[self._target.write(rest) or 0 :]
        except BrokenPipeError as error:
            raise OutputClosedError("whoever read the output has closed it before everything was written") from error
        except OSError as error:
            raise FileError(f"{self._name} cannot be written ({error.strerror or error})") from error
        return size

    def write_all(self, buffers: Buffers) -> None:
        """Write the parts of a message; errors as in `write`."""
        for part in buffers:
            self.write(part)

    def flush(self) -> None:
        """Nothing is kept back."""


@contextmanager
def open_output(path: Path, *, whole_or_not: bool = False) -> Generator[Output]:
    """A file, a pipe, or standard output for `-`.

    Args:
        path: where to write; folders are made.
        whole_or_not: write beside an ordinary file first and replace it when all has been written.

    Raises:
        FileError: it cannot be opened.
        SettingsError: standard output is a terminal.
    """
    if path == STANDARD:
        with _standard_output() as output:
            yield output
        return
    part = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if whole_or_not and (not path.exists() or stat.S_ISREG(path.stat().st_mode)):
            part = path.with_name(f".{path.name}.part")
        target = part.open("wb", buffering=0)
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error.strerror or error})") from error
    try:
        with target:
            yield Output(target, str(path))
        if part != path:
            part.replace(path)
    finally:
        if part != path:
            part.unlink(missing_ok=True)


@contextmanager
def _standard_output() -> Generator[Output]:
    if os.isatty(1):
        raise SettingsError("standard output is a terminal; redirect it to a file or a pipe, or name a file")
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)  # a print of any library must not end up between messages
    try:
        with io.FileIO(ours, "wb", closefd=False) as target:
            yield Output(target, "standard output")
    finally:
        sys.stdout.flush()
        os.dup2(ours, 1)
        os.close(ours)


def read_events(source: Input, connection: Connection) -> Iterator[Event]:
    """Events of a stream of version 1, the last of them `Close`.

    Readouts lie in the receive buffer: use or copy them before asking for the next event.

    Raises:
        ProtocolError: the stream breaks a rule, or ends inside a message.
        LimitError: it announces a size over a limit; nothing was allocated.
        FileError: it cannot be read.
    """
    while True:
        event = connection.next_event()
        if event is not None:
            yield event
            if isinstance(event, Close):
                return
            continue
        try:
            n = source.readinto(connection.writable()) or 0
        except OSError as error:
            raise FileError(f"the input cannot be read ({error.strerror or error})") from error
        connection.received(n)
        if n == 0:
            connection.end_of_input()


class ImageSink(Protocol):
    """Where the result of a scan goes. Each call has written everything when it returns."""

    def header(self, xml: bytes) -> None:
        """The scan header, before all else."""
        ...

    def image(self, image: Image) -> None:
        """One image."""
        ...

    def text(self, text: str) -> None:
        """A sentence for whoever reads the images."""
        ...

    def close(self) -> None:
        """Everything is there."""
        ...


class Version1Sink:
    """Images as a stream of version 1: HEADER, IMAGE and TEXT as they come, CLOSE."""

    def __init__(self, output: Output, connection: Connection) -> None:
        self._output = output
        self._connection = connection

    def header(self, xml: bytes) -> None:
        """Repeat the header, as Gadgetron does."""
        self._output.write_all(self._connection.header(xml))

    def image(self, image: Image) -> None:
        """Write an image."""
        self._output.write_all(self._connection.image(image))

    def text(self, text: str) -> None:
        """Write a text, unless it is empty: ismrmrd's C++ reader looks before the start of an empty one."""
        if text:
            self._output.write_all(self._connection.text(text))

    def close(self) -> None:
        """Say CLOSE."""
        self._output.write_all(self._connection.close())
