"""What the joint estimation begins with: data terms of the frames, first images, first maps."""

import dataclasses

import pytest
import torch
from torch import Tensor

from pipelines.recon.joint_problem import lengths
from pipelines.recon.joint_start import Start, make_starts
from pipelines.recon.reconstruction import Prepared
from tests.pipelines.recon import joint_scenes

EVERYTHING = 1 << 40


def whole(prepared: Prepared) -> Start:
    starts = make_starts(prepared, EVERYTHING)
    assert starts.n_parts == 1
    (start,) = starts.parts
    return start


def directions(images: Tensor) -> Tensor:
    """Coil images `(items, coils, p, q)` over their length."""
    return images / lengths(images)[:, None]


CASES = {
    "calibration": {},
    "no calibration, several coils": {"calibration": 0, "acceleration": 2},
    "no calibration, all lines": {"calibration": 0},
    "one coil": {"coils": 1},
    "one coil without calibration": {"coils": 1, "calibration": 0},
    "odd": {"rows": 47, "columns": 51},
}


@pytest.mark.parametrize("name", CASES)
def test_first_maps_are_the_directions_of_the_coil_images(name: str):
    arguments = {"coils": 4, "rows": 48, "columns": 48, "noise_std": 0.005} | CASES[name]
    prepared, truth = joint_scenes.cartesian(**arguments)
    images, _ = joint_scenes.coil_images(arguments["coils"], arguments["rows"], arguments["columns"])
    start = whole(prepared)

    inside = truth[:, 0].mT.abs() > 0.1
    overlap = (start.maps.conj() * directions(images[:, :, 0].mT)).sum(1).real[inside]
    # Aliases of twofold undersampling mix what coils see of both places.
    assert float(overlap.mean()) > (0.75 if "several" in name else 0.98)
    torch.testing.assert_close(lengths(start.maps), torch.ones_like(start.image))
    torch.testing.assert_close(start.phase.abs(), torch.ones_like(start.image))


def test_maps_times_the_image_explain_fully_measured_data():
    prepared, _ = joint_scenes.cartesian(rows=48, columns=48, noise_std=0.02)
    start = whole(prepared)
    images, _ = joint_scenes.coil_images(4, 48, 48)
    value = start.data.value(images[:, :, 0].mT)
    # The true coil images leave noise alone; four standard errors.
    assert float(value / start.data.n_samples) == pytest.approx(1, abs=4 / float(start.data.n_samples) ** 0.5)
    assert float(start.data.n_samples) == 4 * 48 * 48


@pytest.mark.parametrize("make", ["cartesian", "radial"])
def test_parts_of_any_size_hold_the_same_planes(make: str):
    arguments = {"frames": 3, "turned": True, "spokes": 12, "n": 24} if make == "radial" else {"frames": 3, "rows": 24}
    prepared, _ = getattr(joint_scenes, make)(**arguments)
    together = make_starts(prepared, EVERYTHING)
    apart = make_starts(prepared, 1)
    one, other = list(together.parts), list(apart.parts)
    assert (len(one), len(other)) == (together.n_parts, apart.n_parts) == (2 if make == "radial" else 1, 3)
    for name in ("image", "maps", "phase"):
        joined, parted = (torch.cat([getattr(start, name) for start in starts]) for starts in (one, other))
        torch.testing.assert_close(joined, parted, rtol=1e-4, atol=1e-4)
    assert sorted(number for start in other for number in start.numbers) == [0, 1, 2]
    assert [n for start in one for n in start.numbers] == [n for start in other for n in start.numbers]
    for starts in (one, other):
        numbers = torch.tensor([number for start in starts for number in start.numbers], dtype=torch.float32)
        volumes = together.to_volumes(numbers[:, None, None].expand(3, 2, 2))
        assert volumes[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_frames_of_a_volume_share_the_maps_of_their_place():
    prepared, _ = joint_scenes.volume()
    start = whole(prepared)
    assert start.maps.shape == (10, 4, 12, 16)
    twice = dataclasses.replace(
        prepared, kspace=prepared.kspace.repeat(2, 1, 1, 1, 1), counts=prepared.counts.repeat(2, 1, 1)
    )
    again = whole(twice)
    torch.testing.assert_close(again.maps[:10], again.maps[10:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.maps[:10], start.maps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_calibration", [True, False])
def test_radial_frames_start_with_their_image_and_smooth_maps(has_calibration: bool):
    prepared, truth = joint_scenes.radial(has_calibration=has_calibration, noise_std=0.005)
    start = whole(prepared)
    images, _ = joint_scenes.coil_images(4, 48, 48)
    inside = truth[:, 0].abs() > 0.1
    overlap = (start.maps.conj() * directions(images[:, :, 0])).sum(1).real[inside]
    assert float(overlap.mean()) > 0.98
    steepest = max(float(lengths(start.maps.diff(dim=axis)).max()) for axis in (-2, -1))
    assert steepest < 0.5
    # Edges are sharp, and the corners of k-space are never reached.
    assert joint_scenes.nrmse(start.image[inside], truth[:, 0][inside]) < 0.15


def test_radial_noise_alone_has_the_data_term_that_it_is_said_to_have():
    total, n_scans = 0.0, 8
    for scan in range(n_scans):
        prepared, _ = joint_scenes.radial(spokes=24, n=32)
        noise = prepared.noise_std * joint_scenes.complex_noise(*prepared.kspace.shape, seed=50 + scan)
        start = whole(dataclasses.replace(prepared, kspace=noise))
        zero = torch.zeros_like(start.maps)
        total += float(start.data.value(zero) / start.data.n_samples) / n_scans
    # Samples weigh unequally, so their number counts less: 1 / sqrt(8 x 4 x 24 x 32) is 0.6 %.
    assert total == pytest.approx(1, abs=0.04)


def test_nothing_measured_of_one_frame_is_no_reason_for_numbers_that_are_none():
    prepared, _ = joint_scenes.radial(spokes=12, n=24, frames=2)
    assert prepared.trajectory is not None
    measured = prepared.trajectory.measured.clone()
    measured[1] = False
    kspace = prepared.kspace * measured[:, None, None]
    broken = dataclasses.replace(
        prepared, kspace=kspace, trajectory=dataclasses.replace(prepared.trajectory, measured=measured)
    )
    for start in make_starts(broken, EVERYTHING).parts:
        assert bool(torch.isfinite(start.data.value_and_gradient(start.maps)[0]).all())
        assert bool(torch.isfinite(start.data.curvature).all())


def test_zero_data_start_with_zeros():
    for prepared, _ in (
        joint_scenes.cartesian(rows=24, columns=24),
        joint_scenes.radial(spokes=12, n=24),
        joint_scenes.volume(),
    ):
        calibration = None if prepared.calibration is None else 0 * prepared.calibration
        empty = dataclasses.replace(prepared, kspace=0 * prepared.kspace, calibration=calibration)
        start = whole(empty)
        assert not bool(start.image.any())
        assert bool(torch.isfinite(torch.view_as_real(start.maps)).all())
        assert bool((start.data.curvature > 0).all())
        assert start.data.value(start.maps * start.image[:, None]).tolist() == [0.0] * len(start.image)


def test_what_an_asymmetric_echo_left_out_does_not_reach_the_maps():
    prepared, truth = joint_scenes.cartesian(rows=48, columns=48, noise_std=0.005)
    sampled = torch.arange(48) >= 18
    assert prepared.calibration is not None
    partial = dataclasses.replace(
        prepared,
        kspace=prepared.kspace * sampled,
        calibration=prepared.calibration * sampled,
        readout_sampled=sampled,
    )
    images, _ = joint_scenes.coil_images(4, 48, 48)
    inside = truth[:, 0].mT.abs() > 0.1
    overlap = (whole(partial).maps.conj() * directions(images[:, :, 0].mT)).sum(1).abs()[inside]
    assert float(overlap.mean()) > 0.98


def test_truth_explains_undersampled_volumes():
    prepared, _ = joint_scenes.volume()
    start = whole(prepared)
    images, _ = joint_scenes.coil_images(4, 16, 10)
    profile = torch.hann_window(14, periodic=False)[1:-1][:, None, None]
    planes = (images[0] * profile).permute(3, 0, 1, 2)
    value = start.data.value(planes.contiguous())
    assert float(value.sum() / start.data.n_samples.sum()) == pytest.approx(1, abs=0.06)
