"""ismrmrd-python as an independent reader and writer of the same bytes, both ways."""

from __future__ import annotations

import io

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mrd import (
    ACQUISITION_HEADER,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Acquisitions,
    Image,
    ImageDataType,
    Meta,
    Waveform,
)
from server.wire.attributes import read_attributes, write_attributes
from server.wire.connection import State
from tests.server.wire import examples

# Type 4 is left out: ismrmrd-python 1.15 reads it as int64.
READABLE = [data_type for data_type in ImageDataType if data_type is not ImageDataType.INT]


def _written_by(item: ismrmrd.Acquisition | ismrmrd.Image | ismrmrd.Waveform, message_id: int) -> bytes:
    """The message as ismrmrd-python writes it."""
    with io.BytesIO() as stream:
        stream.write(message_id.to_bytes(2, "little"))
        item.serialize_into(stream.write)
        return stream.getvalue()


def _as_lists(meta: ismrmrd.Meta) -> Meta:
    """ismrmrd-python gives a lone value without a list, and None for an empty text."""
    return {
        name: [v or "" for v in (values if isinstance(values, list) else [values])] for name, values in meta.items()
    }


@given(examples.acquisitions(most=1))
@settings(max_examples=40)
def test_ismrmrd_reads_our_acquisitions_and_we_read_its(batch: Acquisitions):
    data = examples.message_bytes(batch)

    theirs = ismrmrd.Acquisition.deserialize_from(io.BytesIO(data[2:]).read)

    assert bytes(theirs.getHead()) == batch.headers.tobytes()
    assert theirs.data.tobytes() == batch.samples.tobytes()
    assert theirs.traj.tobytes() == (b"" if batch.trajectory is None else batch.trajectory.tobytes())
    heard = examples.feed(examples.receiving_in(State.DATA), _written_by(theirs, 1008))
    assert heard == examples.plain(batch)


def test_the_fields_of_an_acquisition_are_where_ismrmrd_puts_them():
    theirs = ismrmrd.Acquisition.from_array(
        np.arange(6).reshape(2, 3) * (1 + 1j),
        np.ones((3, 2), np.float32),
        scan_counter=9,
        center_sample=1,
        sample_time_us=2.5,
    )
    theirs.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    theirs.idx.slice, theirs.idx.kspace_encode_step_1 = 4, 77
    theirs.user_int[3] = -5
    server = examples.receiving_in(State.DATA)
    data = _written_by(theirs, 1008)
    room = server.writable()
    room[: len(data)] = data
    server.received(len(data))

    run = server.next_event()

    header = run.headers[0]
    assert (header["scan_counter"], header["center_sample"], header["sample_time_us"]) == (9, 1, 2.5)
    assert (header["flags"], header["idx"]["slice"], header["idx"]["kspace_encode_step_1"]) == (1 << 7, 4, 77)
    assert header["user_int"].tolist() == [0, 0, 0, -5, 0, 0, 0, 0]
    assert np.array_equal(run.complex_samples()[0], theirs.data)
    assert run.trajectory.view("<f4").tolist() == [[1.0] * 6]


@given(examples.images().filter(lambda picture: picture.header["data_type"] in READABLE))
@settings(max_examples=40)
def test_ismrmrd_reads_our_images_and_we_read_its(picture: Image):
    data = examples.message_bytes(picture)

    theirs = ismrmrd.Image.deserialize_from(io.BytesIO(data[2:]).read)

    ours = np.frombuffer(bytes(theirs.getHead()), IMAGE_HEADER)[0]
    for name in IMAGE_HEADER.names:
        if name != "attribute_string_len":
            assert ours[name].tobytes() == picture.header[name].tobytes()
    assert theirs.data.tobytes() == picture.pixels.tobytes()
    assert _as_lists(theirs.meta) == picture.meta
    # ismrmrd-python writes an empty text as "None" and a carriage return as a line feed, so it gets others to write.
    theirs.meta = ismrmrd.Meta({"DataRole": "Image", "ImageProcessingHistory": ["A", "B"]})
    meta = {"DataRole": ["Image"], "ImageProcessingHistory": ["A", "B"]}
    heard = examples.feed(examples.receiving_in(State.REPLY), _written_by(theirs, 1022))
    assert heard == examples.plain(Image(picture.header, picture.pixels, meta))


@given(examples.waveforms())
@settings(max_examples=40)
def test_ismrmrd_reads_our_waveforms_and_we_read_its(wave: Waveform):
    data = examples.message_bytes(wave)

    theirs = ismrmrd.Waveform.deserialize_from(io.BytesIO(data[2:]).read)

    header = np.frombuffer(bytes(theirs.getHead()), WAVEFORM_HEADER)[0]
    assert all(header[name].tobytes() == wave.header[name].tobytes() for name in WAVEFORM_HEADER.names)
    assert theirs.data.tobytes() == wave.samples.tobytes()
    assert examples.feed(examples.receiving_in(State.DATA), _written_by(theirs, 1026)) == examples.plain(wave)


@given(examples.metas)
@settings(max_examples=60)
def test_ismrmrd_reads_the_attributes_that_we_write(meta: dict[str, list[str]]):
    theirs = ismrmrd.Meta.deserialize(write_attributes(meta).decode())

    assert _as_lists(theirs) == meta


plain_text = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=20)


@given(st.dictionaries(plain_text.filter(bool), st.one_of(plain_text, st.lists(plain_text, min_size=1, max_size=3))))
@settings(max_examples=60)
def test_we_read_the_attributes_that_ismrmrd_writes(values: dict[str, str | list[str]]):
    xml = ismrmrd.Meta(values).serialize().encode()

    meta = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    assert read_attributes(xml) == meta
    assert read_attributes(xml + b"\0") == (meta if xml else {})


def test_headers_have_the_layout_of_ismrmrd():
    for dtype, theirs in (
        (ACQUISITION_HEADER, ismrmrd.AcquisitionHeader),
        (IMAGE_HEADER, ismrmrd.ImageHeader),
        (WAVEFORM_HEADER, ismrmrd.WaveformHeader),
    ):
        offsets = {name: dtype.fields[name][1] for name in dtype.names}
        assert offsets == {name: getattr(theirs, name).offset for name, *_ in theirs._fields_ if name in offsets}


@pytest.mark.parametrize("data_type", ImageDataType, ids=lambda data_type: data_type.name)
def test_pixel_types_are_those_of_ismrmrd(data_type: ImageDataType):
    if data_type is ImageDataType.INT:
        assert data_type == ismrmrd.constants.DATATYPE_INT
    else:
        assert ismrmrd.image.get_dtype_from_data_type(data_type) == data_type.dtype
