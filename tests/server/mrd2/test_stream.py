"""Streams of version 2; the oracle is the package's own reader and writer."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
from typing import Any

import mrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mrd import Acquisitions, Image
from server.errors import ConversionError, LimitError, ProtocolError
from server.losses import Losses
from server.mrd2 import items
from server.mrd2.stream import Reader, Writer
from server.streams import Output
from server.wire.messages import WireLimits
from tests.server.wire import examples


class Pieces:
    """Bytes that come in pieces, as through a pipe."""

    def __init__(self, data: bytes, most: int = 1 << 30) -> None:
        self._rest = memoryview(data)
        self._most = most

    def readinto(self, room: memoryview, /) -> int:
        n = min(len(room), len(self._rest), self._most)
        room[:n], self._rest = self._rest[:n], self._rest[n:]
        return n


class Memory(Output):
    """An output that can be looked at."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self.data += bytes(data)
        return memoryview(data).nbytes


def theirs(*stream_items: Any, header: mrd.Header | None = None) -> bytes:
    """A stream written by the package."""
    memory = io.BytesIO()
    with mrd.BinaryMrdWriter(memory) as writer:
        writer.write_header(header)
        writer.write_data(list(stream_items))
    return memory.getvalue()


def some_items() -> list[Any]:
    batch = examples.readouts(2, coils=3, samples=40, dimensions=2)
    pixels = [examples.image((1, 1, 5, 7), kind) for kind in examples.ImageDataType]
    return [
        *items.readouts_to_version_2(batch, Losses()),
        items.waveform_to_version_2(examples.waveform(2, 300)),
        *(items.image_to_version_2(image, Losses()) for image in pixels),
        items.image_to_version_2(examples.image((1, 1, 200, 200)), Losses()),
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(examples.acquisitions(2), examples.waveforms(), examples.images()), max_size=5))
def test_what_we_write_is_read_by_the_package(events: list[Any]) -> None:
    output, expected = Memory(), []
    writer = Writer(output, None)
    for event in events:
        if isinstance(event, Acquisitions):
            writer.write_readouts(event, Losses())
            expected += items.readouts_to_version_2(event, Losses())
        else:
            image = isinstance(event, Image)
            item = items.image_to_version_2(event, Losses()) if image else items.waveform_to_version_2(event)
            writer.write(item)
            expected.append(item)
    writer.close()

    with mrd.BinaryMrdReader(io.BytesIO(bytes(output.data))) as reader:
        assert reader.read_header() is None
        read = list(reader.read_data())
    assert theirs(*read) == theirs(*expected)


@pytest.mark.parametrize("most", [1, 3, 1000, 1 << 30])
def test_what_the_package_writes_is_read_however_it_comes(most: int) -> None:
    header = mrd.Header(version=2)
    reader = Reader(Pieces(theirs(*some_items(), header=header), most), WireLimits())

    read = list(reader.raw_items())

    assert reader.header == header
    assert read == some_items()


def test_nothing_is_read_ahead_of_what_is_needed() -> None:
    first, *rest = some_items()
    whole, begun = theirs(first, *rest), theirs(first)[:-1]

    class Producer(Pieces):
        def readinto(self, room: memoryview, /) -> int:
            n = super().readinto(room)
            assert n, "the reader waits for more than the first item"
            return n

    begun = whole[: len(begun)]
    assert next(Reader(Producer(begun), WireLimits()).raw_items()) == first


@pytest.mark.parametrize("most", [1 << 30, 7])
def test_a_stream_cut_anywhere_gives_what_was_whole_and_then_an_error(most: int) -> None:
    whole = theirs(*some_items()[:4])
    counts = set()
    for stop in [*range(len(mrd.MrdReaderBase.schema), len(whole), 97), len(whole) - 1]:
        read: list[Any] = []
        with pytest.raises(ProtocolError) as caught:
            read.extend(Reader(Pieces(whole[:stop], most), WireLimits()).raw_items())
        assert caught.value.kind == "truncated"
        assert read == some_items()[: len(read)]
        counts.add(len(read))
    assert len(counts) > 1


def test_a_stream_of_another_version_of_the_schema_is_recognised() -> None:
    data = theirs().replace(b"acquisitionTimeStamp", b"acquisitionTimeSlamp")
    with pytest.raises(ProtocolError, match="another version of MRD 2"):
        Reader(Pieces(data), WireLimits())


@pytest.mark.parametrize("data", [b"", b"yar", b"\x03\x00\x05\x00\x00\x00hello", b"GET / HTTP/1.1\r\n"])
def test_what_is_no_stream_of_version_2_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Reader(Pieces(data), WireLimits())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_give_items_or_one_error(data: st.DataObject) -> None:
    whole = bytearray(theirs(*some_items()[:4], header=mrd.Header()))
    first = len(theirs()) - 2
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(first, len(whole) - 1))] = data.draw(st.integers(0, 255))
    said = ""
    try:
        list(Reader(Pieces(bytes(whole)), WireLimits()).items(Losses()))
    except (ProtocolError, ConversionError) as error:
        said = str(error)
    assert re.search("^$|damaged|ended inside|announced|the limits are|MRD 1 counts|has a trajectory", said)


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def test_a_huge_announced_readout_is_refused_before_memory_is_taken() -> None:
    whole = theirs(*items.readouts_to_version_2(examples.readouts(1, coils=1, samples=2), Losses()))
    at = whole.rindex(b"\x01\x02" + examples.readouts(1, coils=1, samples=2).samples.tobytes())
    data = whole[:at] + _varint(60_000) + _varint(1 << 40)

    tracemalloc.start()
    with pytest.raises(LimitError, match="announced"):
        list(Reader(Pieces(data), WireLimits()).raw_items())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_huge_announced_text_is_refused() -> None:
    preamble = theirs()[:-2]
    with pytest.raises(LimitError, match="of a header"):
        # header, subject information and a patient's name are there, the name with so many bytes
        Reader(Pieces(preamble + b"\x01\x00\x01\x01" + _varint(1 << 50)), WireLimits())


def test_more_channels_than_the_limit_are_refused() -> None:
    whole = theirs(*items.readouts_to_version_2(examples.readouts(1, coils=5), Losses()))
    with pytest.raises(LimitError, match="5 channels"):
        list(Reader(Pieces(whole), WireLimits(channels=4)).items(Losses()))


def test_items_that_version_1_has_no_place_for_are_noted_by_kind() -> None:
    array = mrd.StreamItem.ArrayComplexFloat(np.zeros((2, 2), np.complex64))
    losses = Losses()

    read = list(Reader(Pieces(theirs(array, some_items()[0], array)), WireLimits()).items(losses))

    assert len(read) == 1
    assert list(losses) == ["MRD 1 has no place for items of the kind ArrayComplexFloat; left out (2 times)"]


def test_a_buffer_filled_to_its_last_byte_loses_nothing() -> None:
    # mrd-python 2.1.1 writes one byte too many there when items come one by one from a generator.
    for length in range(65536 - 200, 65536 - 120):
        image = examples.image()
        image.meta["Long"] = ["x" * length]
        item = items.image_to_version_2(image, Losses())
        output = Memory()
        writer = Writer(output, None)
        writer._writer.write_data([item])
        writer.write(item)
        writer.close()
        assert len(list(Reader(Pieces(bytes(output.data)), WireLimits()).raw_items())) == 2


def test_the_preamble_is_that_of_the_package() -> None:
    schema = mrd.MrdReaderBase.schema.encode()
    assert theirs().startswith(b"yardl" + struct.pack("<i", 1) + _varint(len(schema)) + schema)
