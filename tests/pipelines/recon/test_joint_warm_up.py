"""The beginning of the joint estimation: a normalised image, and maps of what total variation fills in."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.operators.fourier import to_image
from pipelines.recon import joint_warm_up
from pipelines.recon.joint_problem import unit_maps
from pipelines.recon.joint_start import Start, make_starts, maps_of_images
from pipelines.recon.joint_warm_up import Begun, warm_up
from pipelines.recon.reconstruction import Prepared
from tests.pipelines.recon import joint_scenes


def begin(prepared: Prepared, *, new_maps: bool = True, is_complex: bool = True) -> tuple[Start, Begun]:
    start = next(iter(make_starts(prepared, 1 << 24).parts))
    found = warm_up(start, start.noise_std, is_complex=is_complex, new_maps=new_maps, should_stop=None)
    return start, found


def error_of_maps(maps: Tensor, coils: Tensor) -> float:
    """How much of the true coil images `(coils, y, x)` lies outside the span of the maps `(1, coils, x, y)`."""
    unit = unit_maps(maps)[0].mT
    along = (unit.conj() * coils).sum(0)
    return float(torch.linalg.vector_norm(coils - unit * along) / torch.linalg.vector_norm(coils))


def test_maps_of_few_calibration_lines_come_nearer_to_those_of_all_lines():
    prepared, truth = joint_scenes.cartesian(acceleration=3, calibration=8, noise_std=0.005)
    coils = joint_scenes.coil_images(4, 64, 64)[0][0, :, 0]
    start, found = begin(prepared)
    assert error_of_maps(found.maps, coils) < 0.8 * error_of_maps(start.maps, coils)
    image = (found.image.abs() * found.unit[:, None, None])[:, None].mT
    held = begin(prepared, new_maps=False)[1]
    of_held = (held.image.abs() * held.unit[:, None, None])[:, None].mT
    assert joint_scenes.nrmse(image, truth) < joint_scenes.nrmse(of_held, truth)


def test_maps_of_fully_sampled_images_are_those_of_their_calibration_lines():
    prepared, _ = joint_scenes.cartesian(calibration=24, noise_std=1e-4)
    start = next(iter(make_starts(prepared, 1 << 24).parts))
    maps = maps_of_images(to_image(prepared.kspace[:, :, 0]).mT)
    coils = joint_scenes.coil_images(4, 64, 64)[0][0, :, 0]
    assert abs(error_of_maps(maps, coils) - error_of_maps(start.maps, coils)) < 1e-3


def test_maps_that_are_held_stay_and_a_real_image_stays_real():
    prepared, _ = joint_scenes.cartesian(acceleration=2)
    start, found = begin(prepared, new_maps=False, is_complex=False)
    assert torch.equal(found.maps, start.maps)
    assert not found.image.is_complex()


def test_the_image_has_tissue_of_one_in_its_unit():
    prepared, truth = joint_scenes.cartesian(acceleration=2)
    found = begin(prepared)[1]
    assert 0.98 < float(torch.quantile(found.image.abs().flatten(), 0.998)) < 1.02
    bright = float(torch.quantile(truth.abs().flatten(), 0.998))
    assert 0.9 < float(found.unit) / bright < 1.1


def test_maps_of_samples_off_the_grid_stay_as_they_are():
    prepared, _ = joint_scenes.radial()
    start, found = begin(prepared)
    assert torch.equal(found.maps, start.maps)
    assert bool(torch.isfinite(found.image.abs()).all())


def test_what_is_told_to_stop_returns_what_there_is(monkeypatch):
    monkeypatch.setattr(joint_warm_up, "FIRST_STEPS", 5)
    prepared, _ = joint_scenes.cartesian(acceleration=2)
    start = next(iter(make_starts(prepared, 1 << 24).parts))
    found = warm_up(start, start.noise_std, is_complex=True, new_maps=True, should_stop=lambda: True)
    assert torch.equal(found.maps, start.maps)
    assert bool((found.unit > 0).all())


def test_planes_do_not_touch_each_other():
    prepared, _ = joint_scenes.cartesian(acceleration=3, calibration=8, frames=2)
    both = begin(prepared)[1]
    parts = [next(iter(make_starts(prepared, 1).parts))]
    alone = warm_up(parts[0], parts[0].noise_std, is_complex=True, new_maps=True, should_stop=None)
    torch.testing.assert_close(both.maps[:1], alone.maps, rtol=0, atol=2e-3)
    torch.testing.assert_close(both.image[:1], alone.image, rtol=0, atol=2e-3)
