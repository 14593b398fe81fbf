"""Bytes with their decoding beside them, and the numbers that other programs fix."""

from __future__ import annotations

import gadgetron.external.constants as gadgetron
import numpy as np
import pytest

from pipelines.mrd import ACQUISITION_HEADER, COUNTERS, IMAGE_HEADER, WAVEFORM_HEADER, Meta
from server.wire import codec, images, readouts
from server.wire.connection import TRANSITIONS, State
from server.wire.messages import (
    Close,
    ConfigFile,
    ConfigText,
    DependencyAnswer,
    Event,
    Header,
    MessageId,
    PeerError,
    Query,
    Response,
    Text,
)
from tests.server.wire import examples

TEXTS: dict[str, tuple[Event, str]] = {
    "config file": (ConfigFile("default.xml"), "0100" + b"default.xml".hex() + "00" * 1013),  # id 1, name, NULs to 1024
    "config text": (ConfigText("<a/>"), "0200" "04000000" "3c612f3e"),  # id 2, u32 4, "<a/>"
    "header": (Header(b"<h/>"), "0300" "04000000" "3c682f3e"),  # id 3, u32 4, "<h/>"
    "close": (Close(), "0400"),  # id 4
    "text": (Text("é!"), "0500" "03000000" "c3a9" "21"),  # id 5, u32 3 bytes for two characters
    # id 6, reserved 0, correlation 258, length 1, "q"
    "query": (Query(258, "q"), "0600" + "00" * 8 + "0201000000000000" + "0100000000000000" "71"),
    "response": (Response(258, "0"), "0700" "0201000000000000" "0100000000000000" "30"),  # id 7, 258, 1, "0"
    # id 1019, u64 length with the NUL that Gadgetron counts, attributes
    "dependency": (
        DependencyAnswer({"status": ["failed"]}),
        "fb03" "6a00000000000000"
        + b'<?xml version="1.0"?>\n<ismrmrdMeta>\n'.hex()
        + b"<meta><name>status</name><value>failed</value></meta>\n</ismrmrdMeta>\n".hex()
        + "00",
    ),
    "error": (PeerError("no"), "0800" "0200000000000000" "6e6f"),  # id 8, u64 2, "no"
}  # fmt: skip

ACQUISITION = (
    "f003"  # id 1008
    "0100"  # version 1
    "0000040000000080"  # flags: bit 18 (19: noise measurement) and bit 63 (64: user 8)
    "2a000000" "07000000"  # measurement_uid 42, scan_counter 7
    "10270000" + "01000000" "02000000" "03000000"  # acquisition time stamp 10000, physiology time stamps 1, 2, 3
    "0200" "0300" "0100"  # 2 samples, 3 channels available, 1 active
    + "0100000000000000" + "00" * 120  # channel mask: the first channel
    + "0100" "0200" "0300" "0100" "0200"  # discard 1 and 2, centre 3, encoding space 1, 2 trajectory dimensions
    "00004040"  # 3.0 us a sample
    "0000803f" "00000040" "00004040"  # position 1, 2, 3
    + "0000803f" "00000000" "00000000"  # read direction along x
    + "00000000" "0000803f" "00000000"  # phase direction along y
    + "00000000" "00000000" "0000803f"  # slice direction along z
    + "00" * 12  # patient table
    + "0a00" "0b00" "0c00" "0d00" "0e00" "0f00" "1000" "1100" "1200"  # step 1 is 10, step 2 is 11, ..., segment 18
    + "1300" + "00" * 14  # first user counter 19
    + "ffffffff" + "00" * 28  # first user_int -1
    + "00000000" * 7 + "0000003f"  # last user_float 0.5
    + "0000003f" "000000bf" "0000803f" "000080bf"  # trajectory: (0.5, -0.5), then (1, -1)
    + "0000803f" "00000040" "00004040" "00008040"  # samples 1+2i, 3+4i
)  # fmt: skip

IMAGE = (
    "fe03"  # id 1022
    "0100" "0100" + "0000000000000000"  # version 1, data type 1 (u16), flags
    "2a000000" "0200" "0100" "0100"  # measurement_uid 42, matrix x 2, y 1, z 1
    "00007043" "0000803f" "0000803f" "0200"  # field of view 240 x 1 x 1 mm, 2 channels
    + "00" * 60  # position, three directions, patient table
    + "0100" "0200" "0300" "0400" "0500" "0600"  # average, slice, contrast, phase, repetition, set
    + "00" * 16  # time stamps
    + "0100" "0900" "0300"  # magnitude, image 9 of series 3
    + "00" * 64  # user fields
    + "53000000" "5300000000000000"  # attributes: 83 bytes, said twice
)  # fmt: skip
ATTRIBUTES = "<ismrmrdMeta><meta><name>A</name><value>1</value><value/></meta></ismrmrdMeta>    \n"
PIXELS = "0100" "0200" "0300" "ffff"  # fmt: skip # first channel 1, 2; second 3, 65535

WAVEFORM = (
    "0204"  # id 1026
    "0100" "000000000000"  # version 1, six bytes of padding
    "0000000000000000" "2a000000" "07000000" "10270000"  # flags, measurement_uid 42, scan_counter 7, time stamp 10000
    "0200" "0100" "0000a040" "0200" "0000"  # 2 samples, 1 channel, 5.0 us, waveform 2 (respiration), padding
    "01000000" "ffffffff"  # 1, 4294967295
)  # fmt: skip


@pytest.mark.parametrize(("event", "text"), TEXTS.values(), ids=list(TEXTS))
def test_text_messages_are_these_bytes(event: Event, text: str):
    data = bytes.fromhex(text)
    state = next(
        s for s in (State.CONFIG, State.HEADER, State.REPLY) if codec.read_id(memoryview(data), 0) in TRANSITIONS[s]
    )

    assert examples.message_bytes(event) == data
    assert examples.feed(examples.receiving_in(state), data) == [event]


def test_an_acquisition_is_these_bytes():
    server = examples.receiving_in(State.DATA)
    data = bytes.fromhex(ACQUISITION)
    room = server.writable()
    room[: len(data)] = data
    server.received(len(data))

    run = server.next_event()

    header = run.headers[0]
    assert (header["version"], header["flags"]) == (1, 1 << 18 | 1 << 63)
    assert (header["measurement_uid"], header["scan_counter"], header["acquisition_time_stamp"]) == (42, 7, 10000)
    assert header["physiology_time_stamp"].tolist() == [1, 2, 3]
    assert (header["number_of_samples"], header["available_channels"], header["active_channels"]) == (2, 3, 1)
    assert header["channel_mask"].tolist() == [1] + [0] * 15
    assert (header["discard_pre"], header["discard_post"], header["center_sample"]) == (1, 2, 3)
    assert (header["encoding_space_ref"], header["trajectory_dimensions"], header["sample_time_us"]) == (1, 2, 3.0)
    assert header["position"].tolist() == [1, 2, 3]
    assert [header[name].tolist() for name in ("read_dir", "phase_dir", "slice_dir")] == np.eye(3).tolist()
    assert [header["idx"][name] for name in COUNTERS] == list(range(10, 19))
    assert header["idx"]["user"].tolist() == [19, 0, 0, 0, 0, 0, 0, 0]
    assert (header["user_int"][0], header["user_float"][7]) == (-1, 0.5)
    assert run.trajectory.view("<f4").tolist() == [[0.5, -0.5, 1, -1]]
    assert run.complex_samples().tolist() == [[[1 + 2j, 3 + 4j]]]
    assert examples.message_bytes(run) == data


def test_an_image_is_these_bytes():
    data = bytes.fromhex(IMAGE) + ATTRIBUTES.encode() + bytes.fromhex(PIXELS)
    client = examples.receiving_in(State.REPLY)
    room = client.writable()
    room[: len(data)] = data
    client.received(len(data))

    picture = client.next_event()

    header = picture.header
    assert (header["data_type"], header["measurement_uid"], header["matrix_size"].tolist()) == (1, 42, [2, 1, 1])
    assert (header["field_of_view"].tolist(), header["channels"]) == ([240, 1, 1], 2)
    assert [header[n] for n in ("average", "slice", "contrast", "phase", "repetition", "set")] == [1, 2, 3, 4, 5, 6]
    assert (header["image_type"], header["image_index"], header["image_series_index"]) == (1, 9, 3)
    assert picture.pixels.dtype == "<u2"
    assert picture.pixels.tolist() == [[[[1, 2]]], [[[3, 65535]]]]
    assert picture.meta == {"A": ["1", ""]}
    written = examples.message_bytes(picture)
    assert written[:196] == data[:196]
    assert written.endswith(bytes.fromhex(PIXELS))


def test_a_waveform_is_these_bytes():
    data = bytes.fromhex(WAVEFORM)
    server = examples.receiving_in(State.DATA)
    room = server.writable()
    room[: len(data)] = data
    server.received(len(data))

    wave = server.next_event()

    assert (wave.header["version"], wave.header["measurement_uid"], wave.header["time_stamp"]) == (1, 42, 10000)
    assert (wave.header["sample_time_us"], wave.header["waveform_id"]) == (5.0, 2)
    assert wave.samples.tolist() == [[1, 4294967295]]
    assert examples.message_bytes(wave) == data


def test_attributes_are_written_as_this_text():
    meta: Meta = {"A": ["1", "<&>\r"], "empty": [], "\x01": ["\0"]}

    assert images.write_attributes(meta).decode() == (
        '<?xml version="1.0"?>\n<ismrmrdMeta>\n'
        "<meta><name>A</name><value>1</value><value>&lt;&amp;&gt;&#13;</value></meta>\n"
        "<meta><name>␁</name><value>␀</value></meta>\n"
        "</ismrmrdMeta>\n"
    )


def test_structures_have_the_sizes_of_ismrmrd():
    assert (ACQUISITION_HEADER.itemsize, IMAGE_HEADER.itemsize, WAVEFORM_HEADER.itemsize) == (340, 198, 40)
    assert (readouts.HEADER_BYTES, images.FIXED_BYTES, codec.CONFIG_NAME_BYTES) == (342, 208, 1024)


def test_the_sizes_of_a_real_capture_agree():
    # Captured from gadgetron_ismrmrd_client: 2 channels of 64 samples, with and without a trajectory of 2 dimensions.
    assert len(examples.message_bytes(examples.readouts(1, 2, 64))) == 1366
    assert len(examples.message_bytes(examples.readouts(1, 2, 64, 2))) == 1878


@pytest.mark.parametrize(
    ("message_id", "name"),
    [
        (MessageId.CONFIG_FILE, "FILENAME"),
        (MessageId.CONFIG_TEXT, "CONFIG"),
        (MessageId.HEADER, "HEADER"),
        (MessageId.CLOSE, "CLOSE"),
        (MessageId.TEXT, "TEXT"),
        (MessageId.QUERY, "QUERY"),
        (MessageId.RESPONSE, "RESPONSE"),
        (MessageId.ERROR, "ERROR"),
        (MessageId.ACQUISITION, "ISMRMRD_ACQUISITION"),
        (MessageId.IMAGE, "ISMRMRD_IMAGE"),
        (MessageId.WAVEFORM, "ISMRMRD_WAVEFORM"),
    ],
)
def test_ids_are_those_of_gadgetron(message_id: MessageId, name: str):
    assert getattr(gadgetron, f"GADGET_MESSAGE_{name}") == message_id
