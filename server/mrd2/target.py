"""What `echotrain convert` writes into when the output is a stream of version 2."""

from __future__ import annotations

import mrd

from pipelines.mrd import Acquisitions, Image, Waveform
from server.losses import Losses
from server.mrd2 import header, items
from server.mrd2.stream import Writer
from server.streams import Output
from server.wire.messages import Text


class Version2Target:
    """A stream of version 2."""

    def __init__(self, output: Output, xml: bytes | None, losses: Losses) -> None:
        """Begin with the header, if there is one.

        Raises:
            HeaderError: the header cannot be read.
        """
        head: mrd.Header | None = None
        if xml is not None and xml.lstrip().startswith(b"<"):
            head = header.to_version_2(xml, losses)
        elif xml is not None:
            # Writers of images without a header put a sentence in its place.
            losses.note("the header is not XML; left out")
        self._writer = Writer(output, head)
        self._losses = losses

    def put(self, item: Acquisitions | Waveform | Image) -> None:
        """Write it."""
        match item:
            case Acquisitions():
                self._writer.write_readouts(item, self._losses)
            case Waveform():
                self._writer.write(items.waveform_to_version_2(item))
            case Image():
                self._writer.write(items.image_to_version_2(item, self._losses))

    def text(self, text: Text) -> None:
        """Version 2 has no texts."""
        del text
        self._losses.note("a text in the stream is left out")

    def close(self) -> None:
        """Mark the end."""
        self._writer.close()
