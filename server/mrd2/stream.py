"""Streams of MRD version 2 through `mrd-python`: read piece by piece within limits, written item by item.

The package reads whatever sizes a stream announces, waits for 64 KiB at a time, and raises many kinds of errors. So it
is given an input that waits for no more than is needed and refuses what is too large, and its errors are translated.
Memory for arrays of small integers is reserved by the package before their bytes are counted here; none of it is
touched before they come.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import mrd

from pipelines.mrd import Acquisitions, Image, Waveform
from server.errors import FileError, LimitError, ProtocolError
from server.losses import Losses
from server.mrd2 import header, items
from server.streams import Input, Output
from server.wire.messages import WireLimits

MAGIC: Final = b"yardl"
_MOST_SCHEMA_BYTES: Final = 1 << 20
_VERSION_ADVICE: Final = (
    "This program reads the streams of mrd-python 2.1; write the stream with that version, or send MRD version 1."
)
_VERSION: Final = struct.Struct("<i")
_YARDL_VERSION: Final = 1
_BUFFER_BYTES: Final = 1 << 16
_MOST_BITS: Final = 63
"""A number on the wire has at most 64 bits, the last group beginning at the 63rd."""

Item = Acquisitions | Waveform | Image


class _LimitedInput:
    """What the package reads from, in place of its own `CodedInputStream`.

    It hands out numbers and bytes as they are asked for, and reads ahead only what the source has at hand.
    """

    def __init__(self, source: Input) -> None:
        self._source = source
        self._memory = bytearray(_BUFFER_BYTES)
        self._start = 0
        self._end = 0
        self._left = 0
        self._what = ""

    def begin(self, what: str, most: int) -> None:
        """Go on with something that may take `most` bytes."""
        self._what, self._left = what, most

    def read(self, formatter: struct.Struct) -> tuple[Any, ...]:
        """Numbers of fixed size."""
        start = self._advance(formatter.size)
        return formatter.unpack_from(self._memory, start)

    def read_byte(self) -> int:
        """One byte."""
        return self._memory[self._advance(1)]

    def read_unsigned_varint(self) -> int:
        """A number in groups of seven bits, the lowest first."""
        value = shift = 0
        while (byte := self.read_byte()) >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > _MOST_BITS:
                raise ValueError
        return value | byte << shift

    def read_signed_varint(self) -> int:
        """The same with the sign in the lowest bit."""
        value = self.read_unsigned_varint()
        return (value >> 1) ^ -(value & 1)

    def read_view(self, count: int) -> memoryview:
        """Bytes, valid until the next call."""
        return memoryview(self.read_bytearray(count))

    def read_bytearray(self, count: int) -> bytearray:
        """Bytes to keep."""
        if count <= len(self._memory):
            start = self._advance(count)
            return self._memory[start : start + count]
        self._take(count)
        at_hand = self._end - self._start
        data = bytearray(count)
        data[:at_hand] = self._memory[self._start : self._end]
        self._start = self._end = 0
        room = memoryview(data)[at_hand:]
        while room:
            room = room[self._read_some(room) :]
        return data

    def close(self) -> None:
        """The source belongs to whoever opened it."""

    def _advance(self, count: int) -> int:
        """Where the next `count` bytes lie in memory, which has room for them."""
        self._take(count)
        if self._end - self._start < count:
            at_hand = self._end - self._start
            self._memory[:at_hand] = self._memory[self._start : self._end]
            self._start, self._end = 0, at_hand
            while self._end < count:
                self._end += self._read_some(memoryview(self._memory)[self._end :])
        start = self._start
        self._start += count
        return start

    def _take(self, count: int) -> None:
        if count > self._left:
            raise LimitError(f"the stream announced more bytes of {self._what} than the limit allows")
        self._left -= count

    def _read_some(self, room: memoryview) -> int:
        try:
            n = self._source.readinto(room)
        except OSError as error:
            raise FileError(f"the input cannot be read ({error.strerror or error})") from error
        if not n:
            raise EOFError
        return n


class _PackageReader(mrd.BinaryMrdReader):  # type: ignore[misc]  # the package has no types that mypy reads
    """The reader of the package behind the schema, on an input of ours."""

    def __init__(self, stream: _LimitedInput) -> None:
        mrd.MrdReaderBase.__init__(self)
        self._stream: Any = stream


class Reader:
    """A stream of version 2.

    Attributes:
        header: of the scan, as it came; None where there is none.
    """

    def __init__(self, source: Input, limits: WireLimits) -> None:
        """Read up to the header.

        Raises:
            ProtocolError: not a stream of this version, or damaged.
            LimitError: it announces more than the limits allow.
        """
        self._limits = limits
        self._stream = _LimitedInput(source)
        with _translated("its beginning"):
            self._read_preamble()
        self._package = _PackageReader(self._stream)
        self._stream.begin("a header", limits.header_bytes)
        with _translated("its header"):
            self.header: mrd.Header | None = self._package.read_header()

    def _read_preamble(self) -> None:
        self._stream.begin("a schema", _MOST_SCHEMA_BYTES)
        if bytes(self._stream.read_bytearray(len(MAGIC))) != MAGIC:
            raise ProtocolError(
                "the input is not a stream of MRD version 2: it does not begin with `yardl`",
                kind="bad_id",
                advice="Leave --v2 away for MRD version 1, or convert with `echotrain convert`.",
            )
        version = self._stream.read(_VERSION)[0]
        schema = b""
        if version == _YARDL_VERSION:
            schema = bytes(self._stream.read_bytearray(self._stream.read_unsigned_varint()))
        if schema != mrd.MrdReaderBase.schema.encode():
            raise ProtocolError(
                "the input was written by another version of MRD 2", kind="bad_header", advice=_VERSION_ADVICE
            )

    def raw_items(self) -> Iterator[Any]:
        """Stream items as they are; errors as in `items`."""
        rest = iter(self._package.read_data())
        while True:
            self._stream.begin("an item", self._limits.message_bytes)
            with _translated("an item"):
                item = next(rest, None)
            if item is None:
                return
            yield item

    def items(self, losses: Losses) -> Iterator[Item]:
        """What version 1 can hold of the stream; the rest is noted.

        Raises:
            ProtocolError: the stream is damaged or ends too early.
            LimitError: it announces more than the limits allow.
            ConversionError: something does not fit into version 1 and may not be left out.
        """
        for item in self.raw_items():
            if isinstance(item, mrd.StreamItem.Acquisition):
                self._check_readout(item.value)
                yield items.readout_to_version_1(item.value, losses)
            elif isinstance(item, mrd.StreamItem.WaveformUint32):
                yield items.waveform_to_version_1(item.value)
            elif isinstance(item, items.IMAGE_ITEMS):
                yield items.image_to_version_1(item.value, losses)
            else:
                losses.note(f"MRD 1 has no place for items of the kind {item.tag}; left out")

    def _check_readout(self, readout: mrd.Acquisition) -> None:
        n_channels, n_samples = readout.data.shape
        if n_channels > self._limits.channels or n_samples > self._limits.samples:
            raise LimitError(
                f"a readout has {n_channels} channels of {n_samples} samples; "
                f"the limits are {self._limits.channels} and {self._limits.samples}"
            )


@contextmanager
def _translated(where: str) -> Generator[None]:
    """What the package raises for a damaged stream, as one kind of error. Its own words may quote the data."""
    try:
        yield
    except EOFError as error:
        raise ProtocolError(
            f"the input ended inside {where}",
            kind="truncated",
            advice="Check why the writer broke off; what was complete before has been used.",
        ) from error
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error, RuntimeError) as error:
        raise ProtocolError(
            f"the input is damaged in {where}: not as its schema says", kind="bad_header", advice=_VERSION_ADVICE
        ) from error
    except MemoryError as error:
        raise LimitError(f"the stream announced more than the memory holds in {where}") from error


class Writer:
    """A stream of version 2; each call has written everything when it returns. `close` marks it as complete."""

    def __init__(self, output: Output, head: mrd.Header | None) -> None:
        """Begin the stream with its header."""
        self._writer = mrd.BinaryMrdWriter(cast("Any", output))
        self._writer.write_header(head)
        self._writer.write_data([])
        self._flush()

    def write(self, item: Any) -> None:
        """Write a stream item."""
        # As a list: for any other iterable mrd-python 2.1.1 writes one byte too many into a buffer that is full.
        self._writer.write_data([item])
        self._flush()

    def write_readouts(self, batch: Acquisitions, losses: Losses) -> None:
        """Write readouts."""
        self._writer.write_data(list(items.readouts_to_version_2(batch, losses)))
        self._flush()

    def close(self) -> None:
        """Mark the end."""
        self._writer.close()

    def _flush(self) -> None:
        self._writer._stream.flush()  # pyright: ignore[reportPrivateUsage]


def header_to_version_1(head: mrd.Header | None, losses: Losses) -> bytes | None:
    """The header of a stream as XML, where it has one; errors as in `header.to_version_1`."""
    return None if head is None else header.to_version_1(head, losses)
