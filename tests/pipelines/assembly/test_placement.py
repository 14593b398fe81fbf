"""Where readouts go, and what is refused: placement, calibration, noise, odd and hostile readouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.frame import Grouping, NoiseCovariance, NoiseSource
from pipelines.assembly.limits import AssemblyLimits
from pipelines.errors import AssemblyError
from pipelines.mrd import AcquisitionFlag, Acquisitions
from pipelines.scan_header import CalibrationMode, TrajectoryType

Streams = Any
F = AcquisitionFlag


def test_partial_fourier_lines_lie_as_in_the_specification_s_example(streams: Streams):
    # MRD specification, "EncodingLimits": 140 lines, counters 0 to 83, centre 28 -> counter 0 is line 42
    scan = streams.scan(140, limits={"kspace_encode_step_1": (0, 83, 28)})
    readouts = [streams.readout(line) for line in range(84)]
    (group,), _ = streams.assemble(scan, readouts)
    assert np.flatnonzero(group.counts[0, 0]).tolist() == list(range(42, 126))
    np.testing.assert_array_equal(group.kspace[0, :, 0, 70], readouts[28].complex_samples()[0])
    assert group.headers["idx"]["kspace_encode_step_1"].tolist() == [28]
    assert group.is_complete


def test_asymmetric_echo_is_placed_by_its_centre_sample(streams: Streams):
    readouts = [streams.readout(line, samples=4, center=1) for line in range(8)]
    (group,), _ = streams.assemble(streams.scan(), readouts)
    assert group.readout_extent == (2, 6)
    np.testing.assert_array_equal(group.kspace[0, :, 0, 0, 2:], readouts[0].complex_samples()[0])
    assert not group.kspace[..., :2].any()


def test_discarded_samples_are_left_out(streams: Streams):
    readouts = [streams.readout(line, discard=(1, 2)) for line in range(8)]
    (group,), _ = streams.assemble(streams.scan(), readouts)
    assert group.readout_extent == (1, 4)
    np.testing.assert_array_equal(group.kspace[0, :, 0, 7, 1:4], readouts[7].complex_samples()[0, :, 1:4])
    assert not group.kspace[..., [0, 4, 5]].any()


def test_discarded_samples_of_a_long_readout_may_lie_outside_the_matrix(streams: Streams):
    readouts = [streams.readout(line, samples=10, center=5, discard=(2, 2)) for line in range(8)]
    (group,), _ = streams.assemble(streams.scan(), readouts)
    np.testing.assert_array_equal(group.kspace[0, :, 0, 0], readouts[0].complex_samples()[0, :, 2:8])


def test_reversed_readout_is_turned_round(streams: Streams):
    readouts = [streams.readout(line, F.IS_REVERSE, samples=5, center=1, discard=(0, 1)) for line in range(8)]
    (group,), _ = streams.assemble(streams.scan(), readouts)
    turned = readouts[2].complex_samples()[0, :, ::-1]
    np.testing.assert_array_equal(
        group.kspace[0, :, 0, 2, 1:5], turned[:, 1:]
    )  # centre sample 3 of the turned row at 3
    assert group.readout_extent == (1, 5)


def test_full_rows_without_a_centre_sample_are_placed_whole_with_one_warning(streams: Streams):
    readouts = [streams.readout(line, center=0) for line in range(8)]
    (group,), assembler = streams.assemble(streams.scan(), readouts, cuts=range(8))
    np.testing.assert_array_equal(group.kspace[0, :, 0, 1], readouts[1].complex_samples()[0])
    (warning,) = assembler.take_warnings()
    assert "centre sample 0" in warning


def test_partitions_of_a_volume_are_placed_along_z(streams: Streams):
    scan = streams.scan(4, z=3, limits={"kspace_encode_step_2": (0, 1, 0)})
    readouts = [streams.readout(line, partition=n) for n in range(2) for line in range(4)]
    (group,), _ = streams.assemble(scan, readouts)
    assert group.kspace.shape == (1, 2, 3, 4, 6)
    assert group.counts[0].sum(axis=1).tolist() == [0, 4, 4]
    np.testing.assert_array_equal(group.kspace[0, :, 2, 3], readouts[7].complex_samples()[0])


def test_embedded_calibration_lines_join_the_image_and_are_marked(streams: Streams):
    scan = streams.scan(acceleration=(2, 1), mode=CalibrationMode.EMBEDDED)
    kinds = {3: F.IS_PARALLEL_CALIBRATION, 4: F.IS_PARALLEL_CALIBRATION_AND_IMAGING, 5: F.IS_PARALLEL_CALIBRATION}
    readouts = [streams.readout(line, *([kinds[line]] if line in kinds else [])) for line in (0, 2, 3, 4, 5, 6)]
    (group,), assembler = streams.assemble(scan, readouts)
    assert np.flatnonzero(group.calibration_lines[0]).tolist() == [3, 4, 5]
    assert np.flatnonzero(group.counts[0, 0]).tolist() == [0, 2, 3, 4, 5, 6]
    assert group.calibration is None
    assert assembler.counts["imaging"] == 6


@pytest.mark.parametrize("mode", [CalibrationMode.SEPARATE, CalibrationMode.EXTERNAL, CalibrationMode.OTHER])
def test_separate_calibration_lines_get_a_grid_of_their_own(streams: Streams, mode: CalibrationMode):
    scan = streams.scan(16, acceleration=(2, 1), mode=mode)
    lines = [
        streams.readout(line, F.IS_PARALLEL_CALIBRATION, samples=4, center=2, seed=n, slice=1)
        for n in range(2)
        for line in (103, 100, 101)
    ]
    readouts = [*lines, *(streams.readout(line, slice=n) for n in range(2) for line in range(0, 16, 2))]
    (other, group), assembler = streams.assemble(scan, readouts)
    assert other.calibration is None
    assert assembler.counts["calibration"] == 6
    calibration = group.calibration
    assert calibration.kspace.shape == (2, 1, 4, 4)
    assert calibration.counts.tolist() == [[2, 2, 0, 2]]
    expected = lines[0].complex_samples()[0] + lines[3].complex_samples()[0]
    np.testing.assert_array_equal(calibration.kspace[:, 0, 3], expected)
    assert (group.counts[0, 0] > 0).sum() == 8
    assert not group.calibration_lines.any()


def test_asymmetric_calibration_lines_keep_what_is_symmetric_about_the_centre(streams: Streams):
    scan = streams.scan(mode=CalibrationMode.SEPARATE)
    line = streams.readout(5, F.IS_PARALLEL_CALIBRATION, samples=6, center=2)
    (group,), _ = streams.assemble(scan, [line, *(streams.readout(n) for n in range(8))])
    np.testing.assert_array_equal(group.calibration.kspace[:, 0, 0], line.complex_samples()[0, :, :5])  # centre at 5//2


def test_calibration_lines_that_span_more_than_the_matrix_are_left_out(streams: Streams):
    scan = streams.scan(mode=CalibrationMode.SEPARATE)
    lines = [streams.readout(n, F.IS_PARALLEL_CALIBRATION) for n in (0, 7, 8, 65_535)]
    (group,), assembler = streams.assemble(scan, [*lines, *(streams.readout(n) for n in range(8))])
    assert group.calibration.counts.shape == (1, 8)
    assert assembler.counts["out_of_range"] == 2


def test_calibration_lines_after_their_images_are_reported(streams: Streams):
    scan = streams.scan(mode=CalibrationMode.SEPARATE)
    readouts = [*(streams.readout(n) for n in range(8)), streams.readout(4, F.IS_PARALLEL_CALIBRATION)]
    _, assembler = streams.assemble(scan, readouts)
    assert any("after images of this slice" in warning for warning in assembler.take_warnings())


def test_noise_readouts_are_collected_with_their_dwell_up_to_the_limit(streams: Streams):
    noise = [streams.readout(0, F.IS_NOISE_MEASUREMENT, samples=9, center=0, dwell=20.0, seed=n) for n in range(4)]
    odd = [
        streams.readout(0, F.IS_NOISE_MEASUREMENT, samples=9, center=0, dwell=10.0, seed=7),
        streams.readout(0, F.IS_NOISE_MEASUREMENT, samples=5, center=0, dwell=20.0, seed=7),
        streams.readout(0, F.IS_NOISE_MEASUREMENT, samples=9, center=0, dwell=20.0, value=np.nan),
    ]
    image = [streams.readout(n) for n in range(8)]
    limits = AssemblyLimits(max_noise_bytes=3 * 2 * 9 * 8)
    (group,), assembler = streams.assemble(streams.scan(), [noise[0], *odd, *noise[1:], *image], limits=limits)
    assert group.noise.sample_time_us == 20.0
    samples = np.concatenate([readout.complex_samples()[0] for readout in noise[:3]], axis=1).astype(np.complex128)
    np.testing.assert_array_equal(group.noise.sums, samples @ samples.conj().T)
    assert group.noise.n_samples == 3 * 9
    fates = assembler.counts
    assert (fates["noise"], fates["noise_unused"], fates["not_finite"]) == (3, 3, 1)


def test_noise_is_counted_and_not_summed_where_its_covariance_would_be_too_large(streams: Streams):
    noise = streams.readout(0, F.IS_NOISE_MEASUREMENT, samples=1, coils=20, center=0)
    image = [streams.readout(n, coils=20) for n in range(8)]
    limits = AssemblyLimits(max_noise_bytes=20 * 20 * 16 - 1)
    (group,), assembler = streams.assemble(streams.scan(), [noise, *image], limits=limits)
    assert (group.noise, assembler.counts["noise_unused"], assembler.noise) == (None, 1, None)


def given_noise(coils: int) -> NoiseCovariance:
    return replace(NoiseCovariance.of(np.ones((1, coils, 20), np.complex64), 5.0), source=NoiseSource.DEPENDENCY)


@pytest.mark.parametrize("has_own", [False, True])
def test_noise_of_an_earlier_scan_is_for_scans_without_their_own(streams: Streams, has_own: bool):
    own = [streams.readout(0, F.IS_NOISE_MEASUREMENT, samples=9, center=0)]
    readouts = [*(own if has_own else []), *(streams.readout(n) for n in range(8))]
    assembler = Assembler(streams.scan(), Grouping.SLICE, streams.Slots(), noise=given_noise(2))
    (group,) = [group for batch in streams.batches(readouts) for group in assembler.add(batch)]
    assert group.noise.source is (NoiseSource.MEASURED if has_own else NoiseSource.DEPENDENCY)
    assert (assembler.noise is not None) == has_own
    assert assembler.take_warnings() == []


def test_noise_of_an_earlier_scan_with_other_coils_is_not_used(streams: Streams):
    assembler = Assembler(streams.scan(), Grouping.SLICE, streams.Slots(), noise=given_noise(3))
    (group,) = [
        group for batch in streams.batches([streams.readout(n) for n in range(8)]) for group in assembler.add(batch)
    ]
    assert group.noise is None
    (warning,) = assembler.take_warnings()
    assert "3 coils" in warning


@pytest.mark.parametrize("cuts", [(), range(20), (3,)])
def test_dwell_times_of_lines_are_handed_on_where_they_differ(streams: Streams, cuts: Any):
    first = [streams.readout(n, dwell=5.0) for n in range(8)]
    again = [streams.readout(n, average=1, dwell=5.0 if n < 4 else 20.0) for n in range(8)]
    odd = [streams.readout(0, average=2, dwell=float("nan")), streams.readout(1, average=2, dwell=-1.0)]
    scan = streams.scan(limits={"average": (0, 2, 0)})
    (group,), _ = streams.assemble(scan, [*first, *again, *odd], cuts=cuts)
    assert group.counts[0, 0].tolist() == [3, 3, 2, 2, 2, 2, 2, 2]
    assert group.dwell_us[0, 0].tolist() == [0, 0, 5, 5, 8, 8, 8, 8]


def test_dwell_times_are_not_handed_on_where_they_are_all_alike(streams: Streams):
    (group,), _ = streams.assemble(streams.scan(), [streams.readout(n) for n in range(8)])
    assert group.dwell_us is None


@pytest.mark.parametrize("n_before", [0, 1])
def test_noise_after_the_first_images_does_not_change_the_units_of_the_rest(streams: Streams, n_before: int):
    noise = [streams.readout(0, F.IS_NOISE_MEASUREMENT, samples=9, center=0, seed=n) for n in range(3)]
    first, second = ([streams.readout(line, repetition=number) for line in range(8)] for number in (0, 1))

    groups, assembler = streams.assemble(streams.scan(), [*noise[:n_before], *first, *noise[n_before:], *second])

    assert [0 if group.noise is None else group.noise.n_samples // 9 for group in groups] == [n_before, n_before]
    assert (assembler.counts["noise"], assembler.counts["noise_unused"]) == (n_before, 3 - n_before)
    assert any("units" in text for text in assembler.take_warnings())


def test_noise_alone_makes_no_group_and_no_error(streams: Streams):
    groups, assembler = streams.assemble(streams.scan(), [streams.readout(0, F.IS_NOISE_MEASUREMENT, center=0)])
    assert (groups, assembler.take_warnings()) == ([], [])


@pytest.mark.parametrize("flag", [23, 24, 26, 27, 28, 29, 30, 31])
def test_readouts_that_are_not_meant_for_the_image_are_kept_out(streams: Streams, flag: int):
    extra = streams.readout(3, F(flag), F.LAST_IN_SLICE, coils=3, samples=5, center=4)
    readouts = [streams.readout(n) for n in range(8)]
    (group,), assembler = streams.assemble(streams.scan(), [*readouts[:4], extra, *readouts[4:]])
    assert (group.counts == 1).all()
    assert assembler.counts["navigator" if flag == 24 else "kept_out"] == 1


def test_a_scan_without_any_image_readout_says_so(streams: Streams):
    groups, assembler = streams.assemble(streams.scan(), [streams.readout(0, F.IS_NAVIGATION_DATA)])
    assert groups == []
    assert any("no images" in text for text in assembler.take_warnings())


@pytest.mark.parametrize("value", [np.nan, np.inf, complex(0, -np.inf)])
@pytest.mark.parametrize("order", [list(range(8)), [7, 0, 3, 1, 2, 4, 6, 5], list(range(7, -1, -1))])
def test_line_with_nan_counts_as_not_measured(streams: Streams, value: complex, order: list[int]):
    readouts = [streams.readout(line) for line in order]
    bad = readouts[order.index(3)].samples.reshape(-1).view(np.complex64)
    bad[5] = value
    (group,), assembler = streams.assemble(streams.scan(), readouts)
    assert np.isfinite(group.kspace).all()
    assert not group.kspace[0, :, 0, 3].any()
    assert group.counts[0, 0].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert (group.is_complete, assembler.counts["not_finite"]) == (False, 1)
    assert "line 3" in assembler.take_warnings()[0]


def test_nan_in_a_repeated_line_leaves_the_first_as_it_was(streams: Streams):
    scan = streams.scan(limits={"average": (0, 1, 0)})
    readouts = [streams.readout(n) for n in range(8)] + [streams.readout(n, average=1, value=np.nan) for n in range(8)]
    (group,), _ = streams.assemble(scan, readouts)
    assert (group.counts == 1).all()
    np.testing.assert_array_equal(group.kspace[0, :, 0, 2], readouts[2].complex_samples()[0])


def test_huge_but_finite_samples_are_used(streams: Streams):
    readouts = [streams.readout(n, value=3e38) for n in range(8)]
    (group,), assembler = streams.assemble(streams.scan(), readouts)
    assert (group.counts == 1).all()
    assert assembler.counts["not_finite"] == 0


@pytest.mark.parametrize("where", [{"samples": 0}, {"coils": 0}])
def test_empty_readouts_are_skipped(streams: Streams, where: dict[str, int]):
    readouts = [streams.readout(0, center=0, **where), *(streams.readout(n) for n in range(8))]
    groups, assembler = streams.assemble(streams.scan(), readouts)
    assert (len(groups), assembler.counts["empty"]) == (1, 1)


def test_readout_that_is_discarded_whole_is_skipped(streams: Streams):
    readouts = [streams.readout(0, discard=(3, 3)), *(streams.readout(n) for n in range(8))]
    groups, assembler = streams.assemble(streams.scan(), readouts)
    assert (len(groups), assembler.counts["empty"]) == (1, 1)


@pytest.mark.parametrize(
    "counters",
    [{"line": 8}, {"line": 65_535}, {"partition": 1}, {"slice": 2}, {"contrast": 1}, {"phase": 9}, {"set": 9}],
)
def test_counter_out_of_range_is_dropped_with_one_warning(streams: Streams, counters: dict[str, int]):
    scan = streams.scan(
        limits={name: (0, top, 0) for name, top in (("slice", 1), ("contrast", 0), ("phase", 3), ("set", 3))}
    )
    stray = streams.readout(**{"line": 0, **counters})
    readouts = [stray, stray, *(streams.readout(n) for n in range(8))]
    groups, assembler = streams.assemble(scan, readouts)
    assert len(groups) == 1
    assert (groups[0].counts == 1).all()
    assert assembler.counts["out_of_range"] == 2
    assert len(assembler.take_warnings()) == 1


def test_limits_beyond_the_matrix_lose_only_what_does_not_fit(streams: Streams):
    scan = streams.scan(8, limits={"kspace_encode_step_1": (0, 9, 5)})
    (group,), assembler = streams.assemble(scan, [streams.readout(n) for n in range(10)])
    assert (group.counts == 1).all()
    assert group.is_complete
    assert assembler.counts["out_of_range"] == 2


def test_mostly_stray_counters_are_an_error(streams: Streams):
    readouts = [streams.readout(n % 40) for n in range(200)]
    with pytest.raises(AssemblyError, match="outside the header's encoding limits"):
        streams.assemble(streams.scan(), readouts)


def test_scan_without_one_readout_in_range_is_an_error(streams: Streams):
    with pytest.raises(AssemblyError, match="none of 3 readouts"):
        streams.assemble(streams.scan(), [streams.readout(n) for n in (8, 9, 10)])


@pytest.mark.parametrize(
    ("readouts", "words"),
    [
        ([{"line": 0}, {"line": 1, "coils": 3}], "expected 2 channels as before, found 3"),
        ([{"line": 0, "encoding": 3}], "encoding_space_ref 3"),
        ([{"line": 0, "samples": 5, "center": 5}], "5 samples with centre 5"),
        ([{"line": 0, "samples": 4, "center": 65_535}], "centre 65535"),
        ([{"line": 0, "samples": 7, "center": 3}], "do not fit into the encoded matrix of 6"),
        ([{"line": 0, "discard": (4, 3)}], "discards 7 of only 6 samples"),
        ([{"line": 0, "discard": (65_535, 65_535)}], "discards 131070"),
    ],
)
def test_readout_that_cannot_be_placed_is_refused_with_its_values(
    streams: Streams, readouts: list[dict[str, Any]], words: str
):
    with pytest.raises(AssemblyError, match=r"slice 0|encoding_space_ref") as caught:
        streams.assemble(streams.scan(), [streams.readout(**readout) for readout in readouts])
    assert words in str(caught.value)


def test_other_channels_in_the_noise_than_in_the_image_are_refused(streams: Streams):
    readouts = [streams.readout(0, F.IS_NOISE_MEASUREMENT, center=0, coils=3), streams.readout(0)]
    with pytest.raises(AssemblyError, match="expected 3 channels as before, found 2"):
        streams.assemble(streams.scan(), readouts)


@pytest.mark.parametrize("flag", [F.COMPRESSION1, F.COMPRESSION4])
def test_compressed_samples_are_refused(streams: Streams, flag: AcquisitionFlag):
    with pytest.raises(AssemblyError, match="compressed"):
        streams.assemble(streams.scan(), [streams.readout(0, flag)])


@pytest.mark.parametrize("kind", sorted(set(TrajectoryType) - {TrajectoryType.CARTESIAN, TrajectoryType.EPI}))
def test_partitions_of_other_trajectories_are_refused_by_name(streams: Streams, kind: TrajectoryType):
    with pytest.raises(AssemblyError, match=kind.value):
        Assembler(streams.scan(z=2, trajectory=kind), Grouping.SLICE, streams.Slots())


def test_trajectory_of_a_cartesian_scan_is_ignored_with_a_warning(streams: Streams):
    readouts = [streams.readout(n) for n in range(8)]
    assembler = Assembler(streams.scan(), Grouping.SLICE, streams.Slots())
    groups = []
    for readout in readouts:
        trajectory = np.zeros((1, 6 * 2 * 4), np.uint8)
        groups += assembler.add(Acquisitions(readout.headers, readout.samples, trajectory))
    assert len(groups) == 1
    assert any("trajectory" in warning for warning in assembler.take_warnings())
