"""Geometry, times and numbers of images: those of the readout at the centre of k-space, for every mix of counters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.phantom import head_phantom
from pipelines.pipeline import Pipeline
from pipelines.simulate import simulate
from pipelines.simulated_protocol import FrameCounter, Geometry, Protocol, SliceOrder
from pipelines.simulation.disturbances import mix_in, with_reference
from pipelines.simulation.plan import echoes_innermost
from pipelines.simulation.scan import SimulatedScan
from pipelines.simulation.volume import VolumeSampling, simulate_volume

Fixture = Callable[..., Any]
NAMES = ("slice", "contrast", "phase", "repetition", "set")
OBLIQUE = Geometry.oblique((5.0, -40.0, 33.0), tilt_deg=15, rotation_deg=50)
PROTOCOL = Protocol(
    n_coils=2, geometry=OBLIQUE, table_position_mm=(0.0, 0.0, -812.5), slice_thickness_mm=4, slice_gap_mm=1.5,
    noise_readouts=2, noise_samples=16, repetition_time_ms=7.3,
)  # fmt: skip

COUNTERS = st.lists(
    st.tuples(st.sampled_from(FrameCounter), st.integers(1, 3)), max_size=3, unique_by=lambda pair: pair[0]
).map(tuple)


def images_of(scan: SimulatedScan, assemble: Fixture) -> dict[tuple[int, ...], tuple[Any, Any]]:
    """Magnitude and uncertainty image of every group."""
    pipeline = Pipeline("zero_filled", {}, "cpu")
    return {key: pipeline(group, {}).images for key, group in assemble(scan)[0].items()}


@given(
    counters=COUNTERS,
    n_slices=st.integers(1, 3),
    first=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 4), max_size=3),
    averages=st.integers(1, 2),
    order=st.sampled_from(SliceOrder),
    is_interleaved=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_headers_are_those_of_the_readout_at_the_centre(
    assemble: Fixture, place: Fixture, counters: Any, n_slices: int, first: dict[str, int], averages: int,
    order: SliceOrder, is_interleaved: bool,
) -> None:  # fmt: skip
    n_frames = int(np.prod([size for _, size in counters]))
    protocol = replace(PROTOCOL, frame_counters=counters, first_counters=first, averages=averages, slice_order=order)
    anatomy = np.ones((n_frames, n_slices, 16, 12), np.float32)
    scan = mix_in(simulate(anatomy, protocol, edit=echoes_innermost if is_interleaved else None))
    placed, images = place(scan), images_of(scan, assemble)
    assert len(images) == n_frames * n_slices
    for key, pair in images.items():
        centre = [a for a in placed[key].acquisitions if a.idx.kspace_encode_step_1 == 8]
        assert len(centre) == averages
        for number, image in enumerate(pair):
            header, own = image.header, centre[0]
            slice_offset = (key[1] - first.get("slice", 0) - (n_slices - 1) / 2) * 5.5
            expected = np.array(OBLIQUE.position_mm) + slice_offset * np.array(OBLIQUE.slice_dir)
            np.testing.assert_allclose(header["position"], expected, atol=1e-3)
            np.testing.assert_allclose(header["read_dir"], OBLIQUE.read_dir, atol=1e-6)
            np.testing.assert_allclose(header["phase_dir"], OBLIQUE.phase_dir, atol=1e-6)
            np.testing.assert_allclose(header["slice_dir"], OBLIQUE.slice_dir, atol=1e-6)
            np.testing.assert_allclose(header["patient_table_position"], (0, 0, -812.5))
            np.testing.assert_allclose(header["field_of_view"], (220, 220, 4))
            # ticks of 2.5 ms are handed on as they are
            assert int(header["acquisition_time_stamp"]) == own.acquisition_time_stamp
            assert header["physiology_time_stamp"].tolist() == list(own.physiology_time_stamp)
            assert int(header["measurement_uid"]) == own.measurement_uid
            assert [int(header[name]) for name in NAMES] == list(key[1:])
            assert int(header["image_series_index"]) == 1 + number


@given(counters=COUNTERS, n_slices=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_images_of_a_series_are_numbered_one_to_n(assemble: Fixture, counters: Any, n_slices: int) -> None:
    """Mixed radix over the header's limits, as Gadgetron numbers them: slice fastest, repetition slowest."""
    n_frames = int(np.prod([size for _, size in counters]))
    scan = simulate(np.ones((n_frames, n_slices, 12, 12), np.float32), replace(PROTOCOL, frame_counters=counters))
    images = images_of(scan, assemble)
    for series in (0, 1):
        numbers = {key: int(pair[series].header["image_index"]) for key, pair in images.items()}
        assert sorted(numbers.values()) == list(range(1, len(images) + 1))
        by_number = sorted(numbers, key=lambda key: numbers[key])
        # slice, contrast, phase, set, repetition
        assert by_number == sorted(numbers, key=lambda key: (key[4], key[5], key[3], key[2], key[1]))


def test_images_of_a_second_encoding_space_go_on_counting_in_series_of_their_own(assemble: Fixture) -> None:
    scan = with_reference(simulate(np.ones((2, 16, 12), np.float32), replace(PROTOCOL, repetitions=2)), (6, 8))
    numbers = {
        (key[0], int(image.header["image_series_index"]), int(image.header["image_index"]))
        for key, pair in images_of(scan, assemble).items()
        for image in pair
    }
    assert {number for space, series, number in numbers if (space, series) == (0, 1)} == {1, 2, 3, 4}
    assert {number for space, series, number in numbers if (space, series) == (0, 2)} == {1, 2, 3, 4}
    assert {(space, series, number) for space, series, number in numbers if space == 1} == {
        (1, 3, 5), (1, 3, 6), (1, 4, 5), (1, 4, 6)
    }  # fmt: skip


@pytest.mark.parametrize("missing", [False, True])
def test_volume_has_the_position_and_time_of_its_centre(assemble: Fixture, place: Fixture, missing: bool) -> None:
    volume = VolumeSampling(slice_oversampling=0.25, partial_fourier_z=0.75 if missing else 1.0)
    protocol = replace(PROTOCOL, partial_fourier=0.75 if missing else 1.0)
    scan = simulate_volume(head_phantom(8, 16, 12), protocol, volume)
    ((key, (image, _)),) = images_of(scan, assemble).items()
    z = 5 - volume.skipped_partitions(8)
    y = 8 - protocol.skipped_lines(16)
    (own,) = [
        a for a in place(scan)[key].acquisitions if (a.idx.kspace_encode_step_1, a.idx.kspace_encode_step_2) == (y, z)
    ]
    assert int(image.header["acquisition_time_stamp"]) == own.acquisition_time_stamp
    np.testing.assert_allclose(image.header["position"], OBLIQUE.position_mm)
    np.testing.assert_allclose(image.header["field_of_view"], (220, 220, 32))
    assert image.header["matrix_size"].tolist() == [12, 16, 8]


def test_echo_time_of_each_contrast_goes_into_its_images(assemble: Fixture) -> None:
    protocol = replace(PROTOCOL, frame_counter=FrameCounter.CONTRAST, echo_time_ms=2.5)
    scan = simulate(np.ones((3, 1, 12, 12), np.float32), protocol, edit=echoes_innermost)
    times = {key[2]: pair[0].meta["EchoTime"] for key, pair in images_of(scan, assemble).items()}
    assert times == {0: ["2.5"], 1: ["5"], 2: ["7.5"]}


def test_time_stamps_of_cardiac_phases_are_those_since_the_trigger(assemble: Fixture) -> None:
    protocol = replace(PROTOCOL, frame_counter=FrameCounter.PHASE, first_counters={"phase": 2})
    scan = simulate(np.ones((3, 1, 12, 12), np.float32), protocol)
    stamps = {
        key[3]: int(pair[0].header["physiology_time_stamp"][0]) for key, pair in images_of(scan, assemble).items()
    }
    assert stamps == {2: 0, 3: 16, 4: 32}  # 40 ms in ticks of 2.5 ms
