from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.frame import NoiseSource
from pipelines.emission import (
    MAGNITUDE_SERIES,
    UNCERTAINTY_SERIES,
    Emission,
    emit,
)
from pipelines.image_header import image_index
from pipelines.mrd import ACQUISITION_HEADER, ImageDataType, ImageType
from pipelines.parts import Part
from pipelines.scan_header import Encoding, Limit, Space

KNOWN = Emission(
    kind="noise",
    calibration="analytic",
    noise=NoiseSource.MEASURED,
    pipeline="sense",
    parameters_digest="ab12",
    details={"ReconIterations": "12"},
    provenance={"ReconSession": "s-1", "ReconDegraded": "true", "ReconSoftwareVersion": "9.9"},
)
GRID = Encoding(Space((8, 4, 1), (16.0, 8.0, 3.0)), Space((4, 4, 1), (8.0, 8.0, 3.0)))


def emitted(group, emission=KNOWN):
    pixels = np.linspace(0, 100, group.kspace.shape[0] * 16 * 16, dtype=np.float32).reshape(-1, 1, 16, 16)
    images, warnings = emit(group, pixels, pixels / 10, emission)
    return images, warnings


def acquisition(**counters: int):
    header = np.zeros((), ACQUISITION_HEADER)
    for name, value in counters.items():
        header["idx"][name] = value
    return header


def test_each_part_asked_for_is_a_series_of_its_own_before_the_uncertainty(make_group):
    rng = np.random.default_rng(1)
    pixels = (rng.standard_normal((1, 1, 16, 16)) + 1j * rng.standard_normal((1, 1, 16, 16))).astype(np.complex64)
    parts = (Part.MAGNITUDE, Part.PHASE, Part.REAL, Part.IMAGINARY, Part.COMPLEX)

    images, _ = emit(make_group(), pixels, np.ones((1, 1, 16, 16), np.float32), replace(KNOWN, parts=parts))

    by_type = {ImageType(int(image.header["image_type"])): image for image in images[:5]}
    assert [int(image.header["image_series_index"]) for image in images] == [1, 3001, 1001, 2001, 4001, 2]
    assert len({image.meta["SequenceDescriptionAdditional"][0] for image in images}) == 6
    magnitude, phase = by_type[ImageType.MAGNITUDE].pixels, by_type[ImageType.PHASE].pixels
    np.testing.assert_allclose(magnitude * np.exp(1j * phase), pixels, rtol=1e-5, atol=1e-6)
    whole = by_type[ImageType.REAL].pixels + 1j * by_type[ImageType.IMAG].pixels
    np.testing.assert_array_equal(whole, pixels)
    np.testing.assert_array_equal(by_type[ImageType.COMPLEX].pixels, pixels)
    assert by_type[ImageType.PHASE].meta["DataRole"] == ["Phase"]
    for image in images:
        assert image.pixels.dtype == ImageDataType(int(image.header["data_type"])).dtype


def test_each_frame_gives_a_magnitude_and_then_its_uncertainty(make_group):
    images, warnings = emitted(make_group(np.ones((3, 2, 1, 16, 32), np.complex64)))

    assert [int(image.header["image_series_index"]) for image in images] == [1, 2] * 3
    assert [int(image.header["repetition"]) for image in images] == [0, 0, 1, 1, 2, 2]
    assert [int(image.header["image_index"]) for image in images] == [1, 1, 4, 4, 7, 7]
    assert warnings == []


def test_geometry_and_stamps_come_from_the_readout_at_the_centre(make_group):
    group = make_group()
    group.headers["patient_table_position"] = (0, 0, -120)
    group.headers["measurement_uid"] = 77
    group.headers["acquisition_time_stamp"] = 1234
    group.headers["physiology_time_stamp"] = (5, 6, 7)
    group.headers["user_int"] = range(8)
    group.headers["user_float"] = np.arange(8) / 2
    group.headers["idx"]["slice"], group.headers["idx"]["average"] = 2, 1

    for image in emitted(group)[0]:
        header = image.header
        for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position", "measurement_uid",
                     "acquisition_time_stamp", "physiology_time_stamp", "user_int", "user_float"):  # fmt: skip
            np.testing.assert_array_equal(header[name], group.headers[0][name])
        assert (int(header["slice"]), int(header["average"]), int(header["version"])) == (2, 1, 1)
        assert header["field_of_view"].tolist() == [32, 32, 4]
        assert header["matrix_size"].tolist() == [16, 16, 1]
        assert (int(header["channels"]), int(header["image_type"])) == (1, ImageType.MAGNITUDE)


def test_matrix_and_data_type_agree_with_the_pixels(make_group):
    for image in emitted(make_group())[0]:
        channels, z, y, x = image.pixels.shape
        assert image.header["matrix_size"].tolist() == [x, y, z]
        assert int(image.header["channels"]) == channels
        assert ImageDataType(int(image.header["data_type"])).dtype == image.pixels.dtype
        assert image.pixels.flags.c_contiguous


def test_only_flags_that_make_sense_on_an_image_are_copied(make_group):
    group = make_group()
    group.headers["flags"] = (1 << 7) | (1 << 18) | (1 << 20) | (1 << 24)

    assert int(emitted(group)[0][0].header["flags"]) == (1 << 7) | (1 << 24)


def test_missing_directions_become_those_of_the_patient_and_are_reported(make_group):
    group = make_group()
    group.headers["phase_dir"] = 0

    images, warnings = emitted(group)

    assert images[0].header["phase_dir"].tolist() == [0, 1, 0]
    assert "phase_dir" in warnings[0]


def test_meta_of_both_series_is_complete(make_group):
    group = make_group()
    scan = replace(group.scan, echo_times_ms=(2.5, 5.0), protocol_name="t1")
    (magnitude, uncertainty), _ = emitted(replace(group, scan=scan))

    shared = {
        "Keep_image_geometry": ["1"],
        "ReconSoftware": ["echotrain"],
        "ReconSoftwareVersion": ["9.9"],
        "ReconPipeline": ["sense"],
        "ReconConfigDigest": ["ab12"],
        "ReconSession": ["s-1"],
        "ReconQualification": ["RESEARCH"],
        "ReconDegraded": ["true"],
        "ReconCompletion": ["flag"],
        "ReconNoise": ["measured"],
        "ReconIterations": ["12"],
        "EchoTime": ["2.5"],
    }
    assert magnitude.meta == shared | {
        "DataRole": ["Image"],
        "ImageProcessingHistory": ["ECHOTRAIN", "SENSE"],
        "SequenceDescriptionAdditional": ["echotrain_sense"],
        "SeriesDescription": ["t1_recon"],
        "WindowCenter": ["50"],
        "WindowWidth": ["100"],
    }
    assert uncertainty.meta == shared | {
        "DataRole": ["Quantitative"],
        "ImageProcessingHistory": ["ECHOTRAIN", "SENSE", "STANDARD_DEVIATION"],
        "SequenceDescriptionAdditional": ["echotrain_sense_std"],
        "ImageComments": ["Standard deviation of the magnitude series, in its units"],
        "SeriesDescription": ["t1_echotrain_std"],
        "ReconUncertaintyKind": ["noise"],
        "ReconUncertaintyUnit": ["magnitude"],
        "ReconUncertaintyCalibration": ["analytic"],
    }


def test_meta_says_what_is_missing_and_guessed(make_group):
    counts = np.ones((1, 1, 16), np.float32)
    counts[0, 0, 10:] = 0
    group = make_group(counts=counts, is_complete=False, expected_lines=16)

    (magnitude, _), _ = emitted(group, replace(KNOWN, noise=NoiseSource.ESTIMATED, provenance={}))

    assert magnitude.meta["Incomplete"] == ["10 of 16 lines"]
    assert magnitude.meta["ReconNoise"] == ["estimated"]
    assert magnitude.meta["ReconDegraded"] == ["false"]
    assert magnitude.meta["ReconSoftwareVersion"][0]
    assert "EchoTime" not in magnitude.meta
    assert "SeriesDescription" not in magnitude.meta


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=5, max_size=5))
def test_image_numbers_count_from_one_without_gaps_or_repeats(sizes):
    names = ("slice", "contrast", "phase", "set", "repetition")
    limits = {name: Limit(0, size - 1, 0) for name, size in zip(names, sizes, strict=True)}
    encoding = replace(GRID, limits=limits)

    numbers = [
        image_index(acquisition(**dict(zip(names, counters, strict=True))), encoding, [])
        for counters in product(*(range(size) for size in sizes))
    ]

    assert sorted(numbers) == list(range(1, int(np.prod(sizes)) + 1))


def test_a_scan_that_outlasts_its_header_keeps_numbering():
    encoding = replace(GRID, limits={"slice": Limit(0, 2, 0), "repetition": Limit(0, 0, 0)})
    warnings: list[str] = []

    numbers = {image_index(acquisition(slice=s, repetition=r), encoding, warnings) for s in range(3) for r in range(50)}

    assert len(numbers) == 150
    assert warnings == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_geometry_that_is_not_finite_is_replaced_and_reported(make_group, value):
    group = make_group(np.ones((1, 2, 1, 16, 32), np.complex64))
    headers = group.headers.copy()
    headers["position"], headers["read_dir"] = (1, value, 3), (value, 0, 0)

    images, warnings = emitted(replace(group, headers=headers))

    assert images[0].header["position"].tolist() == [0, 0, 0]
    assert images[0].header["read_dir"].tolist() == [1, 0, 0]
    assert len(warnings) == 2


def test_images_of_two_encoding_spaces_have_different_numbers_and_series(make_group):
    group = make_group(np.ones((1, 2, 1, 16, 32), np.complex64))
    encoding = replace(group.scan.encodings[0], limits={"slice": Limit(0, 2, 0), "repetition": Limit(0, 1, 0)})
    scan = replace(group.scan, encodings=(encoding, encoding))

    numbers = []
    for space, slice_, repetition in product(range(2), range(3), range(2)):
        header = group.headers.copy()
        header["idx"]["slice"], header["idx"]["repetition"] = slice_, repetition
        images, _ = emitted(replace(group, scan=scan, headers=header, key=replace(group.key, encoding=space)))
        numbers.append(int(images[0].header["image_index"]))
        series = [int(image.header["image_series_index"]) for image in images]
        assert series == [MAGNITUDE_SERIES + 2 * space, UNCERTAINTY_SERIES + 2 * space]

    assert sorted(numbers) == list(range(1, 13))


def test_a_counter_beyond_its_limit_is_reported():
    warnings: list[str] = []

    image_index(acquisition(phase=3), GRID, warnings)

    assert "phase is 3" in warnings[0]


def test_numbers_beyond_sixteen_bits_start_again_and_never_are_zero():
    warnings: list[str] = []
    encoding = replace(GRID, limits={"slice": Limit(0, 9, 0)})

    assert image_index(acquisition(slice=4, repetition=6553), encoding, warnings) == 65535
    assert warnings == []
    assert image_index(acquisition(slice=5, repetition=6553), encoding, warnings) == 1
    assert "65535" in warnings[0]


@pytest.mark.parametrize("method", ["homodyne", "pocs", "zero_fill"])
def test_a_phase_that_was_assumed_is_told(make_group, method):
    known = replace(KNOWN, details={"ReconPartialFourier": f"{method} along y"})
    pixels = np.ones((1, 1, 16, 16), np.complex64)
    deviation = np.ones((1, 1, 16, 16), np.float32)

    images, warnings = emit(make_group(), pixels, deviation, replace(known, parts=(Part.MAGNITUDE, Part.COMPLEX)))

    told = [any("assumed" in text for text in image.meta.get("ImageComments", [])) for image in images]
    assert told == [False, method != "zero_fill", False]
    assert any("smooth" in warning for warning in warnings) == (method != "zero_fill")
    assert not any("smooth" in warning for warning in emit(make_group(), pixels, deviation, known)[1])
