"""ESPIRiT maps against the maps that the simulation used."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.errors import ReconstructionError
from pipelines.operators.fourier import to_image, to_kspace
from pipelines.phantom import birdcage_coils, head_phantom, smooth_phase
from pipelines.preprocess import sensitivities
from pipelines.preprocess.sensitivities import estimate_maps


def simulated(n_coils: int, n_y: int, n_x: int) -> tuple[Tensor, Tensor, Tensor]:
    """K-space `(coils, 1, y, x)`, true maps, and where the object is."""
    anatomy = head_phantom(1, n_y, n_x)
    image = torch.from_numpy(anatomy * smooth_phase((n_y, n_x), np.random.default_rng(3)))
    maps = torch.from_numpy(birdcage_coils(n_coils, (n_y, n_x)))[:, None]
    return to_kspace(image * maps), maps, torch.from_numpy(anatomy > 0.1)


def central_lines(kspace: Tensor, n_lines: int) -> Tensor:
    start = kspace.shape[2] // 2 - n_lines // 2
    return kspace[:, :, start : start + n_lines]


def map_error(maps: Tensor, truth: Tensor, inside: Tensor) -> float:
    """Root mean square of `|maps - truth|` over pixels, after the best phase of each pixel."""
    likeness = (maps.conj() * truth).sum(0).abs()[inside]
    length = maps.abs().square().sum(0)[inside]
    return float((1 + length - 2 * likeness).clamp(min=0).mean().sqrt())


@pytest.mark.parametrize(
    ("n_coils", "n_y", "n_x", "n_lines"),
    [
        (8, 96, 96, 24),
        (8, 97, 80, 24),
        (4, 64, 101, 20),
        (2, 96, 96, 24),
        (32, 96, 96, 24),
        (8, 96, 96, 64),
        (8, 20, 96, 20),
    ],
)
def test_maps_are_those_of_the_coils_up_to_phase(n_coils: int, n_y: int, n_x: int, n_lines: int):
    kspace, truth, inside = simulated(n_coils, n_y, n_x)
    maps = estimate_maps(central_lines(kspace, n_lines), (1, n_y, n_x))
    # A kernel of 6 points describes birdcage coils of radius 1.5 to 1 to 2 %: what BART reaches on the same data.
    assert map_error(maps, truth, inside) < 0.03


def test_eight_lines_still_give_usable_maps_over_the_whole_object():
    kspace, truth, inside = simulated(8, 96, 96)
    maps = estimate_maps(central_lines(kspace, 8), (1, 96, 96))
    # The kernel shrinks to 4 points along y, which describes the coils to some per cent.
    assert map_error(maps, truth, inside) < 0.1


def test_maps_are_normalised_inside_the_support_and_zero_outside():
    kspace, _, inside = simulated(8, 96, 96)
    maps = estimate_maps(central_lines(kspace, 24), (1, 96, 96))
    power = maps.abs().square().sum(0)
    support = power > 0
    assert bool(support[inside].all())
    assert not bool(support.all())
    torch.testing.assert_close(power[support], torch.ones_like(power[support]))


@pytest.mark.parametrize("level", [1e-12, 1.0, 1e12])
def test_maps_do_not_depend_on_the_scale_of_the_data(level: float):
    kspace, _, _ = simulated(8, 48, 48)
    calibration = central_lines(kspace, 24)
    expected = estimate_maps(calibration, (1, 48, 48))
    torch.testing.assert_close(estimate_maps(calibration * level, (1, 48, 48)), expected, rtol=1e-3, atol=1e-3)


def test_coarse_grid_gives_the_maps_of_the_full_grid(monkeypatch: pytest.MonkeyPatch):
    kspace, _, inside = simulated(8, 128, 128)
    calibration = central_lines(kspace, 24)
    coarse = estimate_maps(calibration, (1, 128, 128))
    monkeypatch.setattr(sensitivities, "POINTS_PER_TERM", 1000)
    full = estimate_maps(calibration, (1, 128, 128))
    # Interpolated at 6 points a term; a third of the 1 % that separates either from the truth.
    assert map_error(coarse, full, inside) < 3e-3


def test_volume_with_calibration_along_z():
    kspace, _, _ = simulated(4, 40, 40)
    slab = torch.hann_window(18)[1:-1, None, None]
    tilt = torch.exp(1j * torch.outer(torch.arange(4.0), torch.linspace(-0.3, 0.3, 16)))[:, :, None, None]
    coils = to_image(kspace) * slab * tilt
    truth = coils / torch.linalg.vector_norm(coils, dim=0).clamp_min(1e-9)
    inside = torch.linalg.vector_norm(coils, dim=0) > 0.2 * float(torch.linalg.vector_norm(coils, dim=0).max())
    maps = estimate_maps(to_kspace(coils, (-3, -2, -1))[:, 4:12, 8:32, 8:32], (16, 40, 40))
    assert maps.shape == (4, 16, 40, 40)
    # Eight lines along z leave a kernel of 4 points there: some per cent.
    assert map_error(maps, truth, inside) < 0.1


def test_one_coil_gets_ones():
    calibration = torch.randn(1, 1, 8, 9, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert bool((estimate_maps(calibration, (1, 5, 7)) == 1).all())


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (3, 1, 4, 9), (64, 1, 8, 8), (5, 3, 7, 8)])
def test_no_signal_gives_zeros_and_noise_gives_finite_maps(shape: tuple[int, ...]):
    assert not bool(estimate_maps(torch.zeros(shape, dtype=torch.complex64), (2, 9, 8)).any())
    noise = torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    power = estimate_maps(noise, (2, 9, 8)).abs().square().sum(0)
    assert bool(torch.isfinite(power).all())
    assert float(power.max()) < 1 + 1e-4


def test_noise_leaves_the_whole_object_in_the_support():
    kspace, _, inside = simulated(8, 96, 96)
    noise = torch.randn(kspace.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    for level in (0.03, 0.3, 3.0):
        maps = estimate_maps(central_lines(kspace + level * noise, 24), (1, 96, 96))
        assert float((maps.abs().sum(0) > 0)[inside].float().mean()) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_holes_of_the_support_are_filled_and_bays_are_not(axis: int):
    eigenvalues = torch.ones(60, 50)
    eigenvalues[:8], eigenvalues[:, -9:] = 0.3, 0.3
    eigenvalues[20:34, 15:30] = 0.8  # a hole that a margin of two pixels does not close
    eigenvalues[45:60, 20:33] = 0.8  # a bay, open to the edge of the field of view
    support = sensitivities._support(eigenvalues.unsqueeze(axis)).squeeze(axis)
    assert bool(support[15:40, 10:35].all())
    assert not bool(support[50:, 24:29].any())
    assert not bool(support[0].any())
    assert not bool(support[:, -1].any())


def test_a_cavity_of_a_volume_is_filled_and_a_tunnel_is_not():
    eigenvalues = torch.ones(30, 44, 44)
    eigenvalues[9:21, 4:16, 4:16] = 0.5
    eigenvalues[:, 26:38, 26:38] = 0.5
    support = sensitivities._support(eigenvalues)
    assert bool(support[:, :20, :20].all())
    assert not bool(support[:, 31:33, 31:33].any())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 1), (2, 3, 4)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_fields_of_view_without_an_inside_keep_their_support(shape: tuple[int, ...], value: float):
    support = sensitivities._support(torch.full(shape, value))
    assert support.shape == shape
    assert bool((support == (value > 0)).all())


@pytest.mark.localdata
def test_nine_lines_leave_no_hole_in_the_real_brain():
    path = Path("/work/shared/data/kspace/brain_8ch_full_localonly.h5")
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with h5py.File(path) as file:
        kspace = torch.from_numpy(np.asarray(file["kspace"], np.complex64))[:, None]
    magnitude = torch.linalg.vector_norm(to_image(kspace), dim=0)
    maps = estimate_maps(central_lines(kspace, 9), (1, *kspace.shape[2:]))
    assert bool((maps.abs().sum(0) > 0)[magnitude > 0.1 * magnitude.max()].all())


def test_values_that_are_not_finite_are_refused():
    calibration = torch.ones(2, 1, 8, 8, dtype=torch.complex64)
    calibration[1, 0, 3, 3] = complex(float("nan"), 0)
    with pytest.raises(ReconstructionError, match="not finite"):
        estimate_maps(calibration, (1, 8, 8))
