"""`recon --v2`: a stream of version 2 as events, and images as a stream of version 2."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from pipelines.mrd import Image
from server.losses import Losses
from server.mrd2.items import image_to_version_2
from server.mrd2.stream import Reader, Writer, header_to_version_1
from server.streams import ImageSink, Input, Output
from server.wire.messages import Close, Event, Header, WireLimits


@contextmanager
def version_2(
    data: Input, output: Output, limits: WireLimits, say: Callable[[str], None]
) -> Generator[tuple[Iterator[Event], ImageSink]]:
    """The input as events of version 1, and a sink for images; at the end `say` hears what was lost.

    The header in the output is the very one of the input.
    """
    losses = Losses()
    sink = _Sink(output, losses, say)
    try:
        yield _events(data, limits, losses, sink), sink
    finally:
        for sentence in losses:
            say(sentence)


def _events(data: Input, limits: WireLimits, losses: Losses, sink: _Sink) -> Iterator[Event]:
    reader = Reader(data, limits)
    sink.reader = reader
    xml = header_to_version_1(reader.header, losses)
    if xml is not None:
        yield Header(xml)
    yield from reader.items(losses)
    yield Close()


class _Sink:
    """Images as a stream of version 2."""

    def __init__(self, output: Output, losses: Losses, say: Callable[[str], None]) -> None:
        self.reader: Reader | None = None
        self._output = output
        self._losses = losses
        self._say = say
        self._writer: Writer | None = None

    def header(self, xml: bytes) -> None:
        """Begin with the header of the input."""
        del xml
        self._begun()

    def image(self, image: Image) -> None:
        """Write an image."""
        self._begun().write(image_to_version_2(image, self._losses))

    def text(self, text: str) -> None:
        """Version 2 has no texts: whoever runs the command sees it."""
        self._say(text)

    def close(self) -> None:
        """Mark the end."""
        self._begun().close()

    def _begun(self) -> Writer:
        if self._writer is None:
            self._writer = Writer(self._output, self.reader.header if self.reader is not None else None)
        return self._writer
