"""Scans and images through every pair of formats; the oracle for files is ismrmrd-python."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import ismrmrd.serialization
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mrd import Acquisitions, Image, ImageDataType, Waveform
from pipelines.simulate import SimulatedScan
from server.conversion import Format, Tally, convert, interleave
from server.errors import ConversionError, FileError, ProtocolError, SettingsError
from server.image_file import read_images, write_images
from server.losses import Losses
from server.mrd2.items import image_to_version_2, readouts_to_version_2, waveform_to_version_2
from server.scan_file import open_scan, write_scan
from server.streams import read_events
from server.wire.connection import Connection, Role
from server.wire.messages import Close, ConfigFile, Event, Header, Text
from tests.server.mrd2.test_header import minimal
from tests.server.mrd2.test_stream import Pieces, theirs
from tests.server.wire import examples

SUFFIX = {Format.FILE: ".h5", Format.STREAM: ".mrd", Format.STREAM_2: ".mrd2"}
ROADS = [
    (Format.STREAM, Format.FILE, Format.STREAM),
    (Format.STREAM, Format.STREAM_2, Format.STREAM),
    (Format.STREAM, Format.STREAM_2, Format.FILE, Format.STREAM),
    (Format.STREAM, Format.FILE, Format.STREAM_2, Format.STREAM),
]


def ordinary(batch: Acquisitions) -> Acquisitions:
    """Readouts that say of themselves what version 2 takes for granted."""
    batch.headers["version"] = 1
    batch.headers["available_channels"] = batch.headers["active_channels"]
    batch.headers["channel_mask"] = 0
    batch.headers["channel_mask"][:, 0] = (1 << batch.n_coils) - 1
    for name in (
        "sample_time_us",
        "position",
        "read_dir",
        "phase_dir",
        "slice_dir",
        "patient_table_position",
        "user_float",
    ):
        batch.headers[name] = np.nan_to_num(batch.headers[name])
    return batch  # fmt: skip


def dated(waveform: Waveform) -> Waveform:
    waveform.header["version"] = 1
    waveform.header["sample_time_us"] = np.nan_to_num(waveform.header["sample_time_us"])
    return waveform


def named(image: Image) -> Image:
    image.header["version"], image.header["image_type"] = 1, 1 + int(image.header["image_type"]) % 5
    for name in (
        "field_of_view",
        "position",
        "read_dir",
        "phase_dir",
        "slice_dir",
        "patient_table_position",
        "user_float",
    ):
        image.header[name] = np.nan_to_num(image.header[name])
    return image  # fmt: skip


def write(path: Path, events: list[Event]) -> Path:
    path.write_bytes(examples.encode(Role.STREAM, events))
    return path


def read(path: Path) -> list[Any]:
    seen: list[Any] = []
    for event in read_events(Pieces(path.read_bytes()), Connection(Role.STREAM)):
        seen += examples.plain(event)
    return seen


def by_kind(values: list[Any]) -> list[Any]:
    """Readouts, waveforms, images: a file keeps the order of each kind, and images by their series."""
    return [sorted(repr(value) for value in values if value[0] == kind) for kind in ("readout", "waveform", "image")]


@pytest.mark.parametrize("road", ROADS, ids=lambda road: "-".join(road))
@settings(max_examples=15, deadline=None)
@given(
    events=st.lists(
        st.one_of(
            examples.acquisitions(3).map(ordinary), examples.waveforms().map(dated), examples.images().map(named)
        ),
        max_size=6,
    )
)
def test_nothing_is_lost_on_the_way_and_back(road: tuple[Format, ...], events: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}{SUFFIX[kind]}" for number, kind in enumerate(road)]
        write(paths[0], [Header(minimal()), *events, Close()])
        losses = Losses()
        for source, target in pairwise(paths):
            convert(source, target, losses)

        expected, again = read(paths[0]), read(paths[-1])

        assert list(losses) == []
        if Format.FILE in road:
            # An empty trajectory, of readouts without samples, has no dimensions in a file or in version 2.
            assert by_kind(again[1:-1]) == by_kind(expected[1:-1])
        else:
            assert again[1:] == expected[1:]
        if Format.STREAM_2 not in road:
            assert again[0] == expected[0]


def test_a_file_that_was_converted_is_read_by_ismrmrd_python(tmp_path: Path, small_scan: SimulatedScan) -> None:
    images = [examples.image((2, 1, 4, 6), kind) for kind in (ImageDataType.FLOAT, ImageDataType.CXFLOAT)]
    images[1].header["image_series_index"] = 1
    events: list[Event] = [Header(small_scan.header), *small_scan.batches, examples.waveform(2, 5), *images, Close()]
    stream, second = write(tmp_path / "scan.mrd", events), tmp_path / "scan.mrd2"
    for way, target in (([stream], "direct.h5"), ([stream, second], "through_2.h5")):
        for source, after in pairwise([*way, tmp_path / target]):
            convert(source, after, Losses())

        with ismrmrd.Dataset(tmp_path / target, mode="r") as dataset:
            header = ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())
            assert header == ismrmrd.xsd.CreateFromDocument(small_scan.header)
            assert dataset.number_of_acquisitions() == small_scan.n_readouts
            number = 0
            for batch in small_scan.batches:
                for samples, head in zip(batch.complex_samples(), batch.headers, strict=True):
                    readout = dataset.read_acquisition(number)
                    np.testing.assert_array_equal(readout.data, samples)
                    assert bytes(readout.getHead()) == head.tobytes()
                    number += 1
            np.testing.assert_array_equal(dataset.read_waveform(0).data, examples.waveform(2, 5).samples)
            for series, image in enumerate(images):
                np.testing.assert_array_equal(dataset.read_image(f"image_{series}", 0).data, image.pixels)


def test_a_stream_that_was_converted_is_read_by_ismrmrd_python(tmp_path: Path, small_scan: SimulatedScan) -> None:
    write_scan(tmp_path / "scan.h5", small_scan.header, small_scan.batches, [examples.waveform()])
    convert(tmp_path / "scan.h5", tmp_path / "scan.mrd", Losses())

    with (tmp_path / "scan.mrd").open("rb") as file:
        header, *items = ismrmrd.serialization.ProtocolDeserializer(file).deserialize()

    assert header == ismrmrd.xsd.CreateFromDocument(small_scan.header)
    readouts = [item for item in items if isinstance(item, ismrmrd.Acquisition)]
    samples = [row for batch in small_scan.batches for row in batch.complex_samples()]
    assert len(readouts) == len(samples) == len(items) - 1
    for readout, row in zip(readouts, samples, strict=True):
        np.testing.assert_array_equal(readout.data, row)


def test_what_ismrmrd_python_writes_as_a_stream_becomes_a_file(tmp_path: Path, small_scan: SimulatedScan) -> None:
    samples = (np.arange(12) + 1j).reshape(2, 6).astype(np.complex64)
    with (tmp_path / "scan.mrd").open("wb") as file:
        serializer = ismrmrd.serialization.ProtocolSerializer(file)
        serializer.serialize(ismrmrd.xsd.CreateFromDocument(small_scan.header))
        serializer.serialize(ismrmrd.Acquisition.from_array(samples))
        serializer.serialize(ismrmrd.Image.from_array(np.ones((4, 5), np.float32)))
        serializer.close()

    tally = convert(tmp_path / "scan.mrd", tmp_path / "scan.h5", Losses())

    assert tally == Tally(readouts=1, waveforms=0, images=1)
    with open_scan(tmp_path / "scan.h5") as scan:
        (batch,) = scan.batches()
        np.testing.assert_array_equal(batch.complex_samples()[0], samples)
    assert read_images(tmp_path / "scan.h5")["image_0"][0].pixels.sum() == 20


def test_readouts_and_waveforms_go_by_their_time_stamps() -> None:
    batch = examples.readouts(5)
    batch.headers["acquisition_time_stamp"] = [10, 20, 20, 30, 40]
    waveforms = [examples.waveform() for _ in range(4)]
    for waveform, time in zip(waveforms, [5, 20, 35, 99], strict=True):
        waveform.header["time_stamp"] = time

    order = [
        int(item.header["time_stamp"]) if isinstance(item, Waveform) else item.headers["scan_counter"].tolist()
        for item in interleave([batch], waveforms)
    ]

    assert order == [5, [0], 20, [1, 2, 3], 35, [4], 99]


def test_images_without_a_header_are_carried_too(tmp_path: Path) -> None:
    write_images(tmp_path / "images.h5", [examples.image()])
    convert(tmp_path / "images.h5", tmp_path / "images.mrd2", Losses())
    convert(tmp_path / "images.mrd2", tmp_path / "images.mrd", Losses())

    assert read(tmp_path / "images.mrd") == examples.plain_all([examples.image(), Close()])


def test_a_sentence_in_place_of_a_header_is_noted(tmp_path: Path) -> None:
    stream = write(tmp_path / "images.mrd", [Header(b"Dummy XML header"), examples.image(), Close()])
    losses = Losses()
    convert(stream, tmp_path / "images.mrd2", losses)
    assert list(losses) == ["the header is not XML; left out"]


def test_double_precision_survives_a_file(tmp_path: Path) -> None:
    image = examples.image((1, 1, 2, 2), ImageDataType.CXDOUBLE)
    image.pixels[0, 0, 0, 0] = 1 + 1e-12j
    write_images(tmp_path / "images.h5", [image])

    (again,) = read_images(tmp_path / "images.h5")["image_0"]
    assert again.pixels.dtype == np.complex128
    np.testing.assert_array_equal(again.pixels, image.pixels)


def test_what_a_file_or_version_2_has_no_place_for_is_named(tmp_path: Path) -> None:
    events = [ConfigFile("sense"), Header(minimal()), Text("hello"), examples.readouts(2), Text("again")]
    stream = write(tmp_path / "scan.mrd", events)
    for name in ("scan.h5", "scan.mrd2"):
        losses = Losses()
        convert(stream, tmp_path / name, losses)
        assert sorted(losses) == [
            "a text in the stream is left out (2 times)",
            "the configuration in the stream is left out",
            "the input ended without CLOSE; there may have been more",
        ]


def test_what_a_file_holds_besides_is_named(tmp_path: Path, small_scan: SimulatedScan) -> None:
    write_scan(tmp_path / "scan.h5", small_scan.header, small_scan.batches)
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file["dataset/phantom"] = np.zeros(3)
        file.create_group("noise")
    losses = Losses()
    convert(tmp_path / "scan.h5", tmp_path / "scan.mrd", losses)
    assert sorted(losses) == [
        "file: only the group 'dataset' is converted; 'noise' is left out",
        "file: what 'dataset/phantom' holds is not known; left out",
    ]


def test_another_group_can_be_named(tmp_path: Path, small_scan: SimulatedScan) -> None:
    write_scan(tmp_path / "scan.h5", small_scan.header, small_scan.batches)
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file.move("dataset", "scan_1")
        file.copy("scan_1", "scan_2")
    with pytest.raises(FileError, match=r"several groups \(scan_1, scan_2\); say which"):
        convert(tmp_path / "scan.h5", tmp_path / "scan.mrd", Losses())
    with pytest.raises(FileError, match="no group 'scan_3'; it has: scan_1, scan_2"):
        convert(tmp_path / "scan.h5", tmp_path / "scan.mrd", Losses(), group="scan_3")
    assert convert(tmp_path / "scan.h5", tmp_path / "scan.mrd", Losses(), group="scan_2").readouts


@pytest.mark.parametrize("target", ["out.h5", "out.mrd2"])
def test_a_stream_that_breaks_off_leaves_no_file(tmp_path: Path, target: str) -> None:
    data = examples.encode(Role.STREAM, [Header(minimal()), examples.readouts(3)])
    (tmp_path / "scan.mrd").write_bytes(data[:-1])
    with pytest.raises(ProtocolError, match="ended its stream inside"):
        convert(tmp_path / "scan.mrd", tmp_path / target, Losses())
    assert [path.name for path in tmp_path.iterdir()] == ["scan.mrd"]


def test_a_value_that_does_not_fit_leaves_no_file(tmp_path: Path) -> None:
    (item,) = readouts_to_version_2(examples.readouts(), Losses())
    item.value.head.idx.slice = 70_000
    (tmp_path / "scan.mrd2").write_bytes(theirs(item))
    with pytest.raises(ConversionError, match="slice: MRD 1 counts to 65535, found 70000"):
        convert(tmp_path / "scan.mrd2", tmp_path / "scan.h5", Losses())
    assert [path.name for path in tmp_path.iterdir()] == ["scan.mrd2"]


def test_readouts_of_version_2_are_put_together_by_shape(tmp_path: Path) -> None:
    parts = [examples.readouts(300, coils=2), examples.readouts(2, coils=2, samples=3), examples.readouts(1, coils=2)]
    stream_items = [item for part in parts for item in readouts_to_version_2(part, Losses())]
    stream_items.insert(301, waveform_to_version_2(examples.waveform()))
    stream_items.append(image_to_version_2(examples.image(), Losses()))
    (tmp_path / "scan.mrd2").write_bytes(theirs(*stream_items))

    convert(tmp_path / "scan.mrd2", tmp_path / "scan.mrd", Losses())

    expected = examples.plain_all([*map(ordinary, parts), examples.image(), Close()])
    expected.insert(301, *examples.plain(dated(examples.waveform())))
    assert read(tmp_path / "scan.mrd") == expected


@pytest.mark.parametrize(
    ("source", "target", "arguments", "said"),
    [
        ("scan.mrd", "scan.dat", {}, "give --to with one of h5, v1, v2"),
        ("scan.mrd", "-", {}, "give --to"),
        ("scan.mrd", "other.mrd", {}, "already; there is nothing to convert"),
        ("scan.mrd", "scan.mrd", {"wanted": Format.FILE}, "would replace the input"),
        ("scan.mrd", "-", {"wanted": Format.FILE}, "cannot be written to standard output"),
    ],
)
def test_questions_that_make_no_sense_are_refused(
    tmp_path: Path, source: str, target: str, arguments: dict[str, Any], said: str
) -> None:
    write(tmp_path / "scan.mrd", [Header(minimal()), Close()])
    with pytest.raises(SettingsError, match=said):
        convert(tmp_path / source, Path(target) if target == "-" else tmp_path / target, Losses(), **arguments)


@pytest.mark.parametrize("content", [b"", b"x", b"hello, world", b"\x89HDF\r\n\x1a\nno more"])
def test_files_of_no_known_format_are_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "thing").write_bytes(content)
    with pytest.raises(FileError, match=r"none of these|not an HDF5 file"):
        convert(tmp_path / "thing", tmp_path / "out.mrd", Losses())
    assert not (tmp_path / "out.mrd").exists()


def test_the_format_may_be_given_against_the_name(tmp_path: Path) -> None:
    write(tmp_path / "scan.h5", [Header(minimal()), examples.readouts(), Close()])
    convert(tmp_path / "scan.h5", tmp_path / "scan.mrd", Losses(), wanted=Format.STREAM_2)
    assert (tmp_path / "scan.mrd").read_bytes().startswith(b"yardl")
    with pytest.raises(ProtocolError, match="does not begin with `yardl`"):
        convert(tmp_path / "scan.h5", tmp_path / "out.h5", Losses(), given=Format.STREAM_2)
