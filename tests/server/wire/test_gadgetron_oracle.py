"""The package `gadgetron` as an independent reader and writer of the same bytes: what it writes we read, and back."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

import ismrmrd
import numpy as np
import pytest
from gadgetron.types import acquisition_bucket, image_array, recon_data
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.gadgetron import (
    SAMPLING_DESCRIPTION,
    STATISTICS,
    Bucket,
    ImageArray,
    ReconBit,
    ReconBuffer,
    ReconData,
)
from pipelines.mrd import WAVEFORM_HEADER, Acquisitions, Waveform
from server.wire.connection import State
from tests.server.wire import examples
from tests.server.wire.gadgetron_examples import buckets, image_arrays
from tests.server.wire.gadgetron_examples import recon_data as recon_datas

# numpy on arrays of ctypes structures, inside the package
pytestmark = pytest.mark.filterwarnings("ignore:A builtin ctypes object:RuntimeWarning")


class Wire:
    """What the package takes for a socket."""

    def __init__(self, data: bytes = b"") -> None:
        self._stream = io.BytesIO(data)

    def read(self, n: int) -> bytes:
        data = self._stream.read(int(n))
        assert len(data) == n, "the package wanted more than there is"
        return data

    def write(self, data: object) -> None:
        self._stream.write(bytes(data))

    def written(self) -> bytes:
        return self._stream.getvalue()

    def rest(self) -> bytes:
        return self._stream.read()


def _read_by_package(event: examples.Event, read: Callable[[Wire], object]) -> object:
    """What the package makes of our bytes; it has to take all of them."""
    wire = Wire(examples.message_bytes(event)[2:])
    found = read(wire)
    assert wire.rest() == b""
    return found


def _written_by_package(item: object, write: Callable[[Wire, object], None]) -> list[object]:
    """What we make of the package's bytes."""
    wire = Wire()
    write(wire, item)
    return examples.feed(examples.receiving_in(State.NODE_DATA), wire.written())


def _header_bytes(headers: Iterable[object]) -> bytes:
    return b"".join(bytes(header) for header in headers)


def _same(theirs: np.ndarray | None, ours: np.ndarray | None) -> bool:
    """Whether an array of the package, column-major, holds what ours does; bits, so that NaN equals NaN."""
    if theirs is None or ours is None:
        return theirs is ours
    return theirs.shape == ours.shape[::-1] and theirs.tobytes(order="F") == ours.tobytes()


def _same_headers(theirs: np.ndarray | None, ours: np.ndarray | None) -> bool:
    if theirs is None or ours is None:
        return theirs is ours
    return theirs.shape == ours.shape[::-1] and _header_bytes(theirs.ravel(order="F")) == ours.tobytes()


# ---- recon data


def _agrees(theirs: recon_data.ReconBuffer, ours: ReconBuffer) -> bool:
    sampling = np.frombuffer(bytes(theirs.sampling), SAMPLING_DESCRIPTION)[0]
    return (
        _same(theirs.data, ours.data)
        and _same(theirs.trajectory, ours.trajectory)
        and _same(theirs.density, ours.density)
        and _same_headers(theirs.headers, ours.headers)
        and all(sampling[name].tobytes() == ours.sampling[name].tobytes() for name in SAMPLING_DESCRIPTION.names)
    )


@given(recon_datas)
@settings(max_examples=30, deadline=None)
def test_the_package_reads_our_recon_data_and_we_read_its(recon: ReconData):
    theirs = _read_by_package(recon, recon_data.read_recon_data)

    assert len(theirs.bits) == len(recon.bits)
    for bit, ours in zip(theirs, recon.bits, strict=True):
        assert _agrees(bit.data, ours.data)
        assert (bit.ref is None) == (ours.reference is None)
        assert ours.reference is None or _agrees(bit.ref, ours.reference)
    assert _written_by_package(theirs, recon_data.write_recon_data) == examples.plain(recon)


def test_the_sampling_description_is_that_of_the_package():
    theirs = recon_data.SamplingDescription
    for name, ours in (
        ("encoded_FOV", "encoded_fov_mm"),
        ("recon_FOV", "recon_fov_mm"),
        ("encoded_matrix", "encoded_matrix"),
        ("recon_matrix", "recon_matrix"),
        ("sampling_limits", "limits"),
    ):
        assert getattr(theirs, name).offset == SAMPLING_DESCRIPTION.fields[ours][1]
    # sizeof is 56 in C++ and here alike
    assert len(bytes(theirs())) == SAMPLING_DESCRIPTION.itemsize
    description = theirs()
    description.sampling_limits[1].center = 7
    assert np.frombuffer(bytes(description), SAMPLING_DESCRIPTION)[0]["limits"][1]["center"] == 7


# ---- image arrays


@given(image_arrays())
@settings(max_examples=30, deadline=None)
def test_the_package_reads_our_image_arrays(images: ImageArray):
    theirs = _read_by_package(images, image_array.read_image_array)

    assert _same(theirs.data, images.data)
    assert _same_headers(theirs.headers, images.headers)
    assert tuple(xml.encode() for xml in theirs.meta) == images.meta
    assert _same_headers(theirs.acq_headers, images.acquisition_headers)
    assert (theirs.waveform is None) == (images.waveforms is None)
    for wave, ours in zip(theirs.waveform or (), images.waveforms or (), strict=True):
        header = np.frombuffer(bytes(wave.getHead()), WAVEFORM_HEADER)[0]
        assert all(header[name].tobytes() == ours.header[name].tobytes() for name in WAVEFORM_HEADER.names)
        assert wave.data.tobytes() == ours.samples.tobytes()


@given(image_arrays())
@settings(max_examples=30, deadline=None)
def test_we_read_the_image_arrays_of_the_package_although_it_writes_ids_before_waveforms(images: ImageArray):
    theirs = _read_by_package(images, image_array.read_image_array)

    heard = _written_by_package(theirs, image_array.write_image_array)

    assert heard == examples.plain(images)


# ---- buckets: the package reads them, except those that hold waveforms, and writes none


def _drop_waveforms(bucket: Bucket) -> Bucket:
    return Bucket(bucket.data, bucket.reference, bucket.data_statistics, bucket.reference_statistics)


@given(buckets().map(_drop_waveforms))
@settings(max_examples=30, deadline=None)
def test_the_package_reads_our_buckets(bucket: Bucket):
    theirs = _read_by_package(bucket, acquisition_bucket.read_acquisition_bucket)

    for acquisitions, runs in ((theirs.data, bucket.data), (theirs.ref, bucket.reference)):
        readouts = examples.plain_all(runs)
        assert len(acquisitions) == len(readouts)
        for acquisition, (_, _, header, samples, track) in zip(acquisitions, readouts, strict=True):
            assert bytes(acquisition.getHead()) == header
            assert acquisition.data.tobytes() == samples
            assert acquisition.traj.tobytes() == track
    for spaces, ours in ((theirs.datastats, bucket.data_statistics), (theirs.refstats, bucket.reference_statistics)):
        assert len(spaces) == len(ours)
        for space, values in zip(spaces, ours, strict=True):
            assert {name: tuple(sorted(getattr(space, name))) for name in STATISTICS} == dict(values)


# ---- readouts, waveforms and images through the package's own connection, as it is written there


@given(examples.acquisitions(most=1), examples.waveforms(), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_what_the_package_sends_back_unchanged_is_what_it_was(batch: Acquisitions, wave: Waveform, n: int):
    from gadgetron.external import readers, writers

    for event, read, write in (
        (batch, readers.read_acquisition, writers.write_acquisition),
        (wave, readers.read_waveform, writers.write_waveform),
        (examples.image((1, 1, 2, 1 + n)), readers.read_image, writers.write_image),
    ):
        theirs = _read_by_package(event, read)
        assert isinstance(theirs, ismrmrd.Acquisition | ismrmrd.Waveform | ismrmrd.Image)
        assert _written_by_package(theirs, write) == examples.plain(event)


def test_recon_data_made_with_the_package_alone_is_read():
    head = ismrmrd.AcquisitionHeader()
    head.number_of_samples, head.active_channels, head.idx.slice = 4, 2, 3
    headers = np.empty((3, 1, 1, 1, 1), dtype=object)
    for at in np.ndindex(headers.shape):
        headers[at] = head
    data = (np.arange(4 * 3 * 2) * (1 - 1j)).astype(np.complex64).reshape((4, 3, 1, 2, 1, 1, 1), order="F")
    sampling = recon_data.SamplingDescription()
    sampling.encoded_matrix[1] = 3
    theirs = recon_data.ReconData([recon_data.ReconBit(recon_data.ReconBuffer(data, None, None, headers, sampling))])

    (heard,) = _written_by_package(theirs, recon_data.write_recon_data)

    wire = Wire()
    recon_data.write_recon_data(wire, theirs)
    connection = examples.receiving_in(State.NODE_DATA)
    room = connection.writable()
    room[: len(wire.written())] = wire.written()
    connection.received(len(wire.written()))
    event = connection.next_event()
    assert isinstance(event, ReconData)
    assert examples.plain(event) == [heard]
    bit: ReconBit = event.bits[0]
    assert bit.reference is None
    assert bit.data.data.shape == (1, 1, 1, 2, 1, 3, 4)
    assert bit.data.data[0, 0, 0, 1, 0, 2, 3] == data[3, 2, 0, 1, 0, 0, 0]
    assert bit.data.headers["idx"]["slice"].tolist() == [[[[[3, 3, 3]]]]]
    assert bit.data.sampling["encoded_matrix"].tolist() == [0, 3, 0]
