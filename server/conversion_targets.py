"""What `echotrain convert` writes into: HDF5 files and streams of version 1; for version 2 see `mrd2/target.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pipelines.mrd import Acquisitions, Image, Waveform
from server.hdf5 import Hdf5
from server.image_file import add_images
from server.losses import Losses
from server.scan_file import add_readouts, make_readouts, write_header, write_waveforms
from server.streams import Output
from server.wire.connection import Connection, Role
from server.wire.messages import Text


class Target(Protocol):
    """What is written."""

    def put(self, item: Acquisitions | Waveform | Image) -> None:
        """One item."""
        ...

    def text(self, text: Text) -> None:
        """One text."""
        ...

    def close(self) -> None:
        """Everything is there."""
        ...


@dataclass(slots=True)
class FileTarget:
    """A group of a file. Readouts are written as they come; waveforms and images need all of their kind at once."""

    group: Hdf5
    header: bytes | None
    losses: Losses
    readouts: Hdf5 | None = None
    waveforms: list[Waveform] = field(default_factory=list[Waveform])
    images: list[Image] = field(default_factory=list[Image])

    def put(self, item: Acquisitions | Waveform | Image) -> None:
        """Write or keep it."""
        match item:
            case Acquisitions():
                if self.readouts is None:
                    self.readouts = make_readouts(self.group)
                add_readouts(self.readouts, item)
            case Waveform():
                self.waveforms.append(item)
            case Image():
                self.images.append(item)

    def text(self, text: Text) -> None:
        """A file has no texts."""
        del text
        self.losses.note("a text in the stream is left out")

    def close(self) -> None:
        """Write the rest."""
        if self.header is not None:
            write_header(self.group, self.header)
        write_waveforms(self.group, self.waveforms)
        add_images(self.group, self.images)


class StreamTarget:
    """A stream of version 1."""

    def __init__(self, output: Output, header: bytes | None) -> None:
        self._output = output
        self._connection = Connection(Role.STREAM)
        if header is not None:
            output.write_all(self._connection.header(header))

    def put(self, item: Acquisitions | Waveform | Image) -> None:
        """Write it."""
        match item:
            case Acquisitions():
                self._output.write_all(self._connection.acquisitions(item))
            case Waveform():
                self._output.write_all(self._connection.waveform(item))
            case Image():
                self._output.write_all(self._connection.image(item))

    def text(self, text: Text) -> None:
        """Write it."""
        self._output.write_all(self._connection.text(text.text))

    def close(self) -> None:
        """Say CLOSE."""
        self._output.write_all(self._connection.close())
