"""Sessions from images to images, as published OpenRecon applications have them, through a real server."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import ismrmrd
import numpy as np
import pytest

from pipelines.mrd import ImageType

Connect = Callable[[], Any]


def sent_image(series: int, index: int, dtype: type = np.uint16, **meta: str) -> tuple[bytes, ismrmrd.Image]:
    """An image as ismrmrd-python writes it, with its id."""
    pixels = np.random.default_rng(index).integers(100, 1000, (1, 20, 24)).astype(dtype)
    image = ismrmrd.Image.from_array(pixels, transpose=False)
    image.image_series_index, image.image_index, image.image_type = series, index, ismrmrd.IMTYPE_MAGNITUDE
    image.field_of_view = (48.0, 40.0, 5.0)
    image.position, image.read_dir = (1.0, 2.0, 3.0), (0.0, 1.0, 0.0)
    image.attribute_string = ismrmrd.Meta(meta).serialize()
    parts: list[bytes] = []
    image.serialize_into(parts.append)
    return struct.pack("<H", 1022) + b"".join(bytes(part) for part in parts), image


def by_series(images: list[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for image in images:
        found.setdefault(int(image.header["image_series_index"]), []).append(image)
    return found


@pytest.mark.parametrize("header", ["Dummy XML header", "valid"])
def test_images_come_back_as_they_were_sent_with_or_without_a_scan_header(
    connect: Connect, says: Any, scan: Any, header: str
) -> None:
    peer = connect()
    text = scan.header if header == "valid" else header + "\0"
    images = [sent_image(5, number, SeriesDescription="t1") for number in range(3)]

    peer.say(says.config("pass_through"), says.text(3, text), *(data for data, _ in images), says.CLOSE)
    heard = peer.hear()

    assert not heard.error
    assert heard.closed
    assert len(heard.images) == 3
    for (_, original), returned in zip(images, heard.images, strict=True):
        np.testing.assert_array_equal(returned.pixels[0], original.data[0])
        assert returned.meta["SeriesDescription"] == ["t1"]
        assert int(returned.header["image_index"]) == original.image_index
    assert any("header is not used" in text for text in heard.texts) == (header != "valid")


def test_a_filtered_series_and_its_uncertainty_follow_each_original(connect: Connect, says: Any) -> None:
    peer = connect()
    json = '{"version": "1.1.0", "parameters": {"config": "magnitude_filter", "fwhm_mm": "3", "send_original": "True"}}'
    images = [sent_image(series, number) for series in (1, 2) for number in range(2)]

    peer.say(
        says.config("openrecon"), says.text(3, "Dummy XML header"), says.text(5, json),
        *(data for data, _ in images), says.CLOSE,
    )  # fmt: skip
    heard = peer.hear()

    assert not heard.error
    found = by_series(heard.images)
    assert {series: len(members) for series, members in found.items()} == {
        1: 2, 2: 2, 10_001: 2, 10_002: 2, 20_001: 2, 20_002: 2,
    }  # fmt: skip
    assert [int(image.header["image_series_index"]) for image in heard.images[:3]] == [1, 10_001, 20_001]
    assert heard.images[2].meta["ReconUncertaintyKind"] == ["noise"]
    assert heard.images[1].pixels.std() < heard.images[0].pixels.std()


def test_readouts_in_an_image_session_and_images_in_a_raw_session_are_refused(
    connect: Connect, says: Any, scan: Any
) -> None:
    peer = connect()
    peer.say(says.config("pass_through"), says.text(3, scan.header), says.readouts(scan, 1))
    assert "ERROR protocol: raw readouts were sent; the chosen pipeline takes images" in peer.hear().error

    peer = connect()
    peer.say(says.config("sense"), says.text(3, scan.header), sent_image(1, 1)[0])
    assert "ERROR protocol: images were sent; the chosen pipeline takes raw readouts" in peer.hear().error


def test_a_raw_pipeline_still_needs_a_header(connect: Connect, says: Any) -> None:
    peer = connect()
    peer.say(says.config("sense"), says.text(3, "Dummy XML header"), says.CLOSE)

    assert peer.hear().error.startswith("ERROR bad_header: ")


def test_a_scanner_that_injects_complex_images_gets_them(connect: Connect, says: Any, scan: Any) -> None:
    peer = connect()
    json = '{"pipeline": "sense", "parameters": {"parts": "complex,phase"}}'
    peer.say(says.text(2, json), says.text(3, scan.header), says.readouts(scan), says.CLOSE)
    heard = peer.hear(60)

    assert not heard.error
    kinds = [int(image.header["image_type"]) for image in heard.images[:3]]
    assert kinds == [ImageType.COMPLEX, ImageType.PHASE, ImageType.MAGNITUDE]
    whole, phase, deviation = heard.images[:3]
    np.testing.assert_allclose(np.angle(whole.pixels), phase.pixels, atol=1e-5)
    assert "ReconUncertaintyKind" in deviation.meta
    assert len(heard.images) == 3 * 4
