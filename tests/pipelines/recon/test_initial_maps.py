"""The first maps: what is known stays, what is not known is filled, everywhere."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.operators.fourier import to_image, to_kspace
from pipelines.phantom import birdcage_coils, head_phantom, smooth_phase
from pipelines.recon.initial_maps import from_images, unit_phase, with_phase
from pipelines.recon.joint_problem import lengths, unit_maps


def scene(rows: int = 48, columns: int = 40, coils: int = 4, items: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Images with a smooth phase of their own, unit sensitivities, and which pixels hold the object."""
    rng = np.random.default_rng(8)
    object_ = torch.from_numpy(head_phantom(1, rows, columns))
    phases = torch.stack([torch.from_numpy(smooth_phase((rows, columns), rng)) for _ in range(items)])
    maps = unit_maps(torch.from_numpy(birdcage_coils(coils, (rows, columns)))[None])
    return object_ * phases, maps.expand(items, -1, -1, -1), object_[0] > 0.1


def low(images: Tensor) -> Tensor:
    """The central 24 x 24 points of k-space, by a window without edges."""
    kspace = to_kspace(images)
    for axis in (-2, -1):
        n = images.shape[axis]
        window = torch.cos((torch.arange(n) - n // 2).clamp(-12, 12) * torch.pi / 24).square()
        kspace = kspace * (window[:, None] if axis == -2 else window)
    return to_image(kspace)


def steepest(maps: Tensor) -> float:
    return max(float(lengths(maps.diff(dim=axis)).max()) for axis in (-2, -1))


def test_maps_carry_the_phase_of_the_image_and_give_it_back():
    images, maps, inside = scene(items=2)
    known = maps * inside
    found, phase = with_phase(known, low(maps * images[:, None]))
    expected = maps * unit_phase(images)[:, None]
    overlap = (found.conj() * expected).sum(1)
    # The phase is that of an image of low resolution; the dark rim of the object has less of it.
    assert float((1 - overlap.real)[:, inside].mean()) < 2e-3
    assert float((unit_phase(images).conj() * phase).real[:, inside].mean()) > 0.998
    # Sensitivity is what is left of the maps without the phase.
    torch.testing.assert_close((found * phase.conj()[:, None] * maps.conj()).sum(1).imag[:, inside].abs().max(),
                               torch.tensor(0.0), rtol=0, atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_brightness_does_not_count(scale: float):
    images, maps, inside = scene()
    for found, expected in zip(
        with_phase(maps * inside, scale * low(maps * images[:, None])),
        with_phase(maps * inside, low(maps * images[:, None])),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_maps_are_smooth_and_of_length_one_everywhere():
    images, maps, inside = scene()
    for found, phase in (
        with_phase(maps * inside, low(maps * images[:, None])),
        from_images(low(maps * images[:, None]), 0),
    ):
        torch.testing.assert_close(lengths(found), torch.ones(1, 48, 40))
        torch.testing.assert_close(phase.abs(), torch.ones(1, 48, 40))
        assert steepest(found) < 0.5


@pytest.mark.parametrize("at", [(10, 12), (150, 6)])
def test_a_small_object_far_away_leaves_no_holes(at: tuple[int, int]):
    rows, columns = 160, 130
    distance = ((torch.arange(rows) - at[0]).square()[:, None] + (torch.arange(columns) - at[1]).square()).sqrt()
    inside = distance < 5
    maps = unit_maps(torch.from_numpy(birdcage_coils(3, (rows, columns)))[None])
    coils = maps * inside
    for found, _ in (with_phase(maps * inside, coils), from_images(coils, 1)):
        torch.testing.assert_close(lengths(found), torch.ones(1, rows, columns))
        assert steepest(found) < 0.5
        # Near the object maps go on as they are in it.
        near = (distance > 5) & (distance < 9)
        assert float((found.conj() * maps).sum(1).real[0, near].min()) > 0.9


def test_items_do_not_touch_each_other():
    images, maps, inside = scene(items=3)
    coils = low(maps * images[:, None])
    together, phase = with_phase(maps * inside, coils)
    for item in range(3):
        alone, its = with_phase(maps[item : item + 1] * inside, coils[item : item + 1])
        torch.testing.assert_close(alone[0], together[item], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(its[0], phase[item], rtol=1e-5, atol=1e-5)


def test_without_sensitivities_the_reference_coil_is_real():
    images, maps, _ = scene()
    found, phase = from_images(low(maps * images[:, None]), 2)
    sensitivity = (found * phase.conj()[:, None])[:, 2]
    torch.testing.assert_close(sensitivity.imag, torch.zeros(1, 48, 40), rtol=0, atol=1e-5)
    assert float(sensitivity.real.min()) >= 0


def test_nothing_known_gives_zeros_and_no_phase():
    zero = torch.zeros(2, 3, 12, 9, dtype=torch.complex64)
    for maps, phase in (with_phase(zero, zero), from_images(zero, 0)):
        assert not bool(maps.abs().any())
        assert torch.equal(phase, torch.ones_like(phase))


@pytest.mark.parametrize("shape", [(1, 17), (17, 1), (2, 3), (5, 64)])
def test_planes_of_any_shape_are_filled(shape: tuple[int, int]):
    coils = torch.ones((1, 2, *shape), dtype=torch.complex64)
    coils[..., 0, 0] = 0
    found, _ = from_images(coils, 0)
    torch.testing.assert_close(lengths(found), torch.ones(1, *shape))
